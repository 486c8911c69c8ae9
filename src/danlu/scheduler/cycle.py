"""One decision of who runs where: a state in, a plan out. No clock, no database, no randomness.

1. Order: who asks for no more than his guarantee, then who was promised a place, then priority, then projects by their share
   of late (in coarse steps), jobs by what they have had (in coarse steps), who waits longest. Equal jobs are decided once.
2. Quota: what would break a limit waits, whatever is free.
3. Place: a job's tasks as one gang, all or none; with a range, as much of it as fits.
4. Make way: for a job that does not fit and stands before what runs, that is asked to make way of which least is lost.
5. Keep: what a job that does not fit is waiting for is kept for it. Others use it meanwhile only if they end before, or if
   they lose nothing by making way. So smaller jobs never delay the first one, and none starves.
6. Say why: one reason code for each job that waits, told when it changes.
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from operator import itemgetter

from danlu.domain.jobs import Reason
from danlu.scheduler import ports, words
from danlu.scheduler.keeping import keep
from danlu.scheduler.model import Placement, Plan, Preemption, Running, Shape, Waiting
from danlu.scheduler.preempting import Choice, choose
from danlu.scheduler.quota import Excess, amounts
from danlu.scheduler.rooms import EVERYTHING, GIVES_WAY, NEVER, Borrowing, seat
from danlu.scheduler.state import Bucket, Group, GroupKey, Kept, State

Rank = tuple[int, int, int]
"""Who stands before whom, in steps: -priority, step of the project's share, level."""
Turn = tuple[bool, bool, int, int, int, float, int, str]
"""Not within a guarantee, not promised, a rank, the part of the cluster that its project holds, since when, its id."""


class Scheduler(State):
    """Who runs where: what changes is told to it, call by call; it decides when it is asked."""

    def decide(self, now: int) -> Plan:
        """Returns who starts now, who makes way for whom, and why the others wait: what has changed of that.

        What it says takes effect when it is told so: ``gone`` and ``holds`` of what was started, ``freed`` of what has ended.
        """
        return Cycle(self, now).plan()


@dataclass(slots=True)
class Cycle:
    """What is tried while one decision is made."""

    state: State
    now: int
    placements: list[Placement] = field(default_factory=list)
    preemptions: list[Preemption] = field(default_factory=list)
    waits: dict[str, tuple[Reason, str]] = field(default_factory=dict)
    yielding: set[str] = field(default_factory=set)
    _line: list[tuple[Turn, Group]] = field(default_factory=list)
    _served: int = 0
    """so many of the line are settled, or stand further back again"""
    _at: dict[Group, int] = field(default_factory=dict)
    _refused: set[tuple[Shape, Borrowing]] = field(default_factory=set)
    _counted: list[tuple[str, Mapping[str, int]]] = field(default_factory=list)
    _arrays: dict[str, int] = field(default_factory=dict)
    _steps: dict[str, int] = field(default_factory=dict)
    _settled: set[str] = field(default_factory=set)
    _held: dict[str, float] = field(default_factory=dict)
    _ranked: list[tuple[Rank, Bucket]] | None = None
    _nobody_behind: Rank | None = None
    _losers: dict[tuple[Bucket, bool, bool], list[tuple[int, str]]] = field(default_factory=dict)
    _merged: dict[tuple[bool, tuple[tuple[Bucket, bool], ...]], list[tuple[int, str]]] = field(default_factory=dict)
    _done: set[Group] = field(default_factory=set)
    _texts: dict[Shape, str] = field(default_factory=dict)
    _kept: set[str] = field(default_factory=set)
    _searches: int = 0
    _asked: bool = False
    _ports: int = 0

    def plan(self) -> Plan:
        """Decides."""
        state = self.state
        again_at = state.step_back(self.now)
        for room in state.rooms.by_name.values():
            if room.kept_cpu_milli or room.kept_memory_bytes or room.kept_gpus:
                room.keep_nothing()
        self._ports = ports.COUNT - state.ports
        self._weigh()
        try:
            with state.rooms.trial():
                self._line = sorted(
                    ((self._turn(group, 0), group) for group in state.groups.values()), key=itemgetter(0)
                )
                for group in self._turns():
                    self._serve(group)
        finally:
            self._uncount()
        grown_at = state.grown_at(self.now) if self._asked else None
        again_at = min((at for at in (again_at, grown_at) if at is not None), default=None)
        return Plan(tuple(self.placements), tuple(self.preemptions), self.waits, again_at if state.waiting else None)

    def _uncount(self) -> None:
        """Takes back what was counted for this decision: only what comes of it counts, when it has."""
        state = self.state
        for project, asks in self._counted:
            state.tree.add(project, asks, -1)
            state.staying.add(project, asks, -1)
            state.shares.add(project, asks, self.now, -1)
        for attempt_id in self.yielding:
            state.staying.add(state.running[attempt_id].project, state.holding(state.running[attempt_id]))
        for job_id in state.kept.keys() - self._kept:
            del state.kept[job_id]

    # order

    def _weigh(self) -> None:
        """Finds each project's step: 0 up to its part of the cluster among those that are there, 1 up to twice as much ..."""
        state = self.state
        projects = sorted(
            {key.project for key in state.groups} | {bucket.project for bucket, all_ in state.buckets.items() if all_}
        )
        self._steps = {project: self.step(project, len(projects)) for project in projects}

    def step(self, project: str, count: int) -> int:
        """Returns in which step of its share a project is, of so many projects."""
        part = self.state.shares.lately(project, self.now) * count
        return 0 if part <= 1 else math.ceil(math.log2(part))

    def rank(self, project: str, priority: int, level: int) -> Rank:
        """Returns where a job of this project with this priority stands, that has had so much."""
        return -priority, self._steps.get(project, 0), level

    def _turn(self, group: Group, at: int) -> Turn:
        key = group.key
        tree = self.state.tree
        entitled = bool(tree.quotas) and tree.entitled(key.project, key.shapes[-1].asks) is not None
        held = self._held.get(key.project)
        if held is None:
            held = self._held[key.project] = self.state.shares.held(key.project)
        rank = self.rank(key.project, key.priority, key.level)
        return not entitled, not key.promised, *rank, held, *group.jobs[at]

    def turns(self) -> list[Turn]:
        """Returns the turn of each job that waits, in no order."""
        self._weigh()
        return [self._turn(group, at) for group in self.state.groups.values() for at in range(len(group.jobs))]

    def _turns(self) -> Iterator[Group]:
        """Yields groups whose next job is to be served, in order; what was placed meanwhile puts its project back."""
        while self._served < len(self._line):
            turn, group = self._line[self._served]
            self._served += 1
            if group in self._done:
                continue
            fresh = self._turn(group, self._at.get(group, 0))
            if fresh > turn:
                self._stand(fresh, group)
                continue
            yield group

    def _stand(self, turn: Turn, group: Group) -> None:
        insort(self._line, (turn, group), lo=self._served, key=itemgetter(0))

    def _pass_over(self, served: GroupKey, full: tuple[Reason, Callable[[], str]]) -> None:
        """Settles, before their turn, all groups that ask for what there is no room for, if none is made or kept any more."""
        policy, state = self.state.policy, self.state
        if len(self._kept) < policy.kept_for or state.tree.quotas:
            return
        searched = self._searches >= policy.preempts_for or not policy.preempts
        for key, group in state.of_shapes[served.shapes].items():
            if key.array is not None or key.promised or group in self._at or key.borrows != served.borrows:
                continue
            if searched or not self.anybody_behind(self.rank(key.project, key.priority, key.level)):
                self._done.add(group)
                if group.told is not full[0] or group.untold or group.apart:
                    self._refuse(group, *full)

    def _next(self, group: Group) -> None:
        """The group's first job is settled: another one follows."""
        at = self._at.get(group, 0)
        self._settled.add(group.jobs[at][1])
        at = self._at[group] = at + 1
        if at < len(group.jobs):
            self._stand(self._turn(group, at), group)

    # one job

    def _serve(self, group: Group) -> None:
        job = self.state.waiting[group.jobs[self._at.get(group, 0)][1]]
        if self._array_full(job):
            hold = "one job of its array holds" if job.parallel == 1 else f"{job.parallel} jobs of its array hold"
            words_ = f"{hold} something, and no more may at once"
            self._refuse(group, Reason.WAITING_FOR_ARRAY, lambda: words_)
            return
        excess: Excess | None = None
        modest = self._modest(group)
        for shape in job.shapes:
            if modest and shape is not job.shapes[-1] and self.state.tree.entitled(job.project, shape.asks) is None:
                continue
            excess = self._excess(job, shape)
            if excess is None and self._place(group.key, job, shape):
                self._next(group)
                return
        never = self.state.never(job.shapes[-1])
        hopeless = never is not None or (excess is not None and excess.asks > excess.limit)
        if not hopeless and self._makes_room(group, job):
            self._next(group)
            return
        if excess is not None:
            alone = excess.asks > excess.limit
            reason = Reason.EXCEEDS_MAX_QUOTA if alone else Reason.WAITING_FOR_QUOTA
            self._refuse(group, reason, partial(words.over_quota, excess))
            return
        if never is not None:
            self._refuse(group, Reason.NO_MATCHING_FLAVOR, lambda: never)
            return
        shape = next(self._kinds(job, job.shapes[-1]), job.shapes[-1])
        self._keep(job, shape)
        if shape.ports > self._ports:
            self._refuse(group, Reason.WAITING_FOR_RESOURCES, partial(words.short_of_ports, shape, self._ports))
            self._ports = 0  # they are kept for it
            return
        # only of those for whom room is kept: of the others it would change with all that comes and goes before them
        if job.id in self._kept and words.scattered(shape, self.state.rooms):
            self._tell(group, job, Reason.TOPOLOGY_PLACEMENT_FAILED, partial(self._text, shape))
            self._next(group)
            return
        full = Reason.WAITING_FOR_RESOURCES, partial(self._text, shape)
        self._refuse(group, *full)
        self._pass_over(group.key, full)

    def _place(self, key: GroupKey, job: Waiting, shape: Shape) -> bool:
        if shape.ports > self._ports:
            return False
        borrowing = self._borrowing(key)
        for wanted in self._kinds(job, shape):
            if (wanted, borrowing) in self._refused:
                continue
            seats = seat(self.state.rooms, wanted, borrowing)
            if seats is None:
                self._refused.add((wanted, borrowing))
                continue
            self.placements.append(Placement(job.id, seats, shape))
            self._ports -= shape.ports
            asks = amounts(shape, self.state.rooms.kinds_of((one.node, one.devices) for one in seats))
            self._count_in(job, asks)
            return True
        return False

    def _modest(self, group: Group) -> bool:
        """Whether a job with a range takes no more than is guaranteed: others wait who take no more either."""
        key = group.key
        if len(key.shapes) == 1 or self.state.tree.entitled(key.project, key.shapes[-1].asks) is None:
            return False
        behind = islice(self._line, self._served, None)
        return any(not turn[0] and other.key.project != key.project for turn, other in behind)

    def _excess(self, job: Waiting, shape: Shape) -> Excess | None:
        """Returns the limit that a job would break; where it asks for no kind of GPU, with whatever kind it gets."""
        excess = self.state.tree.exceeded(job.project, shape.asks)
        if excess is not None or not self.state.tree.quotas or any(True for _ in self._kinds(job, shape)):
            return excess
        kinds = [f"gpu/{kind}" for kind in self.state.rooms.kind_names()]
        broken = (self.state.tree.exceeded(job.project, {kind: shape.asks["gpu"]}) for kind in kinds)
        return next((one for one in broken if one is not None), None)

    def _kinds(self, job: Waiting, shape: Shape) -> Iterator[Shape]:
        """Yields the shape; where kinds are limited and none is asked for, with each kind that the quota has left."""
        gpus = sum(task.gpus for task in shape.tasks)
        if not gpus or shape.gpu_kind is not None or not self.state.tree.limits_kinds(job.project):
            yield shape
            return
        for kind in self.state.rooms.kind_names():
            if self.state.tree.exceeded(job.project, {f"gpu/{kind}": gpus}) is None:
                yield Shape(shape.tasks, kind, shape.ports)

    def _borrowing(self, key: GroupKey) -> Borrowing:
        if not self._kept:
            return EVERYTHING  # nothing is kept yet
        keeps, lasts_log2 = key.borrows
        if keeps and self.state.policy.preempts:
            return GIVES_WAY
        return NEVER if lasts_log2 is None else Borrowing(ends_by=self.now + (1 << lasts_log2))

    # making way, keeping

    def _makes_room(self, group: Group, job: Waiting) -> bool:
        """Says whether others make way for a job, or do so already; what they give back is kept for it, and counts as its."""
        state = self.state
        shape = next(self._kinds(job, job.shapes[-1]), None)
        if shape is None:  # no kind of GPU that its quota has left
            return False
        leaving = state.yielding.get(job.id)
        if not leaving:
            leaving = self._ask(group, job, shape)
        if not leaving:
            return False
        self._tell(group, job, Reason.WAITING_FOR_PREEMPTED_WORKLOADS, partial(self._making_way, job, len(leaving)))
        self._keep(job, shape, leaving)
        self._count_in(job, shape.asks)
        return True

    def _ask(self, group: Group, job: Waiting, shape: Shape) -> set[str]:
        """Asks others to make way for a job; returns who was asked."""
        state = self.state
        if not state.policy.preempts:
            return set()
        self._asked = True  # also where nobody could be: he could be when he has run for longer
        if self._searches >= state.policy.preempts_for:
            return set()
        borrowing = self._borrowing(group.key)
        choice: Choice | None = choose(self, job, shape, borrowing)
        if choice is None:
            if job.id not in state.kept and state.tree.entitled(job.project, shape.asks) is not None:
                # where it will take back what is guaranteed to it, nobody else is let in meanwhile
                later = choose(self, job, shape, borrowing, young=True)
                if later is not None:
                    state.kept[job.id] = Kept(later.seats, self.now)
            return set()
        for victim, why in choice.victims:
            self.yielding.add(victim.id)
            state.staying.add(victim.project, state.holding(victim), -1)
            self.preemptions.append(Preemption(victim.id, job.id, why, victim.lost(self.now), victim.lost_s(self.now)))
        state.kept[job.id] = Kept(choice.seats, self.now)
        return {victim.id for victim, _ in choice.victims}

    def searched(self) -> None:
        """One search for who could make way: there are only so many."""
        self._searches += 1

    def _array_full(self, job: Waiting) -> bool:
        """Says whether as many jobs of a job's array hold something as may at once."""
        if job.array is None:
            return False
        return self.state.arrays.get(job.array, 0) + self._arrays.get(job.array, 0) >= job.parallel > 0

    def _count_in(self, job: Waiting, asks: Mapping[str, int]) -> None:
        """Counts, for what else is decided now, what a job holds or is promised."""
        self.state.tree.add(job.project, asks)
        self.state.staying.add(job.project, asks)
        self.state.shares.add(job.project, asks, self.now)
        self._counted.append((job.project, asks))
        self._held.clear()
        if job.array is not None:
            self._arrays[job.array] = self._arrays.get(job.array, 0) + 1

    def may_leave(self, attempt: Running) -> bool:
        """Says whether an attempt may be asked to make way at all: not yet, and it has run for long enough."""
        enough = self.now - attempt.placed_at >= self.state.policy.min_runtime
        return enough and attempt.yields_to is None and attempt.id not in self.yielding

    def ranked(self, mine: Rank | None) -> list[tuple[Rank, Bucket]]:
        """Returns where attempts stand, each with its rank, in order; with ``mine`` those that stand behind that."""
        if self._ranked is None:
            there = [bucket for bucket, attempts in self.state.buckets.items() if attempts]
            self._ranked = sorted((self.rank(one.project, one.priority, one.level), one) for one in there)
        if mine is None:
            return self._ranked
        return self._ranked[bisect_right(self._ranked, mine, key=lambda one: one[0]) :]

    def anybody_behind(self, mine: Rank) -> bool:
        """Says whether anybody at all may be asked to make way for those that stand here, whatever they ask for.

        Who stands further back has no more behind him: where nobody was found, nobody is.
        """
        if self._nobody_behind is not None and mine >= self._nobody_behind:
            return False
        for theirs, bucket in self.ranked(mine):
            losers = self.losers(bucket, little=theirs[0] == mine[0])
            if any(attempt_id not in self.yielding for _, attempt_id in losers):
                return True
        self._nobody_behind = mine
        return False

    def losers(self, bucket: Bucket, *, little: bool, young: bool = False) -> list[tuple[int, str]]:
        """Returns who may be asked of those that stand here, that of which least is lost first: (what is lost, id).

        With ``little`` only those of which little is lost of what they did; with ``young`` also those that have just begun.
        """
        known = self._losers.get((bucket, little, young))
        if known is None:
            state, now, most = self.state, self.now, self.state.policy.max_lost_part
            before = now if young else now - state.policy.min_runtime
            known = self._losers[bucket, little, young] = []
            there = state.savers if little else state.buckets
            for attempt_id, (since, rate, loses, placed_at) in there[bucket].items() if bucket in there else ():
                if placed_at > before or attempt_id in self.yielding:
                    continue
                lost = (now - since) * loses if now > since else 0
                if not little or lost <= most * (now - placed_at) * rate:
                    known.append((lost, attempt_id))
            known.sort()
        return known

    def losers_of(self, asked: Sequence[tuple[Bucket, bool]], *, young: bool) -> list[tuple[int, str]]:
        """Returns ``losers`` of several (bucket, little), as one list in order."""
        key = young, tuple(asked)  # those of one rank ask the same
        if key not in self._merged:
            parts = (self.losers(bucket, little=little, young=young) for bucket, little in asked)
            self._merged[key] = sorted(chain.from_iterable(parts))
        return self._merged[key]

    def _keep(self, job: Waiting, shape: Shape, leaving: Collection[str] = ()) -> None:
        """Keeps what a job waits for: for the first of those that wait, and where others make way."""
        few = len(self._kept) < self.state.policy.kept_for
        if (few or leaving) and keep(self.state, job, shape, self.now, leaving):
            self._kept.add(job.id)

    # words

    def _text(self, shape: Shape) -> str:
        if shape not in self._texts:
            self._texts[shape] = words.short(shape, self.state.rooms)
        return self._texts[shape]

    def _making_way(self, job: Waiting, count: int) -> str:
        excess = self.state.tree.exceeded(job.project, job.shapes[-1].asks)
        lacks = words.short(job.shapes[-1], self.state.rooms) if excess is None else words.over_quota(excess)
        return f"{lacks}; {'one job that runs makes' if count == 1 else f'{count:,} jobs that run make'} way for it"

    def _refuse(self, group: Group, reason: Reason, why: Callable[[], str]) -> None:
        """Tells all jobs of a group that were not settled that they wait, if they were not told so before."""
        at = self._at.get(group, 0)
        if reason is not group.told:
            group.told, fresh = reason, [job_id for _, job_id in group.jobs[at:]]
        elif group.untold or group.apart:
            fresh = sorted({*group.untold, *group.apart} - self._settled)
        else:
            return
        if fresh:
            text = why()
            self.waits.update((job_id, (reason, text)) for job_id in fresh)
        for job_id in fresh:
            group.apart.pop(job_id, None)
        group.untold.clear()

    def _tell(self, group: Group, job: Waiting, reason: Reason, why: Callable[[], str]) -> None:
        """Tells one job that it waits for another reason than its group."""
        if group.apart.get(job.id) is not reason:
            self.waits[job.id] = (reason, why())
            group.apart[job.id] = reason
