"""The schedulers that Danlu's is compared with. They place gangs as it does (``rooms.seat``), and know nothing of quotas.

- FIFO with EASY backfill (Lifka, JSSPP 1995): jobs start in their order; behind the first one that does not fit others start
  only if they do not delay it. It has to know how long jobs run.
- SRTF: who has the shortest time left runs, at each arrival and each end. It has to know how long jobs run.
- LAS: who had the least GPU-time runs, in steps (Tiresias, NSDI 2019), of equals who came first. It knows nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

from danlu.domain.nodes import NodeCapacity
from danlu.domain.quotas import Quota
from danlu.domain.resources import Resources
from danlu.scheduler.model import Placement, Plan, Policy, Preemption, Running, Seat, Shape, Waiting
from danlu.scheduler.rooms import NEVER, Borrowing, Rooms, seat, take_seats

Rank = tuple[int, ...]
UNKNOWN = 2**62
"""The end of who did not say how long he runs."""


@dataclass(slots=True)
class _Known(ABC):
    """What was told: nodes, what waits, what holds something. It keeps who waits in order."""

    rooms: Rooms = field(default_factory=Rooms)
    waiting: dict[str, tuple[Rank, Waiting]] = field(default_factory=dict)
    running: dict[str, Running] = field(default_factory=dict)
    order: list[tuple[Rank, str]] = field(default_factory=list)

    def node(self, capacity: NodeCapacity) -> None:
        """Says what a node has; before anything runs on it."""
        self.rooms.node(capacity)

    def quotas(self, quotas: Iterable[Quota]) -> None:
        """They do not matter here."""
        del quotas

    def had(self, project: str, asks: Mapping[str, int], began: int, ended: int) -> None:
        """It does not matter here."""
        del project, asks, began, ended

    def queued(self, job: Waiting) -> None:
        """Says that a job waits."""
        self.gone(job.id)
        rank = self.rank(job)
        self.waiting[job.id] = rank, job
        insort(self.order, (rank, job.id))

    def gone(self, job_id: str) -> None:
        """Says that a job does not wait any more."""
        if job_id in self.waiting:
            rank, _ = self.waiting.pop(job_id)
            del self.order[bisect_left(self.order, (rank, job_id))]

    def holds(self, attempt: Running) -> None:
        """Says that an attempt holds its seats."""
        if attempt.id not in self.running:
            _take(self.rooms, attempt.shape, attempt.seats)
        self.running[attempt.id] = attempt

    def freed(self, attempt_id: str, now: int) -> None:
        """Says that an attempt has given back what it held."""
        del now
        attempt = self.running.pop(attempt_id)
        _give(self.rooms, attempt.shape, attempt.seats)

    @abstractmethod
    def rank(self, job: Waiting) -> Rank:
        """Returns where a job that waits stands; the least comes first."""


def _take(rooms: Rooms, shape: Shape, seats: Iterable[Seat]) -> None:
    for need, where in zip(shape.tasks, seats, strict=True):
        rooms.take(where.node, need, where.devices)


def _give(rooms: Rooms, shape: Shape, seats: Iterable[Seat]) -> None:
    for need, where in zip(shape.tasks, seats, strict=True):
        rooms.give(where.node, need, where.devices)


@dataclass(slots=True)
class FifoEasy(_Known):
    """FIFO with EASY backfill; with ``by_priority`` who has more comes before who came earlier."""

    by_priority: bool = False

    def rank(self, job: Waiting) -> Rank:
        """Returns its place in the queue."""
        return -job.priority if self.by_priority else 0, job.queued_at

    def decide(self, now: int) -> Plan:
        """Starts who is first while he fits; then who does not delay the first one that does not."""
        placements: list[Placement] = []
        ends = [_End.of(now, one.ends_by, one.shape, one.seats) for one in self.running.values()]
        first: Shape | None = None
        head: _Head | None = None
        refused: dict[int, int] = {}
        with self.rooms.trial():
            for _, job_id in self.order:
                job = self.waiting[job_id][1]
                shape, end = job.shapes[0], UNKNOWN if job.duration is None else now + job.duration
                if refused.get(id(shape), UNKNOWN + 1) <= end:  # neither did one that ends before it
                    continue
                if not _fits(self.rooms, shape):
                    first = first or shape
                    refused[id(shape)] = 0
                    continue
                if first is not None and head is None:
                    head = _Head.of(self.rooms, first, ends)
                    head.keep(self.rooms)
                seats = seat(self.rooms, shape, NEVER)
                if seats is None and head is not None and end <= head.starts:
                    seats = seat(self.rooms, shape, Borrowing(ends_by=end))
                if seats is None:
                    refused[id(shape)] = end
                    continue
                placements.append(Placement(job_id, seats, shape))
                ends.append(_End(end, shape, seats))
                if head is not None and end <= head.starts:
                    head.gets(shape, seats)
                    head.keep(self.rooms)
        for room in self.rooms.by_name.values():
            room.keep_nothing()
        return Plan(tuple(placements))


def _fits(rooms: Rooms, shape: Shape) -> bool:
    """Says whether a gang fits into what is free, kept or not."""
    if sum(task.gpus for task in shape.tasks) > rooms.free(shape.gpu_kind).gpus:
        return False
    with rooms.trial():
        return seat(rooms, shape) is not None


class _End(NamedTuple):
    """When something is given back, and what."""

    at: int
    shape: Shape
    seats: tuple[Seat, ...]

    @classmethod
    def of(cls, now: int, ends_by: int | None, shape: Shape, seats: tuple[Seat, ...]) -> _End:
        """Returns it as far as it is known; what is late ends now."""
        return cls(UNKNOWN if ends_by is None else max(now, ends_by), shape, seats)


@dataclass(slots=True)
class _Head:
    """The first job that does not fit: when it starts at the latest, what it needs then, what it gets until then.

    ``needs``, ``got``: (node, kind) -> cores in thousandths, bytes, GPUs; a job that can never start needs nothing.
    """

    starts: int
    kinds: dict[str, dict[int, str]]
    needs: dict[tuple[str, str | None], list[int]] = field(default_factory=dict)
    got: dict[tuple[str, str | None], list[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, rooms: Rooms, shape: Shape, ends: Iterable[_End]) -> _Head:
        """Returns when it would start if all that runs ends when it said."""
        head = cls(starts=UNKNOWN, kinds=rooms.kinds)
        with rooms.trial():
            for at, together in groupby(sorted(ends, key=lambda one: one.at), key=lambda one: one.at):
                for one in together:
                    _give(rooms, one.shape, one.seats)
                    head.gets(one.shape, one.seats)
                if _fits(rooms, shape) and (seats := seat(rooms, shape)) is not None:
                    head.starts = at
                    head._add(head.needs, shape, seats)
                    break
        return head

    def _add(self, to: dict[tuple[str, str | None], list[int]], shape: Shape, seats: Iterable[Seat]) -> None:
        for need, one in zip(shape.tasks, seats, strict=True):
            key = one.node, self.kinds[one.node][one.devices[0]] if one.devices else None
            cpu_milli, memory_bytes, gpus = to.get(key, (0, 0, 0))
            to[key] = [cpu_milli + need.cpu_milli, memory_bytes + need.memory_bytes, gpus + need.gpus]

    def gets(self, shape: Shape, seats: Iterable[Seat]) -> None:
        """Says that this is free again before it starts."""
        self._add(self.got, shape, seats)

    def keep(self, rooms: Rooms) -> None:
        """Keeps of what is free now as much as it does not get by then."""
        for node in {node for node, _ in self.needs}:
            rooms.by_name[node].keep_nothing()
            got = [amounts for (name, _), amounts in self.got.items() if name == node]
            cpu_milli, memory_bytes = sum(one[0] for one in got), sum(one[1] for one in got)
            for (name, kind), need in self.needs.items():
                if name == node:
                    gpus = need[2] - self.got.get((name, kind), (0, 0, 0))[2]
                    cpu_milli, memory_bytes = cpu_milli - need[0], memory_bytes - need[1]
                    least = Resources(gpus=max(0, gpus))
                    rooms.by_name[name].keep(least, kind, self.starts, lent=True)
            least = Resources(cpu_milli=max(0, -cpu_milli), memory_bytes=max(0, -memory_bytes))
            rooms.by_name[node].keep(least, None, self.starts, lent=True)


@dataclass(slots=True)
class _Preemptive(_Known):
    """Who stands first runs; who stands behind and is in the way makes way at once."""

    _busy: set[tuple[str, int]] = field(default_factory=set)
    """GPUs of those that make way"""
    _held: dict[str, Resources] = field(default_factory=dict)
    """what those that make way still hold of each node"""

    def decide(self, now: int) -> Plan:
        """Goes through who waits, in order: each gets what is free, or what those behind him hold."""
        placements: list[Placement] = []
        preemptions: list[Preemption] = []
        self._busy, self._held = set(), {}
        stays = sorted((self.rank_of(one, now), one.id) for one in self.running.values() if one.yields_to is None)
        refused: set[int] = set()
        with self.rooms.trial():
            for one in self.running.values():
                if one.yields_to is not None:
                    self._leave(one)
            for rank, job_id in self.order:
                shape = self.waiting[job_id][1].shapes[0]
                if id(shape) in refused:
                    continue
                seats = seat(self.rooms, shape)
                if seats is None:
                    behind = stays[bisect_right(stays, (rank, job_id)) :]
                    seats, going = self._displace(shape, behind)
                    preemptions += [
                        Preemption(one.id, job_id, "it stands behind", one.lost(now), one.lost_s(now)) for one in going
                    ]
                    gone = {one.id for one in going}
                    stays = [one for one in stays if one[1] not in gone] if gone else stays
                if seats is None:
                    refused.add(id(shape))
                elif self._is_there(seats):
                    placements.append(Placement(job_id, seats, shape))
        return Plan(tuple(placements), tuple(preemptions), again_at=self.again_at(now))

    def _leave(self, one: Running) -> None:
        """Counts what an attempt holds as free for who waits for it, though it is not yet."""
        _give(self.rooms, one.shape, one.seats)
        for need, where in zip(one.shape.tasks, one.seats, strict=True):
            self._busy.update((where.node, device) for device in where.devices)
            self._held[where.node] = self._held.get(where.node, Resources()) + need

    def _is_there(self, seats: Iterable[Seat]) -> bool:
        """Says whether seats that were taken are free now, and not only when others have made way."""
        for where in seats:
            room, held = self.rooms.by_name[where.node], self._held.get(where.node)
            if held is not None and (
                any((where.node, device) in self._busy for device in where.devices)
                or room.cpu_milli < held.cpu_milli
                or room.memory_bytes < held.memory_bytes
            ):
                return False
        return True

    def _displace(self, shape: Shape, behind: list[tuple[Rank, str]]) -> tuple[tuple[Seat, ...] | None, list[Running]]:
        """Takes room that attempts behind a job hold, that which stands last first; returns seats and whose they were."""
        need = sum(task.gpus for task in shape.tasks)
        missing = need - self.rooms.free(shape.gpu_kind).gpus
        least = [self.running[name] for _, name in reversed(behind)]
        seats: tuple[Seat, ...] | None = None
        if sum(task.gpus for one in least for task in one.shape.tasks) < missing:
            return None, []
        given: list[Running] = []
        with self.rooms.trial():
            for one in least:
                _give(self.rooms, one.shape, one.seats)
                given.append(one)
                missing -= sum(task.gpus for task in one.shape.tasks)
                if missing <= 0 and (seats := seat(self.rooms, shape)) is not None:
                    break
        if seats is None:
            return None, []
        taken = {(where.node, device) for where in seats for device in where.devices}
        nodes = {where.node for where in seats}
        given.sort(key=lambda one: not any((at.node, device) in taken for at in one.seats for device in at.devices))
        going: list[Running] = []
        for one in given:
            in_the_way = any((at.node, device) in taken for at in one.seats for device in at.devices)
            if not in_the_way and take_seats(self.rooms, shape.tasks, seats):
                break
            if in_the_way or nodes & {at.node for at in one.seats}:
                going.append(one)
                self._leave(one)
        else:
            take_seats(self.rooms, shape.tasks, seats)
        return seats, going

    @abstractmethod
    def rank_of(self, one: Running, now: int) -> Rank:
        """Returns where an attempt stands, as ``rank``."""

    def again_at(self, now: int) -> int | None:
        """Returns when somebody steps back though nothing else changes."""
        del now
        return None


@dataclass(slots=True)
class Srtf(_Preemptive):
    """Shortest remaining time first, restarts counted."""

    def rank(self, job: Waiting) -> Rank:
        """Returns the time left."""
        return (UNKNOWN if job.duration is None else job.duration,)

    def rank_of(self, one: Running, now: int) -> Rank:
        """Returns the time left."""
        return (UNKNOWN if one.ends_by is None else one.ends_by - now,)


@dataclass(slots=True)
class Las(_Preemptive):
    """Least attained service, in the steps of the policy."""

    policy: Policy = field(default_factory=Policy)

    def rank(self, job: Waiting) -> Rank:
        """Returns the step, and when it came."""
        return self.policy.level(job.attained), job.queued_at

    def rank_of(self, one: Running, now: int) -> Rank:
        """Returns the step, and when it came."""
        return self.policy.level(one.service(now)), one.queued_at

    def again_at(self, now: int) -> int | None:
        """Returns when the next one that runs steps back, if anybody waits."""
        steps = []
        for one in self.running.values() if self.order else ():
            level = self.policy.level(one.service(now))
            if level < len(self.policy.levels) and one.shape.rate:
                missing = self.policy.levels[level] - one.service(now)
                steps.append(now + -(-missing // one.shape.rate))
        return min(steps, default=None)
