"""Where a job stands among those that wait, what it is short of, what would start instead: for who asks, when he asks.

All of it is found by the scheduler's own steps, on a state of the caller's: it is changed on the way, as a decision does.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from danlu.domain.jobs import Reason
from danlu.domain.quotas import UNLIMITED, ordered
from danlu.domain.resources import Resources
from danlu.domain.waits import Precedence, QuotaLine, Room
from danlu.scheduler import words
from danlu.scheduler.cycle import Cycle, Scheduler, Turn
from danlu.scheduler.model import Shape
from danlu.scheduler.rooms import seat
from danlu.scheduler.state import Group

TURNS = (
    Precedence.GUARANTEE, Precedence.PROMISED, Precedence.PRIORITY, Precedence.PROJECT_HAD_LESS, Precedence.HAD_LESS,
    Precedence.PROJECT_HOLDS_LESS, Precedence.ASKED_BEFORE, Precedence.ASKED_BEFORE,
)  # fmt: skip
"""What each part of a ``Turn`` is about."""
MAX_GROWN = 20
"""At so many times it is tried whether somebody is asked by then; where more attempts have begun lately, at some of them."""


class Before(NamedTuple):
    """A job that is served before another one, and by what."""

    job_id: str
    why: Precedence


class Standing(NamedTuple):
    """Who is served before a job, the first one first, if there is room for all; and how many wait in all."""

    ahead: tuple[Before, ...]
    total: int


@dataclass(slots=True)
class _Line(Cycle):
    """A decision in which each job gets what it asks for, up to the one that is asked about."""

    job_id: str = ""
    ahead: list[Before] = field(default_factory=list)
    _reached: bool = False

    def _serve(self, group: Group) -> None:
        if self._reached:
            return
        _, job_id = group.jobs[self._at.get(group, 0)]
        if job_id == self.job_id:
            self._reached = True
            return
        job = self.state.waiting[job_id]
        asks = job.shapes[0].asks
        if not self._array_full(job) and self.state.tree.exceeded(job.project, asks) is None:
            self.ahead.append(
                Before(job_id, _first_difference(self._turn(group, self._at.get(group, 0)), self._mine()))
            )
            self._count_in(job, asks)
        self._next(group)

    def _mine(self) -> Turn:
        job = self.state.waiting[self.job_id]
        group = self.state.groups[self.state._key(job)]
        return self._turn(group, bisect_left(group.jobs, (job.queued_at, job.id)))


def _first_difference(theirs: Turn, mine: Turn) -> Precedence:
    return next((why for why, a, b in zip(TURNS, theirs, mine, strict=True) if a != b), Precedence.ASKED_BEFORE)


def standing(scheduler: Scheduler, job_id: str, now: int) -> Standing | None:
    """Returns where a job stands; None: it is not among those that could start if there were room.

    Jobs that a limit of their own keeps from starting, of a quota or of an array, are before nobody.
    """
    if job_id not in scheduler.waiting:
        return None
    kept = dict(scheduler.kept)
    line = _Line(scheduler, now, job_id=job_id)
    line.plan()
    scheduler.kept.update(kept)  # it kept nothing for anybody, and so forgot it
    return Standing(tuple(line.ahead), len(scheduler.waiting))


class Now(NamedTuple):
    """What a decision says of one job: it starts, or why it waits."""

    starts: bool
    reason: Reason | None
    message: str


def decided(scheduler: Scheduler, job_id: str, now: int) -> Now:
    """Decides, and returns what that says of a job. What is kept for whom is in the scheduler's state afterwards."""
    plan = scheduler.decide(now)
    shape = scheduler.waiting[job_id].shapes[-1]
    if any(one.job_id == job_id for one in plan.placements):
        return Now(True, None, f"asks {words.asks_all(shape)}; that is free now: it starts")
    reason, message = plan.waits.get(job_id, (None, words.short(shape, scheduler.rooms)))
    return Now(False, reason, message)


def quota_lines(scheduler: Scheduler, job_id: str) -> tuple[QuotaLine, ...]:
    """Returns what the quotas on a job's path say of what it asks for, its project's first."""
    job = scheduler.waiting[job_id]
    shape = job.shapes[-1]
    asks = dict(shape.asks)
    if asks.get("gpu") and shape.gpu_kind is None:  # whichever kind it gets counts
        asks |= {f"gpu/{kind}": asks["gpu"] for kind in scheduler.rooms.kind_names()}
    return tuple(
        QuotaLine(
            quota=quota.id, resource=name, asks=asks[name], used=scheduler.tree.used.get(quota.id, {}).get(name, 0),
            limit=None if quota.limit.get(name, UNLIMITED) == UNLIMITED else quota.limit[name],
            guarantee=quota.guarantee.get(name),
        )
        for quota in scheduler.tree.path(job.project)
        for name in ordered(asks)
        if quota.limit.get(name, UNLIMITED) != UNLIMITED or name in quota.guarantee
    )  # fmt: skip


def room(scheduler: Scheduler, job_id: str, ahead: Collection[str]) -> tuple[Room, ...]:
    """Returns what is free of what a job asks for; ``decided`` has said before what is kept for those ahead."""
    rooms, shape = scheduler.rooms, scheduler.waiting[job_id].shapes[-1]
    total = sum(shape.tasks, start=Resources())
    kept: dict[tuple[str, str], int] = {}
    for one in ahead:
        for node, need, kind in scheduler.kept[one].seats if one in scheduler.kept else ():
            for name, amount in _amounts(need, kind).items():
                kept[node, name] = kept.get((node, name), 0) + amount
    found = []
    kinds = rooms.kind_names() if shape.gpu_kind is None else [shape.gpu_kind]
    for name in [*(f"gpu/{kind}" for kind in kinds if total.gpus), "cpu", *["memory"] * bool(total.memory_bytes)]:
        free, all_ = {}, 0
        for node, capacity in rooms.capacities.items():
            here = rooms.by_name[node]
            if name == "cpu":
                free[node], more = max(0, here.cpu_milli), capacity.cpu_milli
            elif name == "memory":
                free[node], more = max(0, here.memory_bytes), capacity.memory_bytes
            else:
                kind = name.removeprefix("gpu/")
                free[node], more = len(here.gpus.get(kind, ())), sum(gpu.kind == kind for gpu in capacity.gpus)
            all_ += more
        found.append(
            Room(
                resource=name, total=all_, free=sum(free.values()), most=max(free.values(), default=0),
                kept=sum(min(amount, kept.get((node, name), 0)) for node, amount in free.items()),
            )
        )  # fmt: skip
    return tuple(found)


def _amounts(need: Resources, kind: str | None) -> dict[str, int]:
    found = {"cpu": need.cpu_milli, "memory": need.memory_bytes}
    return found if kind is None else {**found, f"gpu/{kind}": need.gpus}


class Asked(NamedTuple):
    """When others are asked to make way for a job (ns UTC), and whose attempts: ids of jobs."""

    at: int
    job_ids: tuple[str, ...]


def asked_later(scheduler: Scheduler, job_id: str, now: int) -> Asked | None:
    """Returns when others will have run for long enough to be asked to make way for a job, if nothing else happens.

    None: that is not what it waits for. The scheduler's time has gone on afterwards: to be asked last of all.
    """
    policy = scheduler.policy
    grown = sorted({one.placed_at + policy.min_runtime for one in scheduler.running.values()})
    grown = grown[bisect_right(grown, now) :]
    if not policy.preempts or not grown:
        return None
    scheduler.policy = replace(policy, min_runtime=0)
    would = _asked_for(scheduler, job_id, now)
    scheduler.policy = policy
    if not would:
        return None
    every = -(-len(grown) // MAX_GROWN)
    for at in [*grown[every - 1 : -1 : every], grown[-1]]:
        if asked := _asked_for(scheduler, job_id, at):
            return Asked(at, asked)
    return None


def _asked_for(scheduler: Scheduler, job_id: str, now: int) -> tuple[str, ...]:
    asked = [one.attempt_id for one in scheduler.decide(now).preemptions if one.for_job == job_id]
    return tuple(scheduler.running[one].job_id for one in asked)


def would_start(scheduler: Scheduler, job_id: str, shape: Shape, now: int) -> bool:
    """Says whether a job would start now that asks for this instead: a new one, behind all that wait, the old one gone."""
    old = scheduler.waiting[job_id]
    if scheduler.tree.exceeded(old.project, shape.asks) is not None:
        return False
    with scheduler.rooms.trial():
        if seat(scheduler.rooms, shape) is None:
            return False
    new = replace(
        old, id=f"{old.id}-new", queued_at=now, shapes=(shape,), attained=0, array=None, parallel=0
    )  # fmt: skip
    scheduler.gone(old.id)
    scheduler.queued(new)
    try:
        return any(one.job_id == new.id for one in scheduler.decide(now).placements)
    finally:
        scheduler.gone(new.id)
        scheduler.queued(old)
