"""Who makes way for a job that does not fit: of those that may be asked, those of which least is lost.

Asked may be, if it began longer ago than the least run time, an attempt

- that holds what was lent to its project, by a job that asks for no more than its own guarantee;
- of less priority;
- that stands a whole step behind: its job, or its project, had more. But only if little would be lost of it;
- that was let in beside what is kept for the job, and loses nothing.

What another project is guaranteed is never taken from it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from danlu.domain.quotas import Quota
from danlu.domain.resources import Resources
from danlu.scheduler.model import Running, Shape, Waiting
from danlu.scheduler.quota import Excess
from danlu.scheduler.rooms import Borrowing, Free, Rooms, largest_first, seat, seated

if TYPE_CHECKING:
    from danlu.scheduler.cycle import Cycle
    from danlu.scheduler.state import Kept


class Candidate(NamedTuple):
    """Who may be asked: what is lost of it, its id, why; and whether what it holds is taken back for a guarantee."""

    lost: int
    id: str
    why: str
    reclaimed: bool

    def may_leave(self, cycle: Cycle, job: Waiting, asks: dict[str, int], victim: Running) -> bool:
        """Says whether its project can spare it still.

        What is lent is taken back as long as more is held than is guaranteed, if need be all of one job; for no lesser reason
        does a project come to have less than its guarantee: it would take it back at once.
        """
        leaving = None if self.reclaimed else cycle.state.holding(victim)
        return cycle.state.staying.lent(victim.project, asks, beside=job.project, leaving=leaving)


GUARANTEED = "what it holds is guaranteed to others, and was lent to it"
HAD_MORE = "its job, or its project, had more than the other's"
LET_IN = "it was let in beside what is kept for the other"
LOOKED_AT = 24
LOOKED_AT_PER_GPU = 4


class Choice(NamedTuple):
    """Who makes way, each with why, and where the job's tasks go then: node, need, kind."""

    victims: tuple[tuple[Running, str], ...]
    seats: tuple[tuple[str, Resources, str | None], ...]


def choose(cycle: Cycle, job: Waiting, shape: Shape, borrowing: Borrowing) -> Choice | None:
    """Returns who makes way so that a job fits in its least shape; None: those who could are not enough.

    Looked at are those of which least is lost, at first so many as should do; all where a guarantee is at stake.
    """
    asks = cycle.state.asks(shape)
    right = cycle.state.tree.entitled(job.project, asks)
    candidates = _candidates(cycle, job, asks, right)
    some = [*islice(candidates, LOOKED_AT + LOOKED_AT_PER_GPU * sum(task.gpus for task in shape.tasks))]
    if not some:
        return None
    cycle.searched()
    found = _chosen(cycle, job, shape, some, borrowing)
    if found is None and right is not None and (rest := [*candidates]):
        return _chosen(cycle, job, shape, [*some, *rest], borrowing)
    return found


def _chosen(
    cycle: Cycle, job: Waiting, shape: Shape, candidates: list[Candidate], borrowing: Borrowing
) -> Choice | None:
    rooms, tree, state = cycle.state.rooms, cycle.state.tree, cycle.state
    asks = state.asks(shape)
    left = {one.id: state.running[one.id] for one in candidates}
    by_id, chosen = {one.id: one for one in candidates}, list[Running]()
    seats = None
    with rooms.trial():
        for attempt_id in sorted(cycle.yielding.union(*state.yielding.values())):  # for others, for whom it is kept
            _leave(rooms, state.running[attempt_id])
        while left:
            excess = tree.exceeded(job.project, asks)
            more = _under(cycle, excess, left) if excess is not None else _cheapest(cycle, shape, left, borrowing)
            if not more:
                break
            for victim in more:
                left.pop(victim.id)
                if not by_id[victim.id].may_leave(cycle, job, asks, victim):
                    continue  # with those that were chosen before, its project would have less than its guarantee
                chosen.append(victim)
                tree.add(victim.project, state.holding(victim), -1)
                state.staying.add(victim.project, state.holding(victim), -1)
                _leave(rooms, victim)
            if tree.exceeded(job.project, asks) is None and (seats := seat(rooms, shape, borrowing)) is not None:
                break
        for victim in chosen:
            tree.add(victim.project, state.holding(victim))
            state.staying.add(victim.project, state.holding(victim))
    if seats is None or not chosen:
        return None
    kinds = [rooms.kinds[one.node].get(one.devices[0]) if one.devices else None for one in seats]
    return Choice(
        tuple((victim, by_id[victim.id].why) for victim in chosen),
        tuple((one.node, need, kind) for one, need, kind in zip(seats, shape.tasks, kinds, strict=True)),
    )


def _leave(rooms: Rooms, attempt: Running) -> None:
    for need, where in zip(attempt.shape.tasks, attempt.seats, strict=True):
        rooms.give(where.node, need, where.devices)


def _candidates(cycle: Cycle, job: Waiting, asks: dict[str, int], right: Quota | None) -> Iterator[Candidate]:
    """Yields who may be asked, that first of which least is lost."""
    state = cycle.state
    mine = cycle.rank(job.project, job.priority, state.policy.level(job.attained))
    kept = state.kept.get(job.id)
    parts: list[Iterator[Candidate]] = []
    for theirs, bucket in cycle.ranked(None if right is not None else mine):
        if not state.staying.lent(bucket.project, asks, beside=job.project):
            continue
        if right is not None and right not in state.tree.path(bucket.project):
            parts.append(_told(cycle.losers(bucket, little=False), GUARANTEED, reclaimed=True))
        elif bucket.priority < job.priority:
            why = f"its priority is {bucket.priority}, that of the other {job.priority}"
            parts.append(_told(cycle.losers(bucket, little=False), why))
        elif theirs > mine:
            parts.append(_told(cycle.losers(bucket, little=True), HAD_MORE))
    if kept is not None:
        parts.append(_told(_let_in(cycle, job, kept, mine), LET_IN))
    seen = set()
    for one in heapq.merge(*parts):
        if one.id not in seen and one.id not in cycle.yielding:
            seen.add(one.id)
            yield one


def _told(losers: Iterable[tuple[int, str]], why: str, *, reclaimed: bool = False) -> Iterator[Candidate]:
    return (Candidate(lost, attempt_id, why, reclaimed) for lost, attempt_id in losers)


def _let_in(cycle: Cycle, job: Waiting, kept: Kept, mine: tuple[int, int, int]) -> list[tuple[int, str]]:
    """Returns those that were let in beside what is kept for a job, after whom they stand, and lose nothing by leaving."""
    found = []
    for attempt_id in {one for node, _, _ in kept.seats for one in cycle.state.on_node[node]}:
        victim = cycle.state.running[attempt_id]
        level = cycle.state.policy.level(victim.service(cycle.now))
        theirs = cycle.rank(victim.project, victim.priority, level)
        after = (theirs, victim.queued_at, victim.job_id) > (mine, job.queued_at, job.id)
        if after and victim.keeps and victim.placed_at >= kept.since and cycle.may_leave(victim):
            found.append((0, attempt_id))
    return sorted(found)


def _under(cycle: Cycle, excess: Excess, left: dict[str, Running]) -> list[Running]:
    """Returns one that holds something of what a quota lacks, of which least is lost."""
    holders = [
        victim
        for victim in left.values()
        if any(quota.id == excess.quota for quota in cycle.state.tree.path(victim.project))
        and cycle.state.holding(victim).get(excess.resource)
    ]
    return [min(holders, key=lambda victim: (victim.lost(cycle.now), victim.id))] if holders else []


def _cheapest(cycle: Cycle, shape: Shape, left: dict[str, Running], borrowing: Borrowing) -> list[Running]:
    """Returns who makes way for the first task that does not fit, all on one node, so that least is lost; or none."""
    rooms = cycle.state.rooms
    on_node: dict[str, list[Running]] = {}
    for victim in left.values():
        for name in {one.node for one in victim.seats}:
            on_node.setdefault(name, []).append(victim)
    with rooms.trial():
        seats = seated(rooms, shape, shape.gpu_kind, borrowing)
        need = next((shape.tasks[rank] for rank in largest_first(shape) if rank not in seats), shape.tasks[0])
        best: tuple[tuple[int, int, str], list[Running]] | None = None
        for name, victims in on_node.items():
            if (room := rooms.by_name.get(name)) is None:
                continue
            ordered = sorted(victims, key=lambda victim: (victim.lost(cycle.now), -victim.placed_at, victim.id))
            some = _enough(rooms, room.name, need, shape.gpu_kind, ordered, Free.of(room, kept=not borrowing.of(room)))
            if some is not None:
                cost = sum(victim.lost(cycle.now) for victim in some), len(some), name
                if best is None or cost < best[0]:
                    best = cost, some
    return best[1] if best is not None else []


def _enough(
    rooms: Rooms, node: str, need: Resources, kind: str | None, victims: list[Running], free: Free
) -> list[Running] | None:
    """Returns the first of these that have to leave a node for a task to fit, without those that need not."""
    taken: list[Running] = []
    for victim in victims:
        if free.fits(need, kind):
            break
        taken.append(victim)
        free.add(rooms, node, victim, 1)
    if not free.fits(need, kind):
        return None
    for victim in taken[:-1]:
        free.add(rooms, node, victim, -1)
        if free.fits(need, kind):
            taken.remove(victim)
        else:
            free.add(rooms, node, victim, 1)
    return taken
