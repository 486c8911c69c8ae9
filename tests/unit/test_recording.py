"""A recording of a scheduler: played again the same to the byte; what differs, and what is no recording, is told."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.domain.quotas import Quota
from danlu.errors import InvalidRequest
from danlu.scheduler.cycle import Scheduler
from danlu.scheduler.model import Policy
from danlu.scheduler.recording import Recorder, replay
from danlu.scheduler.simulator import simulate
from tests.traces import SECOND, cluster, random_trace

POLICY = Policy(min_runtime=5 * SECOND, levels=(20_000 * SECOND, 200_000 * SECOND))
QUOTA = Quota(id="p1", project="p1", created_at=0, updated_at=0, limit={"gpu": 12}, guarantee={"gpu": 4}, weight=2)


def recorded(seed: int, *, max_bytes: int = 2**26) -> list[str]:
    lines: list[str] = []
    recorder = Recorder(Scheduler(POLICY), POLICY, lines.append, max_bytes)
    simulate(random_trace(seed), cluster(2, 8), recorder, quotas=[QUOTA])
    return lines


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_decided_again_it_is_the_same_to_the_byte(seed: int) -> None:
    lines = recorded(seed)
    found = replay(lines, Scheduler)
    assert found.difference is None
    assert found.calls == len(lines) - 1
    assert found.decisions == sum('"call":"decide"' in line for line in lines) > 40
    assert json.loads(lines[0])["policy"]["levels"] == [20_000 * SECOND, 200_000 * SECOND]
    assert all(line == json.dumps(json.loads(line), sort_keys=True, separators=(",", ":")) + "\n" for line in lines)


def test_another_policy_decides_otherwise_and_the_first_difference_is_told() -> None:
    lines = recorded(7)
    found = replay(lines, lambda policy: Scheduler(replace(policy, preempts=False)))
    assert found.difference is not None
    at = int(found.difference.split(",")[0].removeprefix("line "))
    assert '"preemptions"' in lines[at - 1]
    assert not any('"preemptions"' in line for line in lines[: at - 1])
    assert f"at {json.loads(lines[at - 1])['now']} ns: recorded …" in found.difference


def test_a_plan_that_was_changed_by_hand_is_found() -> None:
    lines = recorded(3)
    at = next(at for at, line in enumerate(lines) if '"placements"' in line)
    lines[at] = lines[at].replace('"devices":[0', '"devices":[1')
    found = replay(lines, Scheduler)
    assert found.difference is not None
    assert found.difference.startswith(f"line {at + 1}, decision 1")


def test_a_line_that_was_cut_off_ends_it() -> None:
    lines = recorded(3)
    found = replay([*lines[:-1], lines[-1][:20]], Scheduler)
    assert (found.calls, found.difference) == (len(lines) - 2, None)


def test_it_ends_where_it_is_full_and_the_scheduler_goes_on() -> None:
    lines = recorded(3, max_bytes=5000)
    assert sum(map(len, lines)) <= 5000
    whole = recorded(3)
    assert lines == whole[: len(lines)]
    assert len(lines) < len(whole)
    assert replay(lines, Scheduler).difference is None


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], "the recording is empty"),
        (['{"call":"decide","now":1,"plan":{}}\n'], "line 1 .* does not begin with danlu_recording 1"),
        (["nonsense\n"], "line 1"),
        (["[]\n"], "line 1 .* no JSON object"),
        (['{"danlu_recording":2,"policy":{}}\n'], "line 1 .* does not begin with danlu_recording 1"),
        (['{"danlu_recording":1,"policy":{}}\n', '{"call":"explode"}\n'], "line 2 .* no call is named 'explode'"),
        (['{"danlu_recording":1,"policy":{}}\n', '{"call":"queued","job":{"id":"a"}}\n'], "line 2"),
        (['{"danlu_recording":1,"policy":{}}\n', '{"call":"decide"}\n'], "line 2"),
    ],
)
def test_what_is_no_recording_is_told_by_the_line(lines: list[str], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        replay(lines, Scheduler)
