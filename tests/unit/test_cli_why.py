"""What ``danlu why`` says, in words: who waits for whom until when, and what an estimate goes by."""

from __future__ import annotations

from typing import Any

import pytest

from danlu.cli.why import headline, parts
from danlu.domain.views import Why
from danlu.domain.waits import AskedLater, Start
from tests.factories import make_job

SECOND_NS = 1_000_000_000
NOW = 10_000 * SECOND_NS


def why(**fields: Any) -> Why:
    job = make_job(name="bert", reason="WaitingForResources", queued_at=NOW - 90 * SECOND_NS)
    return Why(job=job, asks=(), explanation=("short of gpu",), **fields)


def said(label: str, **fields: Any) -> list[str]:
    return dict(parts(why(**fields), NOW)).get(label, [])


def test_a_position_is_one_among_all_projects() -> None:
    assert headline(why(position=2, of=9), NOW) == (
        "bert waits: WaitingForResources, for 1m30s, position 2 of 9 in all projects"
    )


@pytest.mark.parametrize(("state", "said"), [("starting", "1m30s"), ("running", "20s")])
def test_what_does_not_wait_is_so_since_it_began(state: str, said: str) -> None:
    started_at = NOW - 20 * SECOND_NS if state == "running" else None
    job = make_job(name="bert", state=state, queued_at=NOW - 90 * SECOND_NS, started_at=started_at)
    assert headline(Why(job=job, asks=(), explanation=()), NOW) == f"bert is {state}, for {said}"


@pytest.mark.parametrize(
    ("names", "count", "at_s", "line"),
    [
        (("a",), 1, 192, "a is asked in 3m12s: nobody is before it has run for 5m"),
        ((), 1, 0, "1 job of another project is asked now: nobody is before it has run for 5m"),
        (("a", "b"), 4, 5, "a, b and 2 jobs of other projects are asked in 5s: nobody is before it has run for 5m"),
        (("a", "b"), 2, 5, "a and b are asked in 5s: nobody is before it has run for 5m"),
    ],
)
def test_who_is_asked_once_he_has_run_for_long_enough(names: tuple[str, ...], count: int, at_s: int, line: str) -> None:
    later = AskedLater(at=NOW + at_s * SECOND_NS, names=names, count=count, least_run_s=300)
    assert said("makes way", asked_later=later) == [line]


@pytest.mark.parametrize(
    ("ended", "by", "line"),
    [
        (57, 34, "by how long 57 ended attempts took and how 34 such estimates came out"),
        (1, 0, "by how long 1 ended attempt took; 90 % is a guess: too few such estimates came out so far"),
        (0, 34, "by what jobs say (max_time) and how 34 such estimates came out"),
    ],
)
def test_an_estimate_says_what_it_goes_by(ended: int, by: int, line: str) -> None:
    start = Start(at=NOW + 60 * SECOND_NS, most=NOW + 90 * SECOND_NS, ended=ended, corrected_by=by)
    assert said("starts", start=start)[1:] == [line]
    assert said("starts", start=Start(unknown="a has not said")) == ["not known: a has not said"]
