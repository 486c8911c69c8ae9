"""``danlu stop`` and ``danlu wait``."""

from __future__ import annotations

import time
from typing import Annotated

from cyclopts import Parameter
from pydantic import ValidationError

from danlu.api import StopRequest, WaitQuery
from danlu.cli import exits, wording
from danlu.cli import output as out
from danlu.cli.options import Common, Flag, Names, Output, one, several
from danlu.cli.session import FOLLOW_PATIENCE_S, connect
from danlu.cli.submitting import tell_end
from danlu.cli.terminal import Messages
from danlu.client.transport import Client
from danlu.domain.jobs import Job, job_exit_code
from danlu.domain.resources import parse_duration
from danlu.domain.validation import invalid_spec
from danlu.errors import InvalidRequest

ONE_WAIT_S = 30.0


def stop(
    *job: Names,
    grace: Annotated[str | None, Parameter(help="time between SIGTERM and SIGKILL, instead of the job's own")] = None,
    wait: Annotated[bool, Parameter(help="return when they have ended"), Flag] = False,
    common: Common | None = None,
) -> int:
    """Stop jobs: SIGTERM, then after the grace SIGKILL, to all their processes.

    Example: danlu stop bert-large-3 gan-12 --grace 5s
    """
    try:
        request = StopRequest.model_validate({} if grace is None else {"grace": grace})
    except ValidationError as error:
        raise invalid_spec(error, StopRequest) from error
    messages = Messages()
    with connect(common, messages) as client:
        asked = [client.call("jobs.stop", {"job": name}, body=request) for name in several(job)]
        for found in asked:
            ended = "" if found.live else f" has ended already: {wording.outcome(found)}"
            out.write(f"job/{found.name}{ended or ' is asked to stop'}")
        if wait:
            for found in asked:
                await_end(client, found, messages, None)
    return exits.OK


def wait(
    *job: Names,
    timeout: Annotated[str | None, Parameter(help="give up after this time, e.g. 10m; exit code 124")] = None,
    output: Output = "table",
    common: Common | None = None,
) -> int:
    """Wait until a job has ended, and exit with its exit code.

    Example: danlu wait linear-7 --timeout 10m
    """
    try:
        timeout_s = None if timeout is None else parse_duration(timeout)
    except ValueError as error:
        raise InvalidRequest(f"--timeout: {error}") from error
    messages = Messages(quiet=output in ("json", "yaml"))
    with connect(common, messages) as client:
        found = client.call("jobs.get", {"job": one(job)})
        found = await_end(client, found, messages, timeout_s)
    if output in ("json", "yaml"):
        out.record(found, output)
    if found.live:
        messages.say(f"{found.name} has not ended after {timeout}: it is {found.state}")
        return exits.TIMED_OUT
    if found.state == "succeeded":
        messages.say(f"{found.name} {wording.outcome(found)}")
    else:
        tell_end(found, messages)
    return job_exit_code(found)


def await_end(client: Client, job: Job, messages: Messages, timeout_s: float | None) -> Job:
    """Returns the job once it has ended, or as it is when the time is over."""
    client.patience_s = FOLLOW_PATIENCE_S
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while job.live:
        left = ONE_WAIT_S if deadline is None else min(ONE_WAIT_S, deadline - time.monotonic())
        if left <= 0:
            break
        messages.status(f"{job.name} is {job.state}" + (f": {wording.why(job)}" if wording.why(job) != "-" else ""))
        job = client.call("jobs.wait", {"job": job.id}, query=WaitQuery(timeout_s=left))
    messages.clear()
    return job
