"""When a job could start: the line played forward, by what runs, what is ahead and how long each of them takes. Pure.

The scheduler itself decides, on a copy of its state, at each end of what runs: the same order, the same seats. Nobody new
comes and nobody makes way but who was asked already, so it is what would be if nothing else happened. What really happens is
learned from jobs that were told such an estimate and have started since (``corrected``): split conformal prediction on the
ratio of the two waits (Papadopoulos et al., 2002; Lei et al., JASA 2018), by size of the job.

Bounded: with more than MAX_AHEAD jobs ahead, MAX_RUNNING attempts or MAX_STEPS ends before it starts nothing is said.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from danlu.scheduler.cycle import Scheduler
from danlu.scheduler.model import SECOND_NS, Placement, Running, Shape, Waiting

MAX_AHEAD = 500
MAX_RUNNING = 2000
MAX_STEPS = 1000
SLACK = 60 * SECOND_NS
"""Added to both waits before they are compared: seconds do not matter."""
LEAST_PAIRS = 20
"""Fewer teach nothing."""
HALF, MOST = 0.5, 0.9
UNTAUGHT = 3.0
"""How much longer than estimated nine of ten wait at most, as long as nothing was learned."""


@dataclass(frozen=True, slots=True)
class Lasting:
    """How long jobs take. ``of_late``: project -> how long its ended attempts took, ascending, in ns."""

    of_late: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def left(self, project: str, known: int | None, ran: int) -> int | None:
        """Returns how long one still runs that has run so long; ``known``: until when it runs at most. None: unknown."""
        if known is not None:
            return max(0, known - ran)
        took = self.of_late.get(project, ())
        if not took:
            return None
        longer = took[bisect_right(took, ran) :]
        # longer than any of them: heavy-tailed, as durations are, it runs as long again
        return longer[len(longer) // 2] - ran if longer else ran


class Forecast(NamedTuple):
    """When a job starts (ns UTC) and after whose end: a job's id. ``unknown``: ids of jobs whose ends would have to be known.

    ``at`` is None where it is not known: because of these, or because too much is ahead. ``ended``: by how many attempts that
    ended it is told how long those take of which it is not known.
    """

    at: int | None
    after: str | None = None
    unknown: tuple[str, ...] = ()
    ended: int = 0


def forecast(
    state: Scheduler, job_id: str, ahead: Sequence[str], now: int, lasting: Lasting, ends: Mapping[str, int]
) -> Forecast:
    """Returns when a job starts if nothing else happens; ``ends``: when attempts end that were asked to make way."""
    if len(ahead) > MAX_AHEAD or len(state.running) > MAX_RUNNING:
        return Forecast(None)
    play = _Play(_copy(state, [*ahead, job_id]), job_id, now, lasting)
    for attempt in state.running.values():
        known = ends.get(attempt.id, attempt.ends_by)
        ran = now - attempt.placed_at
        play.runs(attempt, play.left(attempt.project, None if known is None else known - attempt.placed_at, ran))
    return play.result()


def _copy(state: Scheduler, waiting: Iterable[str]) -> Scheduler:
    """Returns a scheduler that knows what this one does of nodes, quotas, shares, what runs, and these of what waits."""
    copy = Scheduler(replace(state.policy, preempts=False))
    for capacity in state.rooms.capacities.values():
        copy.node(capacity)
    copy.quotas(state.tree.quotas.values())
    copy.shares.take_over(state.shares, state.now)
    copy.now = state.now
    for attempt in state.running.values():
        copy.holds(attempt)
    for job_id in waiting:
        copy.queued(state.waiting[job_id])
    return copy


@dataclass(slots=True)
class _Play:
    """The line, played forward."""

    scheduler: Scheduler
    job_id: str
    now: int
    lasting: Lasting
    _ends: list[tuple[int, str]] = field(default_factory=list)
    _endless: list[str] = field(default_factory=list)
    _learned_of: set[str] = field(default_factory=set)

    def left(self, project: str, known: int | None, ran: int) -> int | None:
        if known is None:
            self._learned_of.add(project)
        return self.lasting.left(project, known, ran)

    def runs(self, attempt: Running, left: int | None) -> None:
        if left is None:
            self._endless.append(attempt.job_id)
        else:
            self._ends.append((self.now + left, attempt.id))

    def result(self) -> Forecast:
        heapify(self._ends)
        after: str | None = None
        for _ in range(MAX_STEPS):
            for placement in self.scheduler.decide(self.now).placements:
                if placement.job_id == self.job_id:
                    ended = sum(len(self.lasting.of_late.get(project, ())) for project in self._learned_of)
                    return Forecast(self.now, after, ended=ended)
                self._start(placement)
            if not self._ends:
                return Forecast(None, None, tuple(self._endless))
            self.now, attempt_id = heappop(self._ends)
            after = self._end(attempt_id)
            while self._ends and self._ends[0][0] <= self.now:
                self._end(heappop(self._ends)[1])
        return Forecast(None)

    def _end(self, attempt_id: str) -> str:
        job_id = self.scheduler.running[attempt_id].job_id
        self.scheduler.freed(attempt_id, self.now)
        return job_id

    def _start(self, placement: Placement) -> None:
        job = self.scheduler.waiting[placement.job_id]
        self.scheduler.gone(job.id)
        attempt = _attempt(job, placement, self.now)
        self.scheduler.holds(attempt)
        left = self.left(job.project, job.duration, 0)
        if left is None:
            self._endless.append(job.id)
        else:
            heappush(self._ends, (self.now + left, attempt.id))


def _attempt(job: Waiting, placement: Placement, now: int) -> Running:
    return Running(
        id=f"{job.id}-next", job_id=job.id, project=job.project, priority=job.priority, queued_at=job.queued_at,
        placed_at=now, shape=placement.shape, seats=placement.seats, attained=job.attained,
        ends_by=None if job.duration is None else now + job.duration, array=job.array, keeps=job.keeps,
    )  # fmt: skip


class Told(NamedTuple):
    """A job that was told an estimate and has started since: its size class, the wait it was told, the one it had (ns)."""

    size: int
    estimated: int
    actual: int


def size_of(shape: Shape) -> int:
    """Returns a job's size class: 0 without GPUs, 1 for one, 2 for 2 and 3, 3 for 4 to 7 ..."""
    return sum(task.gpus for task in shape.tasks).bit_length()


class Corrected(NamedTuple):
    """An estimated wait as such ones came out (ns): half of all wait no longer, nine of ten no longer; by how many of them.

    ``by`` is 0 where too few came out: it is as it was estimated then.
    """

    half: int
    most: int
    by: int


def corrected(wait: int, size: int, told: Iterable[Told]) -> Corrected:
    """Returns an estimated wait as estimates were seen to come out."""
    every = list(told)
    alike = [one for one in every if one.size == size]
    for some in (alike, every):
        if len(some) >= LEAST_PAIRS:
            ratios = sorted((one.actual + SLACK) / (one.estimated + SLACK) for one in some)
            half, most = (max(0, round((wait + SLACK) * _conformal(ratios, part)) - SLACK) for part in (HALF, MOST))
            return Corrected(half, most, len(some))
    return Corrected(wait, round((wait + SLACK) * UNTAUGHT) - SLACK, 0)


def _conformal(ratios: Sequence[float], part: float) -> float:
    """Returns what the next one does not exceed with this probability, if it is like these."""
    return ratios[min(len(ratios), math.ceil((len(ratios) + 1) * part)) - 1]
