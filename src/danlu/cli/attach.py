"""``danlu attach``: follow a job again, as ``danlu run`` did."""

from __future__ import annotations

from typing import Annotated, Final

from cyclopts import Parameter

from danlu.api.bodies import LogsQuery
from danlu.cli import arrays, wording
from danlu.cli.logs import MAX_TAIL
from danlu.cli.options import Common, Names, again, one
from danlu.cli.session import connect
from danlu.cli.submitting import conclude
from danlu.cli.terminal import Messages
from danlu.client.arrays import of_either
from danlu.domain.arrays import ArrayState
from danlu.domain.jobs import job_exit_code
from danlu.errors import InvalidRequest

TAIL: Final = 20


def attach(
    *job: Names,
    tail: Annotated[int, Parameter(help="begin with so many of the last lines")] = TAIL,
    common: Common | None = None,
) -> int:
    """Follow a job or an array until it has ended, as danlu run does, and exit with its exit code.

    Ctrl-C asks whether to stop the job or to leave it running.

    Example: danlu attach linear-7
    """
    if not 0 <= tail <= MAX_TAIL:
        raise InvalidRequest(f"--tail is from 0 to {MAX_TAIL:,}")
    messages = Messages()
    with connect(common, messages) as client:
        found = of_either(client, "get", one(job))
        if isinstance(found, ArrayState):
            if found.live:
                found = arrays.followed(client, found, messages)
            arrays.tell(found, messages)
            return arrays.code_of(found)
        if not found.live:
            messages.say(f"{found.name} has ended already: {wording.outcome(found)}   (danlu logs {found.name})")
            return job_exit_code(found)
        return conclude(client, found, messages, "table", logs=LogsQuery(tail=tail), flags=again(common))
