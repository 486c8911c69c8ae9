"""What the scheduler is told of the records: what has changed of them since it was told last, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from danlu.database import ledger, queries
from danlu.database.engine import Transaction
from danlu.database.queries import QueuedJob
from danlu.database.records import ATTEMPTS, ENVIRONMENTS, JOBS, NODES, QUOTAS
from danlu.domain.environments import Environment
from danlu.domain.jobs import Attempt, Job
from danlu.domain.nodes import Node
from danlu.domain.quotas import Quota
from danlu.scheduler.cycle import Scheduler
from danlu.scheduler.model import SECOND_NS, Running, Seat, Shape, Waiting
from danlu.scheduler.recording import Recorder
from danlu.scheduler.simulator import Decider
from danlu.services.eligibility import Change, Facts, not_yet
from danlu.services.quotas import MAX_QUOTAS

MAX_ENVIRONMENTS: Final = 100_000
AT_ONCE: Final = 1000
HALF_LIVES: Final = 10
MAX_PAST: Final = 10_000


class News(NamedTuple):
    """What has changed of the records, from one consistent read."""

    queued: Mapping[str, int]
    jobs: tuple[QueuedJob, ...]
    holding: Mapping[str, int]
    attempts: tuple[tuple[Attempt, Job], ...]
    nodes: tuple[Node, ...]
    quotas: tuple[Quota, ...]
    environments: Mapping[str, Environment]
    ended: Mapping[str, str]
    past: tuple[ledger.Held, ...] = ()


@dataclass(slots=True)
class Feed:
    """Keeps a scheduler up to date with the records."""

    scheduler: Scheduler = field(default_factory=Scheduler)
    recorder: Recorder | None = None
    """writes down what the scheduler is told, and decides"""
    jobs: dict[str, QueuedJob] = field(default_factory=dict)
    _attempts: dict[str, int] = field(default_factory=dict)
    _nodes: dict[str, int] = field(default_factory=dict)
    _quotas: tuple[Quota, ...] = ()
    _told: bool = False

    @property
    def decider(self) -> Decider:
        """Whom everything is told, and who decides."""
        return self.scheduler if self.recorder is None else self.recorder

    @property
    def held(self) -> int:
        """How many attempts hold something, as it was told last."""
        return len(self._attempts)

    def look(self, tx: Transaction) -> News:
        """Reads what has changed since ``tell``."""
        queued, holding, nodes = queries.queued_versions(tx), queries.holding_versions(tx), queries.node_versions(tx)
        known = {job_id: job.version for job_id, job in self.jobs.items()}
        jobs = queries.queued_jobs(tx, sorted(_changed(queued, known)))
        attempts = [
            attempt
            for some in _batches(sorted(_changed(holding, self._attempts)))
            for attempt in ATTEMPTS.find(tx, id=some, limit=AT_ONCE)
        ]
        owners = {
            job.id: job
            for some in _batches(sorted({attempt.job_id for attempt in attempts}))
            for job in JOBS.find(tx, id=some, limit=AT_ONCE)
        }
        changed = _batches(sorted(_changed(nodes, self._nodes)))
        waiting = [*jobs, *(job for job_id, job in self.jobs.items() if job_id in queued)]
        wanted = {job.environment_id for job in waiting if job.environment_id is not None}
        environments = ENVIRONMENTS.find(tx, id=wanted, limit=MAX_ENVIRONMENTS) if wanted else []
        return News(
            queued=queued,
            jobs=tuple(jobs),
            holding=holding,
            attempts=tuple((attempt, owners[attempt.job_id]) for attempt in attempts),
            nodes=tuple(node for some in changed for node in NODES.find(tx, id=some, limit=AT_ONCE)),
            quotas=tuple(QUOTAS.find(tx, limit=MAX_QUOTAS)),
            environments={environment.id: environment for environment in environments},
            ended=queries.ended_states(tx, {one.id for job in waiting for one in job.after}),
            past=() if self._told else tuple(ledger.held_lately(tx, self._long_ago(tx), MAX_PAST)),
        )

    def _long_ago(self, tx: Transaction) -> int:
        """Returns from when on it still counts what projects held: before, it would count less than a thousandth."""
        return ledger.time_of(tx, 0) - HALF_LIVES * self.scheduler.policy.half_life

    def tell(self, news: News, now: int) -> list[Change]:
        """Tells the scheduler, and returns what keeps jobs from being placed whatever is free."""
        scheduler = self.decider
        for node in news.nodes:
            self._nodes[node.id] = node.version
            scheduler.node(node.capacity)
        if news.quotas != self._quotas:
            self._quotas = news.quotas
            scheduler.quotas(news.quotas)
        for one in news.past:
            asks = {"cpu": one.cpu_milli, "memory": one.memory_bytes, "gpu": one.gpus}
            scheduler.had(one.project, asks, one.began, min(one.ended, now))
        self._told = True
        for attempt_id in sorted(self._attempts.keys() - news.holding.keys()):
            del self._attempts[attempt_id]
            scheduler.freed(attempt_id, now)
        for attempt, job in news.attempts:
            self._attempts[attempt.id] = attempt.version
            scheduler.holds(running(attempt, job))
        for job_id in sorted(self.jobs.keys() - news.queued.keys()):
            del self.jobs[job_id]
            scheduler.gone(job_id)
        self.jobs.update((job.id, job) for job in news.jobs)
        facts = Facts(news.environments, news.ended, now)
        changes: list[Change] = []
        for job_id, row in self.jobs.items():
            change = not_yet(row, facts)
            if change is not None:
                changes.append(change)
                if job_id in self.scheduler.waiting:
                    scheduler.gone(job_id)
            elif (known := self.scheduler.waiting.get(job_id)) is None or known.version != row.version:
                scheduler.queued(waiting(row))
        return changes


def waiting(row: QueuedJob) -> Waiting:
    """Returns a queued job as the scheduler sees it."""
    return Waiting(
        id=row.id, project=row.project, priority=row.priority, queued_at=row.queued_at,
        shapes=tuple(Shape(tasks, row.gpu_kind, row.ports) for tasks in row.choices), attained=row.attained,
        duration=row.duration, array=row.array_id, parallel=row.parallel or 0, keeps=row.saves,
        version=row.version,
    )  # fmt: skip


def running(attempt: Attempt, job: Job) -> Running:
    """Returns an attempt that holds resources as the scheduler sees it."""
    tasks = attempt.tasks
    ports = len(tasks) if any(task.ports for task in tasks) else 0
    began = attempt.started_at or attempt.created_at
    return Running(
        id=attempt.id, job_id=job.id, project=job.project, priority=job.priority, queued_at=job.queued_at,
        placed_at=attempt.created_at,
        shape=Shape(tuple(task.resources for task in tasks), job.spec.gpu_kind, ports),
        seats=tuple(Seat(task.node, task.devices) for task in tasks), attained=job.attained,
        ends_by=None if job.spec.max_time is None else began + int(job.spec.max_time * SECOND_NS),
        saved_at=attempt.saved_at, yields_to=None if attempt.preemption is None else attempt.preemption.for_job,
        array=job.array_id, keeps=job.saves,
    )  # fmt: skip


def _changed(now: Mapping[str, int], known: Mapping[str, int]) -> Iterable[str]:
    return (one for one, version in now.items() if known.get(one) != version)


def _batches(items: list[str]) -> Iterable[list[str]]:
    return (items[at : at + AT_ONCE] for at in range(0, len(items), AT_ONCE))
