"""An executor without processes: attempts are scripts played against a given clock, with faults on demand. For tests.

A job's command is its script, after the word ``simulated``: ``print:TEXT`` writes a line, ``sleep:SECONDS`` lets time pass,
``hold`` goes on until it is stopped, ``deaf`` makes it ignore SIGTERM, ``lost`` loses its runner, ``exit:CODE`` says with
what it ends, else 0. Nothing here depends on anything but the clock, the random numbers and the calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final, Protocol

from danlu.domain.jobs import Task
from danlu.domain.nodes import NodeCapacity
from danlu.errors import ExecutorUnavailable, LaunchRejected
from danlu.executors.base import Capabilities, Collected, LaunchOrder, Observation, Phase
from danlu.runner import formats

SECOND: Final = 1_000_000_000
SIGTERM, SIGKILL = 15, 9
LOG_TASK: Final = "main-0"


class Now(Protocol):
    """Tells the time."""

    def now(self) -> int:
        """Returns ns UTC."""


@dataclass(frozen=True, slots=True)
class Faults:
    """How often (0..1) things go wrong."""

    unavailable: float = 0.0
    """a call fails before it does anything"""
    unheard: float = 0.0
    """a launch works, but its caller is told that the executor is unavailable, and cannot see it until it begins"""
    rejected: float = 0.0
    lost: float = 0.0
    """a runner is killed at some moment of its attempt"""


@dataclass(slots=True)
class Process:
    """One attempt in the simulated world."""

    order: LaunchOrder
    begins_at: int
    lines: tuple[tuple[int, str], ...]
    ends_at: int | None
    exit_code: int | None
    deaf: bool
    lost_at: int | None
    stopped_at: int | None = None
    killed_at: int | None = None
    collected: int = 0
    hidden: bool = False

    def over_at(self) -> int | None:
        """Returns when nothing of it is left any more; None while that is not known."""
        known = [at for at in (self._own_end(), self.lost_at, self._stop_end()) if at is not None]
        return min(known, default=None)

    def _own_end(self) -> int | None:
        return self.ends_at

    def _stop_end(self) -> int | None:
        if self.stopped_at is None:
            return None
        return self.killed_at if self.deaf else min(self.stopped_at + SECOND // 10, self.killed_at or 2**63)

    def was_stopped(self) -> bool:
        """Whether it ended because it was asked to."""
        end = self.over_at()
        return end is not None and end == self._stop_end() and end not in (self._own_end(), self.lost_at)

    def log(self, now: int) -> bytes:
        """Returns what it has written until ``now``."""
        end = self.over_at()
        until = now if end is None else min(now, end)
        return b"".join(
            formats.stamp(at, formats.STDOUT, formats.WHOLE, text.encode()) for at, text in self.lines if at <= until
        )


@dataclass(slots=True)
class SimulatedExecutor:
    """See Executor and Spools in executors/base.py."""

    nodes: tuple[NodeCapacity, ...]
    clock: Now
    random: Random
    faults: Faults = field(default_factory=Faults)
    capabilities: Capabilities = field(default_factory=lambda: Capabilities(name="simulated", host_environment=True))
    processes: dict[str, Process] = field(default_factory=dict)
    begun: list[str] = field(default_factory=list)
    """every attempt that was ever started, in order"""
    written: dict[str, bytes] = field(default_factory=dict)
    """what each forgotten attempt had written in all"""

    def _perhaps_unavailable(self) -> None:
        if self.random.random() < self.faults.unavailable:
            raise ExecutorUnavailable("the simulated executor does not answer")

    def capacity(self) -> tuple[NodeCapacity, ...]:
        """See Executor."""
        self._perhaps_unavailable()
        return self.nodes

    def launch(self, order: LaunchOrder) -> None:
        """See Executor."""
        self._perhaps_unavailable()
        if self.random.random() < self.faults.rejected:
            raise LaunchRejected("the simulated executor refuses it")
        if order.attempt.id not in self.processes:
            self._begin(order)
        if self.random.random() < self.faults.unheard:
            self.processes[order.attempt.id].hidden = True
            raise ExecutorUnavailable("the answer was lost")

    def _begin(self, order: LaunchOrder) -> None:
        now = self.clock.now()
        at = now + int(self.random.uniform(0.001, 0.5) * SECOND)
        begins_at, lines, ends_at, code, deaf, lost_at = at, list[tuple[int, str]](), None, 0, False, None
        for word in order.job.spec.argv[1:]:
            verb, _, value = word.partition(":")
            if verb == "print":
                lines.append((at, value))
            elif verb == "sleep":
                at += int(float(value) * SECOND)
            elif verb == "deaf":
                deaf = True
            elif verb == "lost":
                lost_at = at
            elif verb == "exit":
                code = int(value)
        if "hold" not in order.job.spec.argv:
            ends_at = at
        if lost_at is None and self.random.random() < self.faults.lost:
            lost_at = now + int(self.random.uniform(0.0, 10.0) * SECOND)
        self.processes[order.attempt.id] = Process(order, begins_at, tuple(lines), ends_at, code, deaf, lost_at)
        self.begun.append(order.attempt.id)

    def observe(self) -> tuple[Observation, ...]:
        """See Executor."""
        self._perhaps_unavailable()
        now = self.clock.now()
        return tuple(
            self._observation(attempt_id, process, now)
            for attempt_id, process in self.processes.items()
            if not process.hidden or process.begins_at <= now
        )

    def _observation(self, attempt_id: str, process: Process, now: int) -> Observation:
        over = process.over_at()
        ended = over is not None and over <= now
        started = process.begins_at if process.begins_at <= now else None
        phase = Phase.RUNNING if started is not None else Phase.STARTING
        lost = ended and over == process.lost_at
        stopped = ended and process.was_stopped()
        if ended:
            phase = Phase.LOST if lost else Phase.ENDED
        tasks = tuple(self._task(task, process, ended=ended, stopped=stopped) for task in process.order.attempt.tasks)
        return Observation(
            attempt_id=attempt_id, phase=phase, tasks=tasks if started is not None or ended else (),
            started_at=started, ended_at=over if ended else None, stopped=stopped,
        )  # fmt: skip

    @staticmethod
    def _task(task: Task, process: Process, *, ended: bool, stopped: bool) -> Task:
        if not ended:
            return task.model_copy(update={"started_at": process.begins_at})
        signal = SIGKILL if process.deaf else SIGTERM
        over = process.over_at() or 0
        code = None if stopped or over == process.lost_at else process.exit_code
        return task.model_copy(
            update={
                "started_at": process.begins_at if process.begins_at <= over else None,
                "ended_at": over,
                "exit_code": code,
                "signal": signal if stopped else None,
            }
        )

    def stop(self, attempt_id: str, *, grace_s: float) -> None:
        """See Executor."""
        self._perhaps_unavailable()
        process = self.processes.get(attempt_id)
        if process is None:
            return
        now = self.clock.now()
        if process.stopped_at is None:
            process.stopped_at = now
        unbegun = process.begins_at > now  # its runner finds the stop before it starts anything
        killed_at = now if unbegun else now + int(grace_s * SECOND)
        process.killed_at = killed_at if process.killed_at is None else min(process.killed_at, killed_at)

    def forget(self, attempt_id: str) -> None:
        """See Executor."""
        self._perhaps_unavailable()
        process = self.processes.get(attempt_id)
        over = None if process is None else process.over_at()
        if process is not None and over is not None and over <= self.clock.now():
            self.written[attempt_id] = process.log(self.clock.now())
            del self.processes[attempt_id]

    # Spools

    def pending(self, attempt_id: str, *, max_bytes: int) -> Iterable[Collected]:
        """See Spools."""
        return self._pending(attempt_id, max_bytes)

    def _pending(self, attempt_id: str, max_bytes: int) -> Iterator[Collected]:
        process = self.processes.get(attempt_id)
        if process is None:
            return
        data = process.log(self.clock.now())
        for at in range(process.collected, len(data), max_bytes):
            piece = data[at : at + max_bytes]
            yield Collected(attempt_id=attempt_id, task=LOG_TASK, stream=formats.LOG, offset=at, data=piece)

    def collected(self, piece: Collected, *, durably: Callable[[], None]) -> None:
        """See Spools."""
        process = self.processes.get(piece.attempt_id)
        if process is not None:
            durably()
            process.collected = max(process.collected, piece.offset + len(piece.data))

    def outputs(self, attempt_id: str) -> Path | None:
        """See Spools: scripts leave no files."""
        del attempt_id
        return None

    # what tests ask

    def alive(self) -> list[Process]:
        """Returns every process that exists at this moment, whatever anybody believes."""
        now = self.clock.now()
        return [p for p in self.processes.values() if (over := p.over_at()) is None or over > now]
