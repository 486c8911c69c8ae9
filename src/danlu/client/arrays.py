"""Job arrays: asked about, and waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from danlu.api.bodies import TimeoutQuery
from danlu.client.transport import Client
from danlu.domain.arrays import ArrayState
from danlu.domain.jobs import Job
from danlu.domain.records import Value
from danlu.errors import NotFound

ONE_WAIT_S: Final = 2.0
"""So often it is told how far an array is."""


def of_either(client: Client, verb: str, name: str, body: Value | None = None) -> Job | ArrayState:
    """Does to a job, or where there is none of that name to an array, what both can have done to them.

    Raises:
        NotFound: there is neither.
    """
    given: dict[str, Any] = {} if body is None else {"body": body}
    try:
        job: Job = client.call(f"jobs.{verb}", {"job": name}, **given)
    except NotFound as missing:
        try:
            array: ArrayState = client.call("arrays.get", {"array": name})
        except NotFound:
            raise missing from None
        done: ArrayState = array if verb == "get" else client.call(f"arrays.{verb}", {"array": array.array.id}, **given)
        return done
    return job


def until_ended(
    client: Client,
    array: ArrayState,
    *,
    timeout_s: float | None = None,
    told: Callable[[ArrayState], None] | None = None,
) -> ArrayState:
    """Returns an array once all of it has ended, or as it is when the time is over.

    Args:
        client: of its platform and project.
        array: as it was last seen.
        timeout_s: None: for ever.
        told: called with the array as it is before each wait.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while array.live:
        left = ONE_WAIT_S if deadline is None else min(ONE_WAIT_S, deadline - time.monotonic())
        if left <= 0:
            break
        if told is not None:
            told(array)
        array = client.call("arrays.wait", {"array": array.array.id}, query=TimeoutQuery(timeout_s=left))
    return array
