"""The trace that a platform records: its jobs' attempts are kept anyway; here they are told as a simulation needs them."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final

from danlu.api.bodies import MAX_PAGE, OffsetQuery, TraceQuery
from danlu.blobs.streams import StreamKey
from danlu.database import queries
from danlu.database.engine import Transaction
from danlu.database.records import ATTEMPTS, JOBS
from danlu.domain.jobs import INFRASTRUCTURE_ATTEMPTS, Attempt, Job
from danlu.domain.resources import Resources
from danlu.domain.views import Page, TextPage, TracedJob
from danlu.errors import NotAllowed
from danlu.services.context import Call

MAX_ATTEMPTS: Final = 100 + INFRASTRUCTURE_ATTEMPTS
"""Of one job: those that count against ``retry.attempts``, and those that do not."""
SECOND_NS: Final = 1_000_000_000
DECISIONS: Final = StreamKey("platform", "scheduler", "decisions", "calls")
"""What the scheduler was told and decided, since the server's start: see scheduler/recording.py."""
PAGE_BYTES: Final = 2**20


def get(call: Call, query: TraceQuery) -> Page[TracedJob]:
    """Returns jobs by submission, newest first: the project's, or for an administrator who asks for them those of all.

    Raises:
        NotAllowed: others' jobs are for administrators.
    """
    if query.platform and not call.actor.sees_all:
        raise NotAllowed("the trace of all projects is for administrators", next_step="leave platform out")
    where: dict[str, Any] = {} if query.platform else {"project": call.project}

    def work(tx: Transaction) -> tuple[Page[Job], dict[str, list[Attempt]]]:
        only = () if query.since is None else (queries.submitted_since(query.since),)
        page = JOBS.page(tx, limit=query.limit, cursor=query.cursor, only=only, **where)
        attempts: dict[str, list[Attempt]] = defaultdict(list)
        ids = tuple(job.id for job in page.items)
        for attempt in ATTEMPTS.find(tx, job_id=ids, limit=MAX_PAGE * MAX_ATTEMPTS) if ids else ():
            attempts[attempt.job_id].append(attempt)
        return page, attempts

    page, attempts = call.platform.database.read(work)
    items = [job for job in page.items if query.since is None or job.created_at >= query.since]
    return Page[TracedJob](items=tuple(traced(job, attempts[job.id]) for job in items), next_cursor=page.next_cursor)


def traced(job: Job, attempts: list[Attempt]) -> TracedJob:
    """Returns what a simulation needs to know of a job: its times, and what its newest attempt had.

    An attempt has its resources from when it was made until it has ended.
    """
    newest = max(attempts, key=lambda one: one.number, default=None)
    shapes = job.spec.shapes if newest is None else tuple(task.resources for task in newest.tasks)
    total = sum(shapes, start=Resources())
    ended = [(one.created_at, one.ended_at) for one in attempts if one.ended_at is not None]
    max_time = job.spec.max_time
    return TracedJob(
        id=job.id, project=job.project, priority=job.priority, submitted_at=job.created_at,
        first_started_at=min((one.created_at for one in attempts), default=None),
        ended_at=job.ended_at if not job.live else None,
        ran_ns=sum(max(0, end - begin) for begin, end in ended), attempts=len(attempts), tasks=len(shapes),
        gpus=total.gpus, gpu_kind=job.spec.gpu_kind, cpu_milli=total.cpu_milli, memory_bytes=total.memory_bytes,
        declared_ns=None if max_time is None else round(max_time * SECOND_NS),
    )  # fmt: skip


def decisions(call: Call, query: OffsetQuery) -> TextPage:
    """Returns whole lines of what the scheduler was told and decided; ``done``: that is all by now."""
    most = PAGE_BYTES
    data = call.platform.streams.read(DECISIONS, query.offset, most)
    while b"\n" not in data and len(data) == most:  # a decision about thousands of jobs is one line
        most *= 4
        data = call.platform.streams.read(DECISIONS, query.offset, most)
    data = data[: data.rfind(b"\n") + 1]
    return TextPage(text=data.decode(errors="replace"), offset=query.offset + len(data), done=not data)
