"""What the scheduler promises of any trace: what is guaranteed comes in time, and who is first is not kept waiting."""

from __future__ import annotations

import os
from dataclasses import replace
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.domain.quotas import Quota
from danlu.scheduler.cycle import Scheduler
from danlu.scheduler.model import Plan, Policy
from danlu.scheduler.simulator import Costs, Result, simulate
from danlu.scheduler.trace import TraceJob
from tests.traces import SECOND, cluster, holds, job

TRACES = int(os.environ.get("DANLU_TRACES", "60"))
NODES, GPUS, MIN_RUNTIME, NOTICE, RESTART = 3, 4, 20, 3, 5
"""Who starts again gets something done before he is asked again: a restart takes less than the least run time."""
POLICY = Policy(min_runtime=MIN_RUNTIME * SECOND, levels=(50_000 * SECOND, 400_000 * SECOND))
COSTS = Costs(restart=RESTART * SECOND, notice=NOTICE * SECOND)
seeds = st.integers(0, 2**32)


def flood(random: Random, projects: tuple[str, ...], seconds: int = 400) -> list[TraceJob]:
    """Returns more jobs than there is room for, of all sizes, long and short."""
    found = []
    for number in range(random.randint(20, 60)):
        gpus = random.choice((1, 1, 1, 2, 4, 8))
        found.append(
            job(
                f"f{number:03d}",
                random.randrange(seconds),
                random.choice((5, 30, 200, 600)),
                gpus,
                project=random.choice(projects),
            )
        )
    return found


def waited(result: Result, name: str) -> float:
    """Returns how long a job waited until it started first, in seconds."""
    one = next(one for one in result.outcomes if one.job.id == name)
    assert one.first_start is not None, one.why
    return (one.first_start - one.job.submit) / SECOND


def quota(name: str, **fields: object) -> Quota:
    return Quota.model_validate({"id": name, "project": "", "created_at": 0, "updated_at": 0, **fields})


@settings(max_examples=TRACES, deadline=None)
@given(seeds)
def test_what_is_guaranteed_comes_within_the_reclaim_time(seed: int) -> None:
    """All else is lent: it is given back within the least run time and the notice, however much waits for it."""
    random = Random(seed)
    guaranteed = random.choice((1, 2, 4, 8))
    mine, at = [], random.randrange(50, 300)
    left = guaranteed
    while left:
        gpus = random.choice([size for size in (1, 2, 4, 8) if size <= left])
        mine.append(job(f"mine-{len(mine)}", at, 50, gpus, project="mine"))
        left -= gpus
    # what another is guaranteed stays where it is: whole nodes are promised only where nobody else has a guarantee
    theirs = random.choice((0, 2, 4)) if len(mine) == guaranteed else 0
    trace = [*flood(random, ("a", "b")), *mine]
    quotas = [quota("mine", guarantee={"gpu": guaranteed}), quota("a", guarantee={"gpu": theirs})]
    found = simulate(trace, cluster(NODES, GPUS), Scheduler(POLICY), quotas=quotas, costs=COSTS)
    holds(found, restart=(RESTART + NOTICE) * SECOND)
    # who is asked to make way for the one may take the place of who is asked for the other: one after the other
    assert max(waited(found, one.id) for one in mine) <= len(mine) * (MIN_RUNTIME + NOTICE)


@settings(max_examples=TRACES, deadline=None)
@given(seeds, st.booleans())
def test_a_job_as_large_as_the_cluster_starts_when_the_longest_has_ended(seed: int, declared: bool) -> None:
    """It is the first in the line from when it comes, and nobody makes way for it."""
    random = Random(seed)
    others = flood(random, ("a", "b", "c"))
    if declared:
        others = [replace(one, declared=one.duration) for one in others]
    at = random.randrange(20, 300)
    head = job("head", at, 50, NODES * GPUS, project="large", priority=10)
    policy = Policy(preempts=False, levels=POLICY.levels)
    found = simulate([*others, head], cluster(NODES, GPUS), Scheduler(policy))
    assert found.preemptions == 0
    running = [
        one.end - head.submit
        for one in found.outcomes
        if one.first_start is not None and one.end is not None and one.first_start < head.submit < one.end
    ]
    assert waited(found, "head") * SECOND <= max(running, default=0)


@settings(max_examples=TRACES, deadline=None)
@given(seeds)
def test_nobody_waits_for_ever_for_a_large_place(seed: int) -> None:
    """Jobs that come later, and have as much, do not go before one for which room is kept, however many there are."""
    random = Random(seed)
    small = [job(f"s{number:03d}", number, random.randint(5, 60), random.choice((1, 2))) for number in range(200)]
    head = job("head", 30, 20, GPUS)
    found = simulate([*small, head], cluster(NODES, GPUS), Scheduler(Policy(preempts=False, levels=())))
    before = [one.first_start or 0 for one in found.outcomes if one.job.submit < head.submit]
    assert head.submit + waited(found, "head") * SECOND <= max(before) + 60 * SECOND


class Watched(Scheduler):
    """Looks at who is asked to make way."""

    def decide(self, now: int) -> Plan:
        plan = super().decide(now)
        for one in plan.preemptions:
            victim = self.running[one.attempt_id]
            assert now - victim.placed_at >= MIN_RUNTIME * SECOND
            assert victim.yields_to is None
        assert len({one.attempt_id for one in plan.preemptions}) == len(plan.preemptions)
        return plan


@settings(max_examples=TRACES, deadline=None)
@given(seeds, st.sampled_from([None, 7]))
def test_nobody_makes_way_within_his_least_run_time_or_twice(seed: int, checkpoint: int | None) -> None:
    costs = replace(COSTS, checkpoint=None if checkpoint is None else checkpoint * SECOND)
    found = simulate(flood(Random(seed), ("a", "b")), cluster(NODES, GPUS), Watched(POLICY), costs=costs)
    assert all(one.end is not None for one in found.outcomes)
