"""A trace: which jobs came when, what they asked for and how long they ran; read from CSV, written as CSV.

Columns, in any order, named in the first line; others are ignored, unless they look like one of these that is missing:

- ``job``: its id, once in the trace.
- ``submit_s``: when it came, in seconds since any moment. Lines need not be sorted by it.
- ``duration_s``: how long it runs, in seconds, without what waiting and restarts cost.
- ``gpus``: all its GPUs together.
- ``project``, ``priority``: as in ``danlu run``; may be missing, then ``default`` and 0.
- ``declared_s``: how long it runs at most, as its user has said (``max_time``); empty: nothing was said.
- ``tasks``: of how many tasks it consists, each with an equal part of all that it asks for. Empty: of as few as its GPUs
  fit on whole nodes: 16 GPUs on nodes of 8 are 2 tasks.
- ``cpu`` (cores), ``memory`` (as in ``--memory``), ``gpu_kind``: may be missing. A job without GPUs asks for 1 core at least.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Final

from danlu.domain.nodes import NodeCapacity
from danlu.domain.resources import MAX_GPUS, Resources, format_cpu, parse_bytes, parse_cpu
from danlu.domain.validation import suggestion
from danlu.errors import InvalidRequest
from danlu.scheduler.model import SECOND_NS, Shape

REQUIRED: Final = ("job", "submit_s", "duration_s", "gpus")
OPTIONAL: Final = ("project", "priority", "declared_s", "tasks", "cpu", "memory", "gpu_kind")
KNOWN: Final = (*REQUIRED, *OPTIONAL)
MAX_JOBS: Final = 1_000_000
MAX_SECONDS: Final = 2**33
"""The year 2242, as Unix time."""
MAX_PRIORITY: Final = 1_000_000
SHOWN_ERRORS: Final = 10


@dataclass(frozen=True, slots=True)
class TraceJob:
    """One line of a trace. Times are ns, durations ns."""

    id: str
    submit: int
    duration: int
    gpus: int
    project: str = "default"
    priority: int = 0
    declared: int | None = None
    tasks: int | None = None
    cpu_milli: int = 0
    memory_bytes: int = 0
    gpu_kind: str | None = None

    def shape(self, node_gpus: int) -> Shape:
        """Returns what it asks for as a gang, where the largest node has so many GPUs."""
        if self.tasks is None and self.gpus > node_gpus > 0:
            whole, rest = divmod(self.gpus, node_gpus)
            gpus = [node_gpus] * whole + [rest] * bool(rest)
        else:
            gpus = _spread(self.gpus, self.tasks or 1)
        count = len(gpus)
        cpu = _spread(self.cpu_milli or (0 if self.gpus else 1000), count)
        memory = _spread(self.memory_bytes, count)
        tasks = (Resources(cpu_milli=c, memory_bytes=m, gpus=g) for c, m, g in zip(cpu, memory, gpus, strict=True))
        return Shape(tuple(tasks), self.gpu_kind if self.gpus else None)


def _spread(amount: int, parts: int) -> list[int]:
    """Returns an amount in equal parts; what does not divide goes to the first ones."""
    least, rest = divmod(amount, parts)
    return [least + (part < rest) for part in range(parts)]


def largest_node(nodes: Iterable[NodeCapacity]) -> int:
    """Returns how many GPUs the largest node has."""
    return max((len(node.gpus) for node in nodes), default=0)


def parse(text: str, *, max_jobs: int = MAX_JOBS) -> tuple[TraceJob, ...]:
    """Returns the jobs of a trace, by time of submission.

    Raises:
        InvalidRequest: it is no trace; the first lines that are wrong are named, each with its number.
    """
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""))
    found: dict[str, tuple[int, TraceJob]] = {}
    wrong: list[str] = []
    try:
        names = _columns(next(reader, []))
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            try:
                job = _job(_row(names, cells))
                if (earlier := found.get(job.id)) is not None:
                    raise ValueError(f"job: {job.id!r} is the job of line {earlier[0]} already")
                found[job.id] = reader.line_num, job
            except ValueError as error:
                wrong.append(f"line {reader.line_num}: {error}")
            if len(found) + len(wrong) > max_jobs:
                raise InvalidRequest(f"the trace has more than {max_jobs:,} jobs", next_step="simulate a part of it")
    except csv.Error as error:
        wrong.append(f"line {reader.line_num}: {error}")
    if wrong:
        more = f"\nand {len(wrong) - SHOWN_ERRORS:,} more" if len(wrong) > SHOWN_ERRORS else ""
        raise InvalidRequest(
            "the trace is not right:\n" + "\n".join(wrong[:SHOWN_ERRORS]) + more,
            next_step="what each column means: docs/reference/trace.md",
            lines=len(wrong),
        )
    if not found:
        raise InvalidRequest(
            "the trace has no jobs", next_step="a job is a line below the line with the columns' names"
        )
    return tuple(sorted((job for _, job in found.values()), key=lambda job: (job.submit, job.id)))


def _columns(header: Sequence[str]) -> list[str]:
    names = [name.strip() for name in header]
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise InvalidRequest(
            f"the trace's first line names no column {', '.join(missing)}: it has {', '.join(names)[:200] or 'nothing'}",
            next_step=f"it begins with: {','.join((*REQUIRED, *OPTIONAL[:2]))}",
        )
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise InvalidRequest(f"the trace's first line names {', '.join(twice)} twice")
    absent = [name for name in OPTIONAL if name not in names]
    for name in names:  # much like one of ours that is not there: a slip that would change what comes out
        if name not in KNOWN and (meant := suggestion(name, absent)):
            raise InvalidRequest(
                f"the trace's first line names a column {name!r:.80}", next_step=f"{meant} Else rename it"
            )
    return names


def _row(names: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    if len(cells) != len(names):
        raise ValueError(f"it has {len(cells)} cells, the first line {len(names)}")
    return {name: cell.strip() for name, cell in zip(names, cells, strict=True)}


def _job(row: Mapping[str, str]) -> TraceJob:
    if not row["job"] or len(row["job"]) > 200:
        raise ValueError(f"job: {row['job'][:40]!r} is no id: write 1 to 200 letters")
    duration = _seconds(row, "duration_s")
    declared = _seconds(row, "declared_s") if row.get("declared_s") else None
    for name, value in (("duration_s", duration), ("declared_s", declared)):
        if value == 0:
            raise ValueError(f"{name}: {row[name]!r} is not above 0")
    gpus = _count(row, "gpus", 0, MAX_GPUS)
    try:
        cpu = parse_cpu(row["cpu"]) if row.get("cpu", "0") not in ("", "0") else 0
        memory = parse_bytes(row["memory"]) if row.get("memory", "0") not in ("", "0") else 0
    except ValueError as error:
        raise ValueError(f"cpu or memory: {error}") from None
    return TraceJob(
        id=row["job"],
        submit=_seconds(row, "submit_s"),
        duration=duration,
        gpus=gpus,
        project=row.get("project") or "default",
        priority=_count(row, "priority", -MAX_PRIORITY, MAX_PRIORITY) if row.get("priority") else 0,
        declared=declared,
        tasks=_count(row, "tasks", 1, MAX_GPUS) if row.get("tasks") else None,
        cpu_milli=cpu,
        memory_bytes=memory,
        gpu_kind=row.get("gpu_kind") or None,
    )


def _seconds(row: Mapping[str, str], name: str) -> int:
    try:
        value = Decimal(row[name])
        if not value.is_finite():
            raise InvalidOperation
    except InvalidOperation:
        raise ValueError(f"{name}: {row[name][:40]!r} is not a number of seconds") from None
    if not 0 <= value <= MAX_SECONDS:
        raise ValueError(f"{name}: {row[name][:40]!r} is not within 0 and {MAX_SECONDS}")
    return int(value * SECOND_NS)


def _count(row: Mapping[str, str], name: str, least: int, most: int) -> int:
    try:
        value = int(row[name][:40])
    except ValueError:
        raise ValueError(f"{name}: {row[name][:40]!r} is not a whole number") from None
    if not least <= value <= most:
        raise ValueError(f"{name}: {value} is not within {least} and {most}")
    return value


def write(jobs: Iterable[TraceJob]) -> Iterator[str]:
    """Yields a trace's lines, the columns' names first. Read again they are the same jobs."""
    yield ",".join(KNOWN) + "\n"
    for job in jobs:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(
            (
                job.id, _text(job.submit), _text(job.duration), job.gpus, job.project, job.priority,
                "" if job.declared is None else _text(job.declared), job.tasks or "",
                format_cpu(job.cpu_milli) if job.cpu_milli else "", job.memory_bytes or "", job.gpu_kind or "",
            )
        )  # fmt: skip
        yield line.getvalue()


def _text(time_ns: int) -> str:
    """Returns seconds, exact, without needless zeros."""
    whole, rest = divmod(time_ns, SECOND_NS)
    return f"{whole}.{rest:09d}".rstrip("0") if rest else str(whole)
