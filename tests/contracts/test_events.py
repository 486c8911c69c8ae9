"""Events are forgotten: the oldest first, some at a time, for their age or their number; on each database."""

from __future__ import annotations

import logging

import pytest

from danlu.controllers.events import DAY_NS, EventsController
from danlu.database import queries
from danlu.database.engine import Database
from danlu.database.queries import EVENTS_AT_ONCE, Chosen, events_after
from danlu.database.records import add_event
from danlu.domain.events import CALL, Event

NOW = 1_800_000_000 * 1_000_000_000


class At:
    def now(self) -> int:
        return NOW


def fill(database: Database, *days_old: float) -> None:
    """Stores an event for each age; every second one is a call."""

    def work(tx: object) -> None:
        for number, age in enumerate(days_old):
            event = Event(
                at=NOW - int(age * DAY_NS), project="default", kind=CALL if number % 2 else "job", object_id="j",
                state="done",
            )  # fmt: skip
            add_event(tx, event)  # type: ignore[arg-type]

    database.write(work)


def left(database: Database) -> list[float]:
    """Returns how old, in days, what is kept is."""
    found = database.read(
        lambda tx: [*events_after(tx, 0, limit=9999), *events_after(tx, 0, Chosen(kind=CALL), limit=9999)]
    )
    return [round((NOW - event.at) / DAY_NS, 3) for event in sorted(found, key=lambda event: event.seq)]


def test_what_is_too_old_is_forgotten_some_at_a_time(database: Database) -> None:
    fill(database, *[401.0] * (EVENTS_AT_ONCE + 10), 400.001, 399.999, 1.0, -5.0, 401.0)
    controller = EventsController(database, At(), kept_days=400, most=10**7)
    assert controller.step() < 1
    assert len(left(database)) == 15
    assert controller.step() > 1
    assert left(database) == [399.999, 1.0, -5.0]  # a clock that was wrong for a while keeps nothing for ever
    assert controller.step() > 1
    fill(database, 0.5)
    assert left(database) == [399.999, 1.0, -5.0, 0.5]


def test_of_too_many_the_newest_are_kept_and_it_is_told(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    fill(database, *[3.0] * 20, 2.0, 1.0)
    controller = EventsController(database, At(), kept_days=400, most=5)
    with caplog.at_level(logging.WARNING):
        assert controller.step() > 1
        assert left(database) == [3.0, 3.0, 3.0, 2.0, 1.0]
        fill(database, 0.0)
        controller.step()
    assert left(database) == [3.0, 3.0, 2.0, 1.0, 0.0]
    assert [record.getMessage() for record in caplog.records if "more than 5 events" in record.getMessage()] != []
    assert len(caplog.records) == 1


def test_a_reader_goes_on_where_it_was_though_that_is_forgotten(database: Database) -> None:
    fill(database, 500.0, 500.0)
    seq = database.read(lambda tx: events_after(tx, 0, limit=9))[-1].seq
    database.write(lambda tx: queries.forget_events(tx, NOW, 10))
    fill(database, 0.0)
    assert [event.seq for event in database.read(lambda tx: events_after(tx, seq, limit=9))] == [seq + 2]
