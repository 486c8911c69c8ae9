"""Metrics: what a job recorded by ``danlu.log`` or printed, over all its attempts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from danlu.api.bodies import MetricsQuery
from danlu.blobs.streams import StreamKey
from danlu.database.engine import Transaction
from danlu.database.records import ATTEMPTS
from danlu.domain.jobs import Attempt
from danlu.domain.views import Metrics, Series
from danlu.runner.formats import SYSTEM
from danlu.services.context import Call
from danlu.services.jobs import require

METRICS = "metrics"
READ_BYTES = 4 * 2**20
MAX_SERIES = 1000
MAX_ATTEMPTS = 10_000


Key = tuple[str, str]
"""A metric's name and, in a gang, the task that recorded it."""


@dataclass(slots=True)
class _Points:
    steps: list[float | None] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


def read(call: Call, job: str, query: MetricsQuery) -> Metrics:
    """Returns a job's metrics over its attempts, by name and in a gang by task, each in at most ``points`` points.

    They are the program's own; with ``system``, or by its full name, what the platform measured.
    """

    def work(tx: Transaction) -> list[Attempt]:
        found = require(tx, call.project, job)
        return ATTEMPTS.find(tx, job_id=found.id, order="number", limit=MAX_ATTEMPTS)

    series: dict[Key, _Points] = {}
    for attempt in call.platform.database.read(work):
        for task in attempt.tasks:
            of = task.name if len(attempt.tasks) > 1 else ""
            if query.task not in (None, task.name):
                continue
            for line in _lines(call, StreamKey(attempt.project, attempt.id, task.name, METRICS)):
                _add(series, of, line, query)
    return Metrics(series=tuple(_series(key, series[key], query.points) for key in sorted(series)))


def _lines(call: Call, key: StreamKey) -> Iterator[bytes]:
    offset = 0
    while data := call.platform.streams.read(key, offset, READ_BYTES):
        data = data[: data.rfind(b"\n") + 1]
        if not data:
            return
        offset += len(data)
        yield from data.splitlines()


def _add(series: dict[Key, _Points], task: str, line: bytes, query: MetricsQuery) -> None:
    try:
        point = json.loads(line)
        step, at, values = point["s"], int(point["t"]), {str(k): float(v) for k, v in point["m"].items()}
        step = None if step is None else float(step)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return  # the runner writes none such, but the spool is the job's own
    for name, value in values.items():
        if name != query.name if query.name is not None else name.startswith(SYSTEM) != query.system:
            continue
        points = series.get((name, task))
        if points is None:
            if len(series) >= MAX_SERIES:
                continue
            points = series[name, task] = _Points()
        points.steps.append(step)
        points.times.append(at)
        points.values.append(value)


def _series(key: Key, points: _Points, most: int) -> Series:
    kept = downsample(points.values, most)
    finite = [value for value in points.values if math.isfinite(value)]
    return Series(
        name=key[0],
        task=key[1],
        count=len(points.values),
        steps=tuple(points.steps[i] for i in kept),
        times=tuple(points.times[i] for i in kept),
        values=tuple(points.values[i] for i in kept),
        smallest=min(finite, default=None),
        largest=max(finite, default=None),
        last=points.values[-1] if points.values else None,
    )


def downsample(values: list[float], most: int) -> list[int]:
    """Returns indexes, ascending, of at most ``most`` (>= 2) values: of each equal bucket its smallest and its largest.

    Values that are not finite count as the largest, so that a NaN is never left out of its bucket.
    """
    if len(values) <= most:
        return list(range(len(values)))
    buckets = most // 2
    kept: list[int] = []
    for bucket in range(buckets):
        span = range(len(values) * bucket // buckets, len(values) * (bucket + 1) // buckets)
        low = min(span, key=lambda i: values[i] if math.isfinite(values[i]) else math.inf)
        high = max(span, key=lambda i: values[i] if math.isfinite(values[i]) else math.inf)
        kept.extend(sorted({low, high}))
    return kept
