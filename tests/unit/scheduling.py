"""The scheduler as a function of one snapshot, for tests that need no history."""

from __future__ import annotations

from dataclasses import dataclass

from danlu.domain.nodes import NodeCapacity
from danlu.domain.quotas import Quota
from danlu.domain.resources import Resources
from danlu.scheduler.cycle import Scheduler
from danlu.scheduler.model import SECOND_NS, Plan, Policy, Running, Seat, Shape, Waiting

NOW = 10**9 * SECOND_NS


@dataclass(frozen=True)
class Held:
    """What one task holds on a node."""

    node: str
    resources: Resources
    devices: tuple[int, ...]
    ports: int = 0


@dataclass(frozen=True)
class Snapshot:
    """Everything that a decision depends on."""

    nodes: tuple[NodeCapacity, ...]
    held: tuple[Held, ...] = ()
    waiting: tuple[Waiting, ...] = ()
    quotas: tuple[Quota, ...] = ()
    running: tuple[Running, ...] = ()


def wait(name: str, shape: Shape | tuple[Shape, ...], *, since: int = 0, project: str = "p", **more: object) -> Waiting:
    """Returns a job that waits."""
    shapes = shape if isinstance(shape, tuple) else (shape,)
    return Waiting(name, project, more.pop("priority", 0), since, shapes, **more)  # type: ignore[arg-type]


def held_by(number: int, share: Held) -> Running:
    """Returns an attempt of another project that holds this, and has just begun."""
    shape = Shape((share.resources,), None, share.ports)
    return Running(f"held-{number}", f"held-{number}", "other", 0, 0, NOW, shape, (Seat(share.node, share.devices),))


def scheduler(snapshot: Snapshot, policy: Policy = Policy()) -> Scheduler:  # noqa: B008 - it is frozen
    """Returns a scheduler that was told all of a snapshot."""
    made = Scheduler(policy)
    for node in snapshot.nodes:
        made.node(node)
    made.quotas(snapshot.quotas)
    for number, share in enumerate(sorted(snapshot.held, key=repr)):
        made.holds(held_by(number, share))
    for attempt in snapshot.running:
        made.holds(attempt)
    for job in snapshot.waiting:
        made.queued(job)
    return made


def plan(snapshot: Snapshot, policy: Policy = Policy()) -> Plan:  # noqa: B008 - it is frozen
    """Returns what is decided on a snapshot."""
    return scheduler(snapshot, policy).decide(NOW)
