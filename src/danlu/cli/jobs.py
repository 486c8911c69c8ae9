"""``danlu stop``."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from pydantic import ValidationError

from danlu.api.bodies import StopRequest
from danlu.cli import exits, wording
from danlu.cli import output as out
from danlu.cli.options import Common, Flag, Names, Output, several
from danlu.cli.session import FOLLOW_PATIENCE_S, connect
from danlu.cli.terminal import Messages
from danlu.client.waiting import until
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
        asked = [client.call("jobs.stop", {"job": name}, body=request) for name in several(job)]
        for found in asked if output in ("table", "wide") else ():
            ended = "" if found.live else f" has ended already: {wording.outcome(found)}"
            out.write(f"job/{found.name}{ended or ' is asked to stop'}")
        if wait:
            client.patience_s = FOLLOW_PATIENCE_S
            asked = [
                until(client, found, told=lambda job: messages.status(f"{job.name} is {job.state}")) for found in asked
            ]
            messages.clear()
    if output in ("json", "yaml"):
        out.records(asked, output)
    for found in asked if output == "name" else ():
        out.write(f"job/{found.name}")
    return exits.OK
