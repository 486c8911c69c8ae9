"""What would happen: a trace's jobs on these nodes, decided by this scheduler. Discrete events, in ns; no clock, no chance.

Who makes way goes back to the queue with the service that it had, and pays ``Costs.restart`` when it starts again.
Each plan is checked by accounts of the simulator's own: nothing is sold twice, no limit is broken, no gang starts in part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from heapq import heappop, heappush
from typing import Final, Protocol

from danlu.domain.jobs import Reason
from danlu.domain.nodes import NodeCapacity
from danlu.domain.quotas import Quota
from danlu.errors import InternalError
from danlu.scheduler.accounts import Accounts
from danlu.scheduler.model import SECOND_NS, Placement, Plan, Preemption, Running, Shape, Waiting
from danlu.scheduler.trace import TraceJob, largest_node

MAX_ROUNDS: Final = 1000
"""More decisions at one moment, or without anything that runs or comes, lead nowhere."""


class Decider(Protocol):
    """Who runs where: what changes is told to it, call by call; it decides when it is asked.

    A decision is a function of the calls before it. ``gone`` and ``holds`` tell it that a job was started, ``freed`` that an
    attempt has ended, ``queued`` that its job waits again.
    """

    def node(self, capacity: NodeCapacity) -> None:
        """Says what a node has."""

    def quotas(self, quotas: Iterable[Quota]) -> None:
        """Says which quotas there are, all of them."""

    def had(self, project: str, asks: Mapping[str, int], began: int, ended: int) -> None:
        """Says what a project held before this decider was there: in force like what it saw itself."""

    def queued(self, job: Waiting) -> None:
        """Says that a job waits, or what has changed of it."""

    def gone(self, job_id: str) -> None:
        """Says that a job does not wait any more."""

    def holds(self, attempt: Running) -> None:
        """Says that an attempt holds its seats, or what has changed of it."""

    def freed(self, attempt_id: str, now: int) -> None:
        """Says that an attempt has given back what it held."""

    def decide(self, now: int) -> Plan:
        """Returns who starts now, who makes way for whom, and why the others wait, as far as that has changed."""
        ...


@dataclass(frozen=True, slots=True)
class Costs:
    """What making way costs, and what is known of jobs beforehand.

    Attributes:
        restart: how long a job that starts again holds its GPUs before it goes on (ns).
        checkpoint: it is saved so often (ns), and what it did since is lost; None: it is saved when it is told to make way.
        notice: how long it still holds its GPUs after it was told to make way (ns).
        all_known: the scheduler is told how long each job runs; else only what the trace says that its user declared.
    """

    restart: int = 30 * SECOND_NS
    checkpoint: int | None = None
    notice: int = 0
    all_known: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job. Times are ns; ``first_start``, ``end``: None where it never came to that.

    Attributes:
        held: how long it had its GPUs, all its attempts together.
        attained: its service, as ``Waiting.attained``.
        starts: how many attempts it had.
        why: why it waited, as last told; of a job that never started.
    """

    job: TraceJob
    first_start: int | None
    end: int | None
    held: int
    attained: int
    starts: int
    why: tuple[Reason, str] | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What became of all jobs, in the trace's order, on which nodes, with which quotas."""

    outcomes: tuple[Outcome, ...]
    nodes: tuple[NodeCapacity, ...]
    quotas: tuple[Quota, ...] = ()
    preemptions: int = 0
    decisions: int = 0


class _Kind(IntEnum):
    """What happens, in the order in which it does at one moment."""

    END = 0
    GAVE_WAY = 1
    SAVED = 2
    ARRIVAL = 3
    WAKE = 4


@dataclass(slots=True)
class _Life:
    """A job on its way. ``done``: how much of its duration is behind it for good."""

    job: TraceJob
    shape: Shape
    done: int = 0
    held: int = 0
    attained: int = 0
    starts: int = 0
    first_start: int | None = None
    end: int | None = None
    attempt: Running | None = None
    overhead: int = 0
    told_at: int | None = None
    why: tuple[Reason, str] | None = None

    def progress(self, now: int, costs: Costs) -> int:
        """Returns what the attempt has done by ``now`` that is kept if it is ended then."""
        if self.attempt is None:
            return 0
        begun = self.attempt.placed_at + self.overhead
        if costs.checkpoint is None:
            return max(0, (now if self.told_at is None else self.told_at) - begun)
        return max(0, now - begun) // costs.checkpoint * costs.checkpoint


Watch = Callable[[int, int], None]
"""Is told how many jobs have ended, and of how many."""


def simulate(
    trace: Sequence[TraceJob],
    nodes: Sequence[NodeCapacity],
    decider: Decider,
    *,
    quotas: Sequence[Quota] = (),
    costs: Costs | None = None,
    watch: Watch | None = None,
) -> Result:
    """Returns what becomes of a trace's jobs. The decider has to be a fresh one.

    Raises:
        InternalError: a plan was over capacity or a limit, or started a part of a gang.
    """
    run = _Simulation(tuple(trace), tuple(nodes), decider, tuple(quotas), costs or Costs(), watch or (lambda *_: None))
    return run.result()


@dataclass(slots=True)
class _Simulation:
    trace: tuple[TraceJob, ...]
    nodes: tuple[NodeCapacity, ...]
    decider: Decider
    quotas: tuple[Quota, ...]
    costs: Costs
    watch: Watch
    lives: dict[str, _Life] = field(default_factory=dict)
    attempts: dict[str, str] = field(default_factory=dict)
    """attempts that hold something, and their jobs"""
    accounts: Accounts = field(init=False)
    now: int = 0
    wake: int | None = None
    arrivals: int = 0
    ended: int = 0
    preemptions: int = 0
    decisions: int = 0
    _events: list[tuple[int, int, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.accounts = Accounts.of(self.nodes, self.quotas)

    def result(self) -> Result:
        """Plays it all."""
        self._begin()
        idle = 0
        while self._events and idle < MAX_ROUNDS:
            self.now = self._events[0][0]
            matters = False
            while self._events and self._events[0][0] == self.now:
                _, kind, name = heappop(self._events)
                matters |= self._happens(_Kind(kind), name)
            if matters:
                started = self._decide()
                idle = 0 if started or self.attempts or self.arrivals else idle + 1
        for life in self.lives.values():
            self._check_service(life)
        return Result(
            tuple(
                Outcome(life.job, life.first_start, life.end, life.held, life.attained, life.starts, life.why)
                for life in self.lives.values()
            ),
            self.nodes, self.quotas, self.preemptions, self.decisions,
        )  # fmt: skip

    def _begin(self) -> None:
        for node in self.nodes:
            self.decider.node(node)
        self.decider.quotas(self.quotas)
        largest, shapes = largest_node(self.nodes), dict[Shape, Shape]()
        for job in self.trace:
            shape = job.shape(largest)
            self.lives[job.id] = _Life(job, shapes.setdefault(shape, shape))
            heappush(self._events, (job.submit, _Kind.ARRIVAL, job.id))
        self.arrivals = len(self.trace)

    # events

    def _happens(self, kind: _Kind, name: str) -> bool:
        """Says whether something has to be decided after it. ``name``: of a job that arrives, else of an attempt."""
        if kind is _Kind.ARRIVAL:
            self.arrivals -= 1
            self._queue(self.lives[name])
            return True
        if kind is _Kind.WAKE:
            return self.wake == self.now
        if name not in self.attempts:  # it has ended meanwhile
            return False
        life = self.lives[self.attempts[name]]
        if kind is _Kind.SAVED:
            self._saved(life, name)
            return False
        self._leave(life, name, ends=kind is _Kind.END)
        if kind is _Kind.GAVE_WAY:
            self._queue(life)
        return True

    def _queue(self, life: _Life) -> None:
        job = life.job
        self.decider.queued(
            Waiting(
                id=job.id, project=job.project, priority=job.priority, queued_at=job.submit, shapes=(life.shape,),
                attained=life.attained, duration=self._lasts(life), keeps=self.costs.checkpoint is None,
            )
        )  # fmt: skip

    def _lasts(self, life: _Life) -> int | None:
        """Returns how long a job would still run, as far as the scheduler is told."""
        whole = life.job.duration if self.costs.all_known else life.job.declared
        overhead = self.costs.restart if life.starts else 0
        return None if whole is None else max(1, whole - life.done) + overhead

    def _saved(self, life: _Life, attempt_id: str) -> None:
        if life.attempt is not None and self.costs.checkpoint is not None:
            life.attempt = replace(life.attempt, saved_at=self.now)
            self.decider.holds(life.attempt)
            heappush(self._events, (self.now + self.costs.checkpoint, _Kind.SAVED, attempt_id))

    def _leave(self, life: _Life, attempt_id: str, *, ends: bool) -> None:
        """Gives back what an attempt holds, at its end or because it makes way."""
        attempt = life.attempt
        if attempt is None:
            raise InternalError(f"job {life.job.id} has no attempt {attempt_id}")
        life.done = life.job.duration if ends else life.done + life.progress(self.now, self.costs)
        life.held += self.now - attempt.placed_at
        life.attained = attempt.service(self.now)
        life.attempt = life.told_at = None
        del self.attempts[attempt_id]
        self.accounts.give(attempt)
        self.decider.freed(attempt_id, self.now)
        if ends:
            life.end = self.now
            self.ended += 1
            self.watch(self.ended, len(self.lives))

    # decisions

    def _decide(self) -> bool:
        """Decides until nothing more follows from what was decided; says whether anything was started."""
        started = False
        for _ in range(MAX_ROUNDS):
            plan = self.decider.decide(self.now)
            self.decisions += 1
            for job_id, why in plan.waits.items():
                self.lives[job_id].why = why
            for placement in plan.placements:
                self._start(placement)
                started = True
            for preemption in plan.preemptions:
                self._make_way(preemption)
            if not plan.preemptions:
                self._wake_at(plan.again_at)
                return started
        raise InternalError(f"{MAX_ROUNDS} decisions at {self.now} ns, and each asks somebody to make way")

    def _wake_at(self, again_at: int | None) -> None:
        if again_at is not None and again_at <= self.now:
            raise InternalError(f"decided at {self.now} ns, to be decided again at {again_at} ns, which is not later")
        if again_at is not None and again_at != self.wake:
            heappush(self._events, (again_at, _Kind.WAKE, ""))
        self.wake = again_at

    def _start(self, placement: Placement) -> None:
        life = self.lives[placement.job_id]
        job, lasts = life.job, self._lasts(life)
        if life.attempt is not None or life.end is not None or placement.shape != life.shape:
            raise InternalError(f"job {job.id} was placed at {self.now} ns, but does not wait, or not with this shape")
        life.overhead = self.costs.restart if life.starts else 0
        life.starts += 1
        attempt = Running(
            id=f"{job.id}-{life.starts}", job_id=job.id, project=job.project, priority=job.priority, queued_at=job.submit,
            placed_at=self.now, shape=placement.shape, seats=placement.seats, attained=life.attained,
            ends_by=None if lasts is None else self.now + lasts, keeps=self.costs.checkpoint is None,
        )  # fmt: skip
        self.accounts.take(attempt, self.now)
        life.attempt, life.why = attempt, None
        life.first_start = self.now if life.first_start is None else life.first_start
        self.attempts[attempt.id] = job.id
        self.decider.gone(job.id)
        self.decider.holds(attempt)
        begins = self.now + life.overhead
        heappush(self._events, (begins + job.duration - life.done, _Kind.END, attempt.id))
        if self.costs.checkpoint is not None:
            heappush(self._events, (begins + self.costs.checkpoint, _Kind.SAVED, attempt.id))

    def _make_way(self, preemption: Preemption) -> None:
        name = preemption.attempt_id
        life = self.lives[self.attempts[name]] if name in self.attempts else None
        if life is None or life.attempt is None or life.told_at is not None:
            raise InternalError(
                f"attempt {name} was asked at {self.now} ns to make way, but holds nothing, or was asked before"
            )
        self.preemptions += 1
        life.told_at = self.now
        if self.costs.notice:
            life.attempt = replace(life.attempt, yields_to=preemption.for_job)
            self.decider.holds(life.attempt)
            heappush(self._events, (self.now + self.costs.notice, _Kind.GAVE_WAY, name))
        else:
            self._leave(life, name, ends=False)
            self._queue(life)

    def _check_service(self, life: _Life) -> None:
        """What a job held is what it did, and what restarts and lost work cost; nothing is lost on the way."""
        if life.end is not None and (
            life.attained != life.held * life.shape.rate
            or life.held < life.job.duration
            or life.end < life.job.submit + life.held
        ):
            raise InternalError(f"job {life.job.id} had {life.held} ns of its {life.job.duration} ns")
