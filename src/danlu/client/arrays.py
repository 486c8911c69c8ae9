"""What both jobs and job arrays can have done to them, by a name that may be either's."""

from __future__ import annotations

from typing import Any

from danlu.client.transport import Client
from danlu.domain.arrays import ArrayState
from danlu.domain.jobs import Job
from danlu.domain.records import Value
from danlu.domain.views import ArrayWhy, Why
from danlu.errors import NotFound


def of_either(client: Client, verb: str, name: str, body: Value | None = None) -> Job | ArrayState:
    """Does to a job, or where there is none of that name to an array, what both can have done to them.

    Raises:
        NotFound: there is neither.
    """
    given: dict[str, Any] = {} if body is None else {"body": body}
    try:
        job: Job = client.call(f"jobs.{verb}", {"job": name}, **given)
    except NotFound as missing:
        array = _array(client, name, missing)
        return array if verb == "get" else again(client, verb, array, body)
    return job


def again(client: Client, verb: str, found: Job | ArrayState, body: Value | None = None) -> Job | ArrayState:
    """Does the same to a job or an array that was found before."""
    given: dict[str, Any] = {} if body is None else {"body": body}
    done: Job | ArrayState
    if isinstance(found, Job):
        done = client.call(f"jobs.{verb}", {"job": found.id}, **given)
    else:
        done = client.call(f"arrays.{verb}", {"array": found.array.id}, **given)
    return done


def why(client: Client, name: str) -> Why | ArrayWhy:
    """Returns why a job, or where there is none of that name the next element of an array, is where it is.

    Raises:
        NotFound: there is neither.
    """
    found: Why | ArrayWhy
    try:
        found = client.call("jobs.why", {"job": name})
    except NotFound as missing:
        found = client.call("arrays.why", {"array": _array(client, name, missing).array.id})
    return found


def _array(client: Client, name: str, missing: NotFound) -> ArrayState:
    try:
        found: ArrayState = client.call("arrays.get", {"array": name})
    except NotFound:
        raise missing from None
    return found
