"""Why something does not fit, in words: what it asks for, what there is, what is short."""

from __future__ import annotations

from collections.abc import Iterable

from danlu.domain.quotas import describe, format_amount
from danlu.domain.resources import Resources, format_bytes, format_cpu
from danlu.scheduler import ports
from danlu.scheduler.model import Shape
from danlu.scheduler.quota import Excess
from danlu.scheduler.rooms import Room, Rooms, largest_first, seat, seated


def asks(need: Resources, kind: str | None) -> str:
    """Returns ``1 cpu, 4.0 GiB, 2 gpu (h100)``."""
    parts = [f"{format_cpu(need.cpu_milli)} cpu"]
    if need.memory_bytes:
        parts.append(format_bytes(need.memory_bytes))
    if need.gpus:
        parts.append(f"{need.gpus} gpu" + (f" ({kind})" if kind else ""))
    return ", ".join(parts)


def asks_all(shape: Shape) -> str:
    """Returns what a gang asks for: ``1 cpu``, ``3 tasks of 1 cpu each``, or ``3 tasks, in all 4 cpu, 2 gpu``."""
    first, count = shape.tasks[0], len(shape.tasks)
    if count == 1:
        return asks(first, shape.gpu_kind)
    if all(task == first for task in shape.tasks):
        return f"{count} tasks of {asks(first, shape.gpu_kind)} each"
    return f"{count} tasks, in all {asks(sum(shape.tasks, start=Resources()), shape.gpu_kind)}"


def over_quota(excess: Excess) -> str:
    """Returns ``asks 4 GPUs; the limit of team-a is 8 GPUs, used 6``."""
    limit = f"the limit of {excess.quota} is {describe(excess.resource, excess.limit)}"
    used = "" if excess.asks > excess.limit else f", used {format_amount(excess.resource, excess.used)}"
    return f"asks {describe(excess.resource, excess.asks)}; {limit}{used}"


def short_of_ports(shape: Shape, free: int) -> str:
    """Returns what a gang lacks that has no ports."""
    return f"asks {shape.ports:,} ports, one for each task; {free:,} of {ports.COUNT:,} are free"


def largest(empty: Iterable[Room], kind: str | None) -> str:
    """Returns the most that any node has, in words."""
    nodes = list(empty)
    if not nodes:
        return "there is no node"
    cpu = max(room.cpu_milli for room in nodes)
    memory = max(room.memory_bytes for room in nodes)
    gpus = max(room.most(kind) for room in nodes)
    return f"the largest node here has {asks(Resources(cpu_milli=cpu, memory_bytes=memory, gpus=0), None)}, " + (
        f"{gpus} gpu" + (f" of kind {kind}" if kind else "")
    )


def never(shape: Shape, empty: Rooms) -> str | None:
    """Returns None if each task of a gang fits on some empty node; else which does not, and the most that any node has."""
    rooms = empty.by_name.values()
    none = next((task for task in shape.tasks if not any(room.fits(task, shape.gpu_kind) for room in rooms)), None)
    return None if none is None else f"asks {asks(none, shape.gpu_kind)}; {largest(rooms, shape.gpu_kind)}"


def scattered(shape: Shape, rooms: Rooms) -> bool:
    """Says whether there is enough for a gang in all, but not where its tasks could have it."""
    total, free = sum(shape.tasks, start=Resources()), rooms.free(shape.gpu_kind)
    if total.cpu_milli > free.cpu_milli or total.memory_bytes > free.memory_bytes or total.gpus > free.gpus:
        return False
    with rooms.trial():  # or is it only kept for others?
        return seat(rooms, shape) is None


def short(shape: Shape, rooms: Rooms) -> str:
    """Returns what a gang that does not fit now is short of, with the numbers."""
    total, free = sum(shape.tasks, start=Resources()), rooms.free(shape.gpu_kind)
    with rooms.trial():
        seats = seated(rooms, shape, shape.gpu_kind)
        need = next((shape.tasks[rank] for rank in largest_first(shape) if rank not in seats), shape.tasks[0])
        nodes = rooms.by_name.values()
        # most often one of the first has enough: the most that any has is only told where none has
        enough = any(room.cpu_milli >= need.cpu_milli for room in nodes)
        cpu = need.cpu_milli if enough else max([room.cpu_milli for room in nodes], default=0)
        enough = any(room.memory_bytes >= need.memory_bytes for room in nodes)
        memory = need.memory_bytes if enough else max([room.memory_bytes for room in nodes], default=0)
        gpus = rooms.most(shape.gpu_kind)
    if len(seats) == len(shape.tasks):
        return f"asks {asks_all(shape)}; that is free, but kept for jobs ahead"
    lacks = []
    if need.cpu_milli > cpu:
        lacks.append(f"cpu (at most {format_cpu(max(0, cpu))} free on one node)")
    if need.memory_bytes > memory:
        lacks.append(f"memory (at most {format_bytes(max(0, memory))} free on one node)")
    if need.gpus > gpus:
        all_ = f", {free.gpus} in all" if total.gpus <= free.gpus else ""
        lacks.append(f"gpu (at most {gpus} free on one node{all_})")
    what = ", ".join(lacks) or "one node with all of it free at once"
    fit = f"{len(seats)} of them fit, the next, {asks(need, shape.gpu_kind)}, is " if len(shape.tasks) > 1 else ""
    return f"asks {asks_all(shape)}; {fit}short of {what}"
