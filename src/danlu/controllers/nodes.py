"""Keeps the nodes' records as the executor says that they are."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from danlu.database.engine import Transaction
from danlu.database.leadership import Fenced
from danlu.database.records import NODES
from danlu.domain.nodes import NODE_PROJECT, Node, NodeCapacity
from danlu.errors import ExecutorUnavailable
from danlu.executors.base import Executor
from danlu.services.context import Clock, Hub
from danlu.services.fitting import MAX_NODES

PERIOD_S = 60.0


@dataclass(slots=True)
class NodesController:
    """A machine that appears is added, one that changed is changed; one that is gone stays, with nothing to give away."""

    database: Fenced
    executor: Executor
    clock: Clock
    hub: Hub

    def begin(self) -> None:
        """Looks at once, if the executor can tell now; its loop asks again."""
        with contextlib.suppress(ExecutorUnavailable):
            self.step()

    def step(self) -> float:
        """Looks once."""
        found = {capacity.name: capacity for capacity in self.executor.capacity()}
        if self.database.read(lambda tx: self._changes(tx, found)):
            self.database.write(lambda tx: self._store(tx, found))
            self.hub.notify("jobs")
        return PERIOD_S

    def _changes(self, tx: Transaction, found: dict[str, NodeCapacity]) -> list[tuple[Node | None, Node]]:
        now, executor = self.clock.now(), self.executor.capabilities.name
        known = {node.id: node for node in NODES.find(tx, limit=MAX_NODES) if node.executor == executor}
        changes: list[tuple[Node | None, Node]] = []
        for name, capacity in found.items():
            old = known.get(name)
            if old is None:
                fresh = Node(
                    id=name, project=NODE_PROJECT, executor=executor, capacity=capacity, created_at=now, updated_at=now
                )
                changes.append((None, fresh))
            elif old.capacity != capacity:
                changes.append((old, old.evolved(now=now, capacity=capacity)))
        for name in known.keys() - found.keys():
            empty = NodeCapacity(name=name, cpu_milli=0, memory_bytes=0)
            if known[name].capacity != empty:
                changes.append((known[name], known[name].evolved(now=now, capacity=empty)))
        return changes

    def _store(self, tx: Transaction, found: dict[str, NodeCapacity]) -> None:
        for old, new in self._changes(tx, found):
            if old is None:
                NODES.add(tx, new)
            else:
                NODES.put(tx, old, new)
