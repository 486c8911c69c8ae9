"""Machines: what they have, what is given away, what is free."""

from __future__ import annotations

from collections.abc import Iterable

from danlu.database import queries
from danlu.database.engine import Transaction
from danlu.database.records import NODES
from danlu.domain.jobs import Attempt
from danlu.domain.nodes import Node
from danlu.domain.resources import Resources
from danlu.domain.views import NodeUse, Page
from danlu.scheduler.cycle import Held, rooms
from danlu.services.context import Call

MAX_NODES = 10_000


def list(call: Call) -> Page[NodeUse]:
    """Returns every node with what is free on it."""
    return Page[NodeUse](items=call.platform.database.read(uses))


def uses(tx: Transaction) -> tuple[NodeUse, ...]:
    """Returns every node with its use, by name."""
    return use_of(NODES.find(tx, limit=MAX_NODES), queries.holding_attempts(tx))


def held(attempts: Iterable[Attempt]) -> tuple[Held, ...]:
    """Returns what live attempts hold, a share a task."""
    return tuple(
        Held(task.node, task.resources, task.devices, len(task.ports)) for attempt in attempts for task in attempt.tasks
    )


def use_of(nodes: Iterable[Node], attempts: Iterable[Attempt]) -> tuple[NodeUse, ...]:
    """Returns each node's use, given the attempts that hold something."""
    nodes = tuple(nodes)
    shares = held(attempts)
    free = rooms((node.capacity for node in nodes), shares)
    return tuple(
        NodeUse(
            node=node,
            used=sum((share.resources for share in shares if share.node == node.id), Resources()),
            free=Resources(
                cpu_milli=free[node.id].cpu_milli,
                memory_bytes=free[node.id].memory_bytes,
                gpus=sum(map(len, free[node.id].gpus.values())),
            ),
            free_gpus=tuple(sorted(index for kind in free[node.id].gpus.values() for index in kind)),
        )
        for node in nodes
    )
