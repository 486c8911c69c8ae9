"""What a user is told about a wrong field: which, why, and what was probably meant."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from danlu.api import OPERATIONS
from danlu.domain.dependencies import AFTER_PATTERN
from danlu.domain.ids import NAME_PATTERN
from danlu.domain.prices import AMOUNT_PATTERN, CURRENCY_PATTERN, RESOURCE_PATTERN
from danlu.domain.resources import GPU_KIND_PATTERN
from danlu.domain.specs import NOTICE_SIGNALS, JobSpec
from danlu.domain.validation import MAX_PROBLEMS, PATTERNS, invalid_spec, nearest, suggestion
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
        (
            {"command": "x", "gpu": "1-4"},
            "gpu: '1-4' is no number of GPUs, and a range has two dots",
            "did you mean 1..4?",
        ),
        (
            {"command": "x", "gpu": 1, "gpu_kind": "H100"},
            f"gpu_kind: {PATTERNS[GPU_KIND_PATTERN]} (it is 'H100')",
            "did you mean h100?",
        ),
        ({"command": "x", "after": "a b"}, f"after.0: {PATTERNS[AFTER_PATTERN]} (it is 'a b')", ""),
        (
            {"command": "x", "after": ["A:any"]},
            f"after.0: {PATTERNS[AFTER_PATTERN]} (it is 'A:any')",
            "did you mean a:any?",
        ),
        ({"command": "x", "memory": "4"}, "memory: '4' has no unit and would be 4 B", "did you mean 4GiB?"),
        ({"command": ""}, "command: it is empty: give the words to run, for example python train.py", ""),
    ],
)
def test_what_is_told(fields: dict[str, Any], message: str, step: str) -> None:
    error = refused(**fields)
    assert (error.message, error.next_step) == (message, step)
    assert error.status == 422


OWN_WORDS = {RESOURCE_PATTERN, CURRENCY_PATTERN, AMOUNT_PATTERN, f"^(SIG)?({'|'.join(NOTICE_SIGNALS)})$"}
"""Their validators say what is wrong."""


def patterns(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        yield from [schema["pattern"]] if isinstance(schema.get("pattern"), str) else []
    if isinstance(schema, dict | list):
        for part in schema.values() if isinstance(schema, dict) else schema:
            yield from patterns(part)


def test_no_request_is_refused_with_a_pattern() -> None:
    asked = {model for operation in OPERATIONS for model in (operation.body, operation.query)}
    models = [model for model in asked if isinstance(model, type) and issubclass(model, BaseModel)]
    found = {pattern for model in models for pattern in patterns(model.model_json_schema())}
    assert NAME_PATTERN in found
    assert found - {*PATTERNS} - OWN_WORDS == set()


def test_a_secret_is_not_repeated_in_small_letters() -> None:
    class Hidden(BaseModel):
        model_config = ConfigDict(hide_input_in_errors=True)
        name: str = Field(pattern=NAME_PATTERN)

    with pytest.raises(ValidationError) as caught:
        Hidden.model_validate({"name": "PASSWORD"})
    error = invalid_spec(caught.value, Hidden)
    assert "password" not in f"{error.message} {error.next_step} {error.details}".lower()


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
