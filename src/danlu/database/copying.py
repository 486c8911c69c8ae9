"""Copies a whole database from one kind to the other, and compares the two row by row.

Both sides have this version's schema. Rows pass one at a time, in the order of their keys' bytes, so that memory stays small
and the two sides can be compared side by side.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Final, Protocol

import psycopg
from psycopg import sql
from sqlalchemy import JSON, Boolean, Column, String, Table

from danlu.database import tables
from danlu.errors import DatabaseDamaged

COPIED: Final = tuple(table for table in tables.METADATA.sorted_tables if table is not tables.leadership)
"""Not who leads: that is of the servers of one database. A lease of the other one's may last for ever."""
ROWS_AT_ONCE: Final = 200
"""Of a table that is read from PostgreSQL: a record may be large."""
TOLD_EVERY_S: Final = 0.1
EXACT: Final = 2**53
"""Up to here every whole number is a number of Python's floats."""
Row = tuple[Any, ...]
Progress = Callable[[str, int, int], None]
"""What is done, how many rows of it, of how many."""


@dataclass(frozen=True, slots=True)
class Copied:
    """What was copied and found to be the same on both sides: the rows of each table, and the number of the last event."""

    rows: dict[str, int]
    last_event: int

    @property
    def total(self) -> int:
        """How many rows of all tables."""
        return sum(self.rows.values())


class Side(Protocol):
    """A database, within one transaction. In a row a document is its text, a truth value a bool."""

    def count(self, table: Table) -> int:
        """Returns how many rows a table has."""
        ...

    def rows(self, table: Table) -> Iterator[Row]:
        """Yields a table's rows in the order of the key."""
        ...

    def store(self, table: Table, rows: Iterator[Row]) -> None:
        """Stores rows in a table that has none."""
        ...

    def last(self, table: Table) -> int:
        """Returns the last number that was given out for a table's key; 0: none was."""
        ...

    def go_on_from(self, table: Table, last: int) -> None:
        """Lets the next number come after ``last``."""
        ...


def copy(source: Side, target: Side, progress: Progress) -> Copied:
    """Copies every table but who leads, and compares what has arrived.

    Raises:
        DatabaseDamaged: something did not arrive as it was; the caller undoes all of it.
    """
    lasts = _lasts(source)  # once: what gives numbers knows of no transactions
    told = _Told(progress, sum(source.count(table) for table in COPIED))
    for table in COPIED:
        target.store(table, told.each("copying", source.rows(table)))
        if table.name in lasts:
            target.go_on_from(table, lasts[table.name])
    return _compared(source, target, lasts, progress)


def compare(source: Side, target: Side, progress: Progress) -> Copied:
    """Compares two databases: every value of every row, how many there are, and what comes after the last event.

    Raises:
        DatabaseDamaged: they differ; the first difference is named.
    """
    return _compared(source, target, _lasts(source), progress)


def _lasts(side: Side) -> dict[str, int]:
    """Returns the last number that was given out, of each table whose rows have numbers."""
    return {table.name: side.last(table) for table in COPIED if _numbered(table)}


def _compared(source: Side, target: Side, lasts: Mapping[str, int], progress: Progress) -> Copied:
    counts = {table.name: source.count(table) for table in COPIED}
    told = _Told(progress, sum(counts.values()))
    for table in COPIED:
        compared, newest = 0, 0
        sides = zip_longest(told.each("comparing", source.rows(table)), target.rows(table))
        for mine, other in sides:
            if mine is None or other is None or not _same(table, mine, other):
                raise _differ(table, mine, other)
            compared += 1
            newest = max(newest, mine[0]) if _numbered(table) else 0
        if compared != counts[table.name]:
            raise DatabaseDamaged(
                f"table {table.name} had {counts[table.name]:,} rows at first and {compared:,} when they were compared",
                next_step="somebody else writes to one of the two: stop that, then repeat",
            )
        least = lasts.get(table.name, 0) if _never_again(table) else newest
        if _numbered(table) and target.last(table) < least:
            raise DatabaseDamaged(
                f"the numbers of table {table.name} would go on from {target.last(table):,}, not {least:,}"
            )
    return Copied(counts, lasts[tables.events.name])


def _differ(table: Table, mine: Row | None, other: Row | None) -> DatabaseDamaged:
    key = dict(zip(_key_names(table), _key(table, mine or other or ()), strict=False))
    if mine is None or other is None:
        what = "is missing in the copy" if other is None else "is in the copy alone"
    else:
        names = [
            column.name for column, a, b in zip(table.columns, mine, other, strict=True) if not _equal(column, a, b)
        ]
        what = f"differs in {', '.join(names)}"
    return DatabaseDamaged(f"the copy is not the same: table {table.name}, the row {key} {what}")


class _Told:
    """Tells how far it is, ten times a second at most."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done, self._told_at = progress, total, 0, 0.0

    def each(self, label: str, rows: Iterator[Row]) -> Iterator[Row]:
        """Yields the rows and counts them."""
        for row in rows:
            yield row
            self._done += 1
            if (now := time.monotonic()) - self._told_at >= TOLD_EVERY_S:
                self._told_at = now
                self._progress(label, self._done, self._total)


def _numbered(table: Table) -> bool:
    """Says whether the database gives numbers to a table's rows."""
    return any(column.autoincrement is True for column in table.primary_key.columns)


def _never_again(table: Table) -> bool:
    """Says whether a number is not given out again though its row is gone: readers remember it."""
    return bool(table.dialect_options["sqlite"]["autoincrement"])


def _key_names(table: Table) -> list[str]:
    return [column.name for column in table.primary_key.columns]


def _key(table: Table, row: Row) -> list[Any]:
    return [value for column, value in zip(table.columns, row, strict=False) if column.primary_key]


def _is_document(column: Column[Any]) -> bool:
    return isinstance(column.type, JSON)


def _same(table: Table, mine: Row, other: Row) -> bool:
    return all(_equal(*pair) for pair in zip(table.columns, mine, other, strict=True))


def _equal(column: Column[Any], mine: Any, other: Any) -> bool:
    if mine == other and type(mine) is type(other):
        return True
    return (
        _is_document(column) and mine is not None and other is not None and _alike(json.loads(mine), json.loads(other))
    )


def _alike(mine: Any, other: Any) -> bool:
    """Says whether two documents have the same values. PostgreSQL writes 1e23 as a whole number, which is the same."""
    if isinstance(mine, dict) and isinstance(other, dict):
        return mine.keys() == other.keys() and all(_alike(mine[key], other[key]) for key in mine)
    if isinstance(mine, list) and isinstance(other, list):
        return len(mine) == len(other) and all(map(_alike, mine, other))
    if isinstance(mine, bool) or isinstance(other, bool):
        return mine is other
    if isinstance(mine, float) and isinstance(other, int | float):
        return mine == float(other)
    if isinstance(other, float) and isinstance(mine, int):
        return abs(mine) <= EXACT and mine == other
    return type(mine) is type(other) and bool(mine == other)


class SqliteSide:
    """A SQLite file, by a connection in a transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def count(self, table: Table) -> int:
        """See Side."""
        return int(self._connection.execute(f'SELECT count(*) FROM "{table.name}"').fetchone()[0])  # noqa: S608 - our names

    def rows(self, table: Table) -> Iterator[Row]:
        """See Side."""
        names, key = _quoted(column.name for column in table.columns), _quoted(_key_names(table))
        truths = [at for at, column in enumerate(table.columns) if isinstance(column.type, Boolean)]
        for row in self._connection.execute(f'SELECT {names} FROM "{table.name}" ORDER BY {key}'):  # noqa: S608 - our names
            if truths:
                row = tuple(
                    bool(value) if at in truths and value is not None else value for at, value in enumerate(row)
                )
            yield row

    def store(self, table: Table, rows: Iterator[Row]) -> None:
        """See Side."""
        names, places = _quoted(column.name for column in table.columns), ", ".join("?" * len(table.columns))
        self._connection.executemany(f'INSERT INTO "{table.name}" ({names}) VALUES ({places})', rows)  # noqa: S608 - our names

    def last(self, table: Table) -> int:
        """See Side."""
        if _never_again(table):
            row = self._connection.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table.name,)).fetchone()
        else:
            key = _key_names(table)[0]
            row = self._connection.execute(f'SELECT max("{key}") FROM "{table.name}"').fetchone()  # noqa: S608 - our names
        return int(row[0] or 0) if row is not None else 0

    def go_on_from(self, table: Table, last: int) -> None:
        """See Side. Where nothing but the rows says what was given out, there is nothing to set."""
        if _never_again(table):
            self._connection.execute("DELETE FROM sqlite_sequence WHERE name = ?", (table.name,))
            self._connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (table.name, last))


class PostgresSide:
    """A PostgreSQL database, by a connection in a transaction."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection

    def count(self, table: Table) -> int:
        """See Side."""
        return self._number(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table.name)))

    def rows(self, table: Table) -> Iterator[Row]:
        """See Side."""
        columns = [
            sql.SQL("{}::text").format(sql.Identifier(column.name))
            if _is_document(column)
            else sql.Identifier(column.name)
            for column in table.columns
        ]
        order = [
            sql.SQL('{} COLLATE "C"' if isinstance(column.type, String) else "{}").format(sql.Identifier(column.name))
            for column in table.primary_key.columns
        ]
        query = sql.SQL("SELECT {} FROM {} ORDER BY {}").format(
            sql.SQL(", ").join(columns), sql.Identifier(table.name), sql.SQL(", ").join(order)
        )
        with self._connection.cursor(name="rows") as cursor:
            cursor.itersize = ROWS_AT_ONCE
            cursor.execute(query)
            yield from cursor

    def store(self, table: Table, rows: Iterator[Row]) -> None:
        """See Side."""
        names = sql.SQL(", ").join(sql.Identifier(column.name) for column in table.columns)
        query = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table.name), names)
        with self._connection.cursor() as cursor, cursor.copy(query) as stream:
            for row in rows:
                stream.write_row(row)

    def last(self, table: Table) -> int:
        """See Side."""
        query = sql.SQL("SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM {}")
        return self._number(query.format(sql.Identifier(self._sequence(table))))

    def go_on_from(self, table: Table, last: int) -> None:
        """See Side."""
        query = "SELECT setval(%s::regclass, greatest(%s, 1), %s)"
        self._connection.execute(query, (self._sequence(table), last, last > 0))

    def _sequence(self, table: Table) -> str:
        row = self._connection.execute(
            "SELECT relname FROM pg_class WHERE oid = pg_get_serial_sequence(%s, %s)::regclass",
            (table.name, _key_names(table)[0]),
        ).fetchone()
        if row is None:
            raise DatabaseDamaged(f"table {table.name} has no sequence")
        return str(row[0])

    def _number(self, query: sql.Composed) -> int:
        row = self._connection.execute(query).fetchone()
        return 0 if row is None else int(row[0])


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
