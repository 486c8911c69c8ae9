"""Jobs as nouns: specifications, ids, moves."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from danlu.domain.commands import name_from_command
from danlu.domain.environments import Environment
from danlu.domain.ids import RANDOM_BITS, attempt_id, is_id, job_of_attempt, make_id
from danlu.domain.jobs import LIVE_JOB_STATES, Attempt, AttemptState, Job, JobState, Reason, job_exit_code
from danlu.domain.records import terminal
from danlu.domain.specs import JobSpec, json_changes
from danlu.errors import IllegalMove
from tests.factories import NOW, Ids, make_attempt, make_environment, make_job, make_spec, make_task

# ids


@given(
    st.integers(0, 2**48 - 1),
    st.integers(0, 2**48 - 1),
    st.integers(0, 2**RANDOM_BITS - 1),
    st.integers(0, 2**RANDOM_BITS - 1),
)
def test_ids_sort_by_time(first_ms: int, second_ms: int, first_bits: int, second_bits: int) -> None:
    first = make_id("j", first_ms * 1_000_000, first_bits)
    second = make_id("j", second_ms * 1_000_000, second_bits)
    assert is_id(first, "j")
    assert not is_id(first, "e")
    assert (first < second) == ((first_ms, first_bits) < (second_ms, second_bits))


@pytest.mark.parametrize("bits", [-1, 1 << RANDOM_BITS])
def test_an_id_has_so_many_random_bits(bits: int) -> None:
    with pytest.raises(ValueError, match="82"):
        make_id("j", NOW, bits)


@pytest.mark.parametrize("change", ["", "j", "{}\n", "{}x", " {}", "J{}", "{}-1"])
def test_what_only_looks_like_an_id(change: str) -> None:
    text = change.format(Ids()())
    assert not is_id(text, "j")


def test_an_attempts_id_tells_its_job() -> None:
    job = Ids()()
    assert job_of_attempt(attempt_id(job, 12)) == (job, 12)
    for wrong in (job, f"{job}-0", f"{job}-01", f"{job}-1\n", f"{job}-1234567", "x-1", ""):
        with pytest.raises(ValueError, match="not an attempt's id"):
            job_of_attempt(wrong)


# moves


@pytest.mark.parametrize("noun", [Job, Attempt, Environment])
def test_every_state_has_its_moves_and_can_be_reached(noun: Any) -> None:
    states = frozenset(type(next(iter(noun.MOVES))))
    assert set(noun.MOVES) == states
    first = noun.model_fields["state"].default
    reached, waiting = {first}, [first]
    while waiting:
        for following in noun.MOVES[waiting.pop()] - reached:
            reached.add(following)
            waiting.append(following)
    assert reached == states


def test_from_every_state_a_job_can_end() -> None:
    assert terminal(Job.MOVES) == {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}
    assert frozenset(JobState) - terminal(Job.MOVES) == LIVE_JOB_STATES
    assert terminal(Attempt.MOVES) == {AttemptState.ENDED}


@pytest.mark.parametrize("old", JobState)
@pytest.mark.parametrize("new", JobState)
def test_a_job_moves_by_its_table_alone(old: JobState, new: JobState) -> None:
    job = make_job(state=old)
    if new in Job.MOVES[old]:
        moved = job.moved(new, now=NOW - 1, reason=Reason.STARTED, message="m")
        assert (moved.state, moved.reason, moved.message, moved.version, moved.updated_at) == (
            new,
            Reason.STARTED,
            "m",
            2,
            NOW,
        )
    else:
        with pytest.raises(IllegalMove, match=rf"cannot become {new}"):
            job.moved(new, now=NOW, reason=None)


def test_a_move_needs_fields_that_exist() -> None:
    with pytest.raises(ValidationError, match="nonsense"):
        make_job().moved(JobState.ADMITTED, now=NOW, reason=None, nonsense=1)


def test_a_message_is_cut_and_can_be_stored() -> None:
    moved = make_job().moved(JobState.ADMITTED, now=NOW, reason=None, message="a\0b\udcff" + "x" * 9999)
    assert len(moved.message) == 4096
    assert moved.message.startswith("a\ufffdb?x")
    moved.model_dump_json()
    assert make_task(error="\0\udcff").error == "\ufffd?"


# specifications


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"command": ""}, "it is empty"),
        ({"command": []}, "it is empty"),
        ({"command": " "}, "it is empty"),
        ({"command": ["", "x"]}, "it is empty"),
        ({"command": ["a", "b\0"]}, "NUL"),
        ({"command": ["x"] * 131_073}, "131,072 words"),
        ({"command": 7}, "neither"),
        ({"command": {"a": 1}}, "neither"),
        ({"command": ["a", 3]}, "one of its words"),
        ({"variables": {"A": "\ud800"}}, "unicode"),
        ({"labels": {"a": "\ud800"}}, "half a character"),
        ({"name": "A"}, "pattern"),
        ({"name": "-a"}, "pattern"),
        ({"name": "a\n"}, "pattern"),
        ({"name": "a" * 64}, "pattern"),
        ({"cpu": 0}, "out of range"),
        ({"cpu": -1}, "out of range"),
        ({"cpu": "many"}, "amount of CPU"),
        ({"memory": "much"}, "amount of memory"),
        ({"memory": 0}, "out of range"),
        ({"gpu": -1}, "greater than or equal"),
        ({"gpu": 1.5}, "integer"),
        ({"gpu": True}, "not a number"),
        ({"gpu": 4097}, "less than or equal"),
        ({"gpu_kind": "h100"}, "gpu is 0"),
        ({"gpu": 1, "gpu_kind": "H 100"}, "pattern"),
        ({"env": "python", "interpreter": "/usr/bin/python"}, "env: host"),
        ({"env": "host"}, "env: host"),
        ({"env": "host", "interpreter": "python"}, "pattern"),
        ({"env": "tensorflow-1", "requirements": "x"}, "exclude each other"),
        ({"requirements": "x" * 1_048_577}, "at most"),
        ({"python": "2.7"}, "pattern"),
        ({"variables": {"A B": "x"}}, "cannot be a variable"),
        ({"variables": {"A\n": "x"}}, "cannot be a variable"),
        ({"variables": {"": "x"}}, "cannot be a variable"),
        ({"variables": {"A": "\0"}}, "cannot be a variable"),
        ({"variables": {"DANLU_TOKEN": "x"}}, "its own"),
        ({"variables": {f"A{n}": "" for n in range(501)}}, "at most 500"),
        ({"retry": {"attempts": 0}}, "greater than or equal"),
        ({"retry": {"attempts": 101}}, "less than or equal"),
        ({"max_time": "-1s"}, "not a duration"),
        ({"grace": "2h"}, "less than or equal"),
        ({"notice": "61m"}, "less than or equal"),
        (
            {"notice_signal": "KILL"},
            "'KILL' is no signal that a program can take as a notice: TERM, INT, HUP, USR1, USR2",
        ),
        ({"notice_signal": "usr1"}, "'usr1' is no signal that a program can take as a notice"),
        ({"notice_signal": 10}, "10 is no signal that a program can take as a notice"),
        ({"priority": 1001}, "less than or equal"),
        ({"code": "sha256:xyz"}, "pattern"),
        ({"labels": {"A": "x"}}, "pattern"),
        ({"labels": {"a": "x" * 256}}, "at most 255"),
        ({"unknown": 1}, "Extra inputs"),
        ({"command": "a\ud800"}, "half a character"),
        ({"requirements": "a\ud800"}, "half a character"),
    ],
)
def test_nonsense_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        make_spec(**fields)


def test_a_line_runs_by_a_shell_and_words_run_as_they_are() -> None:
    assert make_spec(command="echo $A | cat").tasks[0].argv == ("/bin/sh", "-c", "echo $A | cat")
    assert make_spec(command=["echo", "$A"]).tasks[0].argv == ("echo", "$A")


def test_a_specification_is_the_same_after_json() -> None:
    spec = make_spec(cpu="500m", memory="16GiB", max_time="1h30m", retry={"attempts": 3, "backoff": "30s"}, gpu=1)
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec
    assert JobSpec.model_validate(spec.model_dump(mode="json", exclude_defaults=True)) == spec


def test_changes_are_validated_as_a_whole() -> None:
    old = make_spec(cpu=2, gpu=1, gpu_kind="h100")
    assert json_changes(old, {"cpu": "4"}).cpu == 4
    assert json_changes(old, {}) == old
    with pytest.raises(ValidationError, match="gpu is 0"):
        json_changes(old, {"gpu": 0})


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (("python", "train_mnist.py", "--lr", "1"), "train-mnist"),
        (("python", "-m", "pkg.Train"), "train"),
        ("python ./a/b/My Script.py", "script"),
        ("./run.sh", "run"),
        (("/usr/bin/env",), "env"),
        (("__",), "job"),
        (("x" * 100,), "x" * 48),
        (("python", "日本.py"), "job"),
    ],
)
def test_names_are_made_from_commands(command: str | tuple[str, ...], name: str) -> None:
    assert name_from_command(command) == name


@given(st.text(max_size=60) | st.lists(st.text(max_size=20), min_size=1, max_size=4).map(tuple))
def test_every_command_makes_a_name(command: str | tuple[str, ...]) -> None:
    make_job(name=f"{name_from_command(command)}-123456")


@pytest.mark.parametrize(
    ("state", "code", "expected"),
    [
        (JobState.SUCCEEDED, 0, 0),
        (JobState.CANCELLED, 143, 130),
        (JobState.FAILED, 3, 3),
        (JobState.FAILED, None, 1),
        (JobState.FAILED, 0, 1),
    ],
)
def test_what_a_command_exits_with(state: JobState, code: int | None, expected: int) -> None:
    assert job_exit_code(make_job(state=state, exit_code=code)) == expected


def test_records_are_frozen_and_closed() -> None:
    for record in (make_job(), make_attempt(make_job()), make_environment()):
        with pytest.raises(ValidationError, match="frozen"):
            record.version = 2  # type: ignore[misc]


@pytest.mark.parametrize("given", ["USR1", "SIGUSR1"])
def test_a_signal_goes_by_either_of_its_names(given: str) -> None:
    assert make_spec(notice_signal=given).notice_signal == "USR1"
