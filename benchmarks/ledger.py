"""A million intervals of the ledger: how long a report of them takes, beside a plain SUM over the same rows."""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.platform import Figure, Times, timed
from danlu.database.engine import Database, Transaction
from danlu.domain.ledger import DAY_NS
from danlu.domain.usage import By, summed
from danlu.services.usage import _pieces

INTERVALS = 1_000_000
AT_ONCE = 250_000
BEGIN = 20_000 * DAY_NS
DAYS = 180
ROUNDS = 5


def figures() -> Iterator[Figure]:
    """Yields the row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "danlu.db"
        database = Database.open(f"sqlite:///{path}")
        try:
            with _without_index(path):
                _fill(database)
            yield measured(database, path)
        finally:
            database.close()


def measured(database: Database, path: Path) -> Figure:
    """Returns the row: seconds of a processor, which others that use the machine do not change, beside those of the clock."""
    month = BEGIN + (DAYS - 30) * DAY_NS
    works: dict[str, Callable[[], None]] = {
        "whole": lambda: _report(database, BEGIN, By.PROJECT),
        "month": lambda: _report(database, month, By.PROJECT),
        "one": lambda: _report(database, BEGIN, By.USER, "team-7"),
        "plain": lambda: _plain(path),
    }
    busy: dict[str, list[float]] = {name: [] for name in works}
    clock: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(ROUNDS + 1):
        for name, work in works.items():
            began = time.process_time()
            took = timed(work)
            if turn:
                busy[name].append(time.process_time() - began)
                clock[name].append(took)
    cpu = {name: Times(tuple(found)) for name, found in busy.items()}
    return Figure(
        "usage by project of 1,000,000 ledger intervals, with costs",
        f"{cpu['whole']} of a processor, {Times(tuple(clock['whole'])).median:.3f} s by the clock; its last 30 days "
        f"{cpu['month'].median:.3f} s; one project of 40, by user, {cpu['one'].median:.3f} s",
        "1 s",
        met=cpu["whole"].median <= 1.0,
        peer="",
        limit=f"one SUM over the rows by sqlite3: {cpu['plain']}",
    )


@contextlib.contextmanager
def _without_index(path: Path) -> Iterator[None]:
    """What comes in an order of its own is stored faster without it; it is made at the end."""
    connection = sqlite3.connect(path)
    ((made,),) = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'ix_ledger_line_day'").fetchall()
    connection.execute("DROP INDEX ix_ledger_line_day")
    connection.commit()
    yield
    connection.execute(made)
    connection.commit()
    connection.close()


def _report(database: Database, since: int, by: By, project: str | None = None) -> None:
    def work(tx: Transaction) -> None:
        lines, _ = summed(_pieces(tx, since, BEGIN + (DAYS + 2) * DAY_NS, by, project), by)
        for name, line in lines.items():
            line.line(name)

    database.read(work)


def _plain(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("SELECT SUM(until - since) FROM ledger").fetchone()
    connection.close()


if __name__ == "__main__":
    began = time.monotonic()
    for figure in figures():
        print(figure.line())
    print(f"in {time.monotonic() - began:.0f} s")
