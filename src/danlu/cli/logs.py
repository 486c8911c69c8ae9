"""``danlu logs``: what a job printed."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Annotated

from cyclopts import Parameter

from danlu.api import LogsQuery
from danlu.cli.lines import LogLines, emit, screens
from danlu.cli.options import Common, Flag, Names, one
from danlu.cli.session import FOLLOW_PATIENCE_S, connect
from danlu.cli.terminal import Messages
from danlu.cli.wording import SECOND_NS
from danlu.client.transport import Client
from danlu.domain.resources import parse_duration
from danlu.domain.views import LogPage
from danlu.errors import InvalidRequest, NotFound

MAX_TAIL = 1_000_000


def logs(
    *job: Names,
    follow: Annotated[bool, Parameter(name=("--follow", "-f"), help="go on until the job has ended"), Flag] = False,
    previous: Annotated[
        bool, Parameter(name=("--previous", "-p"), help="of the attempt before the newest"), Flag
    ] = False,
    attempt: Annotated[int | None, Parameter(help="of this attempt, counted from 1")] = None,
    task: Annotated[str | None, Parameter(help="of this task only, e.g. main-0")] = None,
    since: Annotated[str | None, Parameter(help="only what is newer, e.g. 10m")] = None,
    tail: Annotated[int | None, Parameter(help="only the last lines")] = None,
    timestamps: Annotated[bool, Parameter(help="the time (UTC) before each line"), Flag] = False,
    common: Common | None = None,
) -> int:
    """Print what a job printed: its stdout on stdout, its stderr on stderr, progress lines folded.

    Without --attempt it is the newest attempt, and with -f every one that follows.

    Example: danlu logs -f linear-7 --tail 20
    """
    if previous and attempt is not None:
        raise InvalidRequest("--previous and --attempt exclude each other")
    if (attempt is not None and attempt < 1) or (tail is not None and not 0 <= tail <= MAX_TAIL):
        raise InvalidRequest(f"--attempt is at least 1, --tail from 0 to {MAX_TAIL:,}")
    messages = Messages()
    with connect(common, messages) as client:
        found = client.call("jobs.get", {"job": one(job)})
        if previous:
            if found.attempts < 2:
                raise NotFound(f"job {found.name} has no attempt before its newest: it has {found.attempts}")
            attempt = found.attempts - 1
        query = LogsQuery(attempt=attempt, task=task, since=_since(since), tail=tail)
        pages = _stream(client, found.id, query) if follow else _pages(client, found.id, query)
        lines = LogLines(*screens(sys.stdout, sys.stderr), timestamps=timestamps)
        nothing = True
        try:
            for page in pages:
                nothing = nothing and not page.chunks
                emit(lines.take(page))
        finally:
            emit(lines.end())
        if nothing:
            of_what = " there" if since or tail is not None or attempt or task else ""
            messages.say(f"{found.name} has printed nothing{of_what}" + (" yet" if found.live else ""))
    return 0


def _stream(client: Client, job_id: str, query: LogsQuery) -> Iterator[LogPage]:
    client.patience_s = FOLLOW_PATIENCE_S
    return client.stream("jobs.logs_stream", {"job": job_id}, query=query)


def _pages(client: Client, job_id: str, query: LogsQuery) -> Iterator[LogPage]:
    """Yields what there is now. A new attempt is a page without lines that has another cursor."""
    while True:
        page: LogPage = client.call("jobs.logs", {"job": job_id}, query=query)
        yield page
        if page.done or (not page.chunks and page.cursor == query.cursor):
            return
        query = query.model_copy(update={"cursor": page.cursor})


def _since(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return time.time_ns() - round(parse_duration(text) * SECOND_NS)
    except ValueError as error:
        raise InvalidRequest(f"--since: {error}") from error
