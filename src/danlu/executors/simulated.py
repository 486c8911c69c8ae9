"""An executor without processes: attempts are scripts played against a given clock, with faults on demand. For tests.

A task's command is its script, after the word ``simulated``: ``print:TEXT`` writes a line, ``sleep:SECONDS`` lets time pass,
``hold`` goes on until it is stopped, ``deaf`` makes it ignore SIGTERM, ``lost`` loses the runner, ``exit:CODE`` says with
what it ends, else 0. A gang ends by the runner's own rule. Nothing here depends on anything but the clock, the random numbers
and the calls.
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final, Protocol

from danlu.domain.jobs import Task, TaskSpec
from danlu.domain.nodes import NodeCapacity
from danlu.domain.sessions import SessionRequest
from danlu.errors import ExecutorUnavailable, LaunchRejected, NotRunning
from danlu.executors.base import Capabilities, Collected, LaunchOrder, Observation, Phase
from danlu.runner import formats, gang

SECOND: Final = 1_000_000_000
SIGTERM, SIGKILL = 15, 9
TO_END: Final = SECOND // 10
"""How long what hears SIGTERM takes to end."""


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


@dataclass(frozen=True, slots=True)
class Script:
    """What one task does: lines with their times, its own end (None: it holds), and whether it ignores SIGTERM."""

    lines: tuple[tuple[int, str], ...]
    ends_at: int | None
    exit_code: int
    deaf: bool


@dataclass(slots=True)
class Process:
    """One attempt in the simulated world."""

    order: LaunchOrder
    begins_at: int
    scripts: dict[str, Script]
    lost_at: int | None
    stopped_at: int | None = None
    killed_at: int | None = None
    collected: dict[str, int] = field(default_factory=dict)
    hidden: bool = False

    def over_at(self) -> int | None:
        """Returns when nothing of it is left any more; None while that is not known."""
        known = [at for at in (self._own_end(), self.lost_at, self._stop_end()) if at is not None]
        return min(known, default=None)

    def settled_at(self) -> int | None:
        """Returns when the gang is ended by its own rule, or by its last task; None where it goes on until it is stopped."""
        times = sorted({script.ends_at for script in self.scripts.values() if script.ends_at is not None})
        for at, following in itertools.pairwise([*times, 2**63]):
            members = [self._member(task, at) for task in self.order.job.spec.tasks]
            if all(member.ended_at is not None for member in members):
                return at
            end_s = gang.end_at(members)
            end = None if end_s is None else max(at, self.begins_at + round(end_s * SECOND))
            if end is not None and end < following:
                return end
        return None

    def known_at(self) -> int | None:
        """Returns when the gang's result became known; None where it never did."""
        settled = self.settled_at()
        if settled is None:
            return None
        known_s = gang.known_at(self._member(task, settled) for task in self.order.job.spec.tasks)
        return None if known_s is None else self.begins_at + round(known_s * SECOND)

    def _member(self, task: TaskSpec, now: int) -> gang.Member:
        script = self.scripts[task.name]
        over = script.ends_at is not None and script.ends_at <= now
        ended_at = ((script.ends_at or 0) - self.begins_at) / SECOND if over else None
        return gang.Member(task.decides, task.linger_s, ended_at, over and script.exit_code != 0)

    def _own_end(self) -> int | None:
        settled = self.settled_at()
        left = [] if settled is None else [s for s in self.scripts.values() if s.ends_at is None or s.ends_at > settled]
        if settled is None or not left:
            return settled
        return settled + (int(self.order.job.spec.grace * SECOND) if any(s.deaf for s in left) else TO_END)

    def _stop_end(self) -> int | None:
        if self.stopped_at is None:
            return None
        deaf = any(script.deaf for script in self.scripts.values())
        return self.killed_at if deaf else min(self.stopped_at + TO_END, self.killed_at or 2**63)

    def was_stopped(self) -> bool:
        """Whether it ended because it was asked to."""
        end = self.over_at()
        return end is not None and end == self._stop_end() and end not in (self._own_end(), self.lost_at)

    def log(self, task: str, now: int) -> bytes:
        """Returns what a task has written until ``now``."""
        end = self.over_at()
        until = now if end is None else min(now, end)
        return b"".join(
            formats.stamp(at, formats.STDOUT, formats.WHOLE, text.encode())
            for at, text in self.scripts[task].lines
            if at <= until
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
    written: dict[tuple[str, str], bytes] = field(default_factory=dict)
    """what each task of each forgotten attempt had written in all"""

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

    def lose(self, node: str) -> None:
        """Takes a machine away, with all that runs there."""
        self.nodes = tuple(one for one in self.nodes if one.name != node)
        now = self.clock.now()
        for process in self.processes.values():
            over = process.over_at()
            if any(task.node == node for task in process.order.attempt.tasks) and (over is None or over > now):
                process.lost_at = now

    def _begin(self, order: LaunchOrder) -> None:
        now = self.clock.now()
        begins_at = now + int(self.random.uniform(0.001, 0.5) * SECOND)
        scripts, lost_at = dict[str, Script](), None
        for task in order.job.spec.tasks:
            at, lines, code = begins_at, list[tuple[int, str]](), 0
            for word in task.argv[1:]:
                verb, _, value = word.partition(":")
                if verb == "print":
                    lines.append((at, value))
                elif verb == "sleep":
                    at += int(float(value) * SECOND)
                elif verb == "lost":
                    lost_at = at
                elif verb == "exit":
                    code = int(value)
            holds = "hold" in task.argv
            scripts[task.name] = Script(tuple(lines), None if holds else at, code, "deaf" in task.argv)
        if lost_at is None and self.random.random() < self.faults.lost:
            lost_at = now + int(self.random.uniform(0.0, 10.0) * SECOND)
        self.processes[order.attempt.id] = Process(order, begins_at, scripts, lost_at)
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
        over = process.over_at() or 0
        script, known = process.scripts[task.name], process.known_at()
        until = min(
            at for at in (over, process.settled_at(), process.stopped_at if stopped else None) if at is not None
        )
        by_itself, lost = script.ends_at is not None and script.ends_at <= until, over == process.lost_at
        ended_at = script.ends_at if by_itself and script.ends_at is not None else over
        return task.model_copy(
            update={
                "started_at": process.begins_at if process.begins_at <= over else None,
                "ended_at": ended_at,
                "exit_code": script.exit_code if by_itself and not lost else None,
                "signal": None if by_itself or lost else SIGKILL if script.deaf else SIGTERM,
                "stopped": not lost and (not by_itself or (known is not None and ended_at > known)),
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
            for task in process.scripts:
                self.written[attempt_id, task] = process.log(task, self.clock.now())
            del self.processes[attempt_id]

    def open_session(self, attempt_id: str, task: str, request: SessionRequest) -> socket.socket:
        """See Executor: scripts have no processes to look into."""
        del task, request
        raise NotRunning(f"{attempt_id} is simulated: it has no processes")

    # Spools

    def pending(self, attempt_id: str, *, max_bytes: int) -> Iterable[Collected]:
        """See Spools."""
        return self._pending(attempt_id, max_bytes)

    def _pending(self, attempt_id: str, max_bytes: int) -> Iterator[Collected]:
        process = self.processes.get(attempt_id)
        if process is None:
            return
        for task in process.scripts:
            data = process.log(task, self.clock.now())
            for at in range(process.collected.get(task, 0), len(data), max_bytes):
                piece = data[at : at + max_bytes]
                yield Collected(attempt_id=attempt_id, task=task, stream=formats.LOG, offset=at, data=piece)

    def collected(self, piece: Collected, *, durably: Callable[[], None]) -> None:
        """See Spools."""
        process = self.processes.get(piece.attempt_id)
        if process is not None:
            durably()
            end = piece.offset + len(piece.data)
            process.collected[piece.task] = max(process.collected.get(piece.task, 0), end)

    def outputs(self, attempt_id: str) -> Path | None:
        """See Spools: scripts leave no files."""
        del attempt_id
        return None

    # what tests ask

    def alive(self) -> list[Process]:
        """Returns every process that exists at this moment, whatever anybody believes."""
        now = self.clock.now()
        return [p for p in self.processes.values() if (over := p.over_at()) is None or over > now]
