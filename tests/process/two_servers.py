"""A server as main makes it, but for what runs attempts: scripts in a folder, which several servers share as a cluster.

``python -m tests.process.two_servers WORLD --home HOME ...`` is such a server.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

from danlu.config import Settings
from danlu.domain.jobs import JobState
from danlu.domain.nodes import NodeCapacity
from danlu.domain.views import Leading
from danlu.errors import DanluError
from danlu.executors.base import Capabilities, Collected, LaunchOrder, Notice, Observation
from danlu.executors.simulated import Process, SimulatedExecutor
from danlu.server.clock import SystemClock
from danlu.server.executors import Known, Make, Runs
from danlu.server.main import main
from tests.process.platform import Server, until

NODE = NodeCapacity(name="node-1", cpu_milli=8000, memory_bytes=64 * 2**30)
LAUNCHES = "launches"


class FolderExecutor(SimulatedExecutor):
    """Attempts are files. Each call is one step of the file system, so that a server may be stopped anywhere."""

    folder: Path
    lock: threading.RLock

    def launch(self, order: LaunchOrder) -> None:
        name = order.attempt.id
        if (self.folder / f"{name}.forgotten").exists():
            raise AssertionError(f"{name} is launched after it was forgotten")
        one = SimulatedExecutor(self.nodes, self.clock, self.random)
        one.launch(order)
        unfinished = self.folder / f"{name}.{os.getpid()}"
        unfinished.write_bytes(pickle.dumps(one.processes[name]))
        with contextlib.suppress(FileExistsError):
            os.link(unfinished, self.folder / f"{name}.attempt")
            with (self.folder / LAUNCHES).open("a") as file:
                file.write(f"{name}\n")
        unfinished.unlink()

    def observe(self) -> tuple[Observation, ...]:
        with self.lock:
            self._look()
            return super().observe()

    def stop(self, attempt_id: str, *, grace_s: float, notice: Notice | None = None) -> None:
        assert notice is None
        if (self.folder / f"{attempt_id}.attempt").exists():
            (self.folder / f"{attempt_id}.stop").touch()

    def forget(self, attempt_id: str) -> None:
        with self.lock:
            self._look()
            super().forget(attempt_id)
            if attempt_id not in self.processes:
                with contextlib.suppress(FileNotFoundError):
                    (self.folder / f"{attempt_id}.attempt").rename(self.folder / f"{attempt_id}.forgotten")

    def pending(self, attempt_id: str, *, max_bytes: int) -> Iterable[Any]:
        with self.lock:
            self._look()
            return list(super().pending(attempt_id, max_bytes=max_bytes))

    def collected(self, piece: Collected, *, durably: Callable[[], None]) -> None:
        with self.lock:
            super().collected(piece, durably=durably)

    def _look(self) -> None:
        found: dict[str, Process] = {}
        for file in sorted(self.folder.glob("*.attempt")):
            with contextlib.suppress(FileNotFoundError):  # another server has just forgotten it
                process = found[file.stem] = self.processes.get(file.stem) or pickle.loads(file.read_bytes())
                with contextlib.suppress(FileNotFoundError):
                    process.stopped_at = process.killed_at = file.with_suffix(".stop").stat().st_mtime_ns
        self.processes = found


def shared(world: Path) -> Make:
    def make(settings: Settings, known: Known) -> Runs:
        capabilities = Capabilities(name="simulated", host_environment=True, shared=True)
        executor = FolderExecutor((NODE,), SystemClock(), Random(os.getpid()), capabilities=capabilities)
        executor.folder, executor.lock = world, threading.RLock()
        return Runs(executor, None, lambda: None)

    return make


class Pair:
    """Two servers of one database, with a client that submits to both as long as it is asked to."""

    def __init__(self, folder: Path, database_url: str) -> None:
        self.world = folder / "world"
        self.world.mkdir(parents=True)
        self.a, self.b = self.servers = tuple(
            Server(folder / name, environ=self._environ(database_url)) for name in "ab"
        )
        for server in self.servers:
            server.program = ("-m", "tests.process.two_servers", str(self.world))
        (folder / "a" / "blobs").mkdir(parents=True)
        (folder / "b").mkdir()
        (folder / "b" / "blobs").symlink_to(folder / "a" / "blobs")  # as an object store is everybody's
        self.accepted: list[str] = []
        self.refused: list[Exception] = []
        self._enough = threading.Event()
        self._clients: list[threading.Thread] = []

    @staticmethod
    def _environ(database_url: str) -> dict[str, str]:
        return {"DANLU_DATABASE_URL": database_url, "DANLU_MASTER_KEY": "ab" * 32}

    def start(self) -> None:
        """Starts both; the first leads."""
        for server in self.servers:
            said = server.start()
            assert said.get("ready"), said
        assert self.leader(self.a).here
        assert not self.leader(self.b).here

    @staticmethod
    def leader(server: Server) -> Leading:
        """Returns who leads, as a server tells."""
        with server.client() as client:
            found: Leading = client.call("platform.get").leader
        return found

    def submit(self) -> None:
        """Begins to submit, some jobs a second, to each server. What it accepts is remembered."""
        self._clients = [threading.Thread(target=self._submit, args=(server,), daemon=True) for server in self.servers]
        for client in self._clients:
            client.start()

    def _submit(self, server: Server) -> None:
        words = ("simulated", "print:hello", "sleep:0.5")
        while not self._enough.wait(0.2):
            try:
                self.accepted.append(server.submit(*words).id)
            except (DanluError, OSError) as error:
                self.refused.append(error)

    def enough(self) -> None:
        """Ends what submit() has begun."""
        self._enough.set()
        for client in self._clients:
            client.join(60)

    def takeover_s(self, what: Callable[[], object]) -> float:
        """Does something to the first server, and returns how long it takes from there until the second one leads."""
        began = time.monotonic()
        what()
        until(lambda: self.leader(self.b).here, 60, "the other server leads")
        return time.monotonic() - began

    def wait_for_more(self, count: int) -> None:
        """Waits until so many more jobs were accepted."""
        enough = len(self.accepted) + count
        until(lambda: len(self.accepted) >= enough, 60, "jobs are accepted")

    def wrong(self, server: Server) -> list[str]:
        """Waits for all accepted jobs, and returns what was lost of them, or done twice, or done for nobody."""
        found = []
        for job_id in self.accepted:
            job = server.wait(job_id, 120)
            if (job.state, job.attempts) != (JobState.SUCCEEDED, 1) or server.lines(job_id, 1) != ["hello"]:
                found.append(f"{job_id} is {job.state} ({job.message}) after {job.attempts} attempts")
        launches = self.launches()
        found += [f"{name} was launched twice" for name in set(launches) if launches.count(name) > 1]
        return found + sorted({name.rpartition("-")[0] for name in launches} ^ set(self.accepted))

    def launches(self) -> list[str]:
        """Returns the attempts that were ever started."""
        return (self.world / LAUNCHES).read_text().split()

    def close(self) -> None:
        self._enough.set()
        for server in self.servers:
            if server.process is not None and server.process.poll() is None:
                server.process.send_signal(signal.SIGCONT)
                server.kill()


if __name__ == "__main__":
    made = shared(Path(sys.argv.pop(1)))
    sys.exit(main(made))
