"""What to say of a job that can never fit: what it needs, what there is, what to ask for instead. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from danlu.domain.frameworks import describe_roles
from danlu.domain.nodes import NodeCapacity
from danlu.domain.resources import Resources, format_bytes, format_cpu
from danlu.domain.specs import JobSpec
from danlu.scheduler.model import Shape
from danlu.scheduler.rooms import Rooms, seat
from danlu.scheduler.words import asks, never, short

CPU_STEP = 50
"""Cores are proposed in multiples of so many thousandths."""
MEMORY_STEP = 2**20


def never_fits(spec: JobSpec, nodes: Sequence[NodeCapacity], *, declared: bool = True) -> tuple[str, str] | None:
    """Returns None if the job fits on empty nodes; else why it never will, and what to do.

    declared: GPUs that are not found can be declared; those of a cluster's nodes are what the nodes offer.
    """
    if spec.gpu_min is not None:  # it starts with the least, where no more is there
        spec = spec.model_copy(update={"gpu": spec.gpu_min, "gpu_min": None})
    tasks = spec.shapes
    why = could_ever_fit(Shape(tasks, spec.gpu_kind), nodes)
    if why is None:
        return None
    need, there = sum(tasks, start=Resources()), [_total(node, spec.gpu_kind) for node in nodes]
    if len(tasks) == 1:
        most = Resources(**{name: max(getattr(one, name) for one in there) for name in Resources.model_fields})
        return f"it {why}", _advice(spec, need, most, declared=declared)
    most = sum(there, start=Resources())
    if not (short := _short(need, most)):  # it is there, but not where one task could have it
        return f"it {why}", _advice(spec, need, most, declared=declared)
    have = "this machine has" if len(nodes) == 1 else f"all {len(nodes)} nodes together have"
    amounts = [", ".join(_amount(name, one, spec.gpu_kind) for name in short) for one in (need, most)]
    return f"{_gang(spec)} need {amounts[0]}; {have} {amounts[1]}", _advice(spec, need, most, declared=declared)


def _total(node: NodeCapacity, kind: str | None) -> Resources:
    gpus = sum(kind in (None, gpu.kind) for gpu in node.gpus)
    return Resources(cpu_milli=node.cpu_milli, memory_bytes=node.memory_bytes, gpus=gpus)


def _short(need: Resources, most: Resources) -> list[str]:
    return [name for name in Resources.model_fields if getattr(need, name) > getattr(most, name)]


def _amount(name: str, of: Resources, kind: str | None) -> str:
    if name == "cpu_milli":
        return f"{format_cpu(of.cpu_milli)} cpu"
    return (
        format_bytes(of.memory_bytes) if name == "memory_bytes" else f"{of.gpus} gpu" + (f" ({kind})" if kind else "")
    )


def _gang(spec: JobSpec) -> str:
    """Returns ``8 workers of 1 cpu``, or ``1 ps + 2 workers`` where they do not ask for the same."""
    roles = spec.gang_roles
    who = describe_roles([(name, roles[name].replicas) for name in spec.convention.ordered(roles)])
    if len({*spec.shapes}) > 1:
        return who
    return f"{who} of {asks(spec.shapes[0], spec.gpu_kind)}" + (" each" if len(roles) > 1 else "")


def _advice(spec: JobSpec, need: Resources, most: Resources, *, declared: bool) -> str:
    """Returns what to ask for instead: an equal share of what there is."""
    short, count = _short(need, most), len(spec.shapes)
    shares = []
    if "cpu_milli" in short and (cpu := _rounded(most.cpu_milli // count, CPU_STEP)):
        shares.append(f"--cpu {format_cpu(cpu)}")
    if "memory_bytes" in short and (memory := _rounded(most.memory_bytes // count, MEMORY_STEP)):
        shares.append(f"--memory {memory // MEMORY_STEP}MiB")
    if "gpus" in short and most.gpus // count:
        shares.append(f"--gpu {most.gpus // count}")
    if short == ["gpus"] and not most.gpus:
        less = "leave GPUs out"
    elif shares and len({*spec.shapes}) == 1:
        less = f"ask for less, for example {' '.join(shares)}"
    else:
        less = "ask for less" + (" for each task" if count > 1 else "")
    if count > 1 and most.gpus >= ("gpus" in short):
        largest = max(spec.gang_roles, key=lambda name: spec.gang_roles[name].replicas)
        less += f", or for fewer {largest}{'' if largest.endswith('s') else 's'}"
    step = f"{less}; what there is: danlu nodes"
    if "gpus" in short and not most.gpus and spec.gpu_kind is None and declared:
        step += f"\nGPUs that no driver shows are declared: danlu down, then danlu up --gpus {need.gpus}"
    elif "gpus" in short and not most.gpus and not declared:
        step += "\nnodes offer GPUs by a device plugin: kubectl describe nodes; GPUs of which name: DANLU_GPU_RESOURCE"
    return step


def _rounded(amount: int, step: int) -> int:
    return amount - amount % step if amount >= step else amount


def could_ever_fit(shape: Shape, nodes: Sequence[NodeCapacity]) -> str | None:
    """Returns None if the gang fits on empty nodes, else why it never will."""
    rooms = Rooms.of(nodes)
    if seat(rooms, shape) is not None:
        return None
    return never(shape, rooms) or f"{short(shape, rooms)}, even when nothing else runs"
