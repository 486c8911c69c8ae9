"""One decision of who runs where: a snapshot in, a plan out. No clock, no database, no randomness.

1. Order: priority (higher first), then who waits longest, then the id.
2. Place: each job's tasks as one gang, all or none, on the nodes with the least left over that still hold them (packing).
3. Keep: what a job that does not fit is waiting for is kept for it. On the node that could hold it soonest its share of
   what is free is taken out of this cycle, so that smaller jobs behind it use only what it does not need, and none starves.
   Of ports there are so many for all nodes; a gang that lacks some gets those that become free before any other does.
4. Say why: one reason code for each job that waits; equal shapes are decided once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from danlu.domain.jobs import Reason
from danlu.domain.nodes import NodeCapacity
from danlu.domain.resources import Resources, format_bytes, format_cpu
from danlu.scheduler import ports

KEPT_FOR = 16
"""For how many of the first waiting jobs resources are kept; those behind them wait for their turn all the same."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a gang asks for: one entry a task, the GPU kind that all of them need, and how many ports."""

    tasks: tuple[Resources, ...]
    gpu_kind: str | None = None
    ports: int = 0


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job that could start now if there were room."""

    id: str
    priority: int
    queued_at: int
    shape: Shape


@dataclass(slots=True)
class Room:
    """What is free on one node, changed while a plan is made."""

    name: str
    cpu_milli: int
    memory_bytes: int
    gpus: dict[str, list[int]] = field(default_factory=dict)
    """kind -> indexes of free GPUs, ascending"""

    def fits(self, need: Resources, kind: str | None) -> bool:
        """Says whether one task fits here now."""
        return (
            need.cpu_milli <= self.cpu_milli
            and need.memory_bytes <= self.memory_bytes
            and (need.gpus == 0 or self._kind_for(need.gpus, kind) is not None)
        )

    def _kind_for(self, count: int, kind: str | None) -> str | None:
        kinds = [kind] if kind is not None else sorted(self.gpus, key=lambda k: (len(self.gpus[k]), k))
        return next((k for k in kinds if len(self.gpus.get(k, ())) >= count), None)

    def take(self, need: Resources, kind: str | None) -> tuple[int, ...]:
        """Takes one task's share and returns its GPUs' indexes, ascending. It must fit."""
        self.cpu_milli -= need.cpu_milli
        self.memory_bytes -= need.memory_bytes
        if not need.gpus:
            return ()
        chosen = self._kind_for(need.gpus, kind)
        if chosen is None:
            raise ValueError(f"{need.gpus} GPUs of kind {kind} do not fit on {self.name}")
        free = self.gpus[chosen]
        self.gpus[chosen] = free[need.gpus :]
        return tuple(free[: need.gpus])

    def take_devices(self, need: Resources, devices: tuple[int, ...]) -> bool:
        """Takes one task's share with exactly these GPUs, if all of it is free; returns whether it was."""
        left = {kind: [index for index in free if index not in devices] for kind, free in self.gpus.items()}
        found = sum(map(len, self.gpus.values())) - sum(map(len, left.values()))
        if need.cpu_milli > self.cpu_milli or need.memory_bytes > self.memory_bytes or found != len(devices):
            return False
        self.cpu_milli -= need.cpu_milli
        self.memory_bytes -= need.memory_bytes
        self.gpus = left
        return True

    def copy(self) -> Room:
        """Returns one that can be changed without changing this one."""
        return Room(
            self.name, self.cpu_milli, self.memory_bytes, {kind: list(free) for kind, free in self.gpus.items()}
        )

    def give_back(self, need: Resources, devices: Iterable[int], kinds: dict[int, str]) -> None:
        """Returns what ``take`` took."""
        self.cpu_milli += need.cpu_milli
        self.memory_bytes += need.memory_bytes
        for device in devices:
            kind = kinds[device]
            self.gpus[kind] = sorted([*self.gpus.get(kind, []), device])

    def keep(self, need: Resources, kind: str | None) -> None:
        """Takes out whatever of ``need`` is free, its GPUs of this kind, for a job that waits for the rest."""
        self.cpu_milli = max(0, self.cpu_milli - need.cpu_milli)
        self.memory_bytes = max(0, self.memory_bytes - need.memory_bytes)
        if kind is not None:
            self.gpus[kind] = self.gpus[kind][need.gpus :]


@dataclass(frozen=True, slots=True)
class Held:
    """What a live attempt holds on one node."""

    node: str
    resources: Resources
    devices: tuple[int, ...]
    ports: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that a decision depends on."""

    nodes: tuple[NodeCapacity, ...]
    held: tuple[Held, ...]
    waiting: tuple[Waiting, ...]


@dataclass(frozen=True, slots=True)
class Seat:
    """Where one task of a gang goes."""

    node: str
    devices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Placement:
    """A job that starts now; one seat a task, in rank order."""

    job_id: str
    seats: tuple[Seat, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do: who starts where, and why the others wait (a code and its arithmetic), in queue order."""

    placements: tuple[Placement, ...]
    waits: dict[str, tuple[Reason, str]]


def order(waiting: Iterable[Waiting]) -> list[Waiting]:
    """Returns the jobs in the order in which they are served."""
    return sorted(waiting, key=lambda job: (-job.priority, job.queued_at, job.id))


def rooms(nodes: Iterable[NodeCapacity], held: Iterable[Held]) -> dict[str, Room]:
    """Returns what is free on each node: all that it has less what live attempts hold.

    What is held on a node that shrank or vanished never makes a free amount negative.
    """
    free: dict[str, Room] = {}
    for node in nodes:
        kinds: dict[str, list[int]] = {}
        for gpu in sorted(node.gpus, key=lambda gpu: gpu.index):
            kinds.setdefault(gpu.kind, []).append(gpu.index)
        free[node.name] = Room(node.name, node.cpu_milli, node.memory_bytes, kinds)
    for share in held:
        room = free.get(share.node)
        if room is None:
            continue
        room.cpu_milli = max(0, room.cpu_milli - share.resources.cpu_milli)
        room.memory_bytes = max(0, room.memory_bytes - share.resources.memory_bytes)
        for kind in room.gpus:
            room.gpus[kind] = [index for index in room.gpus[kind] if index not in share.devices]
    return free


def seat(shape: Shape, free: dict[str, Room], kinds: dict[str, dict[int, str]]) -> tuple[Seat, ...] | None:
    """Takes room for a whole gang and returns its seats in rank order, or takes nothing and returns None."""
    seats = _seated(shape, free)
    if len(seats) == len(shape.tasks):
        return tuple(seats[rank] for rank in range(len(shape.tasks)))
    for rank, taken in seats.items():
        free[taken.node].give_back(shape.tasks[rank], taken.devices, kinds[taken.node])
    return None


def _seated(shape: Shape, free: dict[str, Room]) -> dict[int, Seat]:
    """Takes room for a gang's tasks, the largest first, up to the first that does not fit; returns seats by rank."""
    seats: dict[int, Seat] = {}
    for rank in _largest_first(shape):
        need = shape.tasks[rank]
        candidates = [room for room in free.values() if room.fits(need, shape.gpu_kind)]
        if not candidates:
            break
        room = min(candidates, key=lambda r: (sum(map(len, r.gpus.values())), r.cpu_milli, r.memory_bytes, r.name))
        seats[rank] = Seat(room.name, room.take(need, shape.gpu_kind))
    return seats


def _largest_first(shape: Shape) -> Sequence[int]:
    """Returns ranks in the order of placing: what is hardest to place comes first, equal tasks by rank."""
    ranks = range(len(shape.tasks))
    if len(shape.tasks) == 1:
        return ranks
    return sorted(
        ranks,
        key=lambda rank: (
            -shape.tasks[rank].gpus,
            -shape.tasks[rank].cpu_milli,
            -shape.tasks[rank].memory_bytes,
            rank,
        ),
    )


def take_seats(free: dict[str, Room], needs: Sequence[Resources], seats: Sequence[Seat]) -> bool:
    """Takes exactly these seats, one a task in rank order, if every one of them is still free; else takes nothing."""
    trial = {seat.node: free[seat.node].copy() for seat in seats if seat.node in free}
    for need, where in zip(needs, seats, strict=True):
        if where.node not in trial or not trial[where.node].take_devices(need, where.devices):
            return False
    free.update(trial)
    return True


def plan(snapshot: Snapshot) -> Plan:
    """Returns who starts now and why each other job waits."""
    free = rooms(snapshot.nodes, snapshot.held)
    empty = rooms(snapshot.nodes, ())
    kinds = {node.name: {gpu.index: gpu.kind for gpu in node.gpus} for node in snapshot.nodes}
    placements: list[Placement] = []
    waits: dict[str, tuple[Reason, str]] = {}
    refused: dict[Shape, tuple[Reason, str]] = {}
    free_ports = _free_ports(snapshot.held)
    kept = 0
    for job in order(snapshot.waiting):
        if job.shape in refused:  # within a cycle room only shrinks: what did not fit does not fit now
            waits[job.id] = refused[job.shape]
            continue
        if job.shape.ports > free_ports:
            waits[job.id] = refused[job.shape] = _short_of_ports(job.shape, free_ports)
            free_ports = 0  # they are kept for it, as all is that the first ones wait for
            continue
        seats = seat(job.shape, free, kinds)
        if seats is not None:
            free_ports -= job.shape.ports
            placements.append(Placement(job.id, seats))
            continue
        waits[job.id] = refused[job.shape] = explain(job.shape, free, empty)
        if kept < KEPT_FOR and waits[job.id][0] is Reason.WAITING_FOR_RESOURCES:
            kept += 1
            _keep(job.shape, free, empty)
    return Plan(tuple(placements), waits)


def _free_ports(held: Iterable[Held]) -> int:
    """Returns how many ports can be leased; on which node a task is does not matter, as no port is met twice in a gang."""
    return ports.COUNT - sum(share.ports for share in held)


def _short_of_ports(shape: Shape, free: int) -> tuple[Reason, str]:
    words = f"asks {shape.ports:,} ports, one for each task; {free:,} of {ports.COUNT:,} are free"
    return Reason.WAITING_FOR_RESOURCES, words


def _keep(shape: Shape, free: dict[str, Room], empty: dict[str, Room]) -> None:
    for need in shape.tasks:
        able = [
            (name, kind)
            for name, room in empty.items()
            for kind in (_kinds(room, shape.gpu_kind) if need.gpus else (None,))
            if room.fits(need, kind)
        ]
        if able:
            name, kind = max(able, key=lambda where: _nearness(need, free[where[0]], where[1]))
            free[name].keep(need, kind)


def _nearness(need: Resources, room: Room, kind: str | None) -> tuple[int, int, int, str, str]:
    """Says how much of ``need`` is there. What is there beyond it does not count: others may use that, and were it counted
    the choice would go to and fro between two nodes, and neither would ever be free.
    """
    gpus = 0 if kind is None else min(need.gpus, len(room.gpus.get(kind, ())))
    return gpus, min(need.cpu_milli, room.cpu_milli), min(need.memory_bytes, room.memory_bytes), room.name, kind or ""


def _kinds(room: Room, kind: str | None) -> Iterable[str]:
    return room.gpus if kind is None else (kind,)


def _gpus(room: Room, kind: str | None) -> int:
    """Returns how many GPUs one task could have here: they are all of one kind."""
    return max((len(room.gpus.get(one, ())) for one in _kinds(room, kind)), default=0)


def asks(need: Resources, kind: str | None) -> str:
    """Returns ``1 cpu, 4.0 GiB, 2 gpu (h100)``."""
    parts = [f"{format_cpu(need.cpu_milli)} cpu"]
    if need.memory_bytes:
        parts.append(format_bytes(need.memory_bytes))
    if need.gpus:
        parts.append(f"{need.gpus} gpu" + (f" ({kind})" if kind else ""))
    return ", ".join(parts)


def asks_all(shape: Shape) -> str:
    """Returns what a gang asks for: ``1 cpu``, ``3 tasks of 1 cpu each``, or ``3 tasks, in all 4 cpu, 2 gpu``."""
    first, count = shape.tasks[0], len(shape.tasks)
    if count == 1:
        return asks(first, shape.gpu_kind)
    if all(task == first for task in shape.tasks):
        return f"{count} tasks of {asks(first, shape.gpu_kind)} each"
    return f"{count} tasks, in all {asks(sum(shape.tasks, start=Resources()), shape.gpu_kind)}"


def explain(shape: Shape, free: dict[str, Room], empty: dict[str, Room]) -> tuple[Reason, str]:
    """Returns why a gang does not fit now: a code, and what is short with its numbers."""
    never = next((task for task in shape.tasks if not any(r.fits(task, shape.gpu_kind) for r in empty.values())), None)
    if never is not None:
        return (
            Reason.NO_MATCHING_FLAVOR,
            f"asks {asks(never, shape.gpu_kind)}; {largest(empty.values(), shape.gpu_kind)}",
        )
    left = {name: room.copy() for name, room in free.items()}
    seats = _seated(shape, left)
    need = next((shape.tasks[rank] for rank in _largest_first(shape) if rank not in seats), shape.tasks[0])
    short = []
    cpu = max((room.cpu_milli for room in left.values()), default=0)
    memory = max((room.memory_bytes for room in left.values()), default=0)
    gpus = max((_gpus(room, shape.gpu_kind) for room in left.values()), default=0)
    if need.cpu_milli > cpu:
        short.append(f"cpu (at most {format_cpu(cpu)} free on one node)")
    if need.memory_bytes > memory:
        short.append(f"memory (at most {format_bytes(memory)} free on one node)")
    if need.gpus > gpus:
        short.append(f"gpu (at most {gpus} free on one node)")
    what = ", ".join(short) or "one node with all of it free at once"
    fit = f"{len(seats)} of them fit, the next, {asks(need, shape.gpu_kind)}, is " if len(shape.tasks) > 1 else ""
    return Reason.WAITING_FOR_RESOURCES, f"asks {asks_all(shape)}; {fit}short of {what}"


def largest(empty: Iterable[Room], kind: str | None) -> str:
    """Returns the most that any node has, in words."""
    nodes = list(empty)
    if not nodes:
        return "there is no node"
    cpu = max(room.cpu_milli for room in nodes)
    memory = max(room.memory_bytes for room in nodes)
    gpus = max(_gpus(room, kind) for room in nodes)
    return f"the largest node here has {asks(Resources(cpu_milli=cpu, memory_bytes=memory, gpus=0), None)}, " + (
        f"{gpus} gpu" + (f" of kind {kind}" if kind else "")
    )


def shortage(shape: Shape, nodes: Sequence[NodeCapacity], held: Sequence[Held]) -> tuple[Reason, str] | None:
    """Returns None if the gang fits beside what is held, else why it does not."""
    if shape.ports > (left := _free_ports(held)):
        return _short_of_ports(shape, left)
    kinds = {node.name: {gpu.index: gpu.kind for gpu in node.gpus} for node in nodes}
    if seat(shape, rooms(nodes, held), kinds) is not None:
        return None
    return explain(shape, rooms(nodes, held), rooms(nodes, ()))


def could_ever_fit(shape: Shape, nodes: Sequence[NodeCapacity]) -> str | None:
    """Returns None if the gang fits on empty nodes, else why it never will."""
    short = shortage(shape, nodes, ())
    if short is None:
        return None
    reason, message = short
    return message if reason is Reason.NO_MATCHING_FLAVOR else f"{message}, even when nothing else runs"
