"""Waits for jobs: asked again and again, each time answered as soon as there is something to say."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from danlu.api.bodies import WaitQuery
from danlu.client.transport import Client
from danlu.domain.jobs import Job, JobState, reached

ONE_WAIT_S: Final = 30.0


def until(
    client: Client,
    job: Job,
    *,
    state: JobState | None = None,
    timeout_s: float | None = None,
    told: Callable[[Job], None] | None = None,
) -> Job:
    """Returns the job once it is in ``state`` or has ended, or as it is when the time is over.

    Args:
        client: of its platform and project.
        job: as it was last seen.
        state: None: its end.
        timeout_s: None: for ever.
        told: called with the job as it is before each wait.

    Raises:
        Unavailable: the platform stayed away for longer than the client's patience.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while job.live and not reached(job, state):
        left = ONE_WAIT_S if deadline is None else min(ONE_WAIT_S, deadline - time.monotonic())
        if left <= 0:
            break
        if told is not None:
            told(job)
        job = client.call("jobs.wait", {"job": job.id}, query=WaitQuery(timeout_s=left, state=state))
    return job
