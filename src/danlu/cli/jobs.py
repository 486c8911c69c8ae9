"""``danlu stop``, ``danlu hold`` and ``danlu release``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from cyclopts import Parameter
from pydantic import ValidationError

from danlu.api.bodies import StopRequest
from danlu.cli import arrays, exits, wording
from danlu.cli import output as out
from danlu.cli.options import Common, Flag, Names, Output, several
from danlu.cli.output import Format
from danlu.cli.session import FOLLOW_PATIENCE_S, connect
from danlu.cli.terminal import Messages
from danlu.client.arrays import again, of_either
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
                out.write(f"{arrays.key(found)}{_ended(found) or ' is asked to stop'}")
        if wait:
            client.patience_s = FOLLOW_PATIENCE_S
            asked = [until(client, found, told=lambda now: messages.status(arrays.so_far(now))) for found in asked]
            messages.clear()
    _tell(asked, output)
    return exits.OK


def hold(*job: Names, output: Output = "table", common: Common | None = None) -> int:
    """Let waiting jobs, or those of an array that wait, wait until they are released.

    A job that runs is not held: stop it, and retry it later.

    Example: danlu hold bert-large-3
    """
    return _each("hold", job, output, common)


def release(*job: Names, output: Output = "table", common: Common | None = None) -> int:
    """Let held jobs, or those of an array that are held, go.

    Example: danlu release bert-large-3
    """
    return _each("release", job, output, common)


def _each(verb: Literal["hold", "release"], words: Sequence[str], output: Format, common: Common | None) -> int:
    messages = Messages(quiet=output in ("json", "yaml"))
    asked = []
    with connect(common, messages) as client:
        for name in several(words):
            before = of_either(client, "get", name)
            after = again(client, verb, before)
            asked.append(after)
            if output in ("table", "wide"):  # at once: where a later name is wrong, it is known what was done before
                out.write(f"{arrays.key(after)} {_done(verb, before, after)}")
    _tell(asked, output)
    return exits.OK


def _done(verb: str, before: Job | ArrayState, after: Job | ArrayState) -> str:
    """Returns what holding or releasing did: nothing, where it was so before, or nothing of an array waits."""
    held, now = int(before.held), int(after.held)  # of an array, how many of its elements
    if verb == "hold":
        done = "is held" if now > held else "is held already" if now else "has nothing that waits"
    else:
        done = "is released" if now < held else "was not held"
    if isinstance(after, ArrayState):
        return f"{done}: {arrays.counts(after)}"
    return f"{done}: it {_is(after)}" if held == now == 0 else done


def _is(job: Job) -> str:
    return f"is {job.state}" if job.live else f"has ended: {wording.outcome(job)}"


def _tell(asked: Sequence[Job | ArrayState], output: Format) -> None:
    if output in ("json", "yaml"):
        out.records(asked, output)
    for found in asked if output == "name" else ():
        out.write(arrays.key(found))


def _ended(found: Job | ArrayState) -> str:
    """Returns how it had ended before it was asked to; "" where it had not."""
    if found.live:
        return ""
    return f" has ended already: {wording.outcome(found) if isinstance(found, Job) else arrays.counts(found)}"
