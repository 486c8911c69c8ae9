"""When a gang ends, and which ports it has."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.runner.gang import Member, end_at, known_at
from danlu.scheduler.ports import FIRST, LAST, lease

UP = Member(decides=True, linger_s=0)
SERVES = Member(decides=False, linger_s=0)
LINGERS = Member(decides=False, linger_s=30)


def ended(member: Member, at: float, *, failed: bool = False) -> Member:
    return member._replace(ended_at=at, failed=failed)


@pytest.mark.parametrize(
    ("members", "known", "end"),
    [
        ([UP, SERVES], None, None),
        ([ended(UP, 5), SERVES], 5, 5),
        ([ended(UP, 5), UP], None, None),
        ([ended(UP, 5), ended(UP, 7), SERVES], 7, 7),
        ([ended(UP, 5), LINGERS, SERVES], 5, 35),
        ([ended(UP, 5), ended(LINGERS, 9), SERVES], 5, 5),
        ([ended(UP, 5), LINGERS._replace(linger_s=60), LINGERS, SERVES], 5, 65),
        ([ended(UP, 5, failed=True), UP, LINGERS], 5, 5),
        ([ended(SERVES, 3, failed=True), UP], 3, 3),
        ([ended(SERVES, 3), UP], None, None),
        ([ended(UP, 5)], 5, None),
        ([ended(UP, 5, failed=True)], 5, None),
        ([ended(UP, 5), ended(LINGERS, 6, failed=True), LINGERS], 5, 35),
        ([ended(UP, 5), ended(SERVES, 5, failed=True), LINGERS], 5, 5),
        ([ended(LINGERS, 2, failed=True), ended(UP, 5, failed=True), UP], 2, 2),
    ],
)  # fmt: skip
def test_the_rule(members: list[Member], known: float | None, end: float | None) -> None:
    assert known_at(members) == known
    assert end_at(members) == end


member = st.builds(
    Member, st.booleans(), st.sampled_from([0.0, 1.0, 30.0]), st.none() | st.floats(0, 100), st.booleans()
)


@given(st.lists(member, min_size=1, max_size=6))
def test_a_gang_is_never_ended_before_its_result_is_known(members: list[Member]) -> None:
    known, end = known_at(members), end_at(members)
    if end is not None:
        assert known is not None
        assert end >= known
        assert any(one.ended_at is None for one in members)
    failed = any(one.failed and one.ended_at is not None for one in members)
    if any(one.decides and one.ended_at is None for one in members) and not failed:
        assert end is None


def test_ports_are_leased_once() -> None:
    taken: set[int] = set()
    for number in range(100):
        ports = lease(f"j{number}-1", 8, taken)
        assert ports is not None
        assert len({*ports}) == 8
        assert not taken & {*ports}
        assert all(FIRST <= port <= LAST for port in ports)
        taken |= {*ports}


def test_the_next_attempt_has_other_ports() -> None:
    first, second = lease("j1-1", 4, ()), lease("j1-2", 4, ())
    assert first is not None
    assert second is not None
    assert not {*first} & {*second}
    assert lease("j1-1", 4, ()) == first


def test_too_many_ports_are_refused_and_all_can_be_leased() -> None:
    assert lease("j1-1", LAST - FIRST + 2, ()) is None
    assert lease("j1-1", 1, range(FIRST, LAST + 1)) is None
    every = lease("j1-1", LAST - FIRST + 1, ())
    assert every is not None
    assert sorted(every) == list(range(FIRST, LAST + 1))
    assert lease("j1-1", 0, ()) == ()
