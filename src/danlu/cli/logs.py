"""``danlu logs``: what a job printed."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import Group, Parameter
from pydantic import ValidationError

from danlu.api.bodies import LogsQuery
from danlu.cli import wording
from danlu.cli.lines import LogLines, Prefixes, emit, screens
from danlu.cli.options import Common, Flag, Names, Words, one
from danlu.cli.session import FOLLOW_PATIENCE_S, connect
from danlu.cli.terminal import Messages
from danlu.cli.wording import SECOND_NS
from danlu.client.arrays import of_either
from danlu.client.logs import pages, task_names
from danlu.client.transport import Client
from danlu.domain.arrays import ArrayState
from danlu.domain.jobs import Job
from danlu.domain.resources import parse_duration
from danlu.domain.validation import invalid_spec
from danlu.errors import InvalidRequest, NotFound

MAX_TAIL = 1_000_000
WHICH = Group("Of which tasks, where a job has several; all of them when left out", sort_key=1)


@Parameter(name="*", group=WHICH)
@dataclass(frozen=True)
class Which:
    """Tasks of a job: what any of these names."""

    task: Annotated[tuple[str, ...], Parameter(help="a task's name, e.g. worker-1; repeatable"), Words] = ()
    role: Annotated[tuple[str, ...], Parameter(help="a role, e.g. worker; repeatable"), Words] = ()
    rank: Annotated[tuple[int, ...], Parameter(help="a task's number, from 0; repeatable"), Words] = ()
    all: Annotated[bool, Parameter(help="all, each line with its task's name"), Flag] = False


def logs(
    *job: Names,
    follow: Annotated[bool, Parameter(name=("--follow", "-f"), help="go on until the job has ended"), Flag] = False,
    previous: Annotated[
        bool, Parameter(name=("--previous", "-p"), help="of the attempt before the newest"), Flag
    ] = False,
    attempt: Annotated[int | None, Parameter(help="of this attempt, counted from 1")] = None,
    since: Annotated[str | None, Parameter(help="only what is newer, e.g. 10m")] = None,
    tail: Annotated[int | None, Parameter(help="only the last lines, of each task")] = None,
    timestamps: Annotated[bool, Parameter(help="the time (UTC) before each line"), Flag] = False,
    which: Which | None = None,
    common: Common | None = None,
) -> int:
    """Print what a job printed: its stdout on stdout, its stderr on stderr, progress lines folded.

    Without --attempt it is the newest attempt, and with -f every one that follows. The lines of several tasks come in the
    order of time, with the task's name before each.

    Example: danlu logs -f linear-7 --tail 20
    """
    which = which or Which()
    if which.all and (which.task or which.role or which.rank):
        raise InvalidRequest("--all excludes --task, --role and --rank")
    if previous and attempt is not None:
        raise InvalidRequest("--previous and --attempt exclude each other")
    if (attempt is not None and attempt < 1) or (tail is not None and not 0 <= tail <= MAX_TAIL):
        raise InvalidRequest(f"--attempt is at least 1, --tail from 0 to {MAX_TAIL:,}")
    messages = Messages()
    with connect(common, messages) as client:
        found = of_either(client, "get", one(job))
        if isinstance(found, ArrayState):
            raise _of_many(client, found)
        if previous:
            if found.attempts < 2:
                raise NotFound(f"job {found.name} has no attempt before its newest: it has {found.attempts}")
            attempt = found.attempts - 1
        query = _query(which, attempt=attempt, since=since_time(since), tail=tail)
        if follow:
            client.patience_s = FOLLOW_PATIENCE_S
        names = task_names(found.spec, query)
        prefixes = Prefixes(names) if len(names) > 1 or which.all else None
        lines = LogLines(*screens(sys.stdout, sys.stderr), timestamps=timestamps, prefixes=prefixes)
        nothing = True
        try:
            for page in pages(client, found.id, query, follow=follow):
                nothing = nothing and not page.chunks
                emit(lines.take(page))
        finally:
            emit(lines.end())
        if nothing:
            of_what = " there" if query != LogsQuery() else ""
            messages.say(f"{found.name} has printed nothing{of_what}" + (" yet" if found.live else ""))
    return 0


def _of_many(client: Client, found: ArrayState) -> InvalidRequest:
    first: Job = client.call("jobs.get", {"job": found.array.first})
    indexes = "" if first.spec.array is None else f": {found.array.name}-INDEX with {first.spec.array.indexes}"
    return InvalidRequest(
        f"{found.array.name} is an array of {wording.count(found.array.size, 'job')}, each with logs of its own{indexes}",
        next_step=f"danlu logs {first.name}   all of them: danlu get jobs --array {found.array.name}",
    )


def _query(which: Which, **fields: Any) -> LogsQuery:
    try:
        return LogsQuery(task=which.task, role=which.role, rank=which.rank, **fields)
    except ValidationError as error:
        raise invalid_spec(error, LogsQuery) from error


def since_time(text: str | None) -> int | None:
    """Returns the time (ns UTC) that was so long ago; None for none.

    Raises:
        InvalidRequest: it is no duration.
    """
    if text is None:
        return None
    try:
        return time.time_ns() - round(parse_duration(text) * SECOND_NS)
    except ValueError as error:
        raise InvalidRequest(f"--since: {error}") from error
