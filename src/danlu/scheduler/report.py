"""What a simulation showed, in figures: waits, completion times, use of the GPUs, what making way cost, fairness.

Finish-time fairness of a project (Mahajan et al., "Themis", NSDI 2020): rho = mean completion time of its jobs in the shared
cluster / the same in its own part of it. Its own part is its weight's part of all GPUs, rounded, at least one; there its jobs
run alone, first come first served. A job that asks for more GPUs than that has all of them, and runs longer accordingly.
rho > 1: the project would be better off alone. Of a cluster without GPUs it is the cores that count.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from heapq import heappop, heappush
from typing import Final

from pydantic import Field

from danlu.domain.quotas import Quota
from danlu.domain.records import Value
from danlu.scheduler.model import SECOND_NS
from danlu.scheduler.simulator import Outcome, Result
from danlu.scheduler.trace import TraceJob

SIZES: Final[tuple[tuple[str, int], ...]] = (("no gpu", 0), ("1", 1), ("2-4", 4), ("5-8", 8), (">8", 2**31))
"""Classes of jobs by their GPUs: name, and up to how many."""
HOUR_NS: Final = 3600 * SECOND_NS


class SizeReport(Value):
    """Jobs that ask for about as many GPUs. ``wait``: until a job's first start."""

    size: str = Field(description="GPUs of a job")
    jobs: int
    wait_p50_s: float
    wait_p90_s: float
    wait_p99_s: float
    jct_mean_s: float


class ProjectReport(Value):
    """One project's jobs."""

    project: str
    jobs: int
    gpu_hours: float = Field(description="what its jobs held, restarts and lost work too")
    jct_mean_s: float
    alone_jct_mean_s: float = Field(description="in its own part of the cluster")
    rho: float = Field(description="jct_mean_s / alone_jct_mean_s")


class Report(Value):
    """A simulation in figures. ``jct``: from a job's submission to its end; of those that ended."""

    policy: str
    jobs: int
    ended: int
    jct_mean_s: float
    jct_p50_s: float
    jct_p99_s: float
    wait_p50_s: float
    wait_p90_s: float
    wait_p99_s: float
    makespan_s: float = Field(description="from the first submission to the last end")
    utilisation: float = Field(description="part of all GPU-time until the last end that jobs held")
    preemptions: int
    lost_gpu_hours: float = Field(description="held for restarts, notices and work that was lost")
    worst_rho: float = Field(description="finish-time fairness of the project that fares worst")
    worst_project: str
    sizes: tuple[SizeReport, ...]
    projects: tuple[ProjectReport, ...]
    never_started: tuple[str, ...] = Field(
        default=(), description="jobs that no plan could place, and why: the first ones"
    )


SHOWN_NEVER: Final = 20


def report(result: Result, policy: str) -> Report:
    """Returns a simulation's figures."""
    ended = [one for one in result.outcomes if one.end is not None]
    jcts, waits = sorted(map(_jct, ended)), sorted(map(_wait, ended))
    begin = min((one.job.submit for one in result.outcomes), default=0)
    makespan = max((one.end or 0 for one in ended), default=begin) - begin
    unit, total = _unit(result)
    held = sum(one.held * unit(one.job) for one in result.outcomes)
    lost = sum((one.held - one.job.duration) * unit(one.job) for one in ended)
    projects = _projects(result, ended)
    worst = max(projects, key=lambda one: one.rho, default=None)
    return Report(
        policy=policy, jobs=len(result.outcomes), ended=len(ended),
        jct_mean_s=_mean(jcts), jct_p50_s=_at(jcts, 0.5), jct_p99_s=_at(jcts, 0.99),
        wait_p50_s=_at(waits, 0.5), wait_p90_s=_at(waits, 0.9), wait_p99_s=_at(waits, 0.99),
        makespan_s=_s(makespan), utilisation=held / (total * makespan) if total and makespan else 0.0,
        preemptions=result.preemptions, lost_gpu_hours=lost / HOUR_NS,
        worst_rho=worst.rho if worst else 0.0, worst_project=worst.project if worst else "",
        sizes=tuple(_sizes(ended)), projects=tuple(projects),
        never_started=tuple(
            f"{one.job.id}: {one.why[1] if one.why else 'it asks for more than there is'}"
            for one in result.outcomes if one.first_start is None
        )[:SHOWN_NEVER],
    )  # fmt: skip


def _jct(one: Outcome) -> int:
    return (one.end or 0) - one.job.submit


def _wait(one: Outcome) -> int:
    return (one.first_start or 0) - one.job.submit


def _s(time_ns: float) -> float:
    return time_ns / SECOND_NS


def _mean(times: Sequence[int]) -> float:
    return _s(sum(times) / len(times)) if times else 0.0


def _at(ordered: Sequence[int], part: float) -> float:
    """Returns a percentile by the nearest rank, in seconds."""
    return _s(ordered[max(0, math.ceil(part * len(ordered)) - 1)]) if ordered else 0.0


def _unit(result: Result) -> tuple[Callable[[TraceJob], int], int]:
    """Returns what counts of a job, and how much of it there is: GPUs; without any, cores."""
    total = sum(len(node.gpus) for node in result.nodes)
    if total:
        return (lambda job: job.gpus), total
    return (lambda job: max(1, job.cpu_milli // 1000)), sum(node.cpu_milli for node in result.nodes) // 1000


def _sizes(ended: Iterable[Outcome]) -> Iterable[SizeReport]:
    classes: dict[str, list[Outcome]] = defaultdict(list)
    for one in ended:
        classes[next(name for name, most in SIZES if one.job.gpus <= most)].append(one)
    for name, _ in SIZES:
        if some := classes.get(name):
            waits = sorted(map(_wait, some))
            p50, p90, p99 = (_at(waits, part) for part in (0.5, 0.9, 0.99))
            yield SizeReport(
                size=name, jobs=len(some), wait_p50_s=p50, wait_p90_s=p90, wait_p99_s=p99,
                jct_mean_s=_mean([_jct(job) for job in some]),
            )  # fmt: skip


def _projects(result: Result, ended: Iterable[Outcome]) -> list[ProjectReport]:
    unit, total = _unit(result)
    by_project: dict[str, list[Outcome]] = defaultdict(list)
    for one in ended:
        by_project[one.job.project].append(one)
    parts = parts_of(sorted({one.job.project for one in result.outcomes}), result.quotas)
    found = []
    for project, some in sorted(by_project.items()):
        own = max(1, round(parts[project] * total))
        alone = _mean(alone_jcts([one.job for one in some], unit, own))
        mean = _mean([_jct(one) for one in some])
        found.append(
            ProjectReport(
                project=project, jobs=len(some), jct_mean_s=mean, alone_jct_mean_s=alone, rho=mean / alone,
                gpu_hours=sum(one.held * one.job.gpus for one in some) / HOUR_NS,
            )
        )  # fmt: skip
    return found


def parts_of(projects: Sequence[str], quotas: Iterable[Quota]) -> dict[str, float]:
    """Returns each project's own part of the cluster: at each level of the tree as its weight is to its siblings'."""
    known = {quota.id: quota for quota in quotas}
    children: dict[str | None, set[str]] = defaultdict(set)
    for project in projects:
        name: str | None = project
        while name is not None and name not in children[parent := _parent(known, name)]:
            children[parent].add(name)
            name = parent
    parts: dict[str, float] = {}

    def divide(name: str | None, part: float) -> None:
        below = sorted(children.get(name, ()))
        weights = sum(_weight(known, child) for child in below)
        for child in below:
            own = part * _weight(known, child) / weights
            parts[child] = own
            divide(child, own)

    divide(None, 1.0)
    return {project: parts[project] for project in projects}


def _parent(known: Mapping[str, Quota], name: str) -> str | None:
    parent = known[name].parent if name in known else None
    return parent if parent in known else None


def _weight(known: Mapping[str, Quota], name: str) -> int:
    return known[name].weight if name in known else 1


def alone_jcts(jobs: Iterable[TraceJob], unit: Callable[[TraceJob], int], total: int) -> list[int]:
    """Returns completion times (ns) of jobs that have so many GPUs for themselves, first come first served."""
    found, free, now = [], total, 0
    ends: list[tuple[int, int]] = []
    for job in sorted(jobs, key=lambda one: (one.submit, one.id)):
        need, lasts = unit(job), job.duration
        if need > total:
            need, lasts = total, lasts * need // total
        now = max(now, job.submit)
        while ends and (ends[0][0] <= now or free < need):
            end, back = heappop(ends)
            now, free = max(now, end), free + back
        free -= need
        heappush(ends, (now + lasts, need))
        found.append(now + lasts - job.submit)
    return found
