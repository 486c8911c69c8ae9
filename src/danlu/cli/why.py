"""``danlu why X``: the arithmetic of waiting."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterable, Iterator

from danlu.cli import arrays, wording
from danlu.cli import output as out
from danlu.cli.options import Common, Names, Output, one
from danlu.cli.session import connect
from danlu.client.arrays import why as why_of_either
from danlu.domain.jobs import waits_since
from danlu.domain.quotas import GPU, format_amount
from danlu.domain.resources import Resources, format_bytes, format_cpu
from danlu.domain.views import ArrayWhy, NodeUse, Why
from danlu.domain.waits import PRECEDENCES, Ahead, AskedLater, MakesWay, QuotaLine, Room, Start

SHOWN_NODES = 10
SHOWN_AHEAD = 5
SHOWN_WAYS = 5
SOON_NS = 60 * wording.SECOND_NS


def why(
    *job: Names,
    output: Output = "table",
    common: Common | None = None,
) -> int:
    """Say why a job waits: what it asks for, who is before it, what is free, when it could start; or why it ended.

    Of a job array: how far it is, and why the next one of its elements waits.

    Example: danlu why bert-large-3
    """
    with connect(common) as client:
        found = why_of_either(client, one(job))
    if output in ("json", "yaml"):
        out.record(found, output)
    elif output == "name":
        out.write(arrays.key(found.job if isinstance(found, Why) else found.state))
    else:
        _print(found, time.time_ns())
    return 0


def _print(found: Why | ArrayWhy, now: int) -> None:
    if isinstance(found, ArrayWhy):
        out.heading(f"{found.state.array.name}: {arrays.counts(found.state)}")
        bad = arrays.unsuccessful(found.state)
        if bad:
            out.labelled("without", [bad])
        if found.next is None:
            out.labelled("more", [f"danlu describe {found.state.array.name}"])
            return
        out.labelled("next", [headline(found.next, now)])
        found = found.next
    else:
        out.heading(headline(found, now))
    for label, lines in parts(found, now):
        out.labelled(label, lines)


def headline(found: Why, now: int) -> str:
    """Returns what is said first: in which state it is, why, for how long, at which position."""
    job = found.job
    if job.state != "queued":
        since = job.started_at if job.state == "running" else waits_since(job)
        how = wording.outcome(job) if not job.live else f"is {job.state}, for {wording.age(since, now)}"
        return f"{job.name} {how}"
    text = f"{job.name} waits: {job.reason}, for {wording.age(waits_since(job), now)}"
    if found.position is None:
        return text
    return f"{text}, position {found.position:,}" + ("" if found.of is None else f" of {found.of:,} in all projects")


def parts(found: Why, now: int) -> Iterator[tuple[str, list[str]]]:
    """Yields labels and the lines beside them."""
    job = found.job
    if job.state == "queued":
        yield "asks", [wording.asks(job.spec)]
    if job.state == "queued" or (job.message and not wording.says_nothing_new(job)):
        lines = [line for text in found.explanation for line in text.splitlines()]
        lines = [line.partition("; ")[2] or line if line.startswith("asks ") else line for line in lines]  # said above
        yield "because", lines[:30]
    if found.quotas:
        yield "quota", list(_quotas(found.quotas))
    if found.ahead:
        more = (found.position or 1) - 1 - len(found.ahead[:SHOWN_AHEAD])
        yield "ahead", [_ahead(one, now) for one in found.ahead[:SHOWN_AHEAD]] + _more(more)
    if found.makes_way:
        more = len(found.makes_way) - SHOWN_WAYS
        yield "makes way", [_makes_way(one, now) for one in found.makes_way[:SHOWN_WAYS]] + _more(more)
    if found.asked_later is not None:
        yield "makes way", [_asked_later(found.asked_later, now)]
    if found.room:
        yield "cluster", list(_cluster(found))
    if found.start is not None:
        yield "starts", [_start(found.start, now), *_rests_on(found.start)]
    if found.would_start:
        yield "instead", ["would start now: " + " · ".join(one.flags for one in found.would_start)]
    if found.nodes and (job.state != "queued" or not found.room):
        more = len(found.nodes) - SHOWN_NODES
        yield (
            "free",
            [_node(use) for use in found.nodes[:SHOWN_NODES]] + ([f"and {more} more: danlu nodes"] if more > 0 else []),
        )
    if not job.live:
        yield "more", [f"danlu describe {job.name}"]


def _more(count: int) -> list[str]:
    return [f"and {count:,} more"] if count > 0 else []


def _quotas(lines: Iterable[QuotaLine]) -> Iterator[str]:
    """Yields ``vision: limit 16 gpu, used 12, guaranteed 8``."""
    for line in lines:
        name = "" if line.resource == "memory" else f" {line.resource}"

        def amount(value: int, resource: str = line.resource) -> str:
            return format_amount(resource, value)

        limit = "no limit of" + (name or " memory") if line.limit is None else f"limit {amount(line.limit)}{name}"
        guaranteed = "" if line.guarantee is None else f", guaranteed {amount(line.guarantee)}"
        yield f"{line.quota}: {limit}, used {amount(line.used)}{guaranteed}"


def _ahead(one: Ahead, now: int) -> str:
    """Returns ``resnet-41 (4 gpu, since 31m, asked before)``; of another project's job only why."""
    facts = [PRECEDENCES[one.why]]
    if one.queued_at is not None:
        facts = [_short(one.asks, one.gpu_kind), f"since {wording.age(one.queued_at, now)}", *facts]
    return f"{one.who} ({', '.join(facts)})"


def _short(tasks: tuple[Resources, ...], kind: str | None) -> str:
    """Returns ``4 gpu``, ``2 x 8 gpu (a100)``, or, without GPUs, ``2 cpu``."""
    gpus = [task.gpus for task in tasks]
    most = max(gpus, default=0)
    times = f"{len(tasks)} x " if len(tasks) > 1 and len({*tasks}) == 1 else ""
    kind_ = f" ({kind})" if kind and most else ""
    if most:
        return f"{times}{most if times else sum(gpus)} gpu{kind_}"
    cpus = [task.cpu_milli for task in tasks]
    return f"{times}{format_cpu(cpus[0] if times else sum(cpus))} cpu"


def _makes_way(one: MakesWay, now: int) -> str:
    holds = _short((one.holds,), None)
    left = one.until - now
    return f"{one.who} ({holds}), " + (f"in {wording.between(0, left)} at the latest" if left > 0 else "now")


def _asked_later(one: AskedLater, now: int) -> str:
    """Returns ``resnet-41 and 2 of other projects are asked in 3m12s: nobody is before it has run for 5m``."""
    others = one.count - len(one.names)
    who = list(one.names)
    if others:
        who.append(f"{wording.count(others, 'job')} of {'another project' if others == 1 else 'other projects'}")
    verb = "is" if one.count == 1 else "are"
    when = f"in {wording.whole((one.at - now) / wording.SECOND_NS)}" if one.at > now else "now"
    least = f"nobody is before it has run for {wording.duration(one.least_run_s)}"
    return f"{' and '.join(filter(None, (', '.join(who[:-1]), who[-1])))} {verb} asked {when}: {least}"


def _cluster(found: Why) -> Iterator[str]:
    """Yields what is free of what is short; of cores and memory nothing where GPUs are asked for, and those suffice."""
    gpus = [room for room in found.room if room.resource.startswith(GPU)]
    total = sum(found.asks, start=Resources())
    for room in found.room:
        name = {"cpu": "cpu_milli", "memory": "memory_bytes"}.get(room.resource)
        if name is not None and gpus:
            largest = max(getattr(need, name) for need in found.asks)
            if largest <= room.most - room.kept and getattr(total, name) <= room.free - room.kept:
                continue
        yield _room(room)


def _room(one: Room) -> str:
    """Returns ``10 of 16 a100 free, but at most 6 on one node; 4 of them kept for jobs ahead``."""
    unit = one.resource.removeprefix(f"{GPU}/")
    if one.resource == "memory":
        text = f"{format_bytes(one.free)} of {format_bytes(one.total)} free"
        most, kept = format_bytes(one.most), format_bytes(one.kept)
    else:
        free, total, most, kept = (
            format_amount(one.resource, value) for value in (one.free, one.total, one.most, one.kept)
        )
        text = f"{free} of {total} {unit} free"
    if one.most < one.free:
        text += f", but at most {most} on one node"
    return text + (f"; {kept} of that kept for jobs ahead" if one.kept else "")


def _start(start: Start, now: int) -> str:
    """Returns ``about 14:20 (90 %: before 15:05), when resnet-38 ends``."""
    if start.at is None:
        return f"not known: {start.unknown}"
    most = "" if start.most is None else f" (90 %: before {_time(start.most, now)})"
    after = f", when {start.after} ends" if start.after else ""
    return (f"about {_time(start.at, now)}" if start.at - now > SOON_NS else "within a minute") + most + after


def _rests_on(start: Start) -> Iterator[str]:
    """Yields what an estimate goes by: how many jobs that ended, how many such estimates."""
    if start.at is None:
        return
    took = f"how long {wording.count(start.ended, 'ended attempt')} took" if start.ended else "what jobs say (max_time)"
    came = f"how {start.corrected_by:,} such estimates came out" if start.corrected_by else ""
    yield f"by {took}" + (f" and {came}" if came else "; 90 % is a guess: too few such estimates came out so far")


def _time(at: int, now: int) -> str:
    """Returns a time of this day as ``14:20``, of another with its date, in the time of who reads it."""
    there, today = (datetime.datetime.fromtimestamp(one // wording.SECOND_NS).astimezone() for one in (at, now))
    return f"{there:%H:%M}" if there.date() == today.date() else f"{there:%Y-%m-%d %H:%M}"


def _node(use: NodeUse) -> str:
    total = use.node.total
    text = (
        f"{use.node.id}: {format_cpu(use.free.cpu_milli)} of {format_cpu(total.cpu_milli)} cpu, "
        f"{format_bytes(use.free.memory_bytes)} of {format_bytes(total.memory_bytes)}"
    )
    return text + (f", {use.free.gpus} of {total.gpus} gpu ({wording.gpus(use.node)})" if total.gpus else "")
