"""Where a job stands among those that wait, and what it is short of: for who asks, when he asks."""

from __future__ import annotations

from typing import NamedTuple

from danlu.scheduler import words
from danlu.scheduler.cycle import Cycle, Scheduler
from danlu.scheduler.rooms import seat


class Standing(NamedTuple):
    """Who is served before a job, by id, the first one first; and how many wait in all."""

    ahead: tuple[str, ...]
    total: int


def standing(scheduler: Scheduler, job_id: str, now: int) -> Standing | None:
    """Returns where a job stands; None: it is not among those that could start if there were room."""
    if job_id not in scheduler.waiting:
        return None
    turns = sorted(Cycle(scheduler, now).turns())
    ids = [one[-1] for one in turns]
    return Standing(tuple(ids[: ids.index(job_id)]), len(ids))


def short_of(scheduler: Scheduler, job_id: str, now: int) -> str:
    """Returns what a job that waits is short of, with its numbers: of quota, of room, or of nothing."""
    del now
    job = scheduler.waiting[job_id]
    shape = job.shapes[-1]
    excess = scheduler.tree.exceeded(job.project, scheduler.asks(shape))
    if excess is not None:
        return words.over_quota(excess)
    if (never := scheduler.never(shape)) is not None:
        return never
    with scheduler.rooms.trial():
        fits = seat(scheduler.rooms, shape) is not None
    if fits:
        return f"asks {words.asks_all(shape)}; that is free now: it starts, unless it is kept for a job ahead"
    return words.short(shape, scheduler.rooms)
