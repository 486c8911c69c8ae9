"""Random traces, clusters, quotas and policies: whatever the scheduler decides, the simulator's own accounts agree with it.

``DANLU_TRACES`` is how many; each is a seed.
"""

from __future__ import annotations

import os
from random import Random

import pytest

from danlu.domain.nodes import NodeCapacity
from danlu.domain.quotas import Quota, contradictions
from danlu.scheduler.cycle import Scheduler
from danlu.scheduler.model import Plan, Policy
from danlu.scheduler.simulator import Costs, simulate
from tests.traces import SECOND, cluster, holds, random_trace

TRACES = int(os.environ.get("DANLU_TRACES", "100"))
AT_ONCE = 10
LARGEST = 8
"""So many GPUs has the largest job, and may each project hold at least: every job fits alone."""
BATCHES = pytest.mark.parametrize("batch", range(-(-TRACES // AT_ONCE)))


def seeds(batch: int) -> range:
    return range(batch * AT_ONCE, min(TRACES, (batch + 1) * AT_ONCE))


def nodes(dice: Random) -> tuple[NodeCapacity, ...]:
    """Returns a node that any job fits on, and some smaller ones."""
    small = [cluster(1, dice.choice((1, 2, 4)), cpu=8, begin=at + 1) for at in range(dice.randrange(4))]
    return (*cluster(dice.choice((1, 1, 2)), LARGEST, cpu=32, begin=10), *(node for some in small for node in some))


def quotas(dice: Random) -> list[Quota]:
    """Returns quotas of three projects, some below a group, that leave room for each job alone."""

    def one(name: str, *, group: bool, parent: str | None) -> Quota:
        limit = {
            what: most for what, most in (("gpu", LARGEST + dice.randrange(4)), ("jobs", 4)) if dice.random() < 0.5
        }
        guarantee = {} if group or dice.random() < 0.5 else {"gpu": dice.randrange(1, 3)}
        fields = {"limit": limit, "guarantee": guarantee, "weight": dice.choice((1, 1, 3)), "parent": parent}
        return Quota(id=name, project=name, group=group, created_at=0, updated_at=0, **fields)

    below = [one(f"p{at}", group=False, parent=dice.choice((None, "team"))) for at in range(3)]
    found = {quota.id: quota for quota in (one("team", group=True, parent=None), *below)}
    assert contradictions(found) == []
    return list(found.values())


def policy(dice: Random) -> Policy:
    return Policy(
        half_life=dice.choice((60, 3600)) * SECOND, min_runtime=dice.choice((20, 60)) * SECOND,
        levels=tuple(1000 * SECOND * gpu_s for gpu_s in dice.choice(((60, 600), (300,), ()))),
        kept_for=dice.choice((1, 4, 16)), preempts_for=dice.choice((1, 8)), preempts=dice.random() < 0.8,
    )  # fmt: skip


def costs(dice: Random) -> Costs:
    return Costs(
        restart=dice.choice((0, 5)) * SECOND, notice=dice.choice((0, 0, 7)) * SECOND,
        checkpoint=dice.choice((None, None, 20 * SECOND)), all_known=dice.random() < 0.3,
    )  # fmt: skip


class Watched(Scheduler):
    """Looks at what those are told who are asked to make way."""

    def decide(self, now: int) -> Plan:
        jobs = dict(self.waiting)
        plan = super().decide(now)
        for one in plan.preemptions:
            theirs, other = self.running[one.attempt_id].priority, jobs[one.for_job].priority
            assert one.why
            if "its priority" in one.why:
                assert one.why == f"its priority is {theirs}, that of the other {other}"
        return plan


@BATCHES
def test_who_makes_way_is_told_his_own_reason(batch: int) -> None:
    for seed in seeds(batch):
        dice = Random(seed)
        trace, paid = random_trace(seed, most_gpus=LARGEST), costs(dice)
        simulate(trace, nodes(dice), Watched(policy(dice)), quotas=quotas(dice), costs=paid)


@BATCHES
def test_nothing_is_sold_twice_no_limit_is_broken_and_all_end(batch: int) -> None:
    for seed in seeds(batch):
        dice = Random(seed)
        trace, paid = random_trace(seed, most_gpus=LARGEST), costs(dice)
        found = simulate(trace, nodes(dice), Scheduler(policy(dice)), quotas=quotas(dice), costs=paid)
        try:
            holds(found, restart=None if paid.checkpoint else paid.restart + paid.notice)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
