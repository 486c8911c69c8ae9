"""When a job could start, against when it did: 6,000 heavy-tailed jobs on 16 nodes of 8 GPUs, durations declared."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.platform import Figure
from benchmarks.traces import heavy_tailed
from danlu.client.simulating import parse_nodes
from danlu.domain.jobs import Reason
from danlu.scheduler.cycle import Scheduler
from danlu.scheduler.estimate import LEAST_PAIRS, SLACK, Lasting, Told, corrected, forecast
from danlu.scheduler.explaining import standing
from danlu.scheduler.model import Plan, Waiting
from danlu.scheduler.simulator import simulate

NODES, LEARNED_FROM, TARGET = "16x8", 200, 0.85


class Asking(Scheduler):
    """The scheduler, asked for an estimate when a job is first told that it waits, unless others make way for it at once."""

    def __init__(self) -> None:
        super().__init__()
        self.estimates: dict[str, tuple[int, int | None]] = {}
        self.took_s: list[float] = []
        self._new: set[str] = set()
        self._reasons: dict[str, Reason] = {}

    def queued(self, job: Waiting) -> None:
        super().queued(job)
        if not job.attained:
            self._new.add(job.id)

    def decide(self, now: int) -> Plan:
        plan = super().decide(now)
        self._new.difference_update(one.job_id for one in plan.placements)
        self._reasons |= {job_id: reason for job_id, (reason, _) in plan.waits.items()}
        if not plan.preemptions:
            for job_id in sorted(self._new):
                if self._reasons.get(job_id) is not Reason.WAITING_FOR_PREEMPTED_WORKLOADS:
                    self._new.discard(job_id)
                    self.estimates[job_id] = now, self._ask(job_id, now)
        return plan

    def _ask(self, job_id: str, now: int) -> int | None:
        began = time.perf_counter()
        place = standing(self, job_id, now)
        ahead = [] if place is None else [before.job_id for before in place.ahead]
        at = forecast(self, job_id, ahead, now, Lasting(), {}).at
        self.took_s.append(time.perf_counter() - began)
        return at


@dataclass(frozen=True, slots=True)
class Asked:
    """One job: when it asked, how large it is, the wait it was told without correction, the one it had (ns)."""

    at: int
    gpus: int
    told: int
    waited: int


def figures() -> list[Figure]:
    """Measures."""
    asking = Asking()
    outcomes = simulate(heavy_tailed(), parse_nodes(NODES), asking).outcomes
    rows = []
    for one in outcomes:
        at, starts = asking.estimates.get(one.job.id, (0, None))
        if starts is not None and one.first_start is not None:
            rows.append(Asked(at, one.job.gpus, starts - at, one.first_start - at))
    rows.sort(key=lambda one: one.at)
    told = list(_told(rows))
    half, most = (
        sum(one.waited <= said[at] for one, said in zip(rows, told, strict=True)) / len(rows) for at in (0, 1)
    )
    ours = [(one.waited, said[1]) for one, said in zip(rows, told, strict=True)]
    bare = sum(one.waited <= one.told for one in rows) / len(rows)
    alike = list(_by_size_alone(rows))
    times = sorted(asking.took_s)
    return [
        Figure(
            f"estimates of a start, {len(outcomes):,} heavy-tailed jobs, of which {len(asking.estimates)} had to wait",
            f"{100 * most:.0f} % started before p90, {100 * half:.0f} % before p50; p90 is {_width(ours):.1f} × the wait in "
            f"the middle; one takes {1e3 * median(times):.0f} ms, at most {1e3 * times[-1]:.0f} ms",
            f"p90 covers ≥ {100 * TARGET:.0f} %", most >= TARGET,
            f"90 % quantile of what jobs of its size waited of late: "
            f"{100 * sum(waited <= most for waited, most in alike) / len(alike):.0f} %, {_width(alike):.1f} × the wait",
            f"not corrected by what was: {100 * bare:.0f} % before the estimate",
        )
    ]  # fmt: skip


def _before(rows: Sequence[Asked], one: Asked) -> list[Asked]:
    """Returns those that had started when one asked, of late."""
    started = [other for other in rows if other.at + other.waited < one.at]
    return sorted(started, key=lambda other: other.at + other.waited)[-LEARNED_FROM:]


def _width(pairs: Sequence[tuple[int, int]]) -> float:
    """Returns how much longer than the wait p90 is, in the middle of all; minutes count, seconds do not."""
    return median((most + SLACK) / (waited + SLACK) for waited, most in pairs)


def _told(rows: Sequence[Asked]) -> Iterator[tuple[int, int]]:
    """Yields the p50 and the p90 of its wait that each job was told."""
    for one in rows:
        told = [Told(other.gpus.bit_length(), other.told, other.waited) for other in _before(rows, one)]
        found = corrected(one.told, one.gpus.bit_length(), told)
        yield found.half, found.most


def _by_size_alone(rows: Sequence[Asked]) -> Iterator[tuple[int, int]]:
    """Yields waits, and what nine of ten jobs of that size had waited at most, of those that had enough before them."""
    for one in rows:
        waits = sorted(other.waited for other in _before(rows, one) if other.gpus.bit_length() == one.gpus.bit_length())
        if len(waits) >= LEAST_PAIRS:
            yield one.waited, waits[min(len(waits) - 1, int(len(waits) * 0.9))]
