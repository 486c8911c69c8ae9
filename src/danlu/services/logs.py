"""Logs: every attempt's stamped lines, by page or as they come. Read from the streams alone."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from danlu.api.bodies import LogsQuery
from danlu.blobs.streams import StreamKey, line_time
from danlu.database.engine import Transaction
from danlu.database.records import ATTEMPTS
from danlu.domain.ids import attempt_id
from danlu.domain.jobs import Attempt, AttemptState, Job, Task, chosen
from danlu.domain.specs import TaskSpec
from danlu.domain.validation import suggestion
from danlu.domain.views import LogChunk, LogPage
from danlu.errors import InvalidRequest, NotFound
from danlu.services.context import Call
from danlu.services.jobs import require

LOG = "log"
PAGE_BYTES: Final = 2 * 2**20
"""What is read for a page, of all its tasks together."""
SMALLEST_BLOCK_BYTES: Final = 8 * 1024
CHUNK_BYTES: Final = 512 * 1024
"""What is read of one task at most."""
LINE_BYTES: Final = 80 * 1024
"""Longer than any line that a runner writes."""
NOT_BEGUN: Final = -1
T = TypeVar("T", Task, TaskSpec)


def read(call: Call, job: str, query: LogsQuery) -> LogPage:
    """Returns a page of a job's log: whole lines, in order per task, and nothing later than what a further page holds.

    So pages one after the other, each with its lines sorted by time, are all that has arrived in the order of time.
    Without ``attempt`` it begins at ``beginning``, else at the newest attempt, and goes on to every one that follows;
    ``done`` then means that the job has ended and everything was read. With ``attempt`` it stays there. An empty page
    that is not done means: nothing more yet, ask again with its cursor.

    Raises:
        NotFound: there is no such job, attempt, task, role or rank.
    """
    found, number, attempt, offsets = _where(call, job, query)
    if attempt is None:
        if query.attempt is not None:
            raise NotFound(f"job {found.name} has no attempt {query.attempt}: it has {found.attempts}")
        _chosen(found, found.spec.tasks, query)
        return LogPage(chunks=(), cursor=_cursor(number, []), done=not found.live)
    offsets += [NOT_BEGUN] * (len(attempt.tasks) - len(offsets))
    complete = attempt.state is AttemptState.ENDED and attempt.collected
    places = {task.name: place for place, task in enumerate(attempt.tasks)}
    blocks = _blocks(call, attempt, _chosen(found, attempt.tasks, query), offsets, query)
    chunks: list[LogChunk] = []
    for block, end in _in_time(blocks):
        offsets[places[block.task]] = block.offset + end
        if end:
            data = block.data[:end].decode(errors="replace")
            chunks.append(LogChunk(attempt=number, task=block.task, data=data))
    if chunks or not complete:
        return LogPage(chunks=tuple(chunks), cursor=_cursor(number, offsets), done=False)
    if query.attempt is None and found.attempts > number:
        return LogPage(chunks=(), cursor=_cursor(number + 1, []), done=False)
    return LogPage(chunks=(), cursor=_cursor(number, offsets), done=query.attempt is not None or not found.live)


def _where(call: Call, job: str, query: LogsQuery) -> tuple[Job, int, Attempt | None, list[int]]:
    def work(tx: Transaction) -> tuple[Job, int, Attempt | None, list[int]]:
        found = require(tx, call.project, job)
        first = query.attempt or query.beginning or found.attempts or 1
        number, offsets = _parse(query.cursor) if query.cursor else (first, [])
        return found, number, ATTEMPTS.get(tx, attempt_id(found.id, number)), offsets

    return call.platform.database.read(work)


def _chosen(job: Job, tasks: tuple[T, ...], query: LogsQuery) -> tuple[T, ...]:
    """Returns the tasks that are asked for, or raises NotFound where something is named that is not there."""
    known: dict[str, tuple[list[str], list[str]]] = {
        "task": ([task.name for task in tasks], list(query.task)),
        "role": ([task.role for task in tasks], list(query.role)),
        "rank": ([str(task.rank) for task in tasks], [str(rank) for rank in query.rank]),
    }
    for kind, (there, asked) in known.items():
        for word in asked:
            if word not in there:
                some = ", ".join(dict.fromkeys(there[:20])) + (", ..." if len(there) > 20 else "")
                raise NotFound(
                    f"job {job.name} has no {kind} {word[:63]!r}",
                    next_step=suggestion(word, there) or f"there are: {some}",
                )
    return chosen(tasks, query.task, query.role, query.rank)


@dataclass(frozen=True, slots=True)
class _Block:
    """What follows in one task's log: whole lines from ``offset`` on. ``more``: there are lines behind it."""

    task: str
    offset: int
    data: bytes
    more: bool


def _blocks(
    call: Call, attempt: Attempt, tasks: tuple[Task, ...], offsets: list[int], query: LogsQuery
) -> list[_Block]:
    size = min(CHUNK_BYTES, max(SMALLEST_BLOCK_BYTES, PAGE_BYTES // max(1, len(tasks))))
    wanted = {task.name for task in tasks}
    blocks = []
    for place, task in enumerate(attempt.tasks):
        if task.name not in wanted:
            continue
        key = StreamKey(attempt.project, attempt.id, task.name, LOG)
        # what follows is read whole: since and tail say only where the first page begins
        began = offsets[place] != NOT_BEGUN
        offset = offsets[place] if began else 0 if query.cursor else _begin(call, key, query)
        data = call.platform.streams.read(key, offset, size)
        more = len(data) == size
        if more and size < LINE_BYTES and b"\n" not in data:
            data = call.platform.streams.read(key, offset, LINE_BYTES)
            more = len(data) == LINE_BYTES
        end = data.rfind(b"\n") + 1
        # a line that no runner wrote is longer than any that one writes: it is passed on in parts
        blocks.append(_Block(task.name, offset, data if more and not end else data[:end], more))
    return blocks


def _in_time(blocks: list[_Block]) -> list[tuple[_Block, int]]:
    """Returns how many bytes of each block come now: none that is later than what is behind another block.

    Of the block whose end is the earliest all of it comes, so that there is always something.
    """
    limits = [(line_time(_last_line(block.data)), place) for place, block in enumerate(blocks) if block.more]
    if not limits:
        return [(block, len(block.data)) for block in blocks]
    horizon, first = min(limits)
    return [
        (block, len(block.data) if place == first else _until(block.data, horizon))
        for place, block in enumerate(blocks)
    ]


def _last_line(data: bytes) -> bytes:
    return data[data.rfind(b"\n", 0, len(data) - 1) + 1 :]


def _until(data: bytes, horizon: int) -> int:
    """Returns where the first line begins that is later than ``horizon``; the end where none is."""
    low, high = 0, len(data)
    while low < high:
        middle = (low + high) // 2
        begin = max(low, data.rfind(b"\n", low, middle) + 1)
        end = data.find(b"\n", middle) + 1 or len(data)
        if line_time(data[begin:end]) <= horizon:
            low = end
        else:
            high = begin
    return low


def _begin(call: Call, key: StreamKey, query: LogsQuery) -> int:
    begin = 0
    if query.since is not None:
        begin = call.platform.streams.seek_time(key, query.since)
    if query.tail is not None:
        begin = max(begin, call.platform.streams.tail_offset(key, query.tail))
    return begin


def _cursor(number: int, offsets: list[int]) -> str:
    return base64.urlsafe_b64encode(json.dumps([number, offsets], separators=(",", ":")).encode()).decode()


def _parse(cursor: str) -> tuple[int, list[int]]:
    try:
        number, offsets = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        if not (type(number) is int and 0 < number < 10**6 and isinstance(offsets, list)):
            raise ValueError
        if not all(map(_is_offset, offsets)):
            raise ValueError
    except (ValueError, TypeError, AttributeError, UnicodeError, binascii.Error, RecursionError):
        raise InvalidRequest(f"the cursor {cursor[:80]!r} is not one that this platform gave out") from None
    return number, offsets


def _is_offset(value: Any) -> bool:
    return type(value) is int and NOT_BEGUN <= value < 2**63
