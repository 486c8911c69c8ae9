"""Where a job stands and what would start instead, held against what the scheduler really decides."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from danlu.domain.quotas import Quota
from danlu.domain.resources import Resources
from danlu.domain.specs import JobSpec
from danlu.domain.waits import Precedence
from danlu.scheduler.cycle import Scheduler
from danlu.scheduler.explaining import asked_later, decided, room, standing, would_start
from danlu.scheduler.model import SECOND_NS, Running, Seat, Shape, Waiting
from danlu.scheduler.smaller import smaller
from tests.factories import make_capacity, make_quota, make_spec

NOW = 10**6 * SECOND_NS
HOUR = 3600 * SECOND_NS


def ask(gpus: int, tasks: int = 1, kind: str | None = None) -> Shape:
    return Shape((Resources(cpu_milli=1000, gpus=gpus),) * tasks, kind)


def wait(name: str, gpus: int = 1, *, project: str = "p", since: int = 0, **more: object) -> Waiting:
    return Waiting(name, project, more.pop("priority", 0), since, (ask(gpus),), **more)  # type: ignore[arg-type]


def held(dice: random.Random, at: int, node: str) -> Running:
    """Returns an attempt of some project that has held one GPU for up to a day."""
    return Running(
        f"r{at}-1", f"r{at}", f"p{dice.randrange(4)}", 0, 0, NOW - dice.randrange(24 * HOUR), ask(1), (Seat(node, (at,)),),
    )  # fmt: skip


def quotas(dice: random.Random) -> tuple[Quota, ...]:
    if dice.random() < 0.4:
        return ()
    limited = {"gpu": dice.randrange(2, 12)}
    return (
        make_quota("g", group=True, limit=limited), make_quota("p0", parent="g", guarantee={"gpu": 1}),
        make_quota("p1", parent="g", weight=3), make_quota("p2", guarantee={"gpu": dice.randrange(1, 4)}),
    )  # fmt: skip


def some(dice: random.Random, nodes: int, gpus: int = 64) -> Scheduler:
    """Returns a scheduler with jobs that wait and some that run, on so many nodes of so many GPUs."""
    made = Scheduler()
    for at in range(nodes):
        made.node(make_capacity(f"n{at}", cpu=1000, gpu=gpus))
    made.quotas(quotas(dice))
    for at in range(dice.randrange(6)):
        made.holds(held(dice, at, "n0"))
    for at in range(dice.randrange(1, 25)):
        made.queued(
            Waiting(
                f"w{at}", f"p{dice.randrange(4)}", dice.choice((0, 0, 10)), NOW - dice.randrange(HOUR),
                (ask(dice.choice((1, 1, 2, 4))),), attained=dice.choice((0, 0, 5000 * 1000 * SECOND_NS)),
                **dice.choice(({}, {}, {"array": "a", "parallel": 2})),
            )
        )  # fmt: skip
    return made


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 2**32))
def test_ahead_are_those_that_are_started_before_in_their_order(seed: int) -> None:
    """With room for all, a decision starts them one after the other: whoever it starts before a job was told as ahead."""
    state = some(random.Random(seed), 5)
    names = sorted(state.waiting)
    told = {name: standing(state, name, NOW) for name in names}
    plan = state.decide(NOW)
    assume(not plan.preemptions)  # a place that is promised counts for the quota, too
    started = [one.job_id for one in plan.placements]
    for at, name in enumerate(started):
        place = told[name]
        assert place is not None
        assert [before.job_id for before in place.ahead] == started[:at]
        assert place.total == len(names)
    assert standing(state, "r0", NOW) is None


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32))
def test_what_is_said_to_start_does_and_nothing_else_would(seed: int) -> None:
    """Beside what is kept for others, as a job that asks last: tried by a decision on a state that was never asked."""
    dice = random.Random(seed)

    def full() -> Scheduler:
        made = some(random.Random(seed), 1, 16)
        made.queued(wait("x", 16, project="p3", since=NOW - 1))
        return made

    state, other = full(), full()
    decided(state, "x", NOW)
    shape = ask(dice.choice((1, 1, 2, 4, 8)))
    said = would_start(state, "x", shape, NOW)
    other.gone("x")
    other.queued(Waiting("new", "p3", 0, NOW, (shape,)))
    assert said == any(one.job_id == "new" for one in other.decide(NOW).placements)
    assert "x" in state.waiting


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32))
def test_who_is_said_to_be_asked_later_is_asked_then_and_not_before(seed: int) -> None:
    """Tried at each time at which another one has run for long enough, each by a state that was never asked."""
    dice = random.Random(seed)
    ages = [dice.randrange(600) for _ in range(8)]
    gpus, limits = dice.randrange(1, 6), dice.choice(((), [make_quota("p", guarantee={"gpu": 6})]))

    def full() -> Scheduler:
        made = Scheduler()
        made.node(make_capacity("n0", cpu=64, gpu=8))
        made.quotas(limits)
        for at, age in enumerate(ages):
            owner = f"p{at % 3}"
            began = NOW - age * SECOND_NS
            made.holds(Running(f"r{at}-1", f"r{at}", owner, -at % 2, 0, began, ask(1), (Seat("n0", (at,)),)))
        made.queued(wait("other", 2, project="p1", since=NOW - 2))
        made.queued(wait("x", gpus, since=NOW - 1))
        return made

    def asked(at: int) -> set[str]:
        return {one.attempt_id for one in full().decide(at).preemptions if one.for_job == "x"}

    assume(not asked(NOW))
    said = asked_later(full(), "x", NOW)
    times = [at for at in sorted(NOW + (300 - age) * SECOND_NS for age in ages) if at > NOW]
    first = next((at for at in times if asked(at)), None)
    assert (None if said is None else said.at) == first
    if said is not None:
        assert {f"{job_id}-1" for job_id in said.job_ids} == asked(said.at)


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        (wait("a", project="q", since=9), wait("b"), Precedence.GUARANTEE),
        (wait("a", since=9, priority=10), wait("b"), Precedence.PRIORITY),
        (wait("a", project="r", since=9), wait("b"), Precedence.PROJECT_HAD_LESS),
        (wait("a", since=9), wait("b", attained=10**6 * 1000 * SECOND_NS), Precedence.HAD_LESS),
        (wait("a", project="s", since=9), wait("b", project="r"), Precedence.PROJECT_HOLDS_LESS),
        (wait("a"), wait("b", since=9), Precedence.ASKED_BEFORE),
        (wait("a"), wait("b"), Precedence.ASKED_BEFORE),
    ],
)
def test_why_one_is_before_the_other(first: Waiting, second: Waiting, why: Precedence) -> None:
    state = Scheduler()
    state.node(make_capacity("n0", cpu=64, gpu=8))
    state.quotas([make_quota("q", guarantee={"gpu": 2})])
    for project, began, devices in (("p", NOW - 480 * HOUR, range(6)), ("r", NOW - 1, range(6, 8))):
        seat = Seat("n0", tuple(devices))
        state.holds(Running(f"{project}-1", project, project, 0, 0, began, ask(len(devices)), (seat,)))
    state.queued(first)
    state.queued(second)
    place = standing(state, "b", NOW)
    assert place is not None
    assert [(before.job_id, before.why) for before in place.ahead] == [("a", why)]


def test_those_that_a_limit_of_their_own_keeps_back_are_before_nobody() -> None:
    state = Scheduler()
    state.node(make_capacity("n0", cpu=64, gpu=8))
    state.quotas([make_quota("q", limit={"gpu": 2})])
    for at in range(4):
        state.queued(wait(f"q{at}", project="q", since=at))
        state.queued(replace(wait(f"a{at}", project="s", since=at), array="a", parallel=1))
    state.queued(wait("x", since=9, priority=-10))
    place = standing(state, "x", NOW)
    assert place is not None
    assert {before.job_id for before in place.ahead} == {"q0", "q1", "a0"}
    assert place.total == 9


def test_what_is_kept_for_those_ahead_is_told_as_far_as_it_is_free() -> None:
    state = Scheduler()
    state.node(make_capacity("n0", cpu=64, gpu=8))
    state.holds(Running("r-1", "r", "p", 0, 0, NOW, ask(6), (Seat("n0", tuple(range(6))),)))
    state.queued(wait("large", 4))
    state.queued(wait("small", 1, since=1))
    assert not decided(state, "small", NOW).starts
    found = {one.resource: (one.total, one.free, one.most, one.kept) for one in room(state, "small", ["large"])}
    assert found == {"gpu/gpu": (8, 2, 2, 2), "cpu": (64_000, 63_000, 63_000, 1000)}
    assert room(state, "large", [])[0].kept == 0


@pytest.mark.parametrize(
    ("spec", "flags"),
    [
        ({"gpu": 8}, ["--nodes 2 --gpu 4", "--nodes 4 --gpu 2", "--nodes 8 --gpu 1", "--gpu 4", "--cpu 0.5"]),
        ({"gpu": 3, "gpu_kind": "a100"}, ["--gpu-kind v100", "--gpu 2", "--cpu 0.5", "--gpu 1", "--cpu 0.25"]),
        ({"gpu": 8, "gpu_min": 6}, ["--nodes 2 --gpu 3", "--gpu 3", "--cpu 0.5", "--gpu 2", "--cpu 0.25"]),
        (
            {"cpu": 4, "memory": "8GiB"},
            ["--cpu 2", "--memory 4096MiB", "--cpu 2 --memory 4096MiB", "--cpu 1", "--memory 2048MiB"],
        ),
        (
            {"gpu": 2, "roles": {"node": {"replicas": 2}}},
            ["--nodes 4 --gpu 1", "--nodes 1", "--gpu 1", "--cpu 0.5", "--cpu 0.25"],
        ),
        (
            {"roles": {"worker": {"replicas": 5}, "ps": {}}, "framework": "tensorflow"},
            ["--worker 3", "--cpu 0.5", "--worker 2", "--cpu 0.25", "--worker 1"],
        ),
        ({"roles": {"actor": {"replicas": 2, "gpu": 1}}, "framework": "none"}, ["--role actor=1", "--cpu 0.5", "--cpu 0.25"]),
    ],
)  # fmt: skip
def test_smaller_shapes_what_changes_least_first(spec: dict[str, object], flags: list[str]) -> None:
    found = [one.flags for one in smaller(make_spec(**spec), ["a100", "v100"])]
    assert found[: len(flags)] == flags
    assert len(found) == len({*found})


def test_a_smaller_shape_asks_for_what_its_flags_say() -> None:
    spec: JobSpec = make_spec(gpu=8, cpu=2)
    found = {one.flags: one.shape for one in smaller(spec, ["gpu"])}
    assert found["--nodes 2 --gpu 4"] == Shape((Resources(cpu_milli=2000, gpus=4),) * 2, None, 2)
    assert found["--gpu 1"] == Shape((Resources(cpu_milli=2000, gpus=1),))
