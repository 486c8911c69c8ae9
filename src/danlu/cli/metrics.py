"""``danlu metrics X``: what a job measured, drawn, or as data."""

from __future__ import annotations

import csv
import io
import math
import sys
from collections.abc import Callable
from typing import Annotated, Final, Literal

from cyclopts import Parameter

from danlu.api.bodies import MetricsQuery
from danlu.cli import output as out
from danlu.cli import wording
from danlu.cli.options import Common, Flag, Names, one
from danlu.cli.plot import draw, number
from danlu.cli.session import connect
from danlu.cli.terminal import Messages, paint, width
from danlu.domain.resources import format_bytes
from danlu.domain.validation import suggestion
from danlu.domain.views import Metrics, Series
from danlu.errors import InvalidRequest, NotFound
from danlu.runner.formats import SYSTEM

HEIGHT: Final = 10
MAX_WIDTH: Final = 120
SHOWN: Final = 8
STYLES: Final = ("cyan", "green", "yellow", "magenta", "blue")


def metrics(
    *job: Names,
    name: Annotated[tuple[str, ...], Parameter(help="only this one; repeatable", negative_iterable=())] = (),
    system: Annotated[bool, Parameter(help="what the platform measured: processors, memory, GPUs"), Flag] = False,
    points: Annotated[int, Parameter(help="at most so many points of each; peaks are kept")] = 1000,
    output: Annotated[
        Literal["plot", "table", "wide", "json", "yaml", "csv", "name"],
        Parameter(name=("--output", "-o"), help="plot, table, wide, json, yaml, csv or name"),
    ] = "plot",
    common: Common | None = None,
) -> int:
    """Draw what a job measured: what it gave to danlu.log, or printed where it runs with --metrics.

    Example: danlu metrics linear-7 --name loss
    """
    if not 2 <= points <= 100_000:
        raise InvalidRequest(f"--points {points} is not from 2 to 100,000")
    messages = Messages()
    with connect(common, messages) as client:
        found = client.call("jobs.get", {"job": one(job)})
        wanted = MetricsQuery(points=points, name=name[0] if len(name) == 1 else None, system=system)
        answer: Metrics = client.call("jobs.metrics", {"job": found.id}, query=wanted)
        known = [series.name for series in answer.series]
        chosen = [series for series in answer.series if not name or series.name in name]
        if name and len(chosen) < len(set(name)):
            missing = next(word for word in name if word not in known)
            few = MetricsQuery(points=2, system=system)
            every = [s.name for s in client.call("jobs.metrics", {"job": found.id}, query=few).series]
            hint = suggestion(missing, every) or f"there are: {', '.join(every) or 'none'}"
            raise NotFound(f"job {found.name} has no metric {missing!r}", next_step=hint)
    if output in ("json", "yaml"):
        out.record(Metrics(series=tuple(chosen)), output)
    elif output == "csv":
        out.write(_csv(chosen))
    elif output == "name":
        for one_name in dict.fromkeys(series.name for series in chosen):
            out.write(one_name)
    elif chosen and output in ("table", "wide"):
        _table(chosen)
    elif chosen:
        _plot(chosen, explicit=bool(name), messages=messages)
    else:
        what = "was not measured: it ran for less than two seconds" if system and not found.live else "has no metrics"
        messages.say(f"{found.name} {what}" + (" yet" if found.live else ""))
        if not system:
            messages.say("record some: danlu.log(step=1, loss=0.3), or take printed ones: danlu run --metrics -- …")
    return 0


def _table(chosen: list[Series]) -> None:
    rows = [
        [series.name, series.task, f"{series.count:,}", *_written(series, series.last, series.smallest, series.largest)]
        for series in chosen
    ]
    out.table(["NAME", "TASK", "POINTS", "LAST", "SMALLEST", "LARGEST"], rows)


def _plot(chosen: list[Series], *, explicit: bool, messages: Messages) -> None:
    shown = chosen if explicit else chosen[:SHOWN]
    columns = min(width(), MAX_WIDTH)
    for at, series in enumerate(shown):
        if at:
            out.write("")
        steps = _steps(series)
        label = "step" if series.steps and series.steps[0] is not None else "point"
        last, smallest, largest = _written(series, series.last, series.smallest, series.largest)
        facts = f"last {last}   smallest {smallest}   largest {largest}"
        name = f"{series.name} {series.task}".rstrip()
        title = out.cut(f"{name}   {facts}   {wording.count(series.count, 'point')}, by {label}", out.room())
        out.write(paint(title[: len(name)], "bold", sys.stdout) + title[len(name) :])
        for line in draw(steps, series.values, width=columns, height=HEIGHT, written=_form(series.name)):
            head, bar, curve = line.partition("┤") if "┤" in line else line.partition("│")
            out.write(head + bar + paint(curve, STYLES[at % len(STYLES)], sys.stdout) if curve else line)
    if len(shown) < len(chosen):
        left = ", ".join(series.name for series in chosen[SHOWN:][:20])
        messages.say(f"{len(chosen) - len(shown)} more: {left}; draw one: --name {chosen[SHOWN].name}")


def _steps(series: Series) -> list[float]:
    """Returns the x of each point: its step, or its number where it has none."""
    if any(step is None for step in series.steps):
        return [float(at) for at in range(len(series.values))]
    return [float(step) for step in series.steps if step is not None]


def _form(name: str) -> Callable[[float], str]:
    """Returns how a metric is written: what the platform measures as ``danlu top`` writes it, a program's own as a number."""
    if not name.startswith(SYSTEM):
        return number
    if name.endswith("_bytes"):
        return lambda value: format_bytes(round(value)) if math.isfinite(value) else number(value)
    return "{:.1f} %".format if name.endswith("_percent") else "{:.2f}".format


def _written(series: Series, *values: float | None) -> list[str]:
    form = _form(series.name)
    return ["-" if value is None else form(value) for value in values]


def _csv(chosen: list[Series]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "task", "step", "time_ns", "value"])
    for series in chosen:
        for step, at, value in zip(series.steps, series.times, series.values, strict=True):
            writer.writerow([series.name, series.task, "" if step is None else repr(step), at, repr(value)])
    return text.getvalue().rstrip("\n")
