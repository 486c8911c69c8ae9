"""A trace as CSV: read, written, and what is wrong told by the line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.errors import InvalidRequest
from danlu.scheduler.trace import TraceJob, parse, write
from tests.traces import SECOND, job, random_trace

HEAD = "job,submit_s,duration_s,gpus\n"


def test_a_trace_is_read_by_the_names_of_its_columns() -> None:
    text = (
        "\ufeffgpus,what,job,duration_s,submit_s,project,priority,declared_s,tasks,cpu,memory,gpu_kind\r\n"
        '16,?,"b, the 2nd",1.5,20,speech,-3,7200,2,0.5,4GiB,h100\r\n'
        "\r\n"
        "0,?,a,3,10.000000001,,,,,,,\r\n"
    )
    assert parse(text) == (
        job("a", 10.000000001, 3, 0),
        TraceJob("b, the 2nd", 20 * SECOND, 1_500_000_000, 16, "speech", -3, 7200 * SECOND, 2, 500, 4 * 2**30, "h100"),
    )


@given(seed=st.integers(0, 10**6))
def test_what_is_written_is_read_again(seed: int) -> None:
    jobs = random_trace(seed, 8)
    assert parse("".join(write(jobs))) == tuple(sorted(jobs, key=lambda one: (one.submit, one.id)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no column job, submit_s, duration_s, gpus: it has nothing"),
        ("job,submit,duration_s,gpus\n", "names no column submit_s: it has job, submit, duration_s, gpus"),
        ("job,submit_s,duration_s,gpus,job\n", "names job twice"),
        ("job,submit_s,duration_s,gpus,projcet\n", "names a column 'projcet'"),
        (HEAD, "the trace has no jobs"),
        (HEAD + "a,1,2,3\nb,-1,2,3\n", "line 3: submit_s: '-1' is not within 0 and"),
        (HEAD + "a,1,0,3\n", "line 2: duration_s: '0' is not above 0"),
        (HEAD + "a,1,-5,3\n", "line 2: duration_s: '-5' is not within"),
        (HEAD + "a,1,2,-3\n", "line 2: gpus: -3 is not within 0 and 4096"),
        (HEAD + "a,1,2,1.5\n", "line 2: gpus: '1.5' is not a whole number"),
        (HEAD + "a,1,2," + "9" * 5000 + "\n", "line 2: gpus: 9999"),
        (HEAD + "a,nan,2,1\n", "line 2: submit_s: 'nan' is not a number of seconds"),
        (HEAD + "a,soon,2,1\n", "line 2: submit_s: 'soon' is not a number of seconds"),
        (HEAD + "a,1,2\n", "line 2: it has 3 cells, the first line 4"),
        (HEAD + "a,1,2,3\na,4,5,6\n", "line 3: job: 'a' is the job of line 2 already"),
        (HEAD + ",1,2,3\n", "line 2: job: '' is no id"),
        ("job,submit_s,duration_s,gpus,priority\na,1,2,3,high\n", "line 2: priority: 'high' is not a whole number"),
        ("job,submit_s,duration_s,gpus,memory\na,1,2,3,much\n", "line 2: cpu or memory: 'much' is not an amount"),
        ("job,submit_s,duration_s,gpus,tasks\na,1,2,3,0\n", "line 2: tasks: 0 is not within 1 and"),
        ("job,submit_s,duration_s,gpus,declared_s\na,1,2,3,0\n", "line 2: declared_s: '0' is not above 0"),
    ],
)
def test_what_is_wrong_is_told_by_the_line(text: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(text)
    assert said in caught.value.message


def test_of_many_wrong_lines_the_first_are_told_and_the_others_counted() -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(HEAD + "".join(f"j{at},1,2,x\n" for at in range(30)))
    told = caught.value.message.splitlines()
    assert told[1:] == [f"line {at + 2}: gpus: 'x' is not a whole number" for at in range(10)] + ["and 20 more"]


def test_no_trace_is_too_long_to_be_refused() -> None:
    with pytest.raises(InvalidRequest, match="more than 3 jobs"):
        parse(HEAD + "".join(f"j{at},1,2,1\n" for at in range(5)), max_jobs=3)
