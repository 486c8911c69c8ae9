"""Arrays, dependencies, priorities and GPU ranges as they are written, and the rules that keep a job waiting."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from danlu.cli.arrays import counts
from danlu.database.queries import QueuedJob
from danlu.domain.arrays import ArraySpec, ArrayState, array_id, element_id, indexes_of
from danlu.domain.environments import EnvironmentReason, EnvironmentState
from danlu.domain.ids import ALPHABET, derived_id, is_id
from danlu.domain.jobs import JobState, Reason
from danlu.domain.priorities import CLASSES, priority_text
from danlu.domain.specs import JobSpec
from danlu.scheduler.sizing import never_fits
from danlu.services.eligibility import Facts, not_yet
from tests.factories import NOW, Ids, make_array, make_capacity, make_environment, make_job, make_spec

WAITING = QueuedJob(
    id="j1", project="default", priority=0, queued_at=NOW, not_before=0, environment_id=None, reason=None, desired="run",
    version=1, cpu=None, memory=None, gpu=0, gpu_kind=None, env="python", framework=None, roles="{}", gpu_min=None,
    max_time=None, held=False, waits_for="[]", array_id=None, parallel=None, attained=0, saves=False,
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "indexes"),
    [
        ("0-3", (0, 1, 2, 3)), ("0-9:4", (0, 4, 8)), ("7,1,3", (1, 3, 7)), ("5", (5,)), ("0-2,1-4", (0, 1, 2, 3, 4)),
        ("3-3", (3,)), (" 1, 2 ", (1, 2)), ("0-9:100", (0,)), ("999999", (999_999,)),
    ],
)  # fmt: skip
def test_indexes_are_read(text: str, indexes: tuple[int, ...]) -> None:
    assert indexes_of(text) == indexes


def test_an_array_as_one_text() -> None:
    assert ArraySpec.model_validate("0-999%50") == ArraySpec(indexes="0-999", parallel=50)
    assert len(ArraySpec.model_validate("0-9999").elements) == 10_000
    with pytest.raises(ValidationError, match=r"at most 10,000"):
        ArraySpec.model_validate("0-4999,5000-10000")


def test_ids_of_elements_follow_from_the_first_and_are_as_hard_to_guess() -> None:
    first = Ids()()
    every = [element_id(first, at, at * 3) for at in range(10_000)]
    assert every[0] == first
    assert len(set(every)) == 10_000
    assert all(is_id(one, "j") and one[:9] == first[:9] for one in every)  # the same time
    assert every == [element_id(first, at, at * 3) for at in range(10_000)]
    bits = [
        sum(ALPHABET.index(one[place]) >> bit & 1 for one in every[1:]) for place in range(11, 27) for bit in range(5)
    ]
    assert all(4500 < ones < 5500 for ones in bits)  # 80 bits that are like thrown ones
    assert derived_id(first, "1") != derived_id(Ids(1)(), "1")
    assert is_id(array_id(first), "r")


@pytest.mark.parametrize(("written", "number"), [("low", -100), ("High", 100), ("7", 7), (-3, -3), (" normal ", 0)])
def test_a_priority_has_a_name_or_is_a_number(written: Any, number: int) -> None:
    assert make_spec(priority=written).priority == number


def test_a_priority_is_told_by_its_name() -> None:
    assert [priority_text(number) for number in (*CLASSES.values(), 7)] == ["low", "normal", "high", "7"]


def test_a_range_of_gpus_is_what_the_gang_may_have() -> None:
    spec = make_spec(gpu="2..4", roles={"ps": {}, "worker": {"replicas": 2}}, framework="tensorflow")
    assert (spec.gpu, spec.gpu_min) == (4, 2)
    assert [[task.gpus for task in shapes] for shapes in spec.choices] == [[4, 4, 0], [3, 3, 0], [2, 2, 0]]
    assert spec.shapes == spec.choices[0]
    assert JobSpec.model_validate(spec.model_dump(mode="json")) == spec
    assert make_spec(gpu="3 .. 3").gpu_min is None
    assert make_spec(gpu=3).choices == (make_spec(gpu=3).shapes,)


def test_a_range_never_fits_where_its_least_does_not() -> None:
    nodes = [make_capacity(h100=2)]
    assert never_fits(make_spec(gpu="2..8"), nodes) is None
    never = never_fits(make_spec(gpu="3..8"), nodes)
    assert never is not None
    assert "3 gpu" in never[0]


def facts(**given: Any) -> Facts:
    return replace(Facts({}, {}, NOW + 1), **given)


def after(*conditions: str) -> str:
    some = ", ".join(
        f'{{"id": "d{at}", "name": "dep-{at}", "condition": "{one}"}}' for at, one in enumerate(conditions)
    )
    return f"[{some}]"


@pytest.mark.parametrize(
    ("condition", "state", "becomes"),
    [
        ("succeeded", None, (JobState.QUEUED, Reason.WAITING_FOR_DEPENDENCY)),
        ("succeeded", "succeeded", None),
        ("succeeded", "failed", (JobState.FAILED, Reason.DEPENDENCY_FAILED)),
        ("succeeded", "cancelled", (JobState.FAILED, Reason.DEPENDENCY_FAILED)),
        ("failed", None, (JobState.QUEUED, Reason.WAITING_FOR_DEPENDENCY)),
        ("failed", "failed", None),
        ("failed", "succeeded", (JobState.CANCELLED, Reason.DEPENDENCY_FAILED)),
        ("failed", "cancelled", (JobState.CANCELLED, Reason.DEPENDENCY_FAILED)),
        ("any", None, (JobState.QUEUED, Reason.WAITING_FOR_DEPENDENCY)),
        ("any", "succeeded", None),
        ("any", "failed", None),
        ("any", "cancelled", None),
    ],
)
def test_what_it_is_to_run_after_decides(
    condition: str, state: str | None, becomes: tuple[JobState, Reason] | None
) -> None:
    job = WAITING._replace(waits_for=after(condition))
    change = not_yet(job, facts(ended={} if state is None else {"d0": state}))
    assert (None if change is None else (change.state, change.reason)) == becomes
    if change is not None:
        assert "dep-0" in change.message


def test_one_that_can_never_be_met_ends_it_whatever_else_it_waits_for() -> None:
    job = WAITING._replace(waits_for=after("succeeded", "succeeded"), held=True)
    change = not_yet(job, facts(ended={"d1": "failed"}))
    assert change is not None
    assert (change.state, change.message) == (JobState.FAILED, "it was to run after dep-1 (d1), which has failed")
    change = not_yet(WAITING._replace(waits_for=after("failed")), facts(ended={"d0": "cancelled"}))
    assert change is not None
    assert change.message == "it was to run if dep-0 failed, and that was cancelled"


def test_many_are_counted() -> None:
    change = not_yet(WAITING._replace(waits_for=after(*["any"] * 5)), facts())
    assert change is not None
    assert change.message == "waits for dep-0 to end, dep-1 to end, dep-2 to end and 2 more"


def test_a_stop_comes_before_all() -> None:
    job = WAITING._replace(desired="stop", held=True, waits_for=after("any"), environment_id="e")
    change = not_yet(job, facts())
    assert change is not None
    assert (change.state, change.reason) == (JobState.CANCELLED, Reason.STOPPED)


def test_a_held_job_waits_until_it_is_released() -> None:
    change = not_yet(WAITING._replace(held=True, not_before=NOW + 9), facts())
    assert change is not None
    assert (change.state, change.reason) == (JobState.QUEUED, Reason.ON_HOLD)
    assert not_yet(WAITING, facts()) is None


def test_its_environment_has_to_be_there() -> None:
    wanted = make_environment("e" + "0" * 26)
    job = WAITING._replace(environment_id=wanted.id)
    building = not_yet(job, facts(environments={wanted.id: wanted}))
    failed = wanted.moved(EnvironmentState.BUILDING, now=NOW, reason=EnvironmentReason.BUILDING).moved(
        EnvironmentState.FAILED, now=NOW, reason=EnvironmentReason.RESOLUTION_FAILED, message="no such package"
    )
    ended = not_yet(job, facts(environments={wanted.id: failed}))
    assert building is not None
    assert ended is not None
    assert (building.reason, ended.state) == (Reason.ENVIRONMENT_BUILDING, JobState.FAILED)
    assert ended.message == "environment python: no such package"


def test_a_pause_passes() -> None:
    job = WAITING._replace(not_before=NOW + 10)
    change = not_yet(job, facts(now=NOW + 9))
    assert change is not None
    assert change.reason is Reason.WAITING_FOR_RETRY
    assert not_yet(job, facts(now=NOW + 10)) is None
    assert not_yet(job, facts(now=NOW - 1)) is None  # the clock was wrong when that was written


def test_a_stopped_array_has_ended_once_what_was_made_of_it_has() -> None:
    array = make_array(make_job(), size=10, stored=5)
    assert ArrayState(array=array, counts={"cancelled": 5}, unsuccessful=()).live  # the others are being made
    stopped = array.model_copy(update={"stopped": True})
    ended = ArrayState(array=stopped, counts={"cancelled": 5}, unsuccessful=())
    assert not ended.live
    assert counts(ended) == "5 cancelled, 5 never made"
    assert ArrayState(array=stopped, counts={"cancelled": 4, "running": 1}, unsuccessful=()).live
