"""Who makes way: no more than are needed, for whom it helps, and for good."""

from __future__ import annotations

from dataclasses import replace

import pytest

from danlu.domain.jobs import Reason
from danlu.domain.quotas import Quota
from danlu.domain.resources import Resources
from danlu.scheduler.cycle import Scheduler
from danlu.scheduler.model import SECOND_NS, Plan, Running, Seat, Shape
from tests.factories import make_capacity, make_quota
from tests.unit.scheduling import NOW, wait

LONG_AGO = NOW - 3600 * SECOND_NS


def gpus(count: int, kind: str | None = None, tasks: int = 1) -> Shape:
    return Shape((Resources(cpu_milli=100, gpus=count),) * tasks, kind)


def runs(name: str, devices: tuple[int, ...], *, project: str = "b", node: str = "node-1", **fields: object) -> Running:
    """Returns an attempt that holds these GPUs of a node since long ago."""
    found = Running(f"{name}-1", name, project, 0, 0, LONG_AGO, gpus(len(devices)), (Seat(node, devices),))
    return replace(found, **fields)  # type: ignore[arg-type]


def told(
    *what: object, quotas: tuple[Quota, ...] = (), nodes: tuple[str, ...] = ("node-1",), h100: int = 8
) -> Scheduler:
    made = Scheduler()
    for name in nodes:
        made.node(make_capacity(name, cpu=64, h100=h100))
    made.quotas(quotas)
    for one in what:
        made.holds(one) if isinstance(one, Running) else made.queued(one)  # type: ignore[arg-type]
    return made


def asked(plan: Plan) -> dict[str, set[str]]:
    """Returns who makes way for whom."""
    found: dict[str, set[str]] = {}
    for one in plan.preemptions:
        found.setdefault(one.for_job, set()).add(one.attempt_id)
    return found


def make_way(scheduler: Scheduler, plan: Plan, *, end: bool = True) -> None:
    """Does what a plan asks for: who makes way is told so, and ends."""
    for one in plan.preemptions:
        scheduler.holds(replace(scheduler.running[one.attempt_id], yields_to=one.for_job))
    for one in plan.preemptions if end else ():
        scheduler.freed(one.attempt_id, NOW)


def test_each_of_several_has_one_make_way_and_no_more() -> None:
    victims = [runs(f"r{at}", (at,)) for at in range(8)]
    made = told(*victims, *(wait(f"e{at}", gpus(1), since=at, priority=10) for at in range(4)))
    plan = made.decide(NOW)
    assert {job: len(found) for job, found in asked(plan).items()} == {f"e{at}": 1 for at in range(4)}
    make_way(made, plan, end=False)
    made.queued(wait("later", gpus(1), since=9, priority=10))
    assert {job: len(found) for job, found in asked(made.decide(NOW)).items()} == {"later": 1}


def test_of_those_that_may_be_asked_least_is_lost() -> None:
    saved = [runs(f"r{at}", (at,), saved_at=NOW - (at + 1) * SECOND_NS) for at in (2, 0, 1)]
    made = told(*saved, wait("e", gpus(2), priority=10), h100=3)
    assert asked(made.decide(NOW)) == {"e": {"r0-1", "r1-1"}}


def test_nobody_makes_way_for_a_job_that_its_quota_keeps_waiting() -> None:
    quotas = (make_quota("a", limit={"gpu/h100": 4}),)
    mine = runs("mine", (0, 1, 2, 3), project="a", placed_at=NOW)
    made = told(mine, runs("theirs", (4, 5, 6, 7)), wait("j", gpus(4), project="a", priority=100), quotas=quotas)
    plan = made.decide(NOW)
    assert asked(plan) == {}
    assert plan.waits["j"][0] is Reason.WAITING_FOR_QUOTA


@pytest.mark.parametrize("quota", [{"guarantee": {"gpu": 4}}, {"limit": {"gpu": 4}}])
def test_a_job_for_which_others_make_way_counts(quota: dict[str, object]) -> None:
    """A second one is not within the guarantee, or the limit, any more."""
    priority = 0 if "guarantee" in quota else 10
    made = told(
        runs("r1", (0, 1, 2, 3), project="c"), runs("r2", (0, 1, 2, 3), project="c", node="node-2"),
        *(wait(f"j{at}", gpus(4), project="a", since=at, priority=priority) for at in (1, 2)),
        quotas=(make_quota("a", **quota),), nodes=("node-1", "node-2"), h100=4,
    )  # fmt: skip
    assert list(asked(made.decide(NOW))) == ["j1"]


def test_a_promised_place_is_nobody_elses() -> None:
    """Also for a scheduler that was told of what makes way before it was told of the job."""
    made = told(runs("r", tuple(range(8))), wait("j", gpus(8), since=5, priority=10))
    plan = made.decide(NOW)
    make_way(made, plan, end=False)
    made.queued(wait("urgent", gpus(8), since=6, priority=100))
    again = told(*made.running.values(), *made.waiting.values())
    for one in (made, again):
        one.freed("r-1", NOW)
        one.decide(NOW)
        assert [placement.job_id for placement in one.decide(NOW).placements] == ["j"]


def test_what_is_guaranteed_is_taken_from_nobody() -> None:
    quotas = (make_quota("v", guarantee={"gpu": 8, "cpu": 8000}), make_quota("k", guarantee={"gpu/h100": 8}))
    for project in ("v", "k"):
        many_cores = replace(gpus(8), tasks=(Resources(cpu_milli=21_000, gpus=8),))
        made = told(
            runs("r", tuple(range(8)), project=project, shape=many_cores),
            wait("j", gpus(8), project="p", priority=100), quotas=quotas,
        )  # fmt: skip
        assert asked(made.decide(NOW)) == {}


def test_a_node_that_goes_and_comes_back_leaves_the_counts_right() -> None:
    quotas = (make_quota("b", limit={"gpu/h100": 8}),)
    made = told(runs("r", tuple(range(8))), quotas=quotas)
    made.node(make_capacity("node-1", cpu=0))
    made.freed("r-1", NOW)
    made.node(make_capacity("node-1", cpu=64, h100=8))
    made.queued(wait("j", gpus(8), project="b"))
    assert [placement.job_id for placement in made.decide(NOW).placements] == ["j"]


def test_what_is_kept_moves_when_its_node_is_gone() -> None:
    nodes = ("node-1", "node-2")
    held = (runs("r1", (0,), placed_at=NOW), runs("r2", (0, 1), node="node-2", placed_at=NOW))
    made = told(*held, wait("head", gpus(8)), nodes=nodes)
    made.decide(NOW)
    made.node(make_capacity("node-1", cpu=0))
    made.queued(wait("small", gpus(1), since=9))
    assert made.decide(NOW).placements == ()  # what is free on node-2 is kept for the head now


def test_hopeless_searches_are_no_searches() -> None:
    hopeless = [
        wait(f"h{at}", Shape((Resources(cpu_milli=100 + at, gpus=2),)), project="a", since=at, priority=200)
        for at in range(20)
    ]
    made = told(
        runs("r", tuple(range(8))), *hopeless, wait("j", gpus(8), project="c", priority=10),
        quotas=(make_quota("a", limit={"gpu": 1}),),
    )  # fmt: skip
    assert list(asked(made.decide(NOW))) == ["j"]


def test_who_is_too_young_is_asked_as_soon_as_he_may_be() -> None:
    young = runs("young", (0, 1), placed_at=NOW - 100 * SECOND_NS)
    made = told(young, wait("e", gpus(2), priority=10), h100=2)
    plan = made.decide(NOW)
    assert (asked(plan), plan.again_at) == ({}, NOW + 200 * SECOND_NS)
    assert asked(made.decide(NOW + 200 * SECOND_NS)) == {"e": {"young-1"}}


def test_nobody_is_asked_where_what_leaves_already_is_enough() -> None:
    small = [runs(f"r{at}", (at,), node="node-2") for at in range(2)]
    made = told(runs("large", (0, 1, 2, 3)), *small, nodes=("node-1", "node-2"), h100=4)
    made.holds(runs("x", (2, 3), node="node-2", project="c", priority=10))
    made.queued(wait("first", gpus(3), priority=10))
    plan = made.decide(NOW)
    assert asked(plan) == {"first": {"large-1"}}
    make_way(made, plan, end=False)
    made.queued(wait("second", gpus(1), since=1, priority=10))
    assert asked(made.decide(NOW)) == {}


def test_a_promised_job_does_not_take_what_is_kept_for_a_guarantee() -> None:
    young = [
        runs(name, held, project="d", placed_at=NOW) for name, held in (("young", tuple(range(7))), ("last", (7,)))
    ]
    old = [runs(f"r{at}", (at,), node="node-2") for at in range(8)]
    quotas = (make_quota("mine", guarantee={"gpu": 8}), make_quota("b", guarantee={"gpu": 7}))
    made = told(*young, *old, quotas=quotas, nodes=("node-1", "node-2"))
    made.queued(wait("promised", gpus(1), project="c", priority=10))
    plan = made.decide(NOW)
    assert len(asked(plan)["promised"]) == 1
    make_way(made, plan, end=False)
    made.freed("last-1", NOW)
    made.queued(wait("m", gpus(8), project="mine", since=2))
    assert made.decide(NOW).placements == ()


def test_who_is_chosen_on_a_node_leaves_its_project_what_is_guaranteed() -> None:
    """Of two nodes the first in order cannot be emptied: its last attempt is within its project's guarantee."""
    quotas = (make_quota("mine", guarantee={"gpu": 4}), make_quota("a", guarantee={"gpu": 2}))
    on_first = [runs(f"a{at}", (at,), project="a", keeps=True) for at in range(4)]
    on_second = [runs("a4", (0,), project="a", node="node-2", keeps=True)]
    on_second += [runs(f"b{at}", (at,), node="node-2", keeps=True) for at in (1, 2, 3)]
    made = told(
        *on_first, *on_second, wait("m", gpus(4), project="mine"), quotas=quotas, nodes=("node-1", "node-2"), h100=4
    )
    assert asked(made.decide(NOW)) == {"m": {"a4-1", "b1-1", "b2-1", "b3-1"}}


def test_the_largest_of_a_project_leaves_last() -> None:
    """It may bring its project below its guarantee, if nothing smaller does instead; whoever is chosen first."""
    quotas = (make_quota("mine", guarantee={"gpu": 8}), make_quota("a", guarantee={"gpu": 1}))
    held = [runs("large", (0, 1, 2, 3), project="a", keeps=True)]
    held += [runs("small", (0,), project="a", node="node-2"), runs("b", (1, 2, 3), node="node-2")]
    shape = gpus(4, tasks=2)
    made = told(*held, wait("m", shape, project="mine"), quotas=quotas, nodes=("node-1", "node-2"), h100=4)
    assert asked(made.decide(NOW)) == {"m": {"large-1", "small-1", "b-1"}}


def test_a_guarantee_is_kept_where_it_can_be_taken_back() -> None:
    """The node with most of it free is another's by right; on the others nobody is let in while those there are too young."""
    quotas = (make_quota("mine", guarantee={"gpu": 4}), make_quota("a", guarantee={"gpu": 2}))
    theirs = runs("theirs", (0, 1), project="a", node="node-2")
    young = runs("young", (0, 1, 2), placed_at=NOW)
    made = told(theirs, young, wait("m", gpus(4), project="mine"), quotas=quotas, nodes=("node-1", "node-2"), h100=4)
    made.queued(wait("other", gpus(1), project="c", since=1))
    assert [(one.job_id, one.seats[0].node) for one in made.decide(NOW).placements] == [("other", "node-2")]
