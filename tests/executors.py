"""Executors on a bench: one way to order, watch and wait, whatever runs the attempts."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from danlu.blobs.code import Code
from danlu.blobs.local import LocalBlobs
from danlu.domain.environments import Interpreter
from danlu.domain.jobs import Task
from danlu.domain.secrets import HandedSecret
from danlu.executors.base import Executor, LaunchOrder, Notice, Observation, Phase, Spools
from danlu.executors.local.executor import LocalConfig, LocalExecutor
from danlu.executors.simulated import AT_NOTICE, SimulatedExecutor
from danlu.runner import formats
from tests.factories import NOW, SECOND, Ids, make_attempt, make_capacity, make_job

OVER = (Phase.ENDED, Phase.LOST)
TIMEOUT_S = 30.0


def free_ports(count: int) -> tuple[int, ...]:
    """Returns ports that are free now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return tuple(one.getsockname()[1] for one in sockets)


def notice(within_s: float, number: str = "TERM") -> Notice:
    """Returns that a job has to make way within some seconds from now on."""
    deadline = time.time_ns() + int(within_s * SECOND)
    return Notice(signal=number, within_s=within_s, deadline=deadline, why="its queue is full", whom="job big")


class Bench:
    """One executor, with what tests do to it."""

    executor: Any
    ids = Ids(int.from_bytes(os.urandom(8), "big"))
    """no two runs share an attempt's id: control groups outlive a test's folder"""

    def order(self, *words: str, number: int = 1, job_id: str | None = None, task: dict[str, Any] | None = None,
              handed: tuple[HandedSecret, ...] = (), **spec: Any) -> LaunchOrder:  # fmt: skip
        job = make_job(job_id or self.ids(), now=time.time_ns(), spec={"command": list(words), **spec})
        tasks = tuple(
            Task.model_validate(
                {
                    "role": asked.role, "index": asked.index, "rank": asked.rank, "node": "node-1",
                    "resources": asked.resources, "ports": free_ports(1) if spec.get("roles") else (), **(task or {}),
                }
            )
            for asked in job.spec.tasks
        )  # fmt: skip
        attempt = make_attempt(job, number, tasks=tasks)
        return LaunchOrder(
            job=job, attempt=attempt, interpreter=self.interpreter(), project_number=0, url="http://127.0.0.1:1",
            token="danlu_attempt_secret", secrets=handed,
        )  # fmt: skip

    def interpreter(self) -> Interpreter | None:
        return None

    def launch(self, *words: str, **fields: Any) -> str:
        order = self.order(*words, **fields)
        self.executor.launch(order)
        return order.attempt.id

    def see(self, attempt_id: str) -> Observation | None:
        return next((one for one in self.executor.observe() if one.attempt_id == attempt_id), None)

    def log(self, attempt_id: str, task: str | None = None) -> str:
        pieces = self.executor.pending(attempt_id, max_bytes=1 << 20)
        data = b"".join(p.data for p in pieces if p.stream == formats.LOG and task in (None, p.task))
        return "\n".join(line.text for line in formats.parse_lines(data.decode()))

    def end(self, attempt_id: str) -> Observation:
        """Waits until the attempt has ended."""
        self.until(lambda: (seen := self.see(attempt_id)) is not None and seen.phase in OVER)
        seen = self.see(attempt_id)
        assert seen is not None
        return seen

    def printed(self, attempt_id: str, text: str) -> None:
        """Waits until the attempt has written ``text``."""
        self.until(lambda: text in self.log(attempt_id))

    def until(self, condition: Callable[[], bool]) -> None:
        raise NotImplementedError

    def again(self) -> None:
        """The server that had the executor was killed; another one takes over."""
        raise NotImplementedError

    def lose(self, attempt_id: str) -> None:
        """Kills the attempt's runner."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    # the same program in each executor's words

    def program(
        self,
        *,
        lines: tuple[str, ...] = (),
        code: int = 0,
        hold: bool = False,
        deaf: bool = False,
        heeds: bool = False,
        after_s: float = 0,
    ) -> list[str]:
        raise NotImplementedError


class LocalBench(Bench):
    to_redact: tuple[str, ...] = ()
    """what may be in the output of an attempt whose runner was killed"""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.runtime = home / "run"
        self.hints = threading.Event()
        home.chmod(0o711)
        self.executor = self._open()

    def _open(self) -> LocalExecutor:
        executor = LocalExecutor(
            LocalConfig(self.home, self.runtime), code=Code(LocalBlobs(self.home / "blobs")), hint=self.hints.set,
            secrets=lambda _attempt: self.to_redact,
        )  # fmt: skip
        executor.start()
        return executor

    def interpreter(self) -> Interpreter:
        folder = Path(sys.executable).parent
        return Interpreter(bin=folder, roots=(Path(sys.prefix), Path(sys.base_prefix)))

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            assert time.monotonic() < deadline, f"not within {TIMEOUT_S} s"
            self.hints.wait(0.02)
            self.hints.clear()

    def again(self) -> None:
        self.executor.close()
        self.executor = self._open()

    def tmp(self, attempt_id: str) -> Path:
        """Returns the folder that an attempt has as its /tmp."""
        own = self.home / "cache" / "code" / "writes" / attempt_id / "tmp"
        return own if own.is_dir() else Path("/tmp")

    def events(self, attempt_id: str) -> list[dict[str, Any]]:
        return formats.read_status(str(self.home / "attempts" / attempt_id / "status"))

    def runner_pid(self, attempt_id: str) -> int:
        return int(next(event["pid"] for event in self.events(attempt_id) if event["event"] == "runner"))

    def lose(self, attempt_id: str) -> None:
        os.kill(self.runner_pid(attempt_id), signal.SIGKILL)

    def close(self) -> None:
        for one in self.executor.observe():
            self.executor.stop(one.attempt_id, grace_s=0.0)
            self.end(one.attempt_id)
            self.executor.forget(one.attempt_id)
        self.executor.close()

    def program(
        self,
        *,
        lines: tuple[str, ...] = (),
        code: int = 0,
        hold: bool = False,
        deaf: bool = False,
        heeds: bool = False,
        after_s: float = 0,
    ) -> list[str]:
        text = "trap '' TERM\n" if deaf else ""
        if heeds:  # as a program does that saves when it is told that it has to make way
            text += (
                f"trap 'cd $DANLU_CHECKPOINT_DIR; echo {{}} > .x; mv .x {AT_NOTICE}-$DANLU_RANK.json; exit 0' TERM\n"
            )
        text += "".join(f"echo '{line}'\n" for line in lines)
        text += f"sleep {after_s}\n" if after_s else ""
        text += "while :; do sleep 0.1; done\n" if hold else ""
        return ["/bin/sh", "-c", f"{text}exit {code}"]


class SteppedClock:
    def __init__(self) -> None:
        self.at = NOW

    def now(self) -> int:
        return self.at


class SimulatedBench(Bench):
    def __init__(self) -> None:
        self.clock = SteppedClock()
        self.executor = SimulatedExecutor((make_capacity(),), self.clock, Random(1))

    def until(self, condition: Callable[[], bool]) -> None:
        for _ in range(1000):
            if condition():
                return
            self.clock.at += SECOND // 10
        raise AssertionError("not within 100 s")

    def again(self) -> None:
        """Its world is all that there is."""

    def lose(self, attempt_id: str) -> None:
        self.executor.processes[attempt_id].lost_at = self.clock.now()

    def close(self) -> None:
        assert all(process.over_at() is not None for process in self.executor.processes.values())

    def program(
        self,
        *,
        lines: tuple[str, ...] = (),
        code: int = 0,
        hold: bool = False,
        deaf: bool = False,
        heeds: bool = False,
        after_s: float = 0,
    ) -> list[str]:
        flags = [word for word, wanted in (("hold", hold), ("deaf", deaf), ("heeds", heeds)) if wanted]
        return ["simulated", *(f"print:{line}" for line in lines), f"sleep:{after_s}", *flags, f"exit:{code}"]


def benches(kind: str, folder: Path) -> Iterator[Bench]:
    """Yields a bench and takes it down again."""
    from tests.pod_bench import PodBench

    bench: Bench = {"simulated": SimulatedBench, "kubernetes": PodBench, "local": lambda: LocalBench(folder)}[kind]()
    yield bench
    bench.close()


def is_complete(executor: Any) -> tuple[Executor, Spools]:
    """Lets the type checker see that both protocols are there."""
    return executor, executor
