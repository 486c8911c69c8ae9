"""What is free on the nodes, kept up to date; and where a gang goes: all of its tasks at once, or none.

Packing: each task goes to the node with the least left over that still holds it, so that whole nodes stay whole. A gang goes
to one node if one holds all of it, else into one pool, else anywhere; its GPUs are of one kind if that is possible.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from danlu.domain.nodes import NodeCapacity
from danlu.domain.resources import Resources
from danlu.scheduler.model import Running, Seat, Shape

Key = tuple[int, int, int, str]


@dataclass(slots=True)
class Room:
    """What is free on one node. It is less than nothing where a node has shrunk below what is held on it.

    Attributes:
        gpus: kind -> indexes of free GPUs, ascending.
        kept_gpus, kept_cpu_milli, kept_memory_bytes: what of that is kept for jobs that wait for more of it.
        kept_until: when the first of them could start (ns UTC), where that is known.
        lends: whether those who lose nothing by making way may use what is kept.
    """

    name: str
    cpu_milli: int
    memory_bytes: int
    gpus: dict[str, list[int]] = field(default_factory=dict)
    pool: str = ""
    kept_cpu_milli: int = 0
    kept_memory_bytes: int = 0
    kept_gpus: dict[str, int] = field(default_factory=dict)
    kept_until: int | None = None
    lends: bool = True
    key: Key = field(init=False)
    """where it stands among the others: that with the least left comes first"""

    def __post_init__(self) -> None:
        self.stand()

    def stand(self) -> None:
        """Says that what is free here has changed."""
        self.key = sum(map(len, self.gpus.values())), self.cpu_milli, self.memory_bytes, self.name

    def fits(self, need: Resources, kind: str | None, *, borrow: bool = True) -> bool:
        """Says whether one task fits here now; without ``borrow`` beside what is kept."""
        cpu_milli, memory_bytes = self.cpu_milli, self.memory_bytes
        if not borrow:
            cpu_milli, memory_bytes = cpu_milli - self.kept_cpu_milli, memory_bytes - self.kept_memory_bytes
        return (
            (need.cpu_milli <= cpu_milli or not need.cpu_milli)
            and (need.memory_bytes <= memory_bytes or not need.memory_bytes)
            and (need.gpus == 0 or self.kind_for(need.gpus, kind, borrow=borrow) is not None)
        )

    def kind_for(self, count: int, kind: str | None, *, borrow: bool = True) -> str | None:
        """Returns of which kind so many GPUs are free: of those that suffice the one with the fewest."""
        kinds = (kind,) if kind is not None else sorted(self.gpus, key=lambda one: (len(self.gpus[one]), one))
        kept: Mapping[str, int] = {} if borrow else self.kept_gpus
        return next((one for one in kinds if len(self.gpus.get(one, ())) - kept.get(one, 0) >= count), None)

    def most(self, kind: str | None) -> int:
        """Returns how many GPUs one task could have here: they are all of one kind."""
        return max((len(free) for one, free in self.gpus.items() if kind in (None, one)), default=0)

    def keep(self, need: Resources, kind: str | None, until: int | None, *, lent: bool) -> None:
        """Keeps what one task needs for a job that waits for it."""
        self.lends = self.lends and lent
        self.kept_cpu_milli += need.cpu_milli
        self.kept_memory_bytes += need.memory_bytes
        if kind is not None and need.gpus:
            self.kept_gpus[kind] = self.kept_gpus.get(kind, 0) + need.gpus
        # where it is not known when one of them can start, nobody knows whether he ends before
        known = until if self.kept_until is None else min(self.kept_until, until or 0)
        self.kept_until = 0 if until is None else known

    def keep_nothing(self) -> None:
        """Forgets what was kept."""
        self.kept_cpu_milli = self.kept_memory_bytes = 0
        self.kept_gpus = {}
        self.kept_until = None
        self.lends = True


@dataclass(slots=True)
class Rooms:
    """All nodes."""

    capacities: dict[str, NodeCapacity] = field(default_factory=dict)
    by_name: dict[str, Room] = field(default_factory=dict)
    kinds: dict[str, dict[int, str]] = field(default_factory=dict)
    total: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """what is free on all nodes together: ``cpu``, ``memory``, GPUs by kind; a node that has less than nothing has nothing"""
    _order: list[Key] = field(default_factory=list)
    _pools: list[str] | None = None
    _kind_names: list[str] | None = None
    _journal: list[tuple[str, Resources, tuple[int, ...], bool]] | None = None

    @classmethod
    def of(cls, nodes: Iterable[NodeCapacity]) -> Rooms:
        """Returns the nodes with all that they have free."""
        rooms = cls()
        for node in nodes:
            rooms.node(node)
        return rooms

    def node(self, capacity: NodeCapacity, held: Iterable[tuple[Resources, tuple[int, ...]]] = ()) -> None:
        """Adds a node, or says what it has now, and what is held on it."""
        if (old := self.by_name.get(capacity.name)) is not None:
            self._leave(old)
        gpus: dict[str, list[int]] = {}
        for gpu in sorted(capacity.gpus, key=lambda one: one.index):
            gpus.setdefault(gpu.kind, []).append(gpu.index)
        room = Room(capacity.name, capacity.cpu_milli, capacity.memory_bytes, gpus, capacity.pool)
        self.capacities[capacity.name], self.by_name[capacity.name] = capacity, room
        self._pools = self._kind_names = None
        self.kinds[capacity.name] = {gpu.index: gpu.kind for gpu in capacity.gpus}
        self._enter(room)
        for need, devices in held:
            self.take(capacity.name, need, devices)

    def take(self, name: str, need: Resources, devices: tuple[int, ...]) -> None:
        """Takes one task's share with these GPUs; nothing of a node that is not there."""
        self._change(name, need, devices, taken=True)

    def give(self, name: str, need: Resources, devices: tuple[int, ...]) -> None:
        """Gives back what ``take`` took."""
        self._change(name, need, devices, taken=False)

    def _change(self, name: str, need: Resources, devices: tuple[int, ...], *, taken: bool) -> None:
        room = self.by_name.get(name)
        if room is None:
            return
        if self._journal is not None:
            self._journal.append((name, need, devices, taken))
        self._leave(room)
        sign = -1 if taken else 1
        room.cpu_milli += sign * need.cpu_milli
        room.memory_bytes += sign * need.memory_bytes
        for device in devices:
            kind = self.kinds[name].get(device)
            if kind is None:  # a GPU that is gone
                continue
            free = room.gpus[kind]
            if taken and device in free:
                free.remove(device)
            elif not taken and device not in free:
                insort(free, device)
        room.stand()
        self._enter(room)

    def _enter(self, room: Room) -> None:
        """Puts a node where it stands among the others."""
        insort(self._order, room.key)
        self._add(room, 1)

    def _leave(self, room: Room) -> None:
        """Takes a node out from among the others."""
        del self._order[bisect_left(self._order, room.key)]
        self._add(room, -1)

    def _add(self, room: Room, sign: int) -> None:
        total = self.total
        if room.cpu_milli > 0:
            total["cpu"] += sign * room.cpu_milli
        if room.memory_bytes > 0:
            total["memory"] += sign * room.memory_bytes
        for kind, free in room.gpus.items():
            total[f"gpu/{kind}"] += sign * len(free)

    @contextmanager
    def trial(self) -> Iterator[None]:
        """Takes back at its end what was taken and given in it. Trials may be within others."""
        outer = self._journal
        journal = self._journal = [] if outer is None else outer
        begun = len(journal)
        try:
            yield
        finally:
            self._journal = None
            while len(journal) > begun:
                name, need, devices, taken = journal.pop()
                self._change(name, need, devices, taken=not taken)
            self._journal = outer

    def free(self, kind: str | None) -> Resources:
        """Returns what is free on all nodes together; its GPUs of this kind."""
        gpus = sum(self.total[f"gpu/{one}"] for one in self.kind_names() if kind in (None, one))
        return Resources(cpu_milli=self.total["cpu"], memory_bytes=self.total["memory"], gpus=gpus)

    def kinds_of(self, seats: Iterable[tuple[str, tuple[int, ...]]]) -> dict[str, int]:
        """Returns how many GPUs of each kind these seats (node, devices) have; one that is gone is of the kind ``gpu``."""
        found: dict[str, int] = {}
        for node, devices in seats:
            kinds = self.kinds.get(node, {})
            for device in devices:
                kind = kinds.get(device, "gpu")
                found[kind] = found.get(kind, 0) + 1
        return found

    def of_least(self, gpus: int) -> Iterator[Room]:
        """Yields the nodes with so many free GPUs, that with the least left first."""
        for at in range(bisect_left(self._order, (gpus,)), len(self._order)):
            yield self.by_name[self._order[at][3]]

    def most(self, kind: str | None) -> int:
        """Returns how many GPUs of this kind, or of any one kind, one task could have."""
        found = 0
        for room in self.of_most():
            if room.key[0] <= found:
                break
            found = max(found, room.most(kind))
        return found

    def of_most(self) -> Iterator[Room]:
        """Yields the nodes, that with the most left first."""
        return (self.by_name[key[3]] for key in reversed(self._order))

    def pools(self) -> list[str]:
        """Returns the pools' names."""
        if self._pools is None:
            self._pools = sorted({room.pool for room in self.by_name.values()})
        return self._pools

    def kind_names(self) -> list[str]:
        """Returns the kinds of GPUs that there are."""
        if self._kind_names is None:
            self._kind_names = sorted({kind for kinds in self.kinds.values() for kind in kinds.values()})
        return self._kind_names


@dataclass(slots=True)
class Free:
    """What is held or would be free on one node: counted only, nothing is taken or given."""

    cpu_milli: int
    memory_bytes: int
    gpus: dict[str, int]

    @classmethod
    def of(cls, room: Room, *, kept: bool = False) -> Free:
        """Returns what is free; with ``kept`` without what is kept."""
        gpus = {kind: len(indexes) for kind, indexes in room.gpus.items()}
        if not kept:
            return cls(room.cpu_milli, room.memory_bytes, gpus)
        left = {kind: count - room.kept_gpus.get(kind, 0) for kind, count in gpus.items()}
        return cls(room.cpu_milli - room.kept_cpu_milli, room.memory_bytes - room.kept_memory_bytes, left)

    @classmethod
    def of_all(cls, capacity: NodeCapacity) -> Free:
        """Returns all that a node has."""
        return cls(capacity.cpu_milli, capacity.memory_bytes, Counter(gpu.kind for gpu in capacity.gpus))

    @classmethod
    def held(cls, rooms: Rooms, attempt: Running) -> dict[str, Free]:
        """Returns what an attempt holds on each of its nodes; of GPUs those that are still there."""
        found: dict[str, Free] = {}
        for need, where in zip(attempt.shape.tasks, attempt.seats, strict=True):
            on = found.setdefault(where.node, cls(0, 0, {}))
            on.cpu_milli += need.cpu_milli
            on.memory_bytes += need.memory_bytes
            kinds = rooms.kinds.get(where.node, {})
            for device in where.devices:
                if (kind := kinds.get(device)) is not None:
                    on.gpus[kind] = on.gpus.get(kind, 0) + 1
        return found

    def take(self, need: Resources, kind: str | None) -> bool:
        """Takes what one task needs, its GPUs of this kind; returns whether it was there."""
        if kind is not None:
            self.gpus[kind] = self.gpus.get(kind, 0) - need.gpus
        self.cpu_milli -= need.cpu_milli
        self.memory_bytes -= need.memory_bytes
        return self.cpu_milli >= 0 and self.memory_bytes >= 0 and (kind is None or self.gpus[kind] >= 0)

    def add(self, held: Free, sign: int = 1) -> None:
        """Counts what an attempt holds here as free; with ``sign`` -1: no longer."""
        self.cpu_milli += sign * held.cpu_milli
        self.memory_bytes += sign * held.memory_bytes
        for kind, count in held.gpus.items():
            self.gpus[kind] = self.gpus.get(kind, 0) + sign * count

    def fits(self, need: Resources, kind: str | None) -> bool:
        """Says whether one task would fit."""
        if need.cpu_milli > self.cpu_milli or need.memory_bytes > self.memory_bytes:
            return False
        if kind is not None:
            return self.gpus.get(kind, 0) >= need.gpus
        return not need.gpus or max(self.gpus.values(), default=0) >= need.gpus


@dataclass(frozen=True, slots=True)
class Borrowing:
    """Whether a job may use what is kept for others: it ends before they can start, gives way in time, or is before them."""

    gives_way: bool = False
    ends_by: int | None = None
    everything: bool = False

    def of(self, room: Room) -> bool:
        """Says whether it may on this node."""
        return (
            self.everything
            or (self.gives_way and room.lends)
            or (self.ends_by is not None and room.kept_until is not None and self.ends_by <= room.kept_until)
        )


NEVER = Borrowing()
"""What is kept for others is no room."""
GIVES_WAY = Borrowing(gives_way=True)
EVERYTHING = Borrowing(everything=True)
"""What is kept counts as free."""


def seat(rooms: Rooms, shape: Shape, borrowing: Borrowing = EVERYTHING) -> tuple[Seat, ...] | None:
    """Takes room for a whole gang and returns its seats in rank order, or takes nothing and returns None."""
    needs_gpus = any(task.gpus for task in shape.tasks)
    names = rooms.kind_names() if needs_gpus and shape.gpu_kind is None else []
    kinds: Sequence[str | None] = (shape.gpu_kind,)
    if len(shape.tasks) > 1 and len(names) > 1:
        kinds = (*names, None)
    for kind in kinds:
        seats = _seat_one(rooms, shape, kind, borrowing) if len(shape.tasks) == 1 else None
        if len(shape.tasks) > 1:
            seats = _seat_gang(rooms, shape, kind, borrowing)
        if seats is not None:
            return seats
    return None


def _seat_one(rooms: Rooms, shape: Shape, kind: str | None, borrowing: Borrowing) -> tuple[Seat, ...] | None:
    room = _room_for(rooms, shape.tasks[0], kind, borrowing)
    return None if room is None else (_sit(rooms, room, shape.tasks[0], kind, borrowing),)


def _room_for(
    rooms: Rooms, need: Resources, kind: str | None, borrowing: Borrowing, pool: str | None = None
) -> Room | None:
    for room in rooms.of_least(need.gpus):
        if (pool is None or room.pool == pool) and room.fits(need, kind, borrow=borrowing.of(room)):
            return room
    return None


def _sit(rooms: Rooms, room: Room, need: Resources, kind: str | None, borrowing: Borrowing) -> Seat:
    devices: tuple[int, ...] = ()
    if need.gpus:
        chosen = room.kind_for(need.gpus, kind, borrow=borrowing.of(room))
        if chosen is None:
            raise ValueError(f"{need.gpus} GPUs of kind {kind} do not fit on {room.name}")
        devices = tuple(room.gpus[chosen][: need.gpus])
    rooms.take(room.name, need, devices)
    return Seat(room.name, devices)


def _seat_gang(rooms: Rooms, shape: Shape, kind: str | None, borrowing: Borrowing) -> tuple[Seat, ...] | None:
    total = sum(shape.tasks, start=Resources())
    together = _room_for(rooms, total, kind, borrowing)
    if together is not None:
        chosen = together.kind_for(total.gpus, kind, borrow=borrowing.of(together)) if total.gpus else kind
        return tuple(_sit(rooms, together, need, chosen, borrowing) for need in shape.tasks)
    pools = rooms.pools()
    for pool in (*pools, None) if len(pools) > 1 else (None,):
        seats = seated(rooms, shape, kind, borrowing, pool)
        if len(seats) == len(shape.tasks):
            return tuple(seats[rank] for rank in range(len(shape.tasks)))
        for rank, taken in seats.items():
            rooms.give(taken.node, shape.tasks[rank], taken.devices)
    return None


def seated(
    rooms: Rooms, shape: Shape, kind: str | None, borrowing: Borrowing = EVERYTHING, pool: str | None = None
) -> dict[int, Seat]:
    """Takes room for a gang's tasks, the largest first, up to the first that does not fit; returns seats by rank."""
    seats: dict[int, Seat] = {}
    for rank in largest_first(shape):
        room = _room_for(rooms, shape.tasks[rank], kind, borrowing, pool)
        if room is None:
            break
        seats[rank] = _sit(rooms, room, shape.tasks[rank], kind, borrowing)
    return seats


def largest_first(shape: Shape) -> Sequence[int]:
    """Returns ranks in the order of placing: what is hardest to place comes first, equal tasks by rank."""
    tasks, ranks = shape.tasks, range(len(shape.tasks))
    if len(tasks) == 1:
        return ranks
    return sorted(ranks, key=lambda rank: (-tasks[rank].gpus, -tasks[rank].cpu_milli, -tasks[rank].memory_bytes, rank))


def take_seats(rooms: Rooms, needs: Sequence[Resources], seats: Sequence[Seat]) -> bool:
    """Takes exactly these seats, one a task in rank order, if every one of them is still free; else takes nothing."""
    taken: list[tuple[Resources, Seat]] = []
    for need, where in zip(needs, seats, strict=True):
        room = rooms.by_name.get(where.node)
        free = set() if room is None else {index for indexes in room.gpus.values() for index in indexes}
        if (
            room is None
            or not free.issuperset(where.devices)
            or not room.fits(need.model_copy(update={"gpus": 0}), None)
        ):
            for need_, where_ in taken:
                rooms.give(where_.node, need_, where_.devices)
            return False
        rooms.take(where.node, need, where.devices)
        taken.append((need, where))
    return True
