"""Moves a platform's database from its SQLite file to PostgreSQL, copies it to a file, and puts such a copy back.

All of it goes to PostgreSQL in one transaction: what is broken off leaves nothing. A copy is always a SQLite file, whatever
it is a copy of, so that each kind can be restored as the other.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import psycopg
from sqlalchemy import URL, Connection, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from danlu.database import migrations, postgresql, sqlite_file
from danlu.database.copying import Copied, PostgresSide, Progress, SqliteSide, compare, copy
from danlu.errors import Conflict, DatabaseDamaged, DatabaseMoved, NotFound
from danlu.runner.formats import write_atomically

MARK: Final = ".moved"
"""Behind the file's name: the file that says where the database is now."""


class Moved(NamedTuple):
    """Where a database was moved to. ``done``: all of it has arrived; else that has to be looked at again."""

    to: str
    done: bool


def moved(path: Path) -> Moved | None:
    """Returns where the database of a file was moved to; None: nowhere."""
    try:
        found = json.loads(_mark(path).read_text())
        return Moved(str(found["to"]), bool(found["done"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DatabaseMoved(
            f"{_mark(path)} cannot be read, so nobody knows where the database was moved to: {error}",
            next_step=f"where it is still in {path}: danlu db move --undo",
        ) from error


def require_here(path: Path) -> None:
    """Raises unless the database is still the one in the file.

    Raises:
        DatabaseMoved: it was moved; it is said where to.
    """
    found = moved(path)
    if found is None:
        return
    if not found.done:
        raise DatabaseMoved(
            f"moving the database in {path} to {found.to} was broken off at its very end: it may have arrived or not",
            next_step=f"danlu db move --to '{found.to}' finishes it; danlu db move --undo stays with the file",
        )
    raise DatabaseMoved(
        f"the database in {path} was moved to {found.to}: what was stored since is not in the file",
        next_step=f"set DANLU_DATABASE_URL to {found.to}, with its password; back to the file: danlu db move --undo",
    )


def undo(path: Path) -> str:
    """Lets the file be the platform's database again, and returns where it had been moved to.

    Raises:
        NotFound: it was not moved.
    """
    try:
        found = moved(path)
    except DatabaseMoved:
        found = Moved("an address that cannot be read", done=True)
    if found is None:
        raise NotFound(f"the database in {path} was not moved anywhere", next_step="danlu db status tells more")
    _mark(path).unlink()
    return found.to


def move(path: Path, url: str | URL, *, now: int, progress: Progress) -> Copied:
    """Moves a stopped platform's database to PostgreSQL, compares every value, and marks the file, which stays as it is.

    Where an earlier try was broken off after all had arrived, it is compared and finished.

    Raises:
        DatabaseMoved: it was moved before.
        Conflict: there is something else in the target, or the file has an older schema.
        AlreadyRunning: somebody uses the target.
        DatabaseDamaged: it did not arrive as it was; nothing of it was kept.
    """
    found = moved(path)
    if found is not None and found.done:
        require_here(path)
    _require_newest(path, "danlu db migrate, then repeat")
    with postgresql.alone(url), _reading(path) as source, _transaction(url) as (connection, target):
        if tables := _tables(connection):
            copied = _already_there(url, tables, connection, source, target, progress)
        else:
            _make(connection)
            copied = copy(source, target, progress)
        _write_mark(path, url, now, done=False)  # from here on nobody can tell by the file alone
    _write_mark(path, url, now, done=True)
    return copied


def back_up(url: str | URL, file: Path, progress: Progress) -> Copied:
    """Copies a PostgreSQL database, which may be in use, to a SQLite file, as it is at one moment.

    Raises:
        Conflict: its schema is another one than this version's.
        StorageFull, DatabaseUnavailable: there is no copy.
    """
    unfinished = sqlite_file.part_of(file)
    try:
        with _transaction(url, reading=True) as (connection, source):
            _require_schema(connection, postgresql.shown(url))
            with _new_file(unfinished) as target:
                copied = copy(source, target, progress)
        sqlite_file.finish(unfinished, file)
    except sqlite3.Error as error:
        raise sqlite_file.not_copied(postgresql.shown(url), error) from error
    finally:
        sqlite_file.discard(unfinished)
    return copied


def restore(file: Path, url: str | URL, scratch: Path, progress: Progress) -> Copied:
    """Puts a copy into an empty PostgreSQL database, one of an older version too, and compares every value.

    Raises:
        Conflict: the target is not empty.
        AlreadyRunning: somebody uses it.
        DatabaseDamaged, DatabaseTooNew: the copy cannot be used.
    """
    sqlite_file.check(file)
    with (
        postgresql.alone(url),
        _newest(file, scratch) as usable,
        _reading(usable) as source,
        _transaction(url) as (connection, target),
    ):
        if tables := _tables(connection):
            raise _not_empty(url, tables)
        _make(connection)
        return copy(source, target, progress)


def restore_file(file: Path, path: Path, progress: Progress) -> Copied | None:
    """Puts a copy in the place of a platform's SQLite file that is not there, and compares every value.

    None is returned of an older version's, whose file was checked: the next start brings it to this version's schema.

    Raises:
        Conflict: there is a database already.
        DatabaseMoved: it lies elsewhere.
        DatabaseDamaged, DatabaseTooNew: the copy cannot be used.
    """
    require_here(path)
    for one in (path, path.with_name(path.name + "-wal")):
        if one.exists() and one.stat().st_size:
            raise Conflict(
                f"{one} is there already, and is not overwritten",
                next_step=f"move it away with all that belongs to it: mkdir aside; mv {path}* aside",
            )
    found = sqlite_file.check(file)
    if found is None:
        raise NotFound(f"{file} is empty: it is no copy of a database", next_step="choose another copy")
    path.with_name(path.name + "-shm").unlink(missing_ok=True)  # of a log that is not there
    sqlite_file.copy(file, path)
    if found != migrations.head():
        return None
    with _reading(file) as source, _reading(path) as target:
        return compare(source, target, progress)


def _mark(path: Path) -> Path:
    return path.with_name(path.name + MARK)


def _write_mark(path: Path, url: str | URL, now: int, *, done: bool) -> None:
    fields = {"to": postgresql.shown(url), "at": now, "done": done}
    write_atomically(str(_mark(path)), json.dumps(fields).encode())


def _require_newest(path: Path, step: str) -> None:
    found = sqlite_file.check(path)
    if found is None:
        raise NotFound(f"there is no database in {path}", next_step="danlu db status tells more")
    if found != migrations.head():
        raise Conflict(
            f"{path} has the schema {found}, and this version of Danlu has {migrations.head()}", next_step=step
        )


def _require_schema(connection: Connection, what: str) -> None:
    found = migrations.current(connection)
    version = migrations.written_by(connection) if found else None
    migrations.require_known(what, found, version, known=migrations.revisions())
    if found != migrations.head():
        is_there = f"has the schema {found}" if found else "has no tables of Danlu"
        raise Conflict(
            f"{what} {is_there}, and this version of Danlu has {migrations.head()}",
            next_step="danlu db migrate, then repeat" if found else "is it the right one? danlu db status tells more",
        )


def _tables(connection: Connection) -> list[str]:
    query = text("SELECT tablename FROM pg_tables WHERE schemaname = current_schema() ORDER BY 1 LIMIT 1000")
    return [str(row[0]) for row in connection.execute(query)]


def _not_empty(url: str | URL, tables: list[str], why: str = "") -> Conflict:
    return Conflict(
        f"{postgresql.shown(url)} is not empty: it has {len(tables):,} table{'s' if len(tables) > 1 else ''}, "
        f"{', '.join(tables[:3])} among them{why}",
        next_step="give it an empty database: createdb NAME",
    )


def _already_there(
    url: str | URL,
    tables: list[str],
    connection: Connection,
    source: SqliteSide,
    target: PostgresSide,
    progress: Progress,
) -> Copied:
    """Returns what is in the target, if all of the source is and nothing else."""
    if "alembic_version" not in tables or migrations.current(connection) != migrations.head():
        raise _not_empty(url, tables)
    try:
        return compare(source, target, progress)
    except DatabaseDamaged as error:
        raise _not_empty(url, tables, f", and is not a copy of this platform: {error.message}") from error


def _make(connection: Connection) -> None:
    """Makes the tables, without a row."""
    migrations.migrate_in(connection)
    connection.execute(text("DELETE FROM counters"))


@contextlib.contextmanager
def _transaction(url: str | URL, *, reading: bool = False) -> Iterator[tuple[Connection, PostgresSide]]:
    """One transaction, which is stored if the block ends well."""
    engine = postgresql.engine(url, pooled=False, bounded=False)
    try:
        with engine.connect() as connection:
            if reading:
                connection = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            with connection.begin():
                encoding = connection.execute(text("SHOW server_encoding")).scalar_one()
                if encoding != "UTF8":
                    raise Conflict(
                        f"{postgresql.shown(url)} stores texts as {encoding}, and Danlu needs UTF8",
                        next_step="createdb -E UTF8 -T template0 NAME",
                    )
                driver: Any = connection.connection.driver_connection
                yield connection, PostgresSide(driver)
    except (DBAPIError, psycopg.Error) as error:
        said = getattr(error, "orig", None) or error
        if isinstance(said, psycopg.OperationalError):
            raise postgresql.unreachable(url, said) from error
        raise Conflict(f"{postgresql.shown(url)} refused: {str(said).strip()}; nothing was stored") from error
    finally:
        engine.dispose()


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[SqliteSide]:
    connection = sqlite3.connect(sqlite_file.to_read(path), uri=True, isolation_level=None)
    with contextlib.closing(connection):
        connection.execute("BEGIN")
        yield SqliteSide(connection)


@contextlib.contextmanager
def _new_file(file: Path) -> Iterator[SqliteSide]:
    """A new SQLite file with the tables, without a row."""
    sqlite_file.discard(file)
    file.touch(mode=0o600)
    engine = create_engine(URL.create("sqlite", database=str(file)), poolclass=NullPool)
    with engine.begin() as made:
        _make(made)
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        yield SqliteSide(connection)
        connection.execute("COMMIT")


@contextlib.contextmanager
def _newest(file: Path, scratch: Path) -> Iterator[Path]:
    """A copy with this version's schema: the one that was given, or a changed copy of it."""
    if sqlite_file.check(file) == migrations.head():
        yield file
        return
    scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    changed = scratch / f"restore-{file.name}"
    try:
        sqlite_file.copy(file, changed)
        engine = create_engine(URL.create("sqlite", database=str(changed)), poolclass=NullPool)
        migrations.migrate(engine)
        yield changed
    finally:
        sqlite_file.discard(changed)
