"""What `danlu explain` says: fields with types, bounds, examples and flags; codes; what was probably meant."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError

from danlu.cli.explain import NOUNS, _find, explain
from danlu.cli.init import FILLED_IN
from danlu.cli.options import FLAGS, Asked, Roles, flag_of
from danlu.domain.fields import described, nested
from danlu.domain.jobs import Reason
from danlu.domain.meanings import ADVICE
from danlu.domain.records import Value
from danlu.domain.resources import GpuCount, MemoryBytes, Seconds
from danlu.domain.specs import JobSpec
from danlu.errors import InvalidRequest


class Part(Value):
    """One of several."""

    replicas: int = Field(default=1, ge=1, le=100)
    gpu: GpuCount = 0
    memory: MemoryBytes | None = Field(default=None, description="what it may use")
    wait: Seconds | None = Field(default=None, le=5400)


class Whole(Value):
    """Several parts."""

    parts: dict[Annotated[str, Field(max_length=9)], Part] = Field(default_factory=dict, description="by name")
    rows: tuple[Part, ...] = ()
    mode: Literal["fast", "slow"] = "fast"
    word: str = Field(min_length=2, max_length=5, examples=["abc"])


def test_fields_in_words() -> None:
    found = {field.name: field for field in described(Whole)}
    assert (found["parts"].model, found["parts"].keyed) == (Part, True)
    assert (found["rows"].model, found["rows"].keyed) == (Part, False)
    assert found["mode"].kind == "`fast`, `slow`"
    assert found["word"].bounds == ("at least 2 characters", "at most 5 characters")
    assert (found["word"].required, found["word"].example) == (True, "abc")
    inner = {field.name: field for field in described(Part)}
    assert inner["gpu"].bounds == ("at least 0", "at most 4,096")
    assert inner["replicas"].bounds == ("at least 1", "at most 100")
    assert (inner["memory"].kind, inner["memory"].example) == ("memory", "4GiB")
    assert inner["memory"].bounds == ("1 byte to 1 EiB",)
    assert inner["wait"].bounds == ("1ms to 90m",)
    assert list(nested(Whole)) == [("parts.NAME", Part), ("rows", Part)]


@pytest.mark.parametrize(
    ("path", "place", "field", "model"),
    [
        ("parts", "whole.parts", "parts", Part),
        ("parts.worker", "whole.parts.worker", None, Part),
        ("parts.worker.memory", "whole.parts.worker.memory", "memory", None),
        ("parts.memory", "whole.parts.memory", "memory", None),
        ("rows.gpu", "whole.rows.gpu", "gpu", None),
        ("", "whole", None, Whole),
    ],
)
def test_a_path_leads_into_models_and_past_names(path: str, place: str, field: str | None, model: Any) -> None:
    found = _find("whole", path.split(".") if path else [], {"whole": Whole})
    assert (found[2], found[1] and found[1].name, found[0]) == (place, field, model)


@pytest.mark.parametrize(
    ("word", "said", "step"),
    [
        ("job.memry", "job.memry is not a field", "did you mean memory?   danlu explain job.memory"),
        ("job.retry.attemps", "job.retry.attemps is not a field", "danlu explain job.retry.attempts"),
        ("job.memory.max", "job.memory has no fields of its own", "danlu explain job.memory"),
        ("job.", "job. is not a field", "danlu explain job"),
        ("memory", 'nothing called "memory"', "danlu explain job.memory"),
        ("OutOfMemry", 'nothing called "OutOfMemry"', "did you mean OutOfMemory?"),
        ("jbo", 'nothing called "jbo"', "did you mean job?"),
        ("", 'nothing called ""', "danlu explain job"),
    ],
)
def test_what_is_not_there(word: str, said: str, step: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        explain(word)
    assert said in raised.value.message
    assert step in raised.value.next_step


def test_a_field(capsys: pytest.CaptureFixture[str]) -> None:
    assert explain("job.memory") == 0
    said = capsys.readouterr().out
    for line in (
        "type        memory",
        "bounds      1 byte to 1 EiB",
        "example     memory: 4GiB",
        "flag        danlu run --memory",
    ):
        assert line in said


def test_a_field_as_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert explain("job.retry", output="json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert [field["path"] for field in facts["fields"]] == ["job.retry.attempts", "job.retry.backoff"]
    assert facts["fields"][0]["flag"] == "--retries"
    assert explain("job", output="name") == 0
    assert "job.memory" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("code", sorted(ADVICE))
def test_every_reason_with_advice_is_explained(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(code.lower()) == 0
    said = capsys.readouterr().out
    assert code in said
    assert "  try  " in said


def test_every_reason_that_ends_a_job_badly_has_advice() -> None:
    well = {Reason.COMPLETED, Reason.STOPPED, Reason.STARTED, Reason.PLACED, Reason.LAUNCHING, Reason.STOP_REQUESTED}
    assert set(Reason) - well <= set(ADVICE)


@pytest.mark.parametrize("noun", NOUNS)
def test_every_noun_is_explained(noun: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(noun) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in NOUNS[noun].model_fields)


def test_every_field_of_a_job_has_an_example_that_is_right_and_a_description() -> None:
    for field in (field for field in described(JobSpec) if field.name not in FILLED_IN):
        assert field.example is not None, field.name
        assert field.description, field.name
        given: dict[str, Any] = {"command": "x", field.name: field.example}
        if field.name == "code":
            given["code"] = f"sha256:{'0' * 64}"  # in a file it is a folder's name
        needs = {"gpu_kind": {"gpu": 1}, "gpu_min": {"gpu": 8}, "interpreter": {"env": "host"}}
        try:
            JobSpec.model_validate({**given, **needs.get(field.name, {})})
        except ValidationError as error:
            pytest.fail(f"{field.name}: {error}")


def test_flags_are_those_that_there_are() -> None:
    flags = {f"--{name.replace('_', '-')}" for name in (*Asked.__dataclass_fields__, *Roles.__dataclass_fields__)} | {
        "--code",
        "-- COMMAND",
    }
    assert set(FLAGS.values()) <= flags
    assert flag_of("job.gpu_kind") == "--gpu-kind"
    assert flag_of("job.framework") == "--framework"
    assert flag_of("job.retry") == flag_of("attempt.name") == ""
    for path in FLAGS:
        assert path.split(".")[0] in JobSpec.model_fields
