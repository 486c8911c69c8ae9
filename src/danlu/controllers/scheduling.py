"""From the queue to placements: reads a snapshot, asks the scheduler, stores what it says if it still holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple, TypeVar

from danlu.controllers.eligibility import Change, Facts, not_yet, over_the_cap
from danlu.database import queries
from danlu.database.engine import Database, Transaction
from danlu.database.queries import QueuedJob
from danlu.database.records import ATTEMPTS, ENVIRONMENTS, JOBS, NODES
from danlu.domain.environments import Environment
from danlu.domain.ids import attempt_id
from danlu.domain.jobs import Attempt, AttemptState, Desired, JobState, Reason, Task
from danlu.domain.nodes import NodeCapacity
from danlu.scheduler.cycle import Held, Placement, Shape, Snapshot, Waiting, plan, rooms, take_seats
from danlu.scheduler.ports import lease
from danlu.services.context import Clock, Hub
from danlu.services.nodes import MAX_NODES, held

T = TypeVar("T")
PERIOD_S: Final = 10.0
MAX_ENVIRONMENTS: Final = 100_000
AGAIN_S: Final = 0.02
PLACED_AT_ONCE: Final = 16
WRITTEN_AT_ONCE: Final = 32
WRITTEN_A_STEP: Final = 512


class Seen(NamedTuple):
    """What one step decides on, from one consistent read."""

    queue: list[QueuedJob]
    environments: Mapping[str, Environment]
    ended: Mapping[str, str]
    holding: Mapping[str, int]
    nodes: tuple[NodeCapacity, ...]
    held: tuple[Held, ...]


@dataclass(slots=True)
class SchedulingController:
    """Places what fits, says why the rest waits, ends what was stopped while it waited."""

    database: Database
    clock: Clock
    hub: Hub
    executor: str

    def step(self) -> float:
        """Looks once."""
        now = self.clock.now()
        seen = self.database.read(_look)
        waiting: list[Waiting] = []
        changes: list[Change] = []
        facts = Facts(seen.environments, seen.ended, now)
        found = {job.id: not_yet(job, facts) for job in seen.queue}
        served = sorted(seen.queue, key=lambda job: (-job.priority, job.queued_at, job.id))
        over = over_the_cap((job for job in served if found[job.id] is None), seen.holding)
        for job in seen.queue:
            change = found[job.id]
            if job.id in over:
                change = Change(job.id, job.version, JobState.QUEUED, Reason.WAITING_FOR_ARRAY, over[job.id])
            if change is None:
                shape = Shape(job.shapes, job.gpu_kind, job.ports)
                waiting.append(Waiting(job.id, job.priority, job.queued_at, shape))
            elif change.state is not JobState.QUEUED or change.reason != job.reason:
                changes.append(change)
        plan_ = plan(Snapshot(seen.nodes, seen.held, tuple(waiting)))
        placed = 0
        for batch in _batches(plan_.placements, PLACED_AT_ONCE):
            placed += self.database.write(partial(self._place, placements=batch))
            self.hub.notify("attempts")
        by_id = {job.id: job for job in seen.queue}
        changes += [
            Change(job_id, by_id[job_id].version, JobState.QUEUED, reason, message)
            for job_id, (reason, message) in plan_.waits.items()
            if by_id[job_id].reason != reason
        ]
        changes.sort(key=lambda change: change.state is JobState.QUEUED)  # what ends comes first
        for some in _batches(changes[:WRITTEN_A_STEP], WRITTEN_AT_ONCE):
            self.database.write(partial(self._change, changes=some))
        if changes:
            self.hub.notify("events")
        if any(change.state is not JobState.QUEUED for change in changes):
            self.hub.notify("jobs")  # others may run after them
        later = [job.not_before for job in seen.queue if job.not_before > now]
        if len(changes) > WRITTEN_A_STEP or placed < len(plan_.placements):
            return AGAIN_S
        return min([PERIOD_S, *(max(0.001, (at - now) / 1e9) for at in later)])

    def _place(self, tx: Transaction, placements: Iterable[Placement]) -> int:
        """Stores placements that still hold under the newest state; returns how many."""
        now = self.clock.now()
        nodes = tuple(node.capacity for node in NODES.find(tx, limit=MAX_NODES))
        holding = queries.holding_attempts(tx)
        free = rooms(nodes, held(holding))
        leased = {port for attempt in holding for task in attempt.tasks for port in task.ports}
        of_arrays = queries.arrays_holding(tx)
        stored = 0
        for placement in placements:
            job = JOBS.get(tx, placement.job_id)
            if job is None or job.state is not JobState.QUEUED or job.desired is not Desired.RUN or job.held:
                continue
            cap = job.array.parallel if job.array is not None else None
            if job.array_id is not None and cap is not None and of_arrays[job.array_id] >= cap:
                continue
            shapes = job.spec.shapes
            number = job.attempts + 1
            ports = lease(attempt_id(job.id, number), job.spec.ports, leased)
            if ports is None or not take_seats(free, shapes, placement.seats):
                continue  # something has taken its room meanwhile
            leased |= {*ports}
            of_arrays.update([job.array_id] if job.array_id is not None else [])
            tasks = tuple(
                Task(
                    role=asked.role, index=asked.index, rank=asked.rank, node=seat.node, resources=need,
                    devices=seat.devices, ports=ports[asked.rank : asked.rank + 1],
                )
                for asked, seat, need in zip(job.spec.tasks, placement.seats, shapes, strict=True)
            )  # fmt: skip
            admitted = job.moved(JobState.ADMITTED, now=now, reason=Reason.PLACED)
            starting = admitted.moved(JobState.STARTING, now=now, reason=Reason.LAUNCHING, attempts=number)
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

    def _change(self, tx: Transaction, changes: Iterable[Change]) -> None:
        now = self.clock.now()
        for change in changes:
            job = JOBS.get(tx, change.job_id)
            if job is None or job.version != change.version or job.state is not JobState.QUEUED:
                continue  # it has changed meanwhile; the next step sees it as it is
            ended = {} if change.state is JobState.QUEUED else {"ended_at": now}
            JOBS.put(tx, job, job.moved(change.state, now=now, reason=change.reason, message=change.message, **ended))


def _look(tx: Transaction) -> Seen:
    queue = queries.queued_jobs(tx)
    wanted = {job.environment_id for job in queue if job.environment_id is not None}
    environments = ENVIRONMENTS.find(tx, id=wanted, limit=MAX_ENVIRONMENTS) if wanted else []
    nodes = tuple(node.capacity for node in NODES.find(tx, limit=MAX_NODES))
    ended = queries.ended_states(tx, {one.id for job in queue for one in job.after})
    holding = queries.arrays_holding(tx) if any(job.parallel is not None for job in queue) else {}
    return Seen(queue, {e.id: e for e in environments}, ended, holding, nodes, held(queries.holding_attempts(tx)))


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[at : at + size] for at in range(0, len(items), size))
