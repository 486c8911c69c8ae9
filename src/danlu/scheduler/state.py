"""What the scheduler knows, kept up to date call by call, so that a decision costs what has changed and not what there is.

Its decisions are a function of the calls made on it, in their order: recorded and played again they are the same.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from typing import NamedTuple

from danlu.domain.jobs import Reason
from danlu.domain.nodes import NodeCapacity
from danlu.domain.quotas import Quota
from danlu.domain.resources import Resources
from danlu.scheduler import words
from danlu.scheduler.model import Policy, Running, Shape, Waiting
from danlu.scheduler.quota import Tree, amounts
from danlu.scheduler.rooms import Free, Rooms
from danlu.scheduler.shares import Shares


class GroupKey(NamedTuple):
    """What the jobs of a group have in common: whatever is decided for the first of them holds for all."""

    project: str
    priority: int
    level: int
    shapes: tuple[Shape, ...]
    borrows: tuple[bool, int | None]
    """what decides whether it may use what is kept for others: keeps, and the power of two that it lasts below (ns)"""
    array: str | None
    parallel: int
    promised: bool


@dataclass(slots=True, eq=False)
class Group:
    """Waiting jobs that differ in nothing but age, the oldest first.

    Attributes:
        told: why they wait, as last told.
        untold: those to which nothing was told yet.
        apart: those that wait for another reason than the group, as last told.
    """

    key: GroupKey
    jobs: list[tuple[int, str]] = field(default_factory=list)
    told: Reason | None = None
    untold: set[str] = field(default_factory=set)
    apart: dict[str, Reason] = field(default_factory=dict)


class Bucket(NamedTuple):
    """Where an attempt stands among those that hold something."""

    priority: int
    project: str
    level: int


class Loss(NamedTuple):
    """What decides who is asked to make way, side by side, as a decision looks at each of them.

    Attributes:
        since, loses: from then on (ns) so much service is lost a ns; as ``Running.lost``.
        rate: how fast it attains service.
        placed_at: when it began (ns); NEVER where it makes way already.
    """

    since: int
    rate: int
    loses: int
    placed_at: int

    @classmethod
    def of(cls, attempt: Running) -> Loss:
        """Returns that of an attempt."""
        rate = attempt.shape.rate
        began = attempt.placed_at if attempt.yields_to is None else NEVER
        return cls(attempt.since, rate, 0 if attempt.keeps else rate, began)


NEVER = 2**63
"""Later than any moment (ns)."""


@dataclass(slots=True)
class Kept:
    """What is kept for a job that waits: where each of its tasks could be, since when."""

    seats: tuple[tuple[str, Resources, str | None], ...]
    since: int


@dataclass(slots=True)
class State:
    """Nodes, quotas, what waits and what holds something. ``decide`` of ``cycle.py`` reads it."""

    policy: Policy = field(default_factory=Policy)
    rooms: Rooms = field(default_factory=Rooms)
    tree: Tree = field(default_factory=Tree)
    staying: Tree = field(default_factory=Tree)
    """as ``tree``, without what makes way"""
    shares: Shares = field(init=False)
    waiting: dict[str, Waiting] = field(default_factory=dict)
    groups: dict[GroupKey, Group] = field(default_factory=dict)
    running: dict[str, Running] = field(default_factory=dict)
    buckets: dict[Bucket, dict[str, Loss]] = field(default_factory=lambda: defaultdict(dict))
    savers: dict[Bucket, dict[str, Loss]] = field(default_factory=lambda: defaultdict(dict))
    """those of ``buckets`` that have kept some of what they did: of the others all would be lost"""
    bucket_of: dict[str, Bucket] = field(default_factory=dict)
    on_node: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    held: dict[str, dict[str, Free]] = field(default_factory=dict)
    """what each attempt holds on each of its nodes"""
    arrays: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    yielding: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    promised: set[str] = field(default_factory=set)
    """jobs for which others were asked to make way: their place is theirs, whatever has changed of the order since"""
    kept: dict[str, Kept] = field(default_factory=dict)
    of_shapes: dict[tuple[Shape, ...], dict[GroupKey, Group]] = field(default_factory=lambda: defaultdict(dict))
    ports: int = 0
    _shapes: dict[tuple[Shape, ...], tuple[Shape, ...]] = field(default_factory=dict)
    _empty: Rooms | None = None
    _never: dict[Shape, str | None] = field(default_factory=dict)
    _steps: list[tuple[int, str]] = field(default_factory=list)
    _young: list[tuple[int, str]] = field(default_factory=list)
    now: int = 0

    def __post_init__(self) -> None:
        self.shares = Shares(self.policy.half_life)

    # nodes and quotas

    def node(self, capacity: NodeCapacity) -> None:
        """Says what a node has now."""
        held = [
            (need, seat.devices)
            for attempt_id in sorted(self.on_node.get(capacity.name, ()))
            for need, seat in zip(self.running[attempt_id].shape.tasks, self.running[attempt_id].seats, strict=True)
            if seat.node == capacity.name
        ]
        # of which kind its GPUs are may have changed: what is held on it is counted anew
        for attempt_id in sorted(self.on_node.get(capacity.name, ())):
            self._count(self.running[attempt_id], -1)
        self.rooms.node(capacity, held)
        for attempt_id in sorted(self.on_node.get(capacity.name, ())):
            self.held[attempt_id] = Free.held(self.rooms, self.running[attempt_id])
            self._count(self.running[attempt_id], 1)
        self._never.clear()
        self._empty = None
        nodes = self.rooms.capacities.values()
        self.shares.total = {
            "cpu": sum(node.cpu_milli for node in nodes),
            "memory": sum(node.memory_bytes for node in nodes),
            "gpu": sum(len(node.gpus) for node in nodes),
        }

    def quotas(self, quotas: Iterable[Quota]) -> None:
        """Says which quotas there are now, all of them."""
        every = tuple(quotas)
        self.tree, self.staying = Tree.of(every), Tree.of(every)
        shares, self.shares = self.shares, Shares(self.policy.half_life, self.shares.total)
        self.shares.quotas(self.tree)
        self.shares.take_over(shares, self.now)
        for attempt in self.running.values():
            self._count(attempt, 1)

    def had(self, project: str, asks: Mapping[str, int], began: int, ended: int) -> None:
        """Says what a project held before this was there: it counts like what was seen. Nodes and quotas are told first."""
        self.now = max(self.now, ended)
        self.shares.remember(project, asks, (began, ended), self.now)

    # what waits

    def queued(self, job: Waiting) -> None:
        """Says that a job waits, or what has changed of it."""
        if self.waiting.get(job.id) == job:
            return
        self._enter(job, promised=job.id in self.promised or bool(self.yielding.get(job.id)))

    def _enter(self, job: Waiting, *, promised: bool) -> None:
        """Puts a job where it stands; what is kept for it stays so."""
        kept = self.kept.get(job.id)
        self.gone(job.id)
        if promised:
            self.promised.add(job.id)
        if kept is not None:
            self.kept[job.id] = kept
        # equal shapes are the same: they are found faster
        job = replace(job, shapes=self._shapes.setdefault(job.shapes, job.shapes))
        self.waiting[job.id] = job
        key = self._key(job)
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = self.of_shapes[job.shapes][key] = Group(key)
        insort(group.jobs, (job.queued_at, job.id))
        group.untold.add(job.id)

    def gone(self, job_id: str) -> None:
        """Says that a job does not wait any more."""
        job = self.waiting.pop(job_id, None)
        if job is None:
            return
        self.kept.pop(job_id, None)
        group = self.groups[self._key(job)]
        self.promised.discard(job_id)
        del group.jobs[bisect_left(group.jobs, (job.queued_at, job.id))]
        group.untold.discard(job_id)
        group.apart.pop(job_id, None)
        if not group.jobs:
            del self.groups[group.key]
            del self.of_shapes[job.shapes][group.key]
            if not self.of_shapes[job.shapes]:
                del self.of_shapes[job.shapes], self._shapes[job.shapes]

    def _key(self, job: Waiting) -> GroupKey:
        lasts = None if job.duration is None else max(1, job.duration).bit_length()
        level = self.policy.level(job.attained)
        return GroupKey(
            job.project, job.priority, level, job.shapes, (job.keeps, lasts), job.array, job.parallel,
            job.id in self.promised,
        )  # fmt: skip

    def holding(self, attempt: Running) -> dict[str, int]:
        """Returns what an attempt counts as."""
        gpus = self.rooms.kinds_of((seat.node, seat.devices) for seat in attempt.seats)
        return amounts(attempt.shape, gpus)

    def never(self, shape: Shape) -> str | None:
        """Returns why a shape fits on no node, even an empty one; None: it does."""
        if shape not in self._never:
            if self._empty is None:
                self._empty = Rooms.of(self.rooms.capacities.values())
            self._never[shape] = words.never(shape, self._empty)
        return self._never[shape]

    # what holds something

    def holds(self, attempt: Running) -> None:
        """Says that an attempt holds its seats, or what has changed of it."""
        if self.running.get(attempt.id) == attempt:
            return
        old = self.running.get(attempt.id)
        level = self.policy.level(attempt.attained) if old is None else self.bucket_of[attempt.id].level
        if old is not None:
            self._let_go(old)
        self.running[attempt.id] = attempt
        for need, seat in zip(attempt.shape.tasks, attempt.seats, strict=True):
            self.rooms.take(seat.node, need, seat.devices)
            self.on_node[seat.node].add(attempt.id)
        self.held[attempt.id] = Free.held(self.rooms, attempt)
        self.ports += attempt.shape.ports
        self._count(attempt, 1)
        if attempt.array is not None:
            self.arrays[attempt.array] += 1
        if attempt.yields_to is not None:
            self.yielding[attempt.yields_to].add(attempt.id)
            self._promise(attempt.yields_to)
        if old is None:
            self._remember(attempt)
            heappush(self._young, (attempt.placed_at + self.policy.min_runtime, attempt.id))
            self._step_at(attempt, level)
        self._stand(attempt, level)

    def _remember(self, attempt: Running) -> None:
        """Counts what an attempt held before this was told of it: of one that is older than the scheduler."""
        if attempt.placed_at < self.now:
            between = attempt.placed_at, self.now
            self.shares.remember(attempt.project, self.holding(attempt), between, self.now)

    def _promise(self, job_id: str) -> None:
        job = self.waiting.get(job_id)
        if job is not None and job_id not in self.promised:
            self._enter(job, promised=True)

    def grown_at(self, now: int) -> int | None:
        """Returns when the next attempt has run for so long that it may be asked to make way; None: all have."""
        while self._young and (self._young[0][0] <= now or self._young[0][1] not in self.running):
            heappop(self._young)
        return self._young[0][0] if self._young else None

    def freed(self, attempt_id: str, now: int) -> None:
        """Says that an attempt has given back what it held."""
        self.now = max(self.now, now)
        attempt = self.running.pop(attempt_id, None)
        if attempt is not None:
            self._let_go(attempt)

    def _let_go(self, attempt: Running) -> None:
        for need, seat in zip(attempt.shape.tasks, attempt.seats, strict=True):
            self.rooms.give(seat.node, need, seat.devices)
            self.on_node[seat.node].discard(attempt.id)
        del self.held[attempt.id]
        self.ports -= attempt.shape.ports
        self._count(attempt, -1)
        if attempt.array is not None:
            self.arrays[attempt.array] -= 1
            if not self.arrays[attempt.array]:
                del self.arrays[attempt.array]
        if attempt.yields_to is not None:
            self.yielding[attempt.yields_to].discard(attempt.id)
            if not self.yielding[attempt.yields_to]:
                del self.yielding[attempt.yields_to]
        bucket = self.bucket_of.pop(attempt.id)
        self.buckets[bucket].pop(attempt.id, None)
        self.savers[bucket].pop(attempt.id, None)

    def _count(self, attempt: Running, sign: int) -> None:
        asks = self.holding(attempt)
        self.tree.add(attempt.project, asks, sign)
        if attempt.yields_to is None:
            self.staying.add(attempt.project, asks, sign)
        self.shares.add(attempt.project, asks, max(self.now, attempt.placed_at) if sign > 0 else self.now, sign)

    def _stand(self, attempt: Running, level: int) -> None:
        bucket = Bucket(attempt.priority, attempt.project, level)
        self.bucket_of[attempt.id] = bucket
        loss = self.buckets[bucket][attempt.id] = Loss.of(attempt)
        if attempt.keeps or attempt.saved_at is not None:
            self.savers[bucket][attempt.id] = loss

    def _step_at(self, attempt: Running, level: int) -> None:
        rate = attempt.shape.rate
        if level < len(self.policy.levels) and rate:
            missing = self.policy.levels[level] - attempt.attained
            heappush(self._steps, (attempt.placed_at + -(-missing // rate), attempt.id))

    def step_back(self, now: int) -> int | None:
        """Puts what has had its service by ``now`` a level back; returns when the next one follows."""
        self.now = max(self.now, now)
        while self._steps and (self._steps[0][0] <= now or self._steps[0][1] not in self.running):
            _, attempt_id = heappop(self._steps)
            attempt = self.running.get(attempt_id)
            if attempt is None:
                continue
            bucket = self.bucket_of[attempt_id]
            level = self.policy.level(attempt.service(now))
            if level > bucket.level:
                self.buckets[bucket].pop(attempt_id, None)
                self.savers[bucket].pop(attempt_id, None)
                self._stand(attempt, level)
            self._step_at(attempt, max(level, bucket.level))
        return self._steps[0][0] if self._steps else None
