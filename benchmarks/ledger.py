"""A million intervals of the ledger: how long a report of them takes, beside a plain SUM over the same rows."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from benchmarks.platform import Figure, Times, timed
from danlu.database import ledger
from danlu.database.engine import Database, Transaction
from danlu.database.records import PRICES
from danlu.domain.ledger import DAY_NS, SECOND_NS, Account, Amounts, Entry, Meter
from danlu.domain.prices import Price
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


def _fill(database: Database) -> None:
    """Posts what 40 projects of 8 users each had on 64 nodes: an attempt is starting, used and clearing up."""
    dice = random.Random(1)
    price = Price(
        id="p" + "0" * 26, project="", resource="gpu", per_hour="2.50", currency="USD", valid_from=0, created_at=0,
        updated_at=0,
    )  # fmt: skip
    database.write(lambda tx: PRICES.add(tx, price))
    entries: list[Entry] = []
    for number in range(INTERVALS // 3 + 1):
        begin = BEGIN + dice.randrange(DAYS * DAY_NS)
        amounts = Amounts(dice.choice([1000, 4000, 16000]), dice.choice([2**33, 2**36]), dice.choice([0, 1, 8]), "h100")
        project = f"team-{dice.randrange(40)}"
        meter = Meter(
            f"j{number:026d}-1", 0, f"node-{dice.randrange(64)}", amounts, begin, project=project,
            user=f"{project}-{dice.randrange(8)}",
        )  # fmt: skip
        for part, (account, seconds) in enumerate(
            ((Account.PLATFORM, 1), (Account.USED, dice.randrange(1, 20_000)), (Account.PLATFORM, 1))
        ):
            end = min(begin + seconds * SECOND_NS + part, begin - begin % DAY_NS + DAY_NS)
            if begin < end:
                entries.append(Entry(meter, part, Account.FREE, account, begin, end, seconds * 10**8, seconds))
            begin = end
        if len(entries) >= AT_ONCE or number * 3 >= INTERVALS:
            database.write(partial(ledger._post, posted=tuple(entries)))
            entries.clear()


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
        lines, _ = summed(_pieces(tx, (), (since, BEGIN + (DAYS + 2) * DAY_NS), by, project), by)
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
