"""An executor without processes: attempts are scripts played against a given clock, with faults on demand. For tests.

A task's command is its script, after the word ``simulated``: ``print:TEXT`` writes a line, ``sleep:SECONDS`` lets time pass,
``hold`` goes on until it is stopped, ``deaf`` makes it ignore SIGTERM, ``lost`` loses the runner, ``crash:TIMES`` ends it so
often before it goes on (started again by itself where its role may be), ``robbed`` finds its port taken, ``exit:CODE`` says
with what it ends, else 0. ``save:NAME`` writes a checkpoint; ``heeds`` makes it write one at the notice of a stop and end,
where others go on until its time is over. A gang ends by the runner's own rule. Nothing here depends on anything but the
clock, the random numbers and the calls.
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Final, Protocol

from danlu.domain.jobs import Task
from danlu.domain.nodes import NodeCapacity
from danlu.domain.sessions import SessionRequest
from danlu.domain.specs import TaskSpec
from danlu.errors import ExecutorUnavailable, LaunchRejected, NotRunning
from danlu.executors.base import Capabilities, Collected, LaunchOrder, Notice, Observation, Phase
from danlu.runner import formats, gang
from danlu.runner.tasks import RESTART_PAUSE_S

SECOND: Final = 1_000_000_000
SIGTERM, SIGKILL = 15, 9
TO_END: Final = SECOND // 10
"""How long what hears SIGTERM takes to end."""
PROVEN_NS: Final = 2 * SECOND
"""How long after it was written a checkpoint is proven, which ends who has not ended yet."""
AT_NOTICE: Final = "at-notice"
HEARD_S, UNHEARD_S = 0.5, 5.0
"""How long an attempt takes to begin, at most: long enough to be launched again where nobody heard that it was launched."""


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
    """What one task does: lines and new starts with their times, its own end (None: it holds), if it ignores SIGTERM."""

    lines: tuple[tuple[int, str], ...]
    ends_at: int | None
    exit_code: int
    deaf: bool
    restarts: tuple[int, ...] = ()
    robbed: bool = False
    saves: tuple[tuple[int, str], ...] = ()
    heeds: bool = False

    def noticed(self, at: int) -> Script:
        """Returns what it does from the notice on."""
        if not self.heeds or (self.ends_at is not None and self.ends_at <= at + TO_END):
            return self
        lines, saves = (tuple(one for one in some if one[0] <= at) for some in (self.lines, self.saves))
        return replace(self, lines=lines, saves=(*saves, (at + TO_END, AT_NOTICE)), ends_at=at + TO_END, exit_code=0)

    @classmethod
    def of(cls, task: TaskSpec, begins_at: int) -> Script:
        """Plays a task's command from ``begins_at`` on."""
        at, lines, restarts, code = begins_at, list[tuple[int, str]](), list[int](), 0
        saves: list[tuple[int, str]] = []
        holds = "hold" in task.argv
        for word in task.argv[1:]:
            verb, _, value = word.partition(":")
            if verb == "print":
                lines.append((at, value))
            elif verb == "sleep":
                at += int(float(value) * SECOND)
            elif verb == "save":
                saves.append((at, value))
            elif verb == "exit":
                code = int(value)
            elif verb == "crash":
                allowed = task.spec.restarts or 0
                restarts = [at + (n + 1) * int(RESTART_PAUSE_S * SECOND) for n in range(min(int(value), allowed))]
                at = max([at, *restarts])
                if int(value) > allowed:
                    code, holds = 1, False
                    break
            elif verb == "robbed":
                code, holds = 1, False
                break
        return cls(
            tuple(lines), None if holds else at, code, "deaf" in task.argv, tuple(restarts),
            robbed=bool(task.job.ports) and "robbed" in task.argv and code == 1,
            saves=tuple(saves), heeds="heeds" in task.argv,
        )  # fmt: skip


@dataclass(slots=True)
class Process:
    """One attempt in the simulated world: of its tasks those that have scripts, as each pod has but one."""

    order: LaunchOrder
    begins_at: int
    scripts: dict[str, Script]
    lost_at: int | None
    stopped_at: int | None = None
    killed_at: int | None = None
    noticed_at: int | None = None
    yields_at: int | None = None
    """when the notice's time is over"""
    by_term: bool = False
    collected: dict[str, int] = field(default_factory=dict)
    hidden: bool = False

    @property
    def tasks(self) -> list[TaskSpec]:
        """What was asked of its tasks."""
        return [task for task in self.order.job.spec.tasks if task.name in self.scripts]

    def over_at(self) -> int | None:
        """Returns when nothing of it is left any more; None while that is not known."""
        known = [at for at in (self._own_end(), self.lost_at, self._stop_end()) if at is not None]
        return min(known, default=None)

    def settled_at(self) -> int | None:
        """Returns when the gang is ended by its own rule, or by its last task; None where it goes on until it is stopped."""
        times = sorted({script.ends_at for script in self.scripts.values() if script.ends_at is not None})
        for at, following in itertools.pairwise([*times, 2**63]):
            members = [self._member(task, at) for task in self.tasks]
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
        known_s = gang.known_at(self._member(task, settled) for task in self.tasks)
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

    def asked_at(self) -> int | None:
        """Returns when it was asked to end, by somebody or because its time was over."""
        asked = (self.stopped_at, self._late_at(), self.yields_at)
        return min((at for at in asked if at is not None), default=None)

    def _late_at(self) -> int | None:
        max_time = self.order.job.spec.max_time
        late = None if max_time is None else self.begins_at + int(max_time * SECOND)
        return None if late is None or (self.noticed_at is not None and self.noticed_at < late) else late

    def _stop_end(self) -> int | None:
        asked, late = self.asked_at(), self._late_at()
        if asked is None:
            return None
        late_kill = None if late is None else late + int(self.order.job.spec.grace * SECOND)
        yields = self.yields_at
        if yields is not None and not self.by_term:
            yields += int(self.order.job.spec.grace * SECOND)
        killed = min((at for at in (self.killed_at, late_kill, yields) if at is not None), default=2**63)
        deaf = any(script.deaf for script in self.scripts.values())
        return killed if deaf else min(asked + TO_END, killed)

    def was_asked(self) -> bool:
        """Whether it ended because it was asked to."""
        end = self.over_at()
        return end is not None and end == self._stop_end() and end not in (self._own_end(), self.lost_at)

    def was_late(self) -> bool:
        """Whether it was asked because its time was over."""
        return self.was_asked() and self.asked_at() == self._late_at()

    def made_way(self) -> bool:
        """Whether it ended after it had heard the notice, and by nobody's stop."""
        end = self.over_at()
        stopped = self.stopped_at is not None and end == self._stop_end()
        return self.noticed_at is not None and end is not None and end > self.noticed_at and not stopped

    def saved(self, now: int) -> tuple[int, str] | None:
        """Returns the newest checkpoint that was written until ``now``."""
        end = self.over_at()
        until = now if end is None else min(now, end)
        return max((one for script in self.scripts.values() for one in script.saves if one[0] <= until), default=None)

    def notice(self, notice: Notice, now: int) -> None:
        """Hears that it has to make way, once."""
        over, yields_at = self.over_at(), now + int(notice.within_s * SECOND)
        if self.stopped_at is not None or self.noticed_at is not None or (over is not None and over <= now):
            return
        if self.begins_at > now:  # its runner finds the notice before it starts anything
            self.noticed_at, self.yields_at, self.killed_at = now, now, now
            return
        known = self.known_at()
        if known is not None and known <= now:  # it is ending
            return
        self.noticed_at, self.by_term = now, notice.signal == "TERM"
        self.scripts = {name: script.noticed(now) for name, script in self.scripts.items()}
        if any(script.heeds for script in self.scripts.values()):
            yields_at = min(yields_at, now + TO_END + PROVEN_NS)
        self.yields_at = yields_at

    def stop(self, grace_s: float, now: int) -> None:
        """Is asked to end; a second time can only shorten its grace."""
        if self.stopped_at is None:
            self.stopped_at = now
        unbegun = self.begins_at > now  # its runner finds the stop before it starts anything
        killed_at = now if unbegun else now + int(grace_s * SECOND)
        self.killed_at = killed_at if self.killed_at is None else min(self.killed_at, killed_at)

    def observation(self, now: int) -> Observation:
        """Returns what there is to see of it."""
        over = self.over_at()
        ended = over is not None and over <= now
        started = self.begins_at if self.begins_at <= now else None
        phase = Phase.RUNNING if started is not None else Phase.STARTING
        lost = ended and over == self.lost_at
        asked, late = ended and self.was_asked(), ended and self.was_late()
        made_way = ended and self.made_way() and not lost
        saved_at, saved_as = self.saved(now) or (None, "")
        if ended:
            phase = Phase.LOST if lost else Phase.ENDED
        mine = [task for task in self.order.attempt.tasks if task.name in self.scripts]
        tasks = tuple(self._task(task, now, ended=ended, asked=asked) for task in mine)
        return Observation(
            attempt_id=self.order.attempt.id, phase=phase, tasks=tasks if started is not None or ended else (),
            started_at=started, ended_at=over if ended else None,
            stopped=asked and not late and not made_way, timed_out=late, preempted=made_way,
            saved_at=saved_at, saved_as=saved_as, seen_at=over if lost else None,
        )  # fmt: skip

    def _task(self, task: Task, now: int, *, ended: bool, asked: bool) -> Task:
        script, known = self.scripts[task.name], self.known_at()
        over = (self.over_at() or 0) if ended else now
        restarts = sum(at <= over for at in script.restarts)
        if not ended:
            return task.model_copy(update={"started_at": self.begins_at, "restarts": restarts})
        until = min(at for at in (over, self.settled_at(), self.asked_at() if asked else None) if at is not None)
        by_itself, lost = script.ends_at is not None and script.ends_at <= until, over == self.lost_at
        ended_at = script.ends_at if by_itself and script.ends_at is not None else over
        return task.model_copy(
            update={
                "started_at": self.begins_at if self.begins_at <= over else None,
                "ended_at": ended_at,
                "exit_code": script.exit_code if by_itself and not lost else None,
                "signal": None if by_itself or lost else SIGKILL if script.deaf else SIGTERM,
                "stopped": not lost
                and (not by_itself or any(at is not None and ended_at > at for at in (known, self.noticed_at))),
                "restarts": restarts,
                "port_taken": task.ports[0] if script.robbed and by_itself and not lost else None,
            }
        )

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
    ends: dict[str, Observation] = field(default_factory=dict)
    """how each forgotten attempt had ended"""

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
        unheard = self.random.random() < self.faults.unheard
        if order.attempt.id not in self.processes:
            if self.random.random() < self.faults.rejected:
                raise LaunchRejected("the simulated executor refuses it")
            self._begin(order, within_s=UNHEARD_S if unheard else HEARD_S)
        if unheard:
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

    def _begin(self, order: LaunchOrder, *, within_s: float) -> None:
        now = self.clock.now()
        begins_at = now + int(self.random.uniform(0.001, within_s) * SECOND)
        scripts = {task.name: Script.of(task, begins_at) for task in order.job.spec.tasks}
        loses = next((task.name for task in order.job.spec.tasks if "lost" in task.argv), None)
        lost_at = None if loses is None else scripts[loses].ends_at or begins_at
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
        del attempt_id
        return process.observation(now)

    def stop(self, attempt_id: str, *, grace_s: float, notice: Notice | None = None) -> None:
        """See Executor."""
        self._perhaps_unavailable()
        process = self.processes.get(attempt_id)
        if process is None:
            return
        now = self.clock.now()
        if notice is not None:
            process.notice(notice, now)
            return
        process.stop(grace_s, now)

    def forget(self, attempt_id: str) -> None:
        """See Executor."""
        self._perhaps_unavailable()
        process = self.processes.get(attempt_id)
        over = None if process is None else process.over_at()
        if process is not None and over is not None and over <= self.clock.now():
            for task in process.scripts:
                self.written[attempt_id, task] = process.log(task, self.clock.now())
            self.ends[attempt_id] = self._observation(attempt_id, process, self.clock.now())
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

    def checkpoint_owners(self) -> Iterable[str]:
        """See Spools: scripts leave no files."""
        return ()

    def checkpoint_bytes(self, owner: str) -> int:
        """See Spools: scripts leave no files."""
        del owner
        return 0

    # what tests ask

    def alive(self) -> list[Process]:
        """Returns every process that exists at this moment, whatever anybody believes."""
        now = self.clock.now()
        return [p for p in self.processes.values() if (over := p.over_at()) is None or over > now]
