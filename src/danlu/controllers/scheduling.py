"""From the queue to placements: tells the scheduler what has changed, asks it, stores what it says if that still holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

from danlu.controllers.preempting import preempt
from danlu.controllers.recordings import Recording
from danlu.database import queries
from danlu.database.engine import Transaction, write_anew
from danlu.database.kept import Kept
from danlu.database.leadership import Fenced
from danlu.database.records import ATTEMPTS, JOBS, NODES, QUOTAS
from danlu.domain.ids import attempt_id
from danlu.domain.jobs import Attempt, AttemptState, Desired, Estimate, Job, JobState, Preemption, Reason, Task
from danlu.domain.nodes import Node
from danlu.errors import LeadershipLost, VersionConflict
from danlu.scheduler.model import SECOND_NS, Placement, Shape
from danlu.scheduler.model import Preemption as Planned
from danlu.scheduler.ports import lease
from danlu.scheduler.quota import Tree, amounts
from danlu.scheduler.rooms import Rooms, take_seats
from danlu.services import estimating
from danlu.services.context import Clock, Hub
from danlu.services.eligibility import Change
from danlu.services.fitting import MAX_NODES
from danlu.services.nodes import rooms_of
from danlu.services.queue import Feed
from danlu.services.quotas import MAX_QUOTAS

T = TypeVar("T")
PERIOD_S: Final = 10.0
AGAIN_S: Final = 0.02
PLACED_AT_ONCE: Final = 16
MOST_AT_ONCE: Final = 64
HELD_FOR_ONE: Final = 32
"""Of placements more are stored at once where much is held, as each store looks at all that is: one more for so many."""
WRITTEN_AT_ONCE: Final = 32
WRITTEN_A_STEP: Final = 512
ESTIMATED_A_STEP: Final = 2
"""An estimate takes some 20 ms, in which nothing is decided."""
ESTIMATED: Final = estimating.STARTS_ONCE - {Reason.WAITING_FOR_PREEMPTED_WORKLOADS}
FIRST: Final = (None, Reason.PENDING_EVALUATION)


@dataclass(slots=True)
class SchedulingController:
    """Places what fits, asks others to make way, says why the rest waits, ends what was stopped while it waited."""

    database: Fenced
    clock: Clock
    hub: Hub
    executor: str
    feed: Feed = field(default_factory=Feed)
    recording: Recording | None = None
    known: Kept[Attempt] = field(default_factory=lambda: Kept(ATTEMPTS))
    """shared with the other controllers of a term: thousands are in memory once"""
    _waits: dict[str, tuple[Reason, str]] = field(default_factory=dict)
    _estimates: dict[str, Estimate] = field(default_factory=dict)
    _nodes: Kept[Node] = field(default_factory=lambda: Kept(NODES))

    def __post_init__(self) -> None:
        if self.recording is not None:
            self.feed.recorder = self.recording.begin(self.feed.scheduler)

    def step(self) -> float:
        """Looks once. After an error the scheduler is told everything anew: what it thinks was said may not have been."""
        try:
            return self._step()
        except LeadershipLost:
            raise  # what is told anew is another one's affair, and so is the recording
        except Exception:
            self.feed = Feed()
            self.__post_init__()
            raise

    def _step(self) -> float:
        feed = self.feed
        now = self.clock.now()
        changes = feed.tell(self.database.read(feed.look), now)
        plan = feed.decider.decide(now)
        self._waits.update(plan.waits)
        placed = 0
        at_once = min(MOST_AT_ONCE, max(PLACED_AT_ONCE, feed.held // HELD_FOR_ONE))
        for batch in _batches(plan.placements, at_once):
            placed += write_anew(self.database, partial(self._place, placements=batch))
            self.hub.notify("attempts")
        asked = sum([self._preempt(preemption) for preemption in plan.preemptions])
        if self.recording is not None:
            self.database.require()
            self.recording.flush()
        changes = self._changes(changes)
        self._estimate(changes, now)
        for some in _batches(changes[:WRITTEN_A_STEP], WRITTEN_AT_ONCE):
            write_anew(self.database, partial(self._change, changes=some))
        if changes:
            self.hub.notify("events")
        if any(change.state is not JobState.QUEUED for change in changes):
            self.hub.notify("jobs")  # others may run after them
        if len(changes) > WRITTEN_A_STEP or placed < len(plan.placements) or asked:
            return AGAIN_S  # of those that could make way, only so many were asked
        later = [job.not_before for job in feed.jobs.values() if job.not_before > now]
        if plan.again_at is not None:
            later.append(plan.again_at)
        return min([PERIOD_S, *(max(0.001, (at - now) / SECOND_NS) for at in later)])

    def _changes(self, not_yet: Iterable[Change]) -> list[Change]:
        """Returns what waiting jobs become whose records do not say so yet; what ends comes first."""
        jobs = self.feed.jobs
        for job_id in self._waits.keys() - self.feed.scheduler.waiting.keys():
            del self._waits[job_id]
        changes = [
            change
            for change in not_yet
            if change.state is not JobState.QUEUED or change.reason != jobs[change.job_id].reason
        ]
        changes += [
            Change(job_id, jobs[job_id].version, JobState.QUEUED, reason, message)
            for job_id, (reason, message) in self._waits.items()
            if jobs[job_id].reason != reason
        ]
        return sorted(changes, key=lambda change: change.state is JobState.QUEUED)

    def _estimate(self, changes: Iterable[Change], now: int) -> None:
        """Estimates when some start that wait for the first time: what becomes of it corrects what others are told."""
        self._estimates.clear()
        jobs = self.feed.jobs
        fresh = [one.job_id for one in changes if one.reason in ESTIMATED and jobs[one.job_id].reason in FIRST]
        if fresh:
            known = self.database.read(estimating.lasting)
            for job_id in fresh[:ESTIMATED_A_STEP]:
                found = estimating.estimated(self.feed.scheduler, job_id, now, known)
                if found is not None:
                    self._estimates[job_id] = found

    def _place(self, tx: Transaction, placements: Iterable[Placement]) -> int:
        """Stores placements that still hold under the newest state; returns how many."""
        queries.lock(tx, "placing")  # two servers place one after the other
        now = self.clock.now()
        newest = _Newest.of(tx, self._nodes, self.known)
        stored = 0
        for placement in placements:
            job = JOBS.get(tx, placement.job_id)
            if job is None or job.state is not JobState.QUEUED or job.desired is not Desired.RUN or job.held:
                continue
            number = job.attempts + 1
            ports = newest.take(job, placement, attempt_id(job.id, number))
            if ports is None:
                continue  # something has taken its room or its quota meanwhile
            tasks = tuple(
                Task(
                    role=asked.role, index=asked.index, rank=asked.rank, node=seat.node, resources=need,
                    devices=seat.devices, ports=ports[asked.rank : asked.rank + 1],
                )
                for asked, seat, need in zip(job.spec.tasks, placement.seats, placement.shape.tasks, strict=True)
            )  # fmt: skip
            admitted = job.moved(JobState.ADMITTED, now=now, reason=Reason.PLACED)
            gpus = sum(len(task.devices) for task in tasks)
            starting = admitted.moved(JobState.STARTING, now=now, reason=Reason.LAUNCHING, attempts=number, gpus=gpus)
            attempt = Attempt(
                id=attempt_id(job.id, number), project=job.project, job_id=job.id, number=number,
                executor=self.executor, tasks=tasks, created_at=now, updated_at=now,
            )  # fmt: skip
            launching = attempt.moved(AttemptState.LAUNCHING, now=now, reason=Reason.LAUNCHING)
            JOBS.put(tx, job, admitted)
            JOBS.put(tx, admitted, starting)
            ATTEMPTS.add(tx, attempt)
            ATTEMPTS.put(tx, attempt, launching)
            stored += 1
        return stored

    def _preempt(self, planned: Planned) -> bool:
        """Asks an attempt to make way, if it is as it was when that was decided; returns whether it was asked."""

        def work(tx: Transaction) -> bool:
            attempt, gains = ATTEMPTS.get(tx, planned.attempt_id), JOBS.get(tx, planned.for_job)
            wanted = gains is not None and gains.desired is Desired.RUN and not gains.held
            if attempt is None or gains is None or gains.state is not JobState.QUEUED or not wanted:
                return False
            now, job = self.clock.now(), JOBS.require(tx, attempt.job_id)
            asked = Preemption(
                at=now, deadline=now + int(job.spec.notice * SECOND_NS), for_job=gains.id, for_project=gains.project,
                why=planned.why, lost_s=planned.lost_s,
            )  # fmt: skip
            return preempt(tx, attempt, asked, now) is not None

        try:
            return self.database.write(work)
        except VersionConflict:  # it has changed meanwhile: what follows is decided anew
            return False
        finally:
            self.hub.notify("attempts")

    def _change(self, tx: Transaction, changes: Iterable[Change]) -> None:
        now = self.clock.now()
        for change in changes:
            job = JOBS.get(tx, change.job_id)
            if job is None or job.version != change.version or job.state is not JobState.QUEUED:
                continue  # it has changed meanwhile; the next step sees it as it is
            more: dict[str, Any] = {} if change.state is JobState.QUEUED else {"ended_at": now}
            if job.attempts == 0 and (estimate := self._estimates.get(job.id)) is not None:
                more["estimate"] = estimate
            JOBS.put(tx, job, job.moved(change.state, now=now, reason=change.reason, message=change.message, **more))


@dataclass(slots=True)
class _Newest:
    """What is free now, of nodes, quotas, arrays and ports: a plan is stored only as far as it still holds."""

    rooms: Rooms
    tree: Tree
    arrays: Counter[str]
    leased: set[int]

    @classmethod
    def of(cls, tx: Transaction, nodes: Kept[Node], attempts: Kept[Attempt]) -> _Newest:
        holding = queries.holding_attempts(tx, known=attempts)
        rooms = rooms_of((node.capacity for node in nodes.look(tx, limit=MAX_NODES).values()), holding)
        newest = cls(
            rooms, Tree.of(QUOTAS.find(tx, limit=MAX_QUOTAS)), queries.arrays_holding(tx),
            {port for attempt in holding for task in attempt.tasks for port in task.ports},
        )  # fmt: skip
        for attempt in holding:
            seats = [(task.node, task.devices) for task in attempt.tasks]
            newest.tree.add(
                attempt.project, amounts(Shape(tuple(task.resources for task in attempt.tasks)), rooms.kinds_of(seats))
            )
        return newest

    def take(self, job: Job, placement: Placement, attempt: str) -> tuple[int, ...] | None:
        """Takes what a placement needs and returns its ports; or takes nothing and returns None."""
        needs, seats = placement.shape.tasks, placement.seats
        asks = amounts(placement.shape, self.rooms.kinds_of((seat.node, seat.devices) for seat in seats))
        cap = None if job.array is None else job.array.parallel
        if job.array_id is not None and cap is not None and self.arrays[job.array_id] >= cap:
            return None
        if self.tree.exceeded(job.project, asks) is not None or len(needs) != len(job.spec.tasks):
            return None
        ports = lease(attempt, placement.shape.ports, self.leased)
        if ports is None or not take_seats(self.rooms, needs, seats):
            return None
        self.leased.update(ports)
        self.tree.add(job.project, asks)
        if job.array_id is not None:
            self.arrays[job.array_id] += 1
        return ports


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[at : at + size] for at in range(0, len(items), size))
