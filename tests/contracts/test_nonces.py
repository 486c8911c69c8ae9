"""Nonces, and what is known without a look, on each database."""

from __future__ import annotations

from danlu.controllers.nonces import NoncesController
from danlu.database import nonces
from danlu.database.engine import Database, Transaction
from danlu.database.nonces import SWEPT_AT_ONCE

SECOND = 1_000_000_000


def test_old_nonces_are_forgotten_some_at_a_time(database: Database) -> None:
    now_s = 1_800_000_000

    def fill(tx: Transaction) -> None:
        for number in range(SWEPT_AT_ONCE + 10):
            nonces.take(tx, "k", f"{number:032d}", now_s - 1)
        nonces.take(tx, "k", "now", now_s)

    class At:
        def now(self) -> int:
            return now_s * SECOND

    database.write(fill)
    controller = NoncesController(database, At())
    assert controller.step() < 1
    assert controller.step() > 1
    assert database.write(lambda tx: nonces.forget(tx, now_s)) == 0
    assert database.write(lambda tx: nonces.forget(tx, now_s + 1)) == 1


def test_where_others_write_nothing_is_believed(database: Database) -> None:
    assert (database.written(("key",)) is None) == (database.dialect == "postgresql")
