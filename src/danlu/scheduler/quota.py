"""What quotas allow: who is over a limit, who has a right to what is guaranteed, who holds what was only lent to him."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from danlu.domain import quotas as rules
from danlu.domain.quotas import UNLIMITED, Quota
from danlu.scheduler.model import Shape


class Excess(NamedTuple):
    """A limit that is in the way: whose, of what, and the numbers. ``used`` is 0 where the job alone is above it."""

    quota: str
    resource: str
    limit: int
    used: int
    asks: int


def amounts(shape: Shape, gpus: Mapping[str, int]) -> dict[str, int]:
    """Returns what a gang counts as that has its place. ``gpus``: kind -> how many of it."""
    plain = {name: amount for name, amount in shape.asks.items() if not name.startswith(rules.KIND_OF_GPU)}
    return plain | {f"{rules.KIND_OF_GPU}{kind}": count for kind, count in gpus.items() if count}


def _asked(asks: Mapping[str, int], name: str) -> int:
    """Returns how much of a resource is asked for; GPUs of no kind that is named may be of each kind."""
    if name.startswith("gpu/") and not any(one.startswith("gpu/") for one in asks):
        return asks.get("gpu", 0)
    return asks.get(name, 0)


def _judged(quota: Quota, asks: Mapping[str, int]) -> list[str]:
    names = [name for name in quota.guarantee if _asked(asks, name)]
    gpus = [name for name in names if name.startswith("gpu")]
    return gpus or names


@dataclass(slots=True)
class Tree:
    """The quotas and what is used of each. A project without one is not limited, and has nothing guaranteed."""

    quotas: dict[str, Quota] = field(default_factory=dict)
    used: dict[str, dict[str, int]] = field(default_factory=dict)
    _paths: dict[str, tuple[Quota, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, quotas: Iterable[Quota]) -> Tree:
        """Returns these quotas, nothing of which is used."""
        return cls({quota.id: quota for quota in quotas})

    def path(self, project: str) -> tuple[Quota, ...]:
        """Returns a project's quota and those of the groups above it, upwards."""
        if (known := self._paths.get(project)) is None:
            known = self._paths[project] = rules.path(self.quotas, project)
        return known

    def add(self, project: str, asks: Mapping[str, int], sign: int = 1) -> None:
        """Counts what a project's job holds from now on; with ``sign`` -1: no longer."""
        for quota in self.path(project):
            used = self.used.setdefault(quota.id, {})
            for name, amount in asks.items():
                used[name] = used.get(name, 0) + sign * amount

    def exceeded(self, project: str, asks: Mapping[str, int]) -> Excess | None:
        """Returns the limit that a job would break, that of the project first; first of all one that it alone is above."""
        worst: Excess | None = None
        for quota in self.path(project):
            used = self.used.get(quota.id, {})
            for name, limit in quota.limit.items():
                amount = asks.get(name, 0)
                if limit == UNLIMITED or not amount:
                    continue
                if amount > limit:
                    return Excess(quota.id, name, limit, 0, amount)
                if worst is None and used.get(name, 0) + amount > limit:
                    worst = Excess(quota.id, name, limit, used.get(name, 0), amount)
        return worst

    def limits_kinds(self, project: str) -> bool:
        """Says whether GPUs of some kind are limited: then it matters of which kind a job without a wish gets."""
        return any(name.startswith("gpu/") for quota in self.path(project) for name in quota.limit)

    def entitled(self, project: str, asks: Mapping[str, int]) -> Quota | None:
        """Returns the quota, the project's or a group's, whose guarantee a job fits into; None: it would borrow."""
        for quota in self.path(project) if self.quotas else ():
            used = self.used.get(quota.id, {})
            guaranteed = [name for name in quota.guarantee if _asked(asks, name)]
            if guaranteed and all(
                used.get(name, 0) + _asked(asks, name) <= quota.guarantee[name] for name in guaranteed
            ):
                return quota
        return None

    def lent(
        self,
        project: str,
        asks: Mapping[str, int],
        *,
        beside: str,
        leaving: Mapping[str, int] | None = None,
        besides: Mapping[str, int] = MappingProxyType({}),
    ) -> bool:
        """Says whether what a project holds of these resources is lent, as seen from another project.

        It is if neither it nor a group above it, up to the group that the two have in common, is within its guarantee; with
        ``leaving``, would be below it if so much left. Where GPUs are asked for and guaranteed, they alone decide.
        ``besides`` is held besides what is counted.
        """
        if not self.quotas or project == beside:
            return True
        common = {quota.id for quota in self.path(beside)}
        for quota in self.path(project):
            if quota.id in common:
                break
            used = self.used.get(quota.id, {})
            for name in _judged(quota, asks):
                held, guaranteed = used.get(name, 0) + besides.get(name, 0), quota.guarantee[name]
                if (held <= guaranteed) if leaving is None else (held - leaving.get(name, 0) < guaranteed):
                    return False
        return True
