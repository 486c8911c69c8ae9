"""What is kept for a job that waits: on which nodes, since when, and whether others may use it meanwhile.

Others may if they end before the job could start, as far as that is known; and if they lose nothing by making way, as long as
something else that the job waits for has not ended. So it starts at the latest when that has, and those have run for long
enough to be asked; and what is guaranteed is lent to nobody whom the job would have to wait for.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import chain

from danlu.domain.resources import Resources
from danlu.scheduler.model import Shape, Waiting
from danlu.scheduler.rooms import Free
from danlu.scheduler.state import Kept, State

Seats = tuple[tuple[str, Resources, str | None], ...]


def keep(state: State, job: Waiting, shape: Shape, now: int, leaving: Collection[str] = ()) -> bool:
    """Keeps what a job waits for, on the nodes that were chosen when it first had to wait, unless one is gone.

    ``leaving``: the attempts that make way for it; when they have ended it starts. Returns whether there is anything to keep.
    """
    kept = state.kept.get(job.id)
    if kept is None or not _can_hold(state, kept):
        seats = _nearest(state, shape, {one.node for attempt in leaving for one in state.running[attempt].seats})
        if seats is None:
            return False
        kept = state.kept[job.id] = Kept(seats, now)
    asks = shape.asks
    lent = state.tree.entitled(job.project, asks) is None and _lacks_more(state, kept, leaving)
    for node, need, kind in kept.seats:
        state.rooms.by_name[node].keep(need, kind, _free_by(state, node, need, kind, now), lent=lent)
    return True


def _can_hold(state: State, kept: Kept) -> bool:
    """Says whether the nodes that were chosen are still there, and as large as they have to be."""
    empty = {node: Free.of_all(state.rooms.capacities[node]) for node, _, _ in kept.seats}
    return all(empty[node].take(need, kind) for node, need, kind in kept.seats)


def _nearest(state: State, shape: Shape, first: Collection[str]) -> Seats | None:
    """Returns where a gang could be soonest: on these nodes, else on those that have most of it free; None: nowhere."""
    planned: dict[str, Resources] = {}
    seats = []
    for task in shape.tasks:
        found = _nearest_for(state, shape, task, planned, first)
        if found is None:
            return None
        planned[found[0]] = planned.get(found[0], Resources()) + task
        seats.append(found)
    return tuple(seats)


def _nearest_for(
    state: State, shape: Shape, task: Resources, planned: dict[str, Resources], first: Collection[str]
) -> tuple[str, Resources, str | None] | None:
    preferred = (state.rooms.by_name[name] for name in sorted(first) if name in state.rooms.by_name)
    for room in chain(preferred, state.rooms.of_most()):
        capacity = state.rooms.capacities[room.name]
        total = planned.get(room.name, Resources()) + task
        if total.cpu_milli > capacity.cpu_milli or total.memory_bytes > capacity.memory_bytes:
            continue
        if not task.gpus:
            return room.name, task, None
        kinds = {gpu.kind for gpu in capacity.gpus if shape.gpu_kind in (None, gpu.kind)}
        for kind in sorted(kinds, key=lambda one: (-len(room.gpus.get(one, ())), one)):
            if total.gpus <= sum(gpu.kind == kind for gpu in capacity.gpus):
                return room.name, task, kind
    return None


def _lacks_more(state: State, kept: Kept, leaving: Collection[str]) -> bool:
    """Says whether a job waits for something else than what is free, leaves, or was let in beside what is kept for it."""
    needs: dict[tuple[str, str | None], Resources] = {}
    for node, need, kind in kept.seats:
        needs[node, kind] = needs.get((node, kind), Resources()) + need
    for (node, kind), need in needs.items():
        free = Free.of(state.rooms.by_name[node])
        for attempt_id in state.on_node[node]:
            attempt = state.running[attempt_id]
            if attempt_id in leaving or (attempt.keeps and attempt.placed_at >= kept.since):
                free.add(state.held[attempt_id][node])
        if not free.fits(need, kind):
            return True
    return False


def _free_by(state: State, node: str, need: Resources, kind: str | None, now: int) -> int | None:
    """Returns when so much is free on a node at the latest, if all that has to end before has said until when it runs."""
    free = Free.of(state.rooms.by_name[node])
    if free.fits(need, kind):
        return now
    running = (state.running[attempt_id] for attempt_id in state.on_node[node])
    for ends_by, attempt_id in sorted((one.ends_by, one.id) for one in running if one.ends_by is not None):
        free.add(state.held[attempt_id][node])
        if free.fits(need, kind):
            return ends_by
    return None
