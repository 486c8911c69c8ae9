"""A server whose attempts run as pods do, without Kubernetes: each task's runner is a process with a folder of its own.

Started as a program it is that server: ``python -m tests.process.pods`` with a server's arguments. What plays Kubernetes
knows nothing of an attempt but what its runners report.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from danlu.api.bodies import LogsQuery
from danlu.config import Settings
from danlu.database.engine import Database
from danlu.domain.nodes import NodeCapacity
from danlu.domain.sessions import SessionRequest
from danlu.errors import ExecutorUnavailable
from danlu.executors import orders, told
from danlu.executors.base import Capabilities, Collected, LaunchOrder, Notice, Observation, Phase
from danlu.executors.kubernetes import zipapp
from danlu.runner import formats
from danlu.server.executors import Known, Runs
from danlu.server.main import main
from danlu.services import reports
from tests.process.platform import Server

PYTHON = "DANLU_TEST_POD_PYTHON"
URL = "DANLU_TEST_POD_URL"
"""Where pods find the server, instead of where it is: somebody in between who does harm."""


class Kubernetes:
    """Plays it: see Executor and Spools."""

    capabilities = Capabilities(name="pods", host_environment=True)

    def __init__(self, folder: Path, database: Database) -> None:
        self._folder, self.database = folder, database

    def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "runner.pyz").write_bytes(zipapp.build())

    def close(self) -> None:
        """Pods go on."""

    def capacity(self) -> tuple[NodeCapacity, ...]:
        return (NodeCapacity(name="somewhere", cpu_milli=64_000, memory_bytes=2**36),)

    def launch(self, order: LaunchOrder) -> None:
        folder = self._folder / order.attempt.id
        if folder.exists():
            return
        for task in order.attempt.tasks:
            root = folder / task.name
            (root / "order").mkdir(parents=True)
            where = orders.Folders(root / "attempt", root / "checkpoints", root / "attempt" / "sdk", root / "secrets")
            content = orders.order_file(order, where)
            for spec in content["tasks"]:
                spec["devices"] = None
            content["pod"] = {
                "url": os.environ.get(URL, order.url), "attempt_id": order.attempt.id, "code": order.job.spec.code,
                "heartbeat_s": 1, "timeout_s": 5,
            }  # fmt: skip
            (root / "order" / "order.json").write_text(orders.order_text(content))
            (root / "order" / "token").write_text(order.token)
            start(root, task.role, task.index)

    def observe(self) -> tuple[Observation, ...]:
        seen = reports.seen(self.database)()
        return tuple(self._observation(path, seen.get(path.name, {})) for path in sorted(self._folder.glob("j*")))

    def _observation(self, folder: Path, said: Any) -> Observation:
        if any((root / "lost").exists() for root in folder.iterdir()):
            return Observation(attempt_id=folder.name, phase=Phase.LOST, message="its node is gone")
        specs = [json.loads((path / "order" / "order.json").read_text())["tasks"] for path in sorted(folder.iterdir())]
        if not specs:
            raise ExecutorUnavailable(f"{folder.name} is being made")
        events = [event for report in said.values() for event in report.events]
        ended = [event for event in events if event["event"] == "ended"]
        if len(ended) < len(specs[0]):
            events = [event for event in events if event["event"] != "ended"]
        elif any(event.get("evicted") for event in ended):
            events.append({**ended[0], "lost": True, "stopped": False})
        events.sort(key=lambda event: (event["event"] == "ended", event["at"]))
        saved = max((report.saved for report in said.values() if report.saved), key=lambda one: one.at, default=None)
        found = told.observation(folder.name, specs[0], told.Status(events), saved and saved.model_dump(), ())
        if found.phase in (Phase.ENDED, Phase.LOST) and any(alive(root) for root in folder.iterdir()):
            return found.model_copy(update={"phase": Phase.RUNNING})
        return found

    def stop(self, attempt_id: str, *, grace_s: float, notice: Notice | None = None) -> None:
        """The runners ask for it themselves."""

    def forget(self, attempt_id: str) -> None:
        folder = self._folder / attempt_id
        if folder.exists() and not any(alive(root) for root in folder.iterdir()):
            folder.rename(folder.with_name(f"over-{attempt_id}"))

    def open_session(self, attempt_id: str, task: str, request: SessionRequest) -> socket.socket:
        raise ExecutorUnavailable("these pods let nobody in")

    def pending(self, attempt_id: str, *, max_bytes: int) -> Iterable[Collected]:
        return ()

    def collected(self, piece: Collected, *, durably: Callable[[], None]) -> None:
        raise AssertionError("nothing is pending")

    def outputs(self, attempt_id: str) -> Path | None:
        return None

    def checkpoint_owners(self) -> Iterable[str]:
        return ()

    def checkpoint_bytes(self, owner: str) -> int:
        return 0


def start(root: Path, role: str = "main", index: int = 0) -> subprocess.Popen[bytes]:
    """Starts what runs in a pod; it outlives this process."""
    environ = {"DANLU_POD_ROOT": str(root), "DANLU_POD_ROLE": role, "JOB_COMPLETION_INDEX": str(index), "PATH": os.defpath,
               "CUDA_VISIBLE_DEVICES": "GPU-of-the-plugin"}  # fmt: skip
    runner = next(path for path in (one / "runner.pyz" for one in root.parents) if path.exists())
    with (root / "container.log").open("ab") as log:
        pod = subprocess.Popen(
            [os.environ.get(PYTHON, sys.executable), "-I", "-S", "-W", "error", str(runner), "pod"], env=environ,
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    (root / "pid").write_text(f"{pod.pid} {formats.start_time(pod.pid)}")
    return pod


def alive(root: Path) -> bool:
    """Says whether a pod's process still runs."""
    try:
        pid, born = (root / "pid").read_text().split()
    except (FileNotFoundError, ValueError):
        return False
    return str(formats.start_time(int(pid))) == born


class Pods(Server):
    """Such a server, seen from a test."""

    def __init__(self, home: Path, *arguments: str, environ: dict[str, str] | None = None) -> None:
        super().__init__(home, *arguments, environ=environ)
        self.program = ("-m", "tests.process.pods")

    def root(self, attempt_id: str, task: str = "main-0") -> Path:
        """Returns a pod's folder, also of one that is over."""
        found = [self.home / "pods" / name / task for name in (attempt_id, f"over-{attempt_id}")]
        return next((path for path in found if path.exists()), found[0])

    def pid(self, attempt_id: str, task: str = "main-0") -> int:
        return int((self.root(attempt_id, task) / "pid").read_text().split()[0])

    def container_log(self, attempt_id: str, task: str = "main-0") -> str:
        return (self.root(attempt_id, task) / "container.log").read_text()

    def status(self, attempt_id: str, task: str = "main-0") -> list[dict[str, Any]]:
        return formats.read_status(str(self.root(attempt_id, task) / "attempt" / "status"))

    def runners(self) -> Iterator[int]:
        """Yields the processes that are pods."""
        for path in (self.home / "pods").glob("*/*/pid"):
            if alive(path.parent):
                yield int(path.read_text().split()[0])

    def lines_so_far(self, job_id: str, attempt: int) -> list[str]:
        """Returns what an attempt has printed as far as the server has it."""
        with self.client() as client:
            page = client.call("jobs.logs", {"job": job_id}, query=LogsQuery(attempt=attempt))
        return [line.text for chunk in page.chunks for line in formats.parse_lines(chunk.data)]

    def close(self) -> None:
        for pid in self.runners():
            os.kill(pid, signal.SIGKILL)
        super().close()


def pods(settings: Settings, known: Known) -> Runs:
    executor = Kubernetes(settings.home / "pods", known.database)
    executor.start()
    return Runs(executor, None, executor.close)


if __name__ == "__main__":
    sys.exit(main(pods))
