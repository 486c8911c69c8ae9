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
    done: Job | ArrayState = _asked(client, verb, name, {} if body is None else {"body": body})
    return done


def why(client: Client, name: str) -> Why | ArrayWhy:
    """Returns why a job, or where there is none of that name the next element of an array, is where it is.

    Raises:
        NotFound: there is neither.
    """
    found: Why | ArrayWhy = _asked(client, "why", name, {})
    return found


def _asked(client: Client, verb: str, name: str, given: dict[str, Any]) -> Any:
    try:
        return client.call(f"jobs.{verb}", {"job": name}, **given)
    except NotFound as missing:
        try:
            return client.call(f"arrays.{verb}", {"array": name}, **given)
        except NotFound:
            raise missing from None
