"""Who makes way for a job that does not fit: of those that may be asked, those of which least is lost.

Asked may be, if it began longer ago than the least run time, an attempt

- that holds what was lent to its project, by a job that asks for no more than its own guarantee;
- of less priority;
- that stands a whole step behind: its job, or its project, had more. But only if little would be lost of it;
- that was let in beside what is kept for the job, and loses nothing.

What another project is guaranteed is never taken from it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from danlu.domain.quotas import Quota
from danlu.domain.resources import Resources
from danlu.scheduler.model import Running, Seat, Shape, Waiting
from danlu.scheduler.quota import Excess
from danlu.scheduler.rooms import Borrowing, Free, Rooms, largest_first, seat, seated

if TYPE_CHECKING:
    from danlu.scheduler.cycle import Cycle, Rank
    from danlu.scheduler.state import Bucket


class Candidate(NamedTuple):
    """Who may be asked: what is lost of it, who, why, and whether what it holds is taken back for a guarantee."""

    lost: int
    attempt: Running
    why: str
    reclaimed: bool


GUARANTEED = "what it holds is guaranteed to others, and was lent to it"
HAD_MORE = "its job, or its project, had more than the other's"
LET_IN = "it was let in beside what is kept for the other"
LOOKED_AT = 24
LOOKED_AT_PER_GPU = 4


class Choice(NamedTuple):
    """Who makes way, each with why, and where the job's tasks go then: node, need, kind."""

    victims: tuple[tuple[Running, str], ...]
    seats: tuple[tuple[str, Resources, str | None], ...]


def choose(cycle: Cycle, job: Waiting, shape: Shape, borrowing: Borrowing, *, young: bool = False) -> Choice | None:
    """Returns who makes way so that a job fits in its least shape; None: those who could are not enough.

    Looked at are those of which least is lost, at first so many as should do; all where a guarantee is at stake. With
    ``young`` also those that have not run for long enough to be asked.
    """
    asks = shape.asks
    right = cycle.state.tree.entitled(job.project, asks)
    if right is None and job.id not in cycle.state.kept and not cycle.anybody_behind(_rank(cycle, job)):
        return None
    candidates = _candidates(cycle, job, asks, right, young=young)
    some = [*islice(candidates, LOOKED_AT + LOOKED_AT_PER_GPU * sum(task.gpus for task in shape.tasks))]
    if not some:
        return None
    cycle.searched()
    found = Search(cycle, job, shape, asks, borrowing).among(some)
    if found is None and right is not None and (rest := [*candidates]):
        return Search(cycle, job, shape, asks, borrowing).among([*some, *rest])
    return found


@dataclass(slots=True)
class Search:
    """One search for who makes way for a job. What it tries is counted in the state, and no longer when it returns."""

    cycle: Cycle
    job: Waiting
    shape: Shape
    asks: Mapping[str, int]
    borrowing: Borrowing
    left: dict[str, Candidate] = field(default_factory=dict)
    """who was not chosen yet, by id: that of which least is lost first"""
    leaving: dict[str, list[dict[str, int]]] = field(default_factory=lambda: defaultdict(list))
    """what those hold that leave, by project; only where there are quotas"""

    def among(self, candidates: list[Candidate]) -> Choice | None:
        """Returns who of these makes way, so that least is lost."""
        state, rooms, chosen = self.cycle.state, self.cycle.state.rooms, list[Candidate]()
        candidates.sort(key=lambda one: (one.lost, -one.attempt.placed_at, one.attempt.id))
        self.left = {one.attempt.id: one for one in candidates}
        with rooms.trial():
            # what those hold that make way already is kept for whom they do
            for attempt_id in sorted(self.cycle.yielding.union(*state.yielding.values())):
                _leave(rooms, state.running[attempt_id])
            seats = self._seats()
            while seats is None and (more := self._next()):
                for one in more:
                    del self.left[one.attempt.id]
                    if self._spared(one):
                        chosen.append(one)
                        _leave(rooms, one.attempt)
                seats = self._seats()
            for one in chosen:
                self._count(one)
        if seats is None or not chosen:  # without anybody: what leaves for others is enough for this job too
            return None
        kinds = [rooms.kinds[one.node].get(one.devices[0]) if one.devices else None for one in seats]
        return Choice(
            tuple((one.attempt, one.why) for one in chosen),
            tuple((one.node, need, kind) for one, need, kind in zip(seats, self.shape.tasks, kinds, strict=True)),
        )

    def _seats(self) -> tuple[Seat, ...] | None:
        state = self.cycle.state
        if state.tree.exceeded(self.job.project, self.asks) is not None:
            return None
        return seat(state.rooms, self.shape, self.borrowing)

    def _spared(self, one: Candidate) -> bool:
        """Says whether a project can spare an attempt beside those that leave already; then it counts among them.

        What is lent is taken back as long as more is held than is guaranteed, if need be all of one job, the largest, which
        is taken as the last to leave; for no lesser reason does a project come to have less than its guarantee: it would take
        it back at once.
        """
        state, project = self.cycle.state, one.attempt.project
        if not state.tree.quotas:
            return True
        holding = state.holding(one.attempt)
        others = self.leaving[project]
        larger = {
            name: max([0, *(other.get(name, 0) - amount for other in others)]) for name, amount in holding.items()
        }
        tree, beside = state.staying, self.job.project
        if one.reclaimed:
            spared = tree.lent(project, self.asks, beside=beside, besides=larger)
        else:
            spared = tree.lent(project, self.asks, beside=beside, leaving=holding)
        if spared:
            self._count(one, -1)
        return spared

    def _count(self, one: Candidate, sign: int = 1) -> None:
        """Counts an attempt among those that leave, with ``sign`` -1, or among those that stay."""
        state, project = self.cycle.state, one.attempt.project
        if not state.tree.quotas:
            return
        holding = state.holding(one.attempt)
        state.tree.add(project, holding, sign)
        state.staying.add(project, holding, sign)
        if sign < 0:
            self.leaving[project].append(holding)
        else:
            self.leaving[project].remove(holding)

    def _next(self) -> list[Candidate]:
        """Returns who else has to leave: for what the quota lacks, then for the first task that does not fit; or nobody."""
        excess = self.cycle.state.tree.exceeded(self.job.project, self.asks)
        return self._cheapest() if excess is None else self._under(excess)

    def _under(self, excess: Excess) -> list[Candidate]:
        """Returns one that holds something of what a quota lacks, of which least is lost."""
        state = self.cycle.state
        holders = (
            one
            for one in self.left.values()
            if any(quota.id == excess.quota for quota in state.tree.path(one.attempt.project))
            and state.holding(one.attempt).get(excess.resource)
        )
        return [*islice(holders, 1)]

    def _cheapest(self) -> list[Candidate]:
        """Returns who makes way for the first task that does not fit, all on one node, so that least is lost; or none."""
        rooms, shape = self.cycle.state.rooms, self.shape
        on_node: dict[str, list[tuple[Candidate, Free]]] = {}
        for attempt_id, one in self.left.items():
            for name, held in self.cycle.state.held[attempt_id].items():
                on_node.setdefault(name, []).append((one, held))
        with rooms.trial():
            seats = seated(rooms, shape, shape.gpu_kind, self.borrowing) if len(shape.tasks) > 1 else {}
            need = next((shape.tasks[rank] for rank in largest_first(shape) if rank not in seats), shape.tasks[0])
            best: tuple[tuple[int, int, str], list[Candidate]] | None = None
            for name, there in on_node.items():
                if best is not None and there[0][0].lost > best[0][0]:
                    break  # here and on those that follow more is lost by the first alone
                if (room := rooms.by_name.get(name)) is None:
                    continue
                some = self._enough(Free.of(room, kept=not self.borrowing.of(room)), need, there)
                if some:
                    cost = sum(one.lost for one in some), len(some), name
                    if best is None or cost < best[0]:
                        best = cost, some
        return best[1] if best is not None else []

    def _enough(self, free: Free, need: Resources, there: list[tuple[Candidate, Free]]) -> list[Candidate]:
        """Returns the first of these that have to leave a node for a task to fit, without those that need not; [] if in vain.

        ``there``: each with what it holds there.
        """
        taken: list[tuple[Candidate, Free]] = []
        for one in there:
            if free.fits(need, self.shape.gpu_kind):
                break
            if self._spared(one[0]):
                taken.append(one)
                free.add(one[1])
        for candidate, _ in taken:
            self._count(candidate)
        if not free.fits(need, self.shape.gpu_kind):
            return []
        for one in taken[:-1]:
            free.add(one[1], -1)
            if free.fits(need, self.shape.gpu_kind):
                taken.remove(one)
            else:
                free.add(one[1])
        return [candidate for candidate, _ in taken]


def _leave(rooms: Rooms, attempt: Running) -> None:
    for need, where in zip(attempt.shape.tasks, attempt.seats, strict=True):
        rooms.give(where.node, need, where.devices)


def _candidates(
    cycle: Cycle, job: Waiting, asks: Mapping[str, int], right: Quota | None, *, young: bool
) -> Iterator[Candidate]:
    """Yields who may be asked, that first of which least is lost."""
    state = cycle.state
    mine = _rank(cycle, job)
    let_in = _let_in(cycle, job, mine)
    whys: dict[Bucket, tuple[str, bool]] = {}
    asked: list[tuple[Bucket, bool]] = []
    for theirs, bucket in cycle.ranked(None if right is not None else mine):
        if not state.staying.lent(bucket.project, asks, beside=job.project):
            continue
        if right is not None and right not in state.tree.path(bucket.project):
            whys[bucket], little = (GUARANTEED, True), False
        elif bucket.priority < job.priority:
            whys[bucket], little = (
                (f"its priority is {bucket.priority}, that of the other {job.priority}", False),
                False,
            )
        elif theirs > mine:
            whys[bucket], little = (HAD_MORE, False), True
        else:
            continue
        asked.append((bucket, little))
    for attempt_id in let_in:
        yield Candidate(0, state.running[attempt_id], LET_IN, reclaimed=False)
    for lost, attempt_id in cycle.losers_of(asked, young=young):
        if attempt_id not in cycle.yielding and attempt_id not in let_in:
            why, reclaimed = whys[state.bucket_of[attempt_id]]
            yield Candidate(lost, state.running[attempt_id], why, reclaimed)


def _rank(cycle: Cycle, job: Waiting) -> Rank:
    return cycle.rank(job.project, job.priority, cycle.state.policy.level(job.attained))


def _let_in(cycle: Cycle, job: Waiting, mine: Rank) -> list[str]:
    """Returns those that were let in beside what is kept for a job, after whom they stand, and lose nothing by leaving."""
    kept, found = cycle.state.kept.get(job.id), list[str]()
    if kept is None:
        return found
    for attempt_id in {one for node, _, _ in kept.seats for one in cycle.state.on_node[node]}:
        victim = cycle.state.running[attempt_id]
        level = cycle.state.policy.level(victim.service(cycle.now))
        theirs = cycle.rank(victim.project, victim.priority, level)
        after = (theirs, victim.queued_at, victim.job_id) > (mine, job.queued_at, job.id)
        if after and victim.keeps and victim.placed_at >= kept.since and cycle.may_leave(victim):
            found.append(attempt_id)
    return sorted(found)
