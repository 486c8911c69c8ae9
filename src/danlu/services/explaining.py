"""Why a job waits, computed when it is asked: its place in the queue, who is before it, what is short of what, until when."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Final

from danlu.database.engine import Transaction
from danlu.database.records import ATTEMPTS, JOBS
from danlu.domain.jobs import Attempt, Job, JobState, Reason
from danlu.domain.resources import Resources
from danlu.domain.views import Why
from danlu.domain.waits import Ahead, AskedLater, MakesWay, Smaller, Start
from danlu.scheduler.cycle import Scheduler
from danlu.scheduler.estimate import Forecast, corrected, forecast, size_of
from danlu.scheduler.explaining import Before, asked_later, decided, quota_lines, room, standing, would_start
from danlu.scheduler.model import SECOND_NS
from danlu.scheduler.smaller import smaller
from danlu.services import dependencies, estimating, nodes
from danlu.services.queue import Feed

AHEAD: Final = 20
SMALLER_HELPS: Final = frozenset(
    {
        Reason.WAITING_FOR_RESOURCES, Reason.TOPOLOGY_PLACEMENT_FAILED, Reason.NO_MATCHING_FLAVOR, Reason.WAITING_FOR_QUOTA,
        Reason.EXCEEDS_MAX_QUOTA, Reason.WAITING_FOR_PREEMPTED_WORKLOADS,
    }
)  # fmt: skip
MAX_MAKE_WAY: Final = 100
MAX_NAMED: Final = 3
MAX_ASKED: Final = 10
ASKS_OTHERS: Final = frozenset(
    {Reason.WAITING_FOR_RESOURCES, Reason.TOPOLOGY_PLACEMENT_FAILED, Reason.WAITING_FOR_QUOTA}
)
"""Others may be asked to make way for a job that waits for these."""
NOT_PLAYED: Final = "more is ahead of it than is looked at"
TRIED: Final = 24
"""So many smaller shapes are tried ..."""
TOLD: Final = 5
"""... and so many are told of those that would start."""


def told(tx: Transaction, job: Job, now: int) -> Why:
    """Returns why a job is where it is."""
    if job.state is not JobState.QUEUED:
        return Why(job=job, asks=job.spec.shapes, explanation=(job.message or _ended_or_running(job),))
    found = _waiting(tx, job, now)
    last = ATTEMPTS.find(tx, job_id=job.id, number=job.attempts, limit=1) if job.preemptions else []
    made_way = [attempt.message for attempt in last if attempt.reason is Reason.PREEMPTED]
    return found.model_copy(update={"explanation": (*found.explanation, *made_way)}) if made_way else found


def _ended_or_running(job: Job) -> str:
    return f"it is {job.state}" if job.live else f"it has ended: {job.state} ({job.reason})"


def _waiting(tx: Transaction, job: Job, now: int) -> Why:
    feed = Feed()
    kept_from = {change.job_id: change for change in feed.tell(feed.look(tx), now)}.get(job.id)
    scheduler = feed.scheduler
    lines = [job.message if kept_from is None else kept_from.message]
    if kept_from is not None and kept_from.reason is Reason.WAITING_FOR_DEPENDENCY:
        lines = dependencies.told(tx, job) or lines
    why = Why(
        job=job, asks=job.spec.shapes, explanation=tuple(filter(None, lines)), since=job.updated_at, nodes=nodes.uses(tx),
    )  # fmt: skip
    place = standing(scheduler, job.id, now)
    if place is None:
        return why
    said = decided(scheduler, job.id, now)
    ahead = [before.job_id for before in place.ahead]
    found = why.model_copy(
        update={
            "explanation": (said.message,),
            "position": len(ahead) + 1,
            "of": place.total,
            "ahead": tuple(_ahead(tx, place.ahead[:AHEAD], job.project)),
            "quotas": quota_lines(scheduler, job.id),
            "room": room(scheduler, job.id, ahead),
            "makes_way": tuple(_makes_way(tx, scheduler, job)),
            "start": _start(tx, scheduler, job, ahead, now) if said.reason in estimating.STARTS_ONCE else None,
            "would_start": tuple(_would_start(scheduler, job, now)) if said.reason in SMALLER_HELPS else (),
        }
    )
    later = _asked_later(tx, scheduler, job, now) if said.reason in ASKS_OTHERS else None  # last: time goes on there
    return found.model_copy(update={"asked_later": later})


def _ahead(tx: Transaction, ahead: Iterable[Before], project: str) -> Iterable[Ahead]:
    """Yields them in their order; of another project's job nothing is told but why it is ahead."""
    ahead = list(ahead)
    jobs = {job.id: job for job in JOBS.find(tx, id=[one.job_id for one in ahead] or ["-"], limit=AHEAD)}
    for one in ahead:
        job = jobs.get(one.job_id)
        if job is None or job.project != project:
            yield Ahead(why=one.why)
        else:
            yield Ahead(
                job_id=job.id, name=job.name, why=one.why, asks=job.spec.shapes, gpu_kind=job.spec.gpu_kind,
                queued_at=job.queued_at,
            )  # fmt: skip


def _makes_way(tx: Transaction, scheduler: Scheduler, job: Job) -> Iterable[MakesWay]:
    ids = sorted(scheduler.yielding.get(job.id, ()))[:MAX_MAKE_WAY]
    attempts: list[Attempt] = ATTEMPTS.find(tx, id=ids or ["-"], limit=MAX_MAKE_WAY)
    for attempt in attempts:
        if attempt.preemption is None:
            continue
        mine = JOBS.get(tx, attempt.job_id) if attempt.project == job.project else None
        yield MakesWay(
            job_id="" if mine is None else mine.id, name="" if mine is None else mine.name,
            holds=sum((task.resources for task in attempt.tasks), start=Resources()), until=attempt.preemption.deadline,
        )  # fmt: skip


def _asked_later(tx: Transaction, scheduler: Scheduler, job: Job, now: int) -> AskedLater | None:
    asked = asked_later(scheduler, job.id, now)
    if asked is None:
        return None
    names = [name for name in (_name(tx, one, job) for one in asked.job_ids[:MAX_ASKED]) if name is not None]
    least_run_s = scheduler.policy.min_runtime / SECOND_NS
    return AskedLater(at=asked.at, names=tuple(names), count=len(asked.job_ids), least_run_s=least_run_s)


def _start(tx: Transaction, scheduler: Scheduler, job: Job, ahead: list[str], now: int) -> Start:
    """Returns when it could start, as far as that is known."""
    attempts = {one for some in scheduler.yielding.values() for one in some}
    asked: list[Attempt] = ATTEMPTS.find(tx, id=sorted(attempts)[:MAX_MAKE_WAY] or ["-"], limit=MAX_MAKE_WAY)
    ends = {one.id: one.preemption.deadline for one in asked if one.preemption is not None}
    found = forecast(scheduler, job.id, ahead, now, estimating.lasting(tx), ends)
    if found.at is None:
        return Start(unknown=_unknown(tx, found, job))
    wait, most, by = corrected(found.at - now, size_of(scheduler.waiting[job.id].shapes[-1]), estimating.told(tx))
    after = "" if found.after is None else _name(tx, found.after, job) or ""
    return Start(at=now + wait, most=now + most, after=after, ended=found.ended, corrected_by=by)


def _unknown(tx: Transaction, found: Forecast, job: Job) -> str:
    if not found.unknown:
        return NOT_PLAYED
    names = [name for name in (_name(tx, one, job) for one in found.unknown[:MAX_NAMED]) if name is not None]
    who = ", ".join(names) or "a job of another project"
    more = len(found.unknown) - max(1, len(names))
    others = f" and {more:,} more" if more else ""
    verb = "has not said how long it runs" if len(found.unknown) == 1 else "have not said how long they run"
    return f"{who}{others} {verb}: max_time"


def _name(tx: Transaction, job_id: str, job: Job) -> str | None:
    """Returns the name of a job of the same project; None of another's."""
    other = JOBS.get(tx, job_id)
    return other.name if other is not None and other.project == job.project else None


def _would_start(scheduler: Scheduler, job: Job, now: int) -> Iterable[Smaller]:
    """Yields what the user could ask for instead, each found to start by a decision on it."""
    found = 0
    for flags, shape in islice(smaller(job.spec, scheduler.rooms.kind_names()), TRIED):
        if would_start(scheduler, job.id, shape, now):
            yield Smaller(flags=flags, asks=shape.tasks, gpu_kind=shape.gpu_kind)
            found += 1
            if found == TOLD:
                return
