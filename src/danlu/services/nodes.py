"""Machines: what they have, what is given away, what is free."""

from __future__ import annotations

from collections.abc import Iterable

from danlu.database import queries
from danlu.database.engine import Transaction
from danlu.database.records import NODES
from danlu.domain.jobs import Attempt
from danlu.domain.nodes import Node, NodeCapacity
from danlu.domain.resources import Resources
from danlu.domain.views import NodeUse, Page
from danlu.scheduler.rooms import Rooms
from danlu.services.context import Call
from danlu.services.fitting import MAX_NODES


def list(call: Call) -> Page[NodeUse]:
    """Returns every node with what is free on it."""
    return Page[NodeUse](items=call.platform.database.read(uses))


def uses(tx: Transaction) -> tuple[NodeUse, ...]:
    """Returns every node with its use, by name."""
    return use_of(NODES.find(tx, limit=MAX_NODES), queries.holding_attempts(tx))


def rooms_of(nodes: Iterable[NodeCapacity], attempts: Iterable[Attempt]) -> Rooms:
    """Returns what is free on these nodes beside what attempts hold."""
    rooms = Rooms.of(nodes)
    for attempt in attempts:
        for task in attempt.tasks:
            rooms.take(task.node, task.resources, task.devices)
    return rooms


def use_of(nodes: Iterable[Node], attempts: Iterable[Attempt]) -> tuple[NodeUse, ...]:
    """Returns each node's use, given the attempts that hold something."""
    nodes, attempts = tuple(nodes), tuple(attempts)
    free = rooms_of((node.capacity for node in nodes), attempts).by_name
    tasks = [task for attempt in attempts for task in attempt.tasks]
    return tuple(
        NodeUse(
            node=node,
            used=sum((task.resources for task in tasks if task.node == node.id), Resources()),
            free=Resources(
                cpu_milli=max(0, free[node.id].cpu_milli),
                memory_bytes=max(0, free[node.id].memory_bytes),
                gpus=sum(map(len, free[node.id].gpus.values())),
            ),
            free_gpus=tuple(sorted(index for kind in free[node.id].gpus.values() for index in kind)),
        )
        for node in nodes
    )
