"""Logs: every attempt's stamped lines, by page or as they come. Read from the streams alone."""

from __future__ import annotations

import base64
import binascii
import builtins
import json

from danlu.api import LogsQuery
from danlu.blobs.streams import StreamKey
from danlu.database.engine import Transaction
from danlu.database.records import ATTEMPTS
from danlu.domain.ids import attempt_id
from danlu.domain.jobs import Attempt, AttemptState, Job
from danlu.domain.views import LogChunk, LogPage
from danlu.errors import InvalidRequest, NotFound
from danlu.services.context import Call
from danlu.services.jobs import require

LOG = "log"
CHUNK_BYTES = 512 * 1024


def read(call: Call, job: str, query: LogsQuery) -> LogPage:
    """Returns a page of a job's log: whole lines, in order per task, at most 512 KiB a task.

    Without ``attempt`` it begins at ``beginning``, else at the newest attempt, and goes on to every one that follows;
    ``done`` then means that the job has ended and everything was read. With ``attempt`` it stays there. An empty page
    that is not done means: nothing more yet, ask again with its cursor.
    """
    found, number, attempt, offsets = _where(call, job, query)
    if attempt is None:
        if query.attempt is not None:
            raise NotFound(f"job {found.name} has no attempt {query.attempt}: it has {found.attempts}")
        return LogPage(chunks=(), cursor=_cursor(number, {}), done=not found.live)
    chunks: builtins.list[LogChunk] = []
    complete = attempt.state is AttemptState.ENDED and attempt.collected
    for task in attempt.tasks:
        if query.task is not None and task.name != query.task:
            continue
        key = StreamKey(attempt.project, attempt.id, task.name, LOG)
        if task.name not in offsets:
            # what follows is read whole: since and tail say only where the first page begins
            offsets[task.name] = 0 if query.cursor else _begin(call, key, query)
        data = call.platform.streams.read(key, offsets[task.name], CHUNK_BYTES)
        data = data[: data.rfind(b"\n") + 1]
        if data:
            offsets[task.name] += len(data)
            chunks.append(LogChunk(attempt=number, task=task.name, data=data.decode(errors="replace")))
    if chunks or not complete:
        return LogPage(chunks=tuple(chunks), cursor=_cursor(number, offsets), done=False)
    if query.attempt is None and found.attempts > number:
        return LogPage(chunks=(), cursor=_cursor(number + 1, {}), done=False)
    return LogPage(chunks=(), cursor=_cursor(number, offsets), done=query.attempt is not None or not found.live)


def _where(call: Call, job: str, query: LogsQuery) -> tuple[Job, int, Attempt | None, dict[str, int]]:
    def work(tx: Transaction) -> tuple[Job, int, Attempt | None, dict[str, int]]:
        found = require(tx, call.project, job)
        first = query.attempt or query.beginning or found.attempts or 1
        number, offsets = _parse(query.cursor) if query.cursor else (first, {})
        return found, number, ATTEMPTS.get(tx, attempt_id(found.id, number)), offsets

    return call.platform.database.read(work)


def _begin(call: Call, key: StreamKey, query: LogsQuery) -> int:
    begin = 0
    if query.since is not None:
        begin = call.platform.streams.seek_time(key, query.since)
    if query.tail is not None:
        begin = max(begin, call.platform.streams.tail_offset(key, query.tail))
    return begin


def _cursor(number: int, offsets: dict[str, int]) -> str:
    return base64.urlsafe_b64encode(json.dumps([number, offsets], separators=(",", ":")).encode()).decode()


def _parse(cursor: str) -> tuple[int, dict[str, int]]:
    try:
        number, offsets = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        if not (
            isinstance(number, int)
            and 0 < number < 10**6
            and all(isinstance(k, str) and type(v) is int and 0 <= v < 2**63 for k, v in offsets.items())
        ):
            raise ValueError
    except (ValueError, TypeError, AttributeError, UnicodeError, binascii.Error, RecursionError):
        raise InvalidRequest(f"the cursor {cursor[:80]!r} is not one that this platform gave out") from None
    return number, offsets
