"""Waits for jobs and arrays: asked again and again, each time answered as soon as there is something to say."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

from danlu.api.bodies import TimeoutQuery, WaitQuery
from danlu.client.transport import Client
from danlu.domain.arrays import ArrayState
from danlu.domain.jobs import Job, JobState, reached

ONE_WAIT_S: Final = 30.0
ONE_OF_ARRAY_S: Final = 2.0
"""An array is answered only once all of it has ended: so often it is told how far it is."""
T = TypeVar("T", bound=Job | ArrayState)


def until(
    client: Client,
    found: T,
    *,
    state: JobState | None = None,
    timeout_s: float | None = None,
    told: Callable[[T], None] | None = None,
) -> T:
    """Returns a job once it is in ``state`` or has ended, an array once all of it has, or as it is when the time is over.

    Args:
        client: of its platform and project.
        found: the job or the array as it was last seen.
        state: None: its end; of an array nothing else is waited for.
        timeout_s: None: for ever.
        told: called with it as it is before each wait.

    Raises:
        Unavailable: the platform stayed away for longer than the client's patience.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while found.live and not (isinstance(found, Job) and reached(found, state)):
        one_wait_s = ONE_WAIT_S if isinstance(found, Job) else ONE_OF_ARRAY_S
        left = one_wait_s if deadline is None else min(one_wait_s, deadline - time.monotonic())
        if left <= 0:
            break
        if told is not None:
            told(found)
        found = _once(client, found, left, state)
    return found


def _once(client: Client, found: T, timeout_s: float, state: JobState | None) -> T:
    if isinstance(found, ArrayState):
        array: T = client.call("arrays.wait", {"array": found.array.id}, query=TimeoutQuery(timeout_s=timeout_s))
        return array
    job: T = client.call("jobs.wait", {"job": found.id}, query=WaitQuery(timeout_s=timeout_s, state=state))
    return job
