"""What jobs printed: pages as they come, the lines of several tasks in the order of time, and whole lines for programs."""

from __future__ import annotations

import heapq
import itertools
import re
from collections.abc import Iterable, Iterator
from operator import attrgetter
from typing import Final, NamedTuple

from danlu.api.bodies import LogsQuery
from danlu.client.transport import Client
from danlu.domain.jobs import chosen
from danlu.domain.specs import JobSpec
from danlu.domain.views import LogChunk, LogPage
from danlu.runner.formats import parse_lines

_RUN: Final = re.compile(r"^(\d+) .*\n(?:\1 .*\n)*", re.MULTILINE)
STREAMS: Final = {"o": "stdout", "e": "stderr", "r": "danlu"}


class LogLine(str):
    """One line that a job printed, without its newline, and where it came from.

    Attributes:
        attempt: the attempt's number.
        task: such as ``worker-1``; ``main-0`` in a job without roles.
        stream: ``stdout``, ``stderr``, or ``danlu`` for what the platform itself says.
        time_ns: when it was seen, ns UTC.
    """

    __slots__ = ("attempt", "stream", "task", "time_ns")
    attempt: int
    task: str
    stream: str
    time_ns: int


class _Run(NamedTuple):
    """Lines of one task that have one time."""

    at: int
    chunk: LogChunk
    data: str


def pages(client: Client, job_id: str, query: LogsQuery, *, follow: bool = False) -> Iterator[LogPage]:
    """Yields what there is now; with ``follow`` what comes until the job has ended, too."""
    if follow:
        yield from client.stream("jobs.logs_stream", {"job": job_id}, query=query)
        return
    while True:  # a new attempt is a page without lines that has another cursor
        page: LogPage = client.call("jobs.logs", {"job": job_id}, query=query)
        yield page
        if page.done or (not page.chunks and page.cursor == query.cursor):
            return
        query = query.model_copy(update={"cursor": page.cursor})


def task_names(spec: JobSpec, query: LogsQuery) -> tuple[str, ...]:
    """Returns the names of those tasks of a job that ``query`` asks for, by rank."""
    return tuple(task.name for task in chosen(spec.tasks, query.task, query.role, query.rank))


def in_time(page: LogPage) -> Iterator[LogChunk]:
    """Yields a page's lines in the order of time, neighbours of one task together. No task's own order is changed.

    Tasks' lines of one and the same time come in the order of the page.
    """
    if len(page.chunks) < 2:
        yield from page.chunks
        return
    merged = heapq.merge(*map(_runs, page.chunks), key=attrgetter("at"))
    for chunk, runs in itertools.groupby(merged, key=attrgetter("chunk")):
        yield chunk.model_copy(update={"data": "".join(run.data for run in runs)})


def _runs(chunk: LogChunk) -> Iterator[_Run]:
    return (_Run(int(found.group(1)), chunk, found.group()) for found in _RUN.finditer(chunk.data))


def lines(found: Iterable[LogPage]) -> Iterator[LogLine]:
    """Yields whole lines. Of a progress line that was replaced again and again, only its last state is one."""
    open_pieces: dict[tuple[int, str, str], str] = {}
    progress: dict[tuple[int, str, str], LogLine] = {}
    for page in found:
        for chunk in in_time(page):
            for line in parse_lines(chunk.data):
                key = (chunk.attempt, chunk.task, line.stream)
                if line.mark == "~":
                    progress[key] = _line(key, line.at, line.text)
                    continue
                progress.pop(key, None)
                text = open_pieces.pop(key, "") + line.text
                if line.mark == "+":
                    open_pieces[key] = text
                else:
                    yield _line(key, line.at, text)
    yield from progress.values()
    yield from (_line(key, 0, text) for key, text in open_pieces.items())


def _line(key: tuple[int, str, str], at: int, text: str) -> LogLine:
    line = LogLine(text)
    line.attempt, line.task, line.stream, line.time_ns = key[0], key[1], STREAMS.get(key[2], key[2]), at
    return line
