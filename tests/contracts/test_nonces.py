"""Nonces, and what is known without a look, on each database."""

from __future__ import annotations

import pytest
from sqlalchemy import event

from danlu.controllers.nonces import NoncesController
from danlu.database import nonces
from danlu.database.engine import Database, Transaction
from danlu.database.nonces import KEPT_S, SWEPT_AT_ONCE
from danlu.database.records import PROJECTS
from danlu.errors import NotAuthenticated
from tests.factories import make_project

SECOND = 1_000_000_000


def test_old_nonces_are_forgotten_some_at_a_time(database: Database) -> None:
    now_s = 1_800_000_000

    def fill(tx: Transaction) -> None:
        for number in range(SWEPT_AT_ONCE + 10):
            nonces.take(tx, "k", f"{number:032d}", now_s - KEPT_S - 1, now_s - KEPT_S)
        nonces.take(tx, "k", "now", now_s - KEPT_S, now_s)

    class At:
        def now(self) -> int:
            raise AssertionError("what other machines have signed is judged by the machine's clock")

        def wall(self) -> int:
            return now_s * SECOND

    database.write(fill)
    controller = NoncesController(database, At())
    assert controller.step() < 1
    assert controller.step() > 1
    assert database.write(lambda tx: nonces.forget(tx, now_s)) == 0
    assert database.write(lambda tx: nonces.forget(tx, now_s + 1)) == 1


@pytest.mark.parametrize("late_s", [0, 1, KEPT_S, KEPT_S + 1, KEPT_S + 10_000])
def test_no_request_is_done_again_however_slowly_it_is_sent(database: Database, late_s: int) -> None:
    """It was let in by its head in time; its body came when its nonce may have been forgotten."""
    until_s = 1_800_000_000
    database.write(lambda tx: nonces.take(tx, "k", "n", until_s, until_s - 600))
    database.write(lambda tx: nonces.forget(tx, until_s + late_s))
    with pytest.raises(NotAuthenticated):
        database.write(lambda tx: nonces.take(tx, "k", "n", until_s, until_s + late_s))


def test_where_others_write_nothing_is_believed(database: Database) -> None:
    assert (database.written(("key",)) is None) == (database.dialect == "postgresql")


def test_while_it_is_being_stored_nobody_believes_what_was_read_before(database: Database) -> None:
    """Who has seen the new record, stored but not yet answered, must not be told the old one afterwards."""
    told: list[int | None] = []
    before = database.written(("project", "key"))
    event.listen(database._engine, "commit", lambda _connection: told.append(database.written(("project", "key"))))
    database.write(lambda tx: PROJECTS.add(tx, make_project("a", 1)))
    assert told == [None]
    assert (database.written(("project", "key")) != before) == (database.dialect == "sqlite")
    assert database.written(("key",)) == (0 if database.dialect == "sqlite" else None)
