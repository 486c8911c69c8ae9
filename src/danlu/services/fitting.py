"""Whether a job fits at all: asked at each submit, answered once for each shape while the nodes stay as they are."""

from __future__ import annotations

from typing import Final

from danlu.database.engine import Transaction
from danlu.database.kept import Kept
from danlu.database.records import NODES
from danlu.domain.nodes import Node
from danlu.domain.resources import Resources
from danlu.domain.specs import JobSpec
from danlu.scheduler.sizing import never_fits

MAX_NODES: Final = 10_000
PODS: Final = "kubernetes"
MAX_SHAPES: Final = 1000

Asked = tuple[tuple[Resources, ...], str | None, int | None]


class Empty:
    """The nodes, as if nothing ran on them. Any thread may ask."""

    def __init__(self) -> None:
        self._kept = Kept(NODES)
        self._fitting: tuple[dict[str, Node], set[Asked]] = {}, set()

    def never_fits(self, tx: Transaction, spec: JobSpec) -> tuple[str, str] | None:
        """Returns None if the job fits on empty nodes, or none is known yet; else why it never will, and what to do."""
        nodes, (known, fitting) = self._kept.look(tx, limit=MAX_NODES), self._fitting
        if nodes is not known or len(fitting) >= MAX_SHAPES:
            fitting = set()
            self._fitting = nodes, fitting
        asked = spec.shapes, spec.gpu_kind, spec.gpu_min
        if not nodes or asked in fitting:
            return None
        declared = all(node.executor != PODS for node in nodes.values())
        never = never_fits(spec, [node.capacity for node in nodes.values()], declared=declared)
        if never is None:
            fitting.add(asked)
        return never
