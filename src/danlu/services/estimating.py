"""What estimates of starts go by: how long jobs took of late, and what became of the estimates that jobs were told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from danlu.database import queries
from danlu.database.engine import Transaction
from danlu.domain.jobs import Estimate, Reason
from danlu.scheduler.cycle import Scheduler
from danlu.scheduler.estimate import MAX_RUNNING, Lasting, Told, forecast, size_of
from danlu.scheduler.explaining import standing
from danlu.scheduler.model import Shape

LOOKED_AT: Final = 2000
"""So many of the newest jobs and attempts are looked at."""
LEARNED_FROM: Final = 200
MAX_LINE: Final = 2000
"""In a longer line none is estimated beforehand: that would delay what is decided."""
STARTS_ONCE: Final = frozenset(
    {
        Reason.WAITING_FOR_RESOURCES, Reason.TOPOLOGY_PLACEMENT_FAILED, Reason.WAITING_FOR_QUOTA,
        Reason.WAITING_FOR_PREEMPTED_WORKLOADS, Reason.WAITING_FOR_ARRAY,
    }
)  # fmt: skip
"""A job that waits for these starts once others have ended."""


def lasting(tx: Transaction) -> Lasting:
    """Returns how long jobs took of late, for those that have not said how long they run."""
    return Lasting(queries.took_of_late(tx, LOOKED_AT))


def told(tx: Transaction) -> list[Told]:
    """Returns what was estimated of late, beside what came of it."""
    return [
        Told(
            size_of(Shape(job.spec.choices[-1])), max(0, job.estimate.starts_at - job.estimate.told_at),
            max(0, began - job.estimate.told_at),
        )
        for job, began in queries.estimated_of_late(tx, LOOKED_AT, LEARNED_FROM)
        if job.estimate is not None
    ]  # fmt: skip


def estimated(
    scheduler: Scheduler, job_id: str, now: int, known: Lasting, ends: Mapping[str, int] | None = None
) -> Estimate | None:
    """Returns when a job that waits would start, to be kept with it; None where that is not known, or takes too long."""
    if len(scheduler.waiting) > MAX_LINE or len(scheduler.rooms.capacities) > MAX_RUNNING:
        return None
    place = standing(scheduler, job_id, now)
    if place is None:
        return None
    found = forecast(scheduler, job_id, [before.job_id for before in place.ahead], now, known, ends or {})
    return None if found.at is None else Estimate(told_at=now, starts_at=found.at)
