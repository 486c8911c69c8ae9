"""The simulator's own accounts of who holds what: they share nothing with the scheduler whose plans they check."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from danlu.domain.nodes import NodeCapacity
from danlu.domain.quotas import UNLIMITED, Quota
from danlu.errors import InternalError
from danlu.scheduler.model import Running


@dataclass(slots=True)
class Accounts:
    """What is free on each node, and what each quota's projects hold."""

    nodes: dict[str, NodeCapacity]
    quotas: dict[str, Quota]
    cpu_milli: dict[str, int]
    memory_bytes: dict[str, int]
    gpus: dict[str, dict[int, str]]
    """node -> index of each free GPU -> its kind"""
    used: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    @classmethod
    def of(cls, nodes: Iterable[NodeCapacity], quotas: Iterable[Quota]) -> Accounts:
        """Returns accounts in which nobody holds anything."""
        known = {node.name: node for node in nodes}
        return cls(
            known,
            {quota.id: quota for quota in quotas},
            {name: node.cpu_milli for name, node in known.items()},
            {name: node.memory_bytes for name, node in known.items()},
            {name: {gpu.index: gpu.kind for gpu in node.gpus} for name, node in known.items()},
        )

    def take(self, attempt: Running, now: int) -> None:
        """Counts what an attempt holds.

        Raises:
            InternalError: not all of its tasks have a seat; something is not free; a limit is broken.
        """
        if len(attempt.seats) != len(attempt.shape.tasks):
            raise InternalError(
                f"{attempt.id} has {len(attempt.seats)} seats for {len(attempt.shape.tasks)} tasks at {now} ns"
            )
        for need, seat in zip(attempt.shape.tasks, attempt.seats, strict=True):
            name, free = seat.node, self.gpus.get(seat.node, {})
            self.cpu_milli[name] = self.cpu_milli.get(name, 0) - need.cpu_milli
            self.memory_bytes[name] = self.memory_bytes.get(name, 0) - need.memory_bytes
            kinds = {free.pop(index, None) for index in seat.devices}
            wanted = attempt.shape.gpu_kind
            if (
                len(seat.devices) != need.gpus
                or None in kinds
                or (wanted is not None and kinds - {wanted})
                or (need.cpu_milli and self.cpu_milli[name] < 0)
                or (need.memory_bytes and self.memory_bytes[name] < 0)
            ):
                raise InternalError(
                    f"{attempt.id} was placed on {name}, GPUs {seat.devices}, at {now} ns: not all is free"
                )
        self._count(attempt, 1)
        for quota in self._path(attempt.project):
            for what, limit in quota.limit.items():
                if limit != UNLIMITED and (used := self.used[quota.id][what]) > limit:
                    raise InternalError(
                        f"{attempt.id} was placed at {now} ns: {quota.id} holds {used} {what}, its limit is {limit}"
                    )

    def give(self, attempt: Running) -> None:
        """Counts what ``take`` counted as free again."""
        for need, seat in zip(attempt.shape.tasks, attempt.seats, strict=True):
            self.cpu_milli[seat.node] += need.cpu_milli
            self.memory_bytes[seat.node] += need.memory_bytes
            kinds = {gpu.index: gpu.kind for gpu in self.nodes[seat.node].gpus}
            self.gpus[seat.node].update({index: kinds[index] for index in seat.devices})
        self._count(attempt, -1)

    def _count(self, attempt: Running, sign: int) -> None:
        holds = Counter(jobs=1)
        for need, seat in zip(attempt.shape.tasks, attempt.seats, strict=True):
            holds.update(cpu=need.cpu_milli, memory=need.memory_bytes, gpu=need.gpus)
            kinds = {gpu.index: gpu.kind for gpu in self.nodes[seat.node].gpus}
            holds.update(f"gpu/{kinds[index]}" for index in seat.devices)
        for quota in self._path(attempt.project):
            for what, amount in holds.items():
                self.used[quota.id][what] += sign * amount

    def _path(self, project: str) -> list[Quota]:
        path: list[Quota] = []
        name: str | None = project
        while name in self.quotas and self.quotas[name] not in path:
            path.append(self.quotas[name])
            name = path[-1].parent
        return path
