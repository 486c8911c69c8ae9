"""What a user is told about a wrong field: which, why, and what was probably meant."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from danlu.domain.specs import JobSpec
from danlu.domain.validation import MAX_PROBLEMS, invalid_spec, nearest, suggestion
from danlu.errors import InvalidSpec, from_problem


def refused(**fields: Any) -> InvalidSpec:
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate(fields)
    return invalid_spec(caught.value, JobSpec)


@pytest.mark.parametrize(
    ("fields", "message", "step"),
    [
        ({"commnd": "x", "command": "x"}, "commnd is not a field", "did you mean command?"),
        ({"command": "x", "retry": {"attemps": 3}}, "retry.attemps is not a field", "did you mean attempts?"),
        ({"command": "x", "zzz": 3}, "zzz is not a field", ""),
        ({}, "command is missing", ""),
        ({"command": "x", "cpu": "lots"}, "cpu: 'lots' is not an amount of CPU: write for example 2, 0.5 or 500m", ""),
        ({"command": "x", "gpu": 5000}, "gpu: must be at most 4096 (it is 5000)", ""),
        ({"command": "x", "gpu_kind": "h100"}, "gpu_kind is set but gpu is 0", ""),
        ({"command": "x", "gpu": "two"}, "gpu: must be a whole number (it is 'two')", ""),
        ({"command": "x", "labels": 3}, "labels: must be names with values (it is 3)", ""),
        ({"command": "x", "framework": "tensorflw"}, "framework 'tensorflw' is not known", "did you mean tensorflow?"),
        ({"command": "x", "roles": {"a": {"replica": 1}}}, "roles.a.replica is not a field", "did you mean replicas?"),
        ({"command": ""}, "command: it is empty: give the words to run, for example python train.py", ""),
    ],
)
def test_what_is_told(fields: dict[str, Any], message: str, step: str) -> None:
    error = refused(**fields)
    assert (error.message, error.next_step) == (message, step)
    assert error.status == 422


def test_every_problem_is_told_once() -> None:
    error = refused(command=7, cpu="x", memry=1)
    assert error.message.count("memry") == 1
    assert [problem["field"] for problem in error.details["problems"]] == ["command", "cpu", "memry"]
    assert error.next_step == "did you mean memory?"


def test_what_is_told_is_bounded() -> None:
    error = refused(command="x", **{f"wrong{number}": "y" * 10_000 for number in range(100)})
    assert len(error.details["problems"]) == MAX_PROBLEMS
    assert len(error.message) < 5000
    assert len(refused(command="x", cpu="9" * 100_000).message) < 500


def test_the_error_survives_the_wire() -> None:
    error = refused(command="x", cpuu=1)
    again = from_problem(error.to_problem(), 422)
    assert type(again) is InvalidSpec
    assert (again.message, again.next_step, again.details) == (error.message, error.next_step, error.details)


@given(
    st.dictionaries(
        st.text(max_size=8), st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text(max_size=3))
    )
)
def test_any_fields_make_a_specification_or_an_error_in_words(fields: dict[str, Any]) -> None:
    try:
        JobSpec.model_validate(fields)
    except ValidationError as error:
        found = invalid_spec(error, JobSpec)
        assert found.message
        found.to_problem()


def test_the_nearest_name() -> None:
    assert nearest("TensorFlow1", ["tensorflow-1", "pytorch"]) == "tensorflow-1"
    assert suggestion("xyz", ["tensorflow-1"]) == ""
    assert suggestion("", []) == ""
