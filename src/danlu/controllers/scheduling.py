"""From the queue to placements: reads a snapshot, asks the scheduler, stores what it says if it still holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple, TypeVar

from danlu.database import queries
from danlu.database.engine import Database, Transaction
from danlu.database.queries import QueuedJob
from danlu.database.records import ATTEMPTS, ENVIRONMENTS, JOBS, NODES
from danlu.domain.environments import Environment, EnvironmentState
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


class Change(NamedTuple):
    """What a waiting job becomes: it waits for another reason, or it has ended."""

    job_id: str
    version: int
    state: JobState
    reason: Reason
    message: str


class Seen(NamedTuple):
    """What one step decides on, from one consistent read."""

    queue: list[QueuedJob]
    environments: Mapping[str, Environment]
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
        for job in seen.queue:
            change = _not_yet(job, seen.environments, now)
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
        stored = 0
        for placement in placements:
            job = JOBS.get(tx, placement.job_id)
            if job is None or job.state is not JobState.QUEUED or job.desired is not Desired.RUN:
                continue
            shapes = job.spec.shapes
            number = job.attempts + 1
            ports = lease(attempt_id(job.id, number), job.spec.ports, leased)
            if ports is None or not take_seats(free, shapes, placement.seats):
                continue  # something has taken its room meanwhile
            leased |= {*ports}
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
    return Seen(queue, {e.id: e for e in environments}, nodes, held(queries.holding_attempts(tx)))


def _not_yet(job: QueuedJob, environments: Mapping[str, Environment], now: int) -> Change | None:
    """Returns what keeps a job from being placed whatever is free, or None."""
    if job.desired == Desired.STOP:
        return Change(job.id, job.version, JobState.CANCELLED, Reason.STOPPED, "stopped while it waited")
    if job.environment_id is not None:
        environment = environments.get(job.environment_id)
        if environment is None or environment.state in (EnvironmentState.WANTED, EnvironmentState.BUILDING):
            name = job.environment_id if environment is None else environment.name
            reason, words = Reason.ENVIRONMENT_BUILDING, f"environment {name} is being built"
            if environment is not None and environment.source.image is not None:
                reason, words = Reason.IMAGE_PULLING, f"image {name} is being pulled"
            return Change(job.id, job.version, JobState.QUEUED, reason, words)
        if environment.state is EnvironmentState.FAILED:
            message = environment.message
            if environment.source.image is None:
                message = f"environment {environment.name}: {message}"
            return Change(job.id, job.version, JobState.FAILED, Reason.ENVIRONMENT_FAILED, message)
    if job.queued_at <= now < job.not_before:  # an earlier now: the clock was wrong when that was written
        return Change(
            job.id,
            job.version,
            JobState.QUEUED,
            Reason.WAITING_FOR_RETRY,
            "its next attempt waits for a moment to pass",
        )
    return None


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[at : at + size] for at in range(0, len(items), size))
