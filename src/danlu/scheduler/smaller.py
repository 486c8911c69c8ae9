"""Smaller shapes of a job, as flags to type: another kind of GPU, its GPUs on more nodes, fewer of them, fewer replicas."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from pydantic import ValidationError

from danlu.domain.resources import format_cpu
from danlu.domain.roles import DEFAULT_CPU_MILLI
from danlu.domain.specs import JobSpec, json_changes
from danlu.scheduler.model import Shape

MAX_KINDS = 4
MAX_HALVES = 6
MAX_SPREAD = 8
"""On so many nodes at most is proposed what asks for one."""
ROLE_FLAGS = ("worker", "ps", "chief", "evaluator")
LEAST_CPU = 0.1
MIB = 2**20


class Changed(NamedTuple):
    """A smaller shape: what to type, and what it asks for then."""

    flags: str
    shape: Shape


def smaller(spec: JobSpec, kinds: Iterable[str]) -> Iterator[Changed]:
    """Yields what a job could ask for instead, what changes least first. ``kinds``: of GPUs that there are."""
    for flags, changes in (*_kinds(spec, kinds), *_spread(spec), *_halves(spec)):
        try:
            changed = json_changes(spec, changes)
        except ValidationError:  # its framework, or its roles, cannot do with that
            continue
        yield Changed(flags, Shape(changed.choices[-1], changed.gpu_kind, changed.ports))


def _kinds(spec: JobSpec, kinds: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    if spec.gpu_kind is not None:
        for kind in [kind for kind in kinds if kind != spec.gpu_kind][:MAX_KINDS]:
            yield f"--gpu-kind {kind}", {"gpu_kind": kind}


def _least(spec: JobSpec) -> int:
    return spec.gpu if spec.gpu_min is None else spec.gpu_min


def _spread(spec: JobSpec) -> Iterator[tuple[str, dict[str, Any]]]:
    """The same GPUs on more nodes, of a job that asks for one node, or for equal ones."""
    only = next(iter(spec.roles.items()), None)
    if len(spec.roles) > 1 or (only is not None and (only[0] != "node" or only[1].gpu is not None)):
        return
    nodes = only[1].replicas if only is not None else 1
    role = {} if only is None else only[1].model_dump(mode="json", exclude_defaults=True)
    for times in (2, 4, 8):
        gpus, rest = divmod(_least(spec), times)
        if not gpus or rest or nodes * times > MAX_SPREAD:
            return
        changes = {"roles": {"node": {**role, "replicas": nodes * times}}, "gpu": gpus, "gpu_min": None}
        yield f"--nodes {nodes * times} --gpu {gpus}", changes


def _halves(spec: JobSpec) -> Iterator[tuple[str, dict[str, Any]]]:
    """Half of what it asks for, a quarter and so on: of replicas, of GPUs, of cores, of memory, of the last two together."""
    largest = max(spec.roles, key=lambda name: spec.roles[name].replicas, default=None)
    gpus, replicas = _least(spec), 1 if largest is None else spec.roles[largest].replicas
    cpu, memory = DEFAULT_CPU_MILLI / 1000 if spec.cpu is None else spec.cpu, spec.memory
    for _ in range(MAX_HALVES):
        before, gpus, replicas = (gpus, replicas), -(-gpus // 2), -(-replicas // 2)
        if largest is not None and replicas < before[1]:
            flag = (
                "--nodes " if largest == "node" else f"--{largest} " if largest in ROLE_FLAGS else f"--role {largest}="
            )
            roles = spec.model_dump(mode="json", exclude_defaults=True)["roles"]
            yield f"{flag}{replicas}", {"roles": {**roles, largest: {**roles[largest], "replicas": replicas}}}
        if gpus < before[0]:
            yield f"--gpu {gpus}", {"gpu": gpus, "gpu_min": None}
        both: dict[str, dict[str, Any]] = {}
        if cpu >= 2 * LEAST_CPU:
            cpu = round(cpu / 2, 2)
            both["--cpu " + format_cpu(round(cpu * 1000))] = {"cpu": cpu}
        if memory is not None and memory >= 2 * MIB:
            memory = memory // 2 // MIB * MIB
            both[f"--memory {memory // MIB}MiB"] = {"memory": memory}
        yield from both.items()
        if len(both) > 1:
            yield " ".join(both), {name: value for one in both.values() for name, value in one.items()}
