"""When a job could start: tables worked out by hand, and the correction by what really was."""

from __future__ import annotations

import random
from dataclasses import replace

from danlu.domain.resources import Resources
from danlu.scheduler import estimate
from danlu.scheduler.cycle import Scheduler
from danlu.scheduler.estimate import MAX_AHEAD, MAX_STEPS, SLACK, Forecast, Lasting, Told, corrected, forecast, size_of
from danlu.scheduler.explaining import standing
from danlu.scheduler.model import SECOND_NS, Running, Seat, Shape, Waiting
from tests.factories import make_capacity

NOW = 10**6 * SECOND_NS
MINUTE = 60 * SECOND_NS


def gpus(*counts: int) -> Shape:
    return Shape(tuple(Resources(gpus=count) for count in counts))


def runs(name: str, devices: int, *, first: int = 0, ran: int = 0, ends_in: int | None = None) -> Running:
    """Returns an attempt on ``n0`` that has run ``ran`` minutes, and runs ``ends_in`` more at most."""
    return Running(
        f"{name}-1", name, "p", 0, 0, NOW - ran * MINUTE, gpus(devices),
        (Seat("n0", tuple(range(first, first + devices))),),
        ends_by=None if ends_in is None else NOW + ends_in * MINUTE,
    )  # fmt: skip


def waits(name: str, *counts: int, since: int = 0, lasts: int | None = None, priority: int = 0) -> Waiting:
    return Waiting(
        name, "p", priority, NOW - MINUTE + since, (gpus(*counts),), duration=None if lasts is None else lasts * MINUTE
    )


def scheduler(*told: Running | Waiting) -> Scheduler:
    made = Scheduler()
    made.node(make_capacity("n0", gpu=4))
    for one in told:
        made.holds(one) if isinstance(one, Running) else made.queued(one)
    return made


def starts(state: Scheduler, name: str, lasting: Lasting = Lasting(), **ends: int) -> Forecast:  # noqa: B008 - frozen
    place = standing(state, name, NOW)
    assert place is not None
    ahead = [before.job_id for before in place.ahead]
    return forecast(state, name, ahead, NOW, lasting, {f"{one}-1": NOW + at * MINUTE for one, at in ends.items()})


def at(minutes: int, after: str) -> Forecast:
    return Forecast(NOW + minutes * MINUTE, after)


def test_it_starts_when_enough_has_ended() -> None:
    state = scheduler(
        runs("a", 2, ends_in=30), runs("b", 2, first=2, ends_in=10), waits("x", 2), waits("y", 4, since=1)
    )
    assert starts(state, "x") == at(10, "b")
    assert starts(state, "y").unknown == ("x",)  # which has not said how long it runs


def test_who_is_ahead_is_served_first_and_small_ones_pass_by() -> None:
    state = scheduler(
        runs("a", 3, ends_in=30), waits("large", 4, lasts=60), waits("small", 1, since=1, lasts=10),
        waits("long", 1, since=2, lasts=90),
    )  # fmt: skip
    assert starts(state, "large") == at(30, "a")
    assert starts(state, "small") == Forecast(NOW)  # it ends before the large one could start
    assert starts(state, "long") == at(90, "large")


def test_who_makes_way_ends_at_its_deadline() -> None:
    state = scheduler(replace(runs("a", 4, ends_in=300), yields_to="x"), waits("x", 4))
    assert starts(state, "x", a=2) == at(2, "a")


def test_how_long_others_took_stands_for_what_was_not_said() -> None:
    took = Lasting({"p": [MINUTE, 10 * MINUTE, 20 * MINUTE, 40 * MINUTE]})
    state = scheduler(runs("a", 4, ran=15), waits("x", 4))
    assert starts(state, "x") == Forecast(None, None, ("a",))
    assert starts(state, "x", took) == at(25, "a")._replace(
        ended=4
    )  # of those that took longer than 15 min the middle one: 40
    assert starts(scheduler(runs("a", 4, ends_in=30), waits("x", 4)), "x", took).ended == 0  # it has said so itself
    assert took.left("p", None, 0) == 20 * MINUTE
    assert took.left("p", None, 50 * MINUTE) == 50 * MINUTE  # longer than any: as long again
    assert took.left("q", None, 0) is None
    assert took.left("p", 5 * MINUTE, 6 * MINUTE) == 0  # it should have ended


def test_nothing_is_said_beyond_the_bounds() -> None:
    line = [waits(f"w{n}", 4, since=n, lasts=1) for n in range(5)]
    state = scheduler(runs("a", 4, ends_in=30), *line, waits("x", 4, since=9))
    assert starts(state, "x") == at(35, "w4")
    ahead = ["w0"] * (MAX_AHEAD + 1)
    assert forecast(state, "x", ahead, NOW, Lasting(), {}) == Forecast(None)


def test_nothing_is_said_after_too_many_ends() -> None:
    for count, found in ((MAX_STEPS - 1, at(MAX_STEPS - 1, f"a{MAX_STEPS - 2}")), (MAX_STEPS, Forecast(None))):
        state = Scheduler()
        state.node(make_capacity("n0", gpu=count))
        for n in range(count):
            state.holds(runs(f"a{n}", 1, first=n, ends_in=n + 1))
        state.queued(waits("x", count))
        assert starts(state, "x") == found


def test_the_state_is_as_it_was() -> None:
    state = scheduler(runs("a", 4, ends_in=30), waits("x", 4, lasts=1), waits("y", 2, since=1))
    state.decide(NOW)
    before = repr((state.rooms, state.running, state.waiting, state.kept, state.tree))
    kept = dict(state.kept)
    starts(state, "y")
    assert kept
    assert state.kept == kept
    state.decide(NOW)  # what is kept is found anew
    assert repr((state.rooms, state.running, state.waiting, state.kept, state.tree)) == before


def test_without_experience_an_estimate_is_as_it_is_and_its_end_is_far() -> None:
    assert corrected(10 * MINUTE, 1, ()) == (10 * MINUTE, round(11 * MINUTE * estimate.UNTAUGHT) - SLACK, 0)


def test_what_really_was_corrects_by_size() -> None:
    short = [Told(1, 10 * MINUTE, 5 * MINUTE + n) for n in range(30)]
    long = [Told(4, 10 * MINUTE, 100 * MINUTE + n) for n in range(30)]
    half, most, by = corrected(21 * MINUTE, 1, [*short, *long])
    assert 10 * MINUTE < half <= most < 12 * MINUTE
    assert by == 30
    half, most, by = corrected(21 * MINUTE, 4, [*short, *long])
    assert half > 190 * MINUTE
    found = corrected(21 * MINUTE, 2, [*short, *long])
    assert found.most > 190 * MINUTE  # too few of its size: all of them teach
    assert found.by == 60


def test_nine_of_ten_are_covered_whatever_the_ratio_is() -> None:
    dice = random.Random(7)
    told: list[Told] = []
    covered = early = 0
    for _ in range(2000):
        wait = round(dice.expovariate(1 / 1800) * SECOND_NS)
        really = round(wait * dice.lognormvariate(0.3, 1.0))
        half, most, _ = corrected(wait, 1, told[-300:])
        covered += really <= most
        early += really <= half
        told.append(Told(1, wait, really))
    assert 0.88 <= covered / 2000 <= 0.93
    assert 0.45 <= early / 2000 <= 0.55


def test_sizes() -> None:
    assert [size_of(gpus(*counts)) for counts in ((0,), (1,), (2,), (3,), (4,), (8, 8))] == [0, 1, 2, 2, 3, 5]
