"""The simulator: small traces whose times were worked out by hand, what holds of any, and plans that it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.domain.quotas import Quota
from danlu.errors import InternalError
from danlu.scheduler.baselines import FifoEasy, Las, Srtf
from danlu.scheduler.cycle import Scheduler
from danlu.scheduler.model import Placement, Plan, Policy, Preemption, Seat
from danlu.scheduler.simulator import Costs, Decider, Result, simulate
from danlu.scheduler.trace import TraceJob
from tests.traces import SECOND, cluster, holds, job, random_trace

KNOWING = Costs(restart=2 * SECOND, all_known=True)
LAS = Policy(levels=(5000 * SECOND,))
"""A job steps back once it had 5 GPU-seconds."""


def times(result: Result) -> dict[str, tuple[float, float]]:
    """Returns when each job started first and ended, in seconds."""
    return {
        one.job.id: ((one.first_start or 0) / SECOND, (one.end or 0) / SECOND)
        for one in result.outcomes
        if one.first_start is not None
    }


def play(decider: Decider, *jobs: TraceJob, gpus: int = 1, nodes: int = 1, costs: Costs = KNOWING) -> Result:
    return simulate(jobs, cluster(nodes, gpus), decider, costs=costs)


# FIFO with EASY backfill


def test_who_ends_before_the_first_one_could_start_goes_before_it() -> None:
    """b needs both GPUs, which are free at 10: c is over by then, d is not."""
    found = play(FifoEasy(), job("a", 0, 10), job("b", 1, 100, 2), job("c", 2, 5), job("d", 3, 50), gpus=2)
    assert times(found) == {"a": (0, 10), "b": (10, 110), "c": (2, 7), "d": (110, 160)}


def test_who_takes_nothing_of_what_the_first_one_needs_goes_before_it() -> None:
    """Of 3 GPUs b needs 2 at 10: the third is d's, however long; e has none."""
    found = play(FifoEasy(), job("a", 0, 10, 2), job("b", 1, 100, 2), job("d", 3, 50), job("e", 4, 1), gpus=3)
    assert times(found) == {"a": (0, 10), "b": (10, 110), "d": (3, 53), "e": (53, 54)}


def test_a_short_one_may_use_what_comes_back_before_the_first_one_starts_and_not_be_counted_twice() -> None:
    """b needs all 4 at 10. c uses the free one till 9, so that d, which would run till 12, has none."""
    jobs = job("a", 0, 10, 3), job("b", 1, 5, 4), job("c", 2, 7), job("d", 2, 10)
    assert times(play(FifoEasy(), *jobs, gpus=4)) == {"a": (0, 10), "b": (10, 15), "c": (2, 9), "d": (15, 25)}


def test_a_job_that_never_fits_holds_nobody_up() -> None:
    found = play(FifoEasy(), job("large", 0, 10, 3, tasks=1), job("a", 1, 10), gpus=2)
    assert times(found) == {"a": (1, 11)}
    assert [one.job.id for one in found.outcomes if one.end is None] == ["large"]


def test_priority_is_heard_where_it_is_wanted() -> None:
    jobs = job("a", 0, 10), job("b", 1, 10), job("c", 2, 10, priority=1)
    assert times(play(FifoEasy(), *jobs))["b"] == (10, 20)
    assert times(play(FifoEasy(by_priority=True), *jobs))["b"] == (20, 30)


# SRTF


def test_the_shortest_runs_and_who_comes_back_pays_the_restart() -> None:
    """a has 9 left when b comes; it goes on at 4, 2 s later. c has no less left at 5 than a, so a stays."""
    found = play(Srtf(), job("a", 0, 10), job("b", 1, 3), job("c", 5, 10))
    assert times(found) == {"a": (0, 15), "b": (1, 4), "c": (15, 25)}
    assert [one.held / SECOND for one in found.outcomes] == [12, 3, 10]
    assert (found.preemptions, found.outcomes[0].attained) == (1, 12 * 1000 * SECOND)


def test_of_those_behind_the_last_makes_way_and_no_more_than_have_to() -> None:
    found = play(Srtf(), job("a", 0, 50), job("b", 0, 90), job("c", 0, 70), job("d", 1, 5), gpus=3)
    assert times(found) == {"a": (0, 50), "b": (0, 97), "c": (0, 70), "d": (1, 6)}


def test_a_gang_displaces_a_whole_node() -> None:
    """Nodes of 2: the gang of 4 needs both, but d, which is shorter, keeps its GPU: it waits till 4."""
    found = play(Srtf(), job("a", 0, 50), job("d", 0, 4), job("g", 1, 10, 4), gpus=2, nodes=2)
    assert times(found)["g"] == (4, 14)
    assert times(found)["a"] == (0, 62)


def test_with_notice_what_is_done_after_it_is_lost() -> None:
    """a is told at 1 and leaves at 4: 1 s of it counts, and b starts then."""
    found = play(Srtf(), job("a", 0, 10), job("b", 1, 3), costs=replace(KNOWING, notice=3 * SECOND))
    assert times(found) == {"a": (0, 18), "b": (4, 7)}
    assert found.outcomes[0].held == 15 * SECOND


def test_who_ends_within_its_notice_has_ended() -> None:
    found = play(Srtf(), job("a", 0, 10), job("b", 5, 3), costs=replace(KNOWING, notice=5 * SECOND))
    assert times(found) == {"a": (0, 10), "b": (10, 13)}
    assert found.outcomes[0].starts == 1


def test_what_was_done_since_the_last_checkpoint_is_lost() -> None:
    """a had 6 s, 4 of them are saved."""
    found = play(Srtf(), job("a", 0, 20), job("b", 6, 3), costs=replace(KNOWING, checkpoint=4 * SECOND))
    assert times(found) == {"a": (0, 27), "b": (6, 9)}


# LAS


def test_who_had_less_goes_first_once_the_other_steps_back() -> None:
    """a steps back at 5, though nothing else happens then."""
    found = play(Las(policy=LAS), job("a", 0, 20), job("b", 1, 3), costs=Costs(restart=2 * SECOND))
    assert times(found) == {"a": (0, 25), "b": (5, 8)}


# any trace

# who starts again gets something done before he is asked again: the least run time is longer than a restart and a notice
DECIDERS: dict[str, Callable[[], Decider]] = {
    "danlu": lambda: Scheduler(Policy(min_runtime=40 * SECOND, levels=(20_000 * SECOND, 200_000 * SECOND))),
    "fifo-easy": FifoEasy, "srtf": Srtf, "las": lambda: Las(policy=Policy(levels=(20_000 * SECOND, 200_000 * SECOND)))
}  # fmt: skip


@pytest.mark.parametrize("policy", DECIDERS)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), notice=st.sampled_from([0, 0, 7]))
def test_of_any_trace_all_end_and_nothing_is_lost(policy: str, seed: int, notice: int) -> None:
    costs = Costs(restart=5 * SECOND, notice=notice * SECOND, all_known=policy in ("fifo-easy", "srtf"))
    nodes = (*cluster(2, 4, cpu=8), *cluster(1, 8, cpu=16, begin=2))
    found = simulate(random_trace(seed), nodes, DECIDERS[policy](), costs=costs)
    holds(found, restart=costs.restart + costs.notice)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), limits=st.tuples(*[st.sampled_from([-1, 12, 16])] * 3))
def test_of_any_trace_no_limit_is_broken_and_all_end(seed: int, limits: tuple[int, ...]) -> None:
    quotas = [
        Quota(
            id=f"p{at}", project=f"p{at}", created_at=0, updated_at=0, limit={"gpu": most, "jobs": 3}, parent="all",
            guarantee={"gpu": 4},
        )
        for at, most in enumerate(limits)
    ]  # fmt: skip
    group = Quota(id="all", project="all", created_at=0, updated_at=0, group=True, limit={"gpu": 14})
    found = simulate(random_trace(seed), cluster(2, 8), DECIDERS["danlu"](), quotas=[*quotas, group])
    holds(found, restart=30 * SECOND)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_same_calls_have_the_same_outcome(seed: int) -> None:
    first, again = (simulate(random_trace(seed), cluster(3, 8), Srtf(), costs=KNOWING) for _ in range(2))
    assert first == again


# plans that are wrong


class Says(FifoEasy):
    """A decider that says what it is told to, once."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan

    def decide(self, now: int) -> Plan:
        plan, self.plan = self.plan, Plan()
        return plan


GANG = job("g", 0, 10, 4)
SHAPE = GANG.shape(2)
BOTH = (Seat("n0", (0, 1)), Seat("n1", (0, 1)))


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (Plan((Placement("g", BOTH[:1], SHAPE),)), "g-1 has 1 seats for 2 tasks"),
        (Plan((Placement("g", (BOTH[0], BOTH[0]), SHAPE),)), r"g-1 was placed on n0, GPUs \(0, 1\)"),
        (Plan((Placement("g", (BOTH[0], Seat("n1", (0,))), SHAPE),)), r"g-1 was placed on n1, GPUs \(0,\)"),
        (Plan((Placement("g", (BOTH[0], Seat("n1", (1, 2))), SHAPE),)), "not all is free"),
        (Plan((Placement("g", (BOTH[0], Seat("n7", (0, 1))), SHAPE),)), "n7"),
        (Plan((Placement("g", BOTH, SHAPE), Placement("g", BOTH, SHAPE))), "does not wait"),
        (
            Plan(preemptions=(Preemption("g-1", "x", "", 0, 0.0),)),
            "g-1 was asked at 0 ns to make way, but holds nothing",
        ),
        (Plan(again_at=0), "not later"),
    ],
)
def test_a_plan_that_is_wrong_ends_it(plan: Plan, said: str) -> None:
    with pytest.raises(InternalError, match=said):
        simulate([GANG], cluster(2, 2), Says(plan))


@pytest.mark.parametrize("resource", ["gpu", "gpu/gpu", "jobs", "cpu"])
@pytest.mark.parametrize("whose", ["default", "team"])
def test_a_plan_over_a_limit_ends_it(resource: str, whose: str) -> None:
    quotas = [
        Quota(id="default", project="default", created_at=0, updated_at=0, parent="team"),
        Quota(id="team", project="team", created_at=0, updated_at=0, group=True),
    ]
    limited = [
        one.model_copy(update={"limit": {resource: 1000 if resource == "cpu" else 1}}) if one.id == whose else one
        for one in quotas
    ]
    jobs = [job(name, 0, 10, cpu_milli=1000) for name in "ab"]
    with pytest.raises(InternalError, match=f"b-1 was placed at 0 ns: {whose} holds .* {resource}, its limit is"):
        simulate(jobs, cluster(1, 2), FifoEasy(), quotas=limited, costs=KNOWING)


def test_a_gang_larger_than_a_node_has_whole_nodes() -> None:
    assert [task.gpus for task in job("a", 0, 1, 20).shape(8).tasks] == [8, 8, 4]
    assert [task.gpus for task in job("a", 0, 1, 20, tasks=3).shape(8).tasks] == [7, 7, 6]
    assert [task.gpus for task in job("a", 0, 1, 8).shape(8).tasks] == [8]
    assert [task.cpu_milli for task in job("a", 0, 1, 0).shape(8).tasks] == [1000]
