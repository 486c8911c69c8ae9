"""``danlu stop``, ``danlu hold`` and ``danlu release``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from cyclopts import Parameter
from pydantic import ValidationError

from danlu.api.bodies import StopRequest
from danlu.cli import arrays, exits, wording
from danlu.cli import output as out
from danlu.cli.options import Common, Flag, Names, Output, several
from danlu.cli.output import Format
from danlu.cli.session import FOLLOW_PATIENCE_S, connect
from danlu.cli.terminal import Messages
from danlu.client.arrays import of_either
from danlu.client.transport import Client
from danlu.client.waiting import until
from danlu.domain.arrays import ArrayState
from danlu.domain.jobs import Job
from danlu.domain.validation import invalid_spec


def stop(
    *job: Names,
    grace: Annotated[str | None, Parameter(help="time between SIGTERM and SIGKILL, instead of the job's own")] = None,
    wait: Annotated[bool, Parameter(help="return when they have ended"), Flag] = False,
    output: Output = "table",
    common: Common | None = None,
) -> int:
    """Stop jobs: SIGTERM, then after the grace SIGKILL, to all their processes.

    Example: danlu stop bert-large-3 gan-12 --grace 5s
    """
    try:
        request = StopRequest.model_validate({} if grace is None else {"grace": grace})
    except ValidationError as error:
        raise invalid_spec(error, StopRequest) from error
    messages = Messages(quiet=output in ("json", "yaml"))
    with connect(common, messages) as client:
        asked = []
        for name in several(job):
            found = of_either(client, "stop", name, request)
            asked.append(found)
            if output in ("table", "wide"):  # at once: where a later name is wrong, it is known what was done before
                out.write(f"{_key(found)}{_ended(found) or ' is asked to stop'}")
        if wait:
            client.patience_s = FOLLOW_PATIENCE_S
            asked = [_until_ended(client, found, messages) for found in asked]
            messages.clear()
    _tell(asked, output)
    return exits.OK


def hold(*job: Names, output: Output = "table", common: Common | None = None) -> int:
    """Let waiting jobs, or those of an array that wait, wait until they are released.

    A job that runs is not held: stop it, and retry it later.

    Example: danlu hold bert-large-3
    """
    return _each("hold", "is held", job, output, common)


def release(*job: Names, output: Output = "table", common: Common | None = None) -> int:
    """Let held jobs, or those of an array that are held, go.

    Example: danlu release bert-large-3
    """
    return _each("release", "is released", job, output, common)


def _each(verb: str, done: str, words: Sequence[str], output: Format, common: Common | None) -> int:
    messages = Messages(quiet=output in ("json", "yaml"))
    with connect(common, messages) as client:
        asked = [of_either(client, verb, name) for name in several(words)]
    for found in asked if output in ("table", "wide") else ():
        out.write(f"{_key(found)} {done}")
    _tell(asked, output)
    return exits.OK


def _tell(asked: Sequence[Job | ArrayState], output: Format) -> None:
    if output in ("json", "yaml"):
        out.records(asked, output)
    for found in asked if output == "name" else ():
        out.write(_key(found))


def _key(found: Job | ArrayState) -> str:
    return f"job/{found.name}" if isinstance(found, Job) else f"array/{found.array.name}"


def _ended(found: Job | ArrayState) -> str:
    """Returns how it had ended before it was asked to; "" where it had not."""
    if found.live:
        return ""
    return f" has ended already: {wording.outcome(found) if isinstance(found, Job) else arrays.counts(found)}"


def _until_ended(client: Client, found: Job | ArrayState, messages: Messages) -> Job | ArrayState:
    if isinstance(found, ArrayState):
        return arrays.waited(client, found, messages)
    return until(client, found, told=lambda job: messages.status(f"{job.name} is {job.state}"))
