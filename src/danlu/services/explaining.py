"""Why a job waits, computed when it is asked: its place in the queue, who is before it, what is short of what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from danlu.database.engine import Transaction
from danlu.database.records import JOBS
from danlu.domain.jobs import Job
from danlu.domain.views import Why
from danlu.scheduler.explaining import short_of, standing
from danlu.services import nodes
from danlu.services.queue import Feed

AHEAD: Final = 20


def waiting(tx: Transaction, job: Job, lines: Sequence[str], now: int) -> Why:
    """Returns why a queued job waits; ``lines``: what is stored of that."""
    feed = Feed()
    feed.tell(feed.look(tx), now)
    place = standing(feed.scheduler, job.id, now)
    ahead = []
    for other_id in () if place is None else place.ahead[:AHEAD]:
        other = JOBS.get(tx, other_id)
        # another project's job counts, but its name is not told
        ahead.append(other.name if other is not None and other.project == job.project else "a job of another project")
    if place is not None:
        lines = [short_of(feed.scheduler, job.id, now)]
    return Why(
        job=job, asks=job.spec.shapes, explanation=tuple(lines), position=None if place is None else len(place.ahead) + 1,
        ahead=tuple(ahead), nodes=nodes.uses(tx),
    )  # fmt: skip
