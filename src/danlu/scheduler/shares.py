"""Fair share: of the cluster's dominant resource, how much each project had lately, weighed, at each level of the tree.

What a project holds counts by its dominant resource (Ghodsi et al., "Dominant Resource Fairness", NSDI 2011): the largest
of its parts of the cluster's CPU, memory and GPUs. The past counts half as much each ``half_life``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from danlu.scheduler.quota import Tree

RESOURCES = ("cpu", "memory", "gpu")


@dataclass(slots=True)
class Account:
    """What one quota or project holds, and had lately."""

    held: dict[str, int] = field(default_factory=dict)
    average: float = 0.0
    at: int = 0


@dataclass(slots=True)
class Shares:
    """The accounts of all projects and groups."""

    half_life: int
    total: dict[str, int] = field(default_factory=dict)
    _accounts: dict[str, Account] = field(default_factory=dict)
    _tree: Tree = field(default_factory=Tree)

    def quotas(self, tree: Tree) -> None:
        """Says how projects are grouped and weighed."""
        self._tree = tree

    def add(self, project: str, asks: Mapping[str, int], now: int, sign: int = 1) -> None:
        """Counts what a project's job holds from now on; with ``sign`` -1: no longer."""
        for name in self._names(project):
            account = self._account(name, now)
            for resource in RESOURCES:
                account.held[resource] = account.held.get(resource, 0) + sign * asks.get(resource, 0)

    def remember(self, project: str, asks: Mapping[str, int], between: tuple[int, int], now: int) -> None:
        """Counts what a project's job held in the past, for a scheduler that was not there."""
        for name in self._names(project):
            account = self._account(name, now)
            account.average += self._part(asks) * (self._left(now - between[1]) - self._left(now - between[0]))

    def take_over(self, old: Shares, now: int) -> None:
        """Goes on from what others had lately by ``old``; what is held now is added anew."""
        for name in old._accounts:
            self._accounts[name] = Account(average=old._account(name, now).average, at=max(now, old._accounts[name].at))

    def lately(self, project: str, now: int) -> float:
        """Returns a project's part of the cluster lately, weighed; of one in a group the largest at any level of the tree.

        So a group that had more than its part comes after others, whoever of it had it.
        """
        return max(self._account(name, now).average / self._weight(name) for name in self._names(project))

    def held(self, project: str) -> float:
        """Returns a project's part of the cluster now, weighed, as ``lately``."""
        found = [(name, self._accounts.get(name)) for name in self._names(project)]
        return max((self._part(one.held) / self._weight(name) for name, one in found if one is not None), default=0.0)

    def _weight(self, name: str) -> int:
        quota = self._tree.quotas.get(name)
        return 1 if quota is None else quota.weight

    def _names(self, project: str) -> tuple[str, ...]:
        path = self._tree.path(project)
        return tuple(quota.id for quota in path) if path else (project,)

    def _part(self, held: Mapping[str, int]) -> float:
        return max((held.get(name, 0) / total for name, total in self.total.items() if total), default=0.0)

    def _left(self, elapsed: int) -> float:
        return math.exp2(-max(0, elapsed) / self.half_life)

    def _account(self, name: str, now: int) -> Account:
        account = self._accounts.get(name)
        if account is None:
            account = self._accounts[name] = Account(at=now)
        if now > account.at:
            left = self._left(now - account.at)
            account.average = account.average * left + self._part(account.held) * (1 - left)
            account.at = now
        return account
