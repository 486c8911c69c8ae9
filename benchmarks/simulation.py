"""6,000 jobs on 16 nodes of 8 GPUs, by Danlu's scheduler and by some that know how long each runs; a restart costs 30 s."""

from __future__ import annotations

import csv
import io
import math
import random
import time
from dataclasses import dataclass, field, replace
from typing import TypeVar

from benchmarks.platform import Figure, Times
from danlu.client.simulating import KEEP_QUOTAS, POLICIES, parse_nodes
from danlu.scheduler.baselines import FifoEasy
from danlu.scheduler.model import Plan, Policy
from danlu.scheduler.report import Report, report
from danlu.scheduler.simulator import Costs, Decider, simulate
from danlu.scheduler.trace import parse

T = TypeVar("T")
JOBS, NODES, SEED, DAY_S = 6_000, "16x8", 20180709, 86_400
SIZES = {1: 0.66, 2: 0.10, 4: 0.09, 8: 0.105, 16: 0.03, 32: 0.012, 64: 0.003}
PROJECTS = {"vision": 0.35, "speech": 0.22, "nlp": 0.18, "ads": 0.12, "robotics": 0.08, "students": 0.05}
BETWEEN_S, SWING = 160, 0.6
"""One job in so many seconds on average, by day and by night so much more or less."""
SHORTEST_S, LONGEST_S, LOG_MEDIAN_S, LOG_SPREAD, LOG_MORE_PER_DOUBLING = 20, 8 * DAY_S, 6.4, 2.0, 0.18
URGENT = {0: 0.95, 10: 0.05}


def heavy_tailed() -> str:
    """Returns a trace like published ones: most jobs small and short, a few large and long, arrivals by day and night."""
    dice = random.Random(SEED)

    def one_of(parts: dict[T, float]) -> T:
        return dice.choices(list(parts), list(parts.values()))[0]

    text = io.StringIO()
    lines = csv.writer(text)
    lines.writerow(["job", "submit_s", "duration_s", "gpus", "project", "priority"])
    now = 0.0
    for number in range(JOBS):
        now += dice.expovariate(1 / BETWEEN_S * (1 + SWING * math.sin(2 * math.pi * (now % DAY_S) / DAY_S)))
        gpus = one_of(SIZES)
        median = LOG_MEDIAN_S + LOG_MORE_PER_DOUBLING * math.log2(gpus)
        lasts = min(max(dice.lognormvariate(median, LOG_SPREAD), SHORTEST_S), LONGEST_S)
        lines.writerow([f"j{number:05d}", round(now), round(lasts), gpus, one_of(PROJECTS), one_of(URGENT)])
    return text.getvalue()


@dataclass
class Timed:
    """A decider whose decisions are timed."""

    decider: Decider
    times: list[float] = field(default_factory=list)

    def __getattr__(self, name: str) -> object:
        return getattr(self.decider, name)

    def decide(self, now: int) -> Plan:
        began = time.perf_counter()
        plan = self.decider.decide(now)
        self.times.append(time.perf_counter() - began)
        return plan


def figures() -> list[Figure]:
    """Measures."""
    jobs, nodes = parse(heavy_tailed()), parse_nodes(NODES)
    costs = Costs()
    found: dict[str, Report] = {}
    times: dict[str, Times] = {}
    for name in ("danlu", "fifo-easy", "srtf", "fifo-easy by priority"):
        decider = POLICIES[name](Policy()) if name in POLICIES else FifoEasy(by_priority=True)
        timing = Timed(decider)
        known = replace(costs, all_known=name not in KEEP_QUOTAS)
        found[name] = report(simulate(jobs, nodes, timing, costs=known), name)  # type: ignore[arg-type]
        times[name] = Times(tuple(timing.times))
    ours, fifo, srtf, urgent = (one.jct_mean_s for one in found.values())
    unfair, before = found["danlu"].worst_rho, found["fifo-easy"].worst_rho
    took = times["danlu"]
    return [
        Figure(
            "mean completion time of 6,000 jobs on 16 nodes of 8 GPUs (simulated)",
            f"{ours / 3600:.2f} h; {ours / fifo:.2f} × FIFO with EASY backfill, {ours / srtf:.2f} × SRTF",
            "≤ 0.6 × FIFO with EASY backfill, ≤ 1.2 × SRTF", ours <= 0.6 * fifo and ours <= 1.2 * srtf,
            f"FIFO with EASY backfill: {fifo / 3600:.2f} h (by priority: {urgent / 3600:.2f} h); both know all durations",
            f"preemptive SRTF, which knows all durations: {srtf / 3600:.2f} h",
        ),
        Figure(
            "the same: finish-time fairness of the project that fares worst", f"rho {unfair:.2f}", "≤ 0.5 × FIFO's",
            unfair <= 0.5 * before, f"FIFO with EASY backfill: {before:.2f}; SRTF: {found['srtf'].worst_rho:.2f}", "",
        ),
        Figure(
            f"the same: one decision of {len(took.all):,}", f"{took.median * 1e3:.2f} ms (p99 {took.at(0.99) * 1e3:.1f})",
            "", met=True, peer=f"FIFO with EASY backfill: {times['fifo-easy'].median * 1e3:.2f} ms", limit="",
        ),
    ]  # fmt: skip
