"""Who makes way for a job that does not fit: of those that may be asked, those of which least is lost.

Asked may be, if it began longer ago than the least run time, an attempt

- that holds what was lent to its project, by a job that asks for no more than its own guarantee;
- of less priority;
- that stands a whole step behind: its job, or its project, had more. But only if little would be lost of it;
- that was let in beside what is kept for the job, and loses nothing.

What another project is guaranteed is never taken from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from danlu.domain.resources import Resources
from danlu.scheduler.model import Running, Shape, Waiting
from danlu.scheduler.quota import Excess
from danlu.scheduler.rooms import EVERYTHING, Room, Rooms, largest_first, seat, seated

if TYPE_CHECKING:
    from danlu.scheduler.cycle import Cycle


class Choice(NamedTuple):
    """Who makes way, each with why, and where the job's tasks go then: node, need, kind."""

    victims: tuple[tuple[Running, str], ...]
    seats: tuple[tuple[str, Resources, str | None], ...]


def choose(cycle: Cycle, job: Waiting) -> Choice | None:
    """Returns who makes way so that a job fits in its least shape; None: those who could are not enough."""
    shape, rooms, tree = job.shapes[-1], cycle.state.rooms, cycle.state.tree
    may = {victim.id: (victim, why) for victim, why in _candidates(cycle, job, shape)}
    if not may:
        return None
    asks = cycle.state.asks(shape)
    chosen: dict[str, tuple[Running, str]] = {}
    with rooms.trial():
        while tree.exceeded(job.project, asks) is not None or (seats := seat(rooms, shape, EVERYTHING)) is None:
            excess = tree.exceeded(job.project, asks)
            left = {attempt_id: victim for attempt_id, (victim, _) in may.items() if attempt_id not in chosen}
            more = _under(cycle, excess, left) if excess is not None else _cheapest(cycle, shape, left)
            if not more:
                break
            for victim in more:
                chosen[victim.id] = may[victim.id]
                tree.add(victim.project, cycle.state.holding(victim), -1)
                for need, where in zip(victim.shape.tasks, victim.seats, strict=True):
                    rooms.give(where.node, need, where.devices)
        else:
            kinds = [rooms.kinds[one.node].get(one.devices[0]) if one.devices else None for one in seats]
            found = tuple((one.node, need, kind) for one, need, kind in zip(seats, shape.tasks, kinds, strict=True))
            chosen_ = tuple(chosen.values())
            _count_again(cycle, chosen)
            return Choice(chosen_, found)
    _count_again(cycle, chosen)
    return None


def _count_again(cycle: Cycle, chosen: dict[str, tuple[Running, str]]) -> None:
    for victim, _ in chosen.values():
        cycle.state.tree.add(victim.project, cycle.state.holding(victim))


def _candidates(cycle: Cycle, job: Waiting, shape: Shape) -> Iterator[tuple[Running, str]]:
    """Yields who may be asked, and why."""
    state, now = cycle.state, cycle.now
    asks = state.asks(shape)
    right = state.tree.entitled(job.project, asks)
    mine = cycle.rank(job.project, job.priority, state.policy.level(job.attained), entitled=right is not None)
    kept = state.kept.get(job.id)
    beside = {node for node, _, _ in kept.seats} if kept is not None else frozenset()
    for bucket, attempts in state.buckets.items():
        if not attempts:
            continue
        lent = bucket.project == job.project or state.tree.has_borrowed(bucket.project, asks, beside=job.project)
        if not lent:
            continue
        theirs = cycle.rank(bucket.project, bucket.priority, bucket.level)
        why, little = "", False
        if right is not None and right not in state.tree.path(bucket.project):
            why = f"{right.id} is guaranteed what it holds"
        elif bucket.priority < job.priority:
            why = f"its priority is {bucket.priority}, that of the other {job.priority}"
        elif theirs[1:] > mine[1:]:
            why, little = "its job, or its project, had more than the other's", True
        elif kept is None:
            continue
        for attempt_id in attempts:
            victim = state.running[attempt_id]
            if victim.yields_to is not None or attempt_id in cycle.yielding:
                continue
            if now - victim.placed_at < state.policy.min_runtime:
                continue
            if not why:
                if (
                    victim.keeps
                    and kept is not None
                    and victim.placed_at >= kept.since
                    and any(one.node in beside for one in victim.seats)
                ):
                    yield victim, "it was let in beside what is kept for the other"
            elif (
                not little
                or victim.lost(now) <= state.policy.max_lost_part * (now - victim.placed_at) * victim.shape.rate
            ):
                yield victim, why


def _under(cycle: Cycle, excess: Excess, left: dict[str, Running]) -> list[Running]:
    """Returns one that holds something of what a quota lacks, of which least is lost."""
    holders = [
        victim
        for victim in left.values()
        if any(quota.id == excess.quota for quota in cycle.state.tree.path(victim.project))
        and cycle.state.holding(victim).get(excess.resource)
    ]
    return [min(holders, key=lambda victim: (victim.lost(cycle.now), victim.id))] if holders else []


def _cheapest(cycle: Cycle, shape: Shape, left: dict[str, Running]) -> list[Running]:
    """Returns who makes way for the first task that does not fit, all on one node, so that least is lost; or none."""
    rooms = cycle.state.rooms
    on_node: dict[str, list[Running]] = {}
    for victim in left.values():
        for name in {one.node for one in victim.seats}:
            on_node.setdefault(name, []).append(victim)
    with rooms.trial():
        seats = seated(rooms, shape, shape.gpu_kind)
        need = next(shape.tasks[rank] for rank in largest_first(shape) if rank not in seats)
        best: tuple[tuple[int, int, str], list[Running]] | None = None
        for name, victims in on_node.items():
            if (room := rooms.by_name.get(name)) is None:
                continue
            ordered = sorted(victims, key=lambda victim: (victim.lost(cycle.now), -victim.placed_at, victim.id))
            some = _enough(rooms, room, need, shape.gpu_kind, ordered)
            if some is not None:
                cost = sum(victim.lost(cycle.now) for victim in some), len(some), name
                if best is None or cost < best[0]:
                    best = cost, some
    return best[1] if best is not None else []


def _enough(
    rooms: Rooms, room: Room, need: Resources, kind: str | None, victims: list[Running]
) -> list[Running] | None:
    """Returns the first of these that have to leave a node for a task to fit, without those that need not."""
    taken: list[Running] = []
    with rooms.trial():
        for victim in victims:
            if room.fits(need, kind):
                break
            taken.append(victim)
            _leave(rooms, room.name, victim)
        if not room.fits(need, kind):
            return None
        for victim in taken[:-1]:
            _leave(rooms, room.name, victim, back=True)
            if room.fits(need, kind):
                taken.remove(victim)
            else:
                _leave(rooms, room.name, victim)
    return taken


def _leave(rooms: Rooms, node: str, victim: Running, *, back: bool = False) -> None:
    for need, where in zip(victim.shape.tasks, victim.seats, strict=True):
        if where.node == node:
            (rooms.take if back else rooms.give)(node, need, where.devices)
