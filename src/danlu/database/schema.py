"""Which schema a database has, and how it gets this version's, while no server or other servers are at it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import URL, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from danlu.database import migrations, moving, postgresql, sqlite_file
from danlu.errors import AlreadyRunning, NotFound


class Found(NamedTuple):
    """What there is. ``revision``: None where there are no tables yet; ``servers``: None where that is not known."""

    database: str
    revision: str | None
    size_bytes: int
    servers: int | None


class Migrated(NamedTuple):
    """The steps that were taken, and those that were not with the reason."""

    steps: tuple[str, ...]
    left: tuple[str, ...] = ()
    why: str = ""


def look_at_file(path: Path) -> Found:
    """Returns what a SQLite file is.

    Raises:
        DatabaseDamaged, DatabaseTooNew: this version cannot use it.
    """
    parts = (path, path.with_name(f"{path.name}-wal"))  # what was written last is in the log
    return Found(str(path), sqlite_file.check(path), sum(part.stat().st_size for part in parts if part.exists()), None)


def look_at(url: str | URL) -> Found:
    """Returns what a PostgreSQL database is.

    Raises:
        DatabaseTooNew: this version cannot use it.
        DatabaseUnavailable: it does not answer.
    """
    shown, engine = postgresql.shown(url), postgresql.engine(url, pooled=False)
    try:
        with engine.connect() as connection:
            found = migrations.current(connection)
            version = migrations.written_by(connection) if found else None
            migrations.require_known(shown, found, version, known=migrations.revisions())
            size_bytes = int(connection.execute(text("SELECT pg_database_size(current_database())")).scalar_one())
            driver: Any = connection.connection.driver_connection
            return Found(shown, found, size_bytes, postgresql.servers(driver))
    except DBAPIError as error:
        raise postgresql.unreachable(url, error.orig or error) from error
    finally:
        engine.dispose()


def migrate_file(path: Path, *, now: int) -> Migrated:
    """Brings a SQLite file to this version's schema; a copy of it as it was goes to the backups first.

    Raises:
        NotFound: there is none.
        DatabaseMoved: the database lies elsewhere.
    """
    moving.require_here(path)
    found = sqlite_file.check(path)
    if found is None:
        raise NotFound(f"there is no database in {path} yet", next_step="danlu up makes one")
    if found == migrations.head():
        return Migrated(())
    sqlite_file.backup(path, path.parent / sqlite_file.BACKUPS, now=now, migration=True)
    return Migrated(migrations.migrate(create_engine(URL.create("sqlite", database=str(path)), poolclass=NullPool)))


def migrate(url: str | URL, *, folder: Path = migrations.FOLDER) -> Migrated:
    """Takes every step that adds something, under running servers too, and the others if no server runs.

    Raises:
        DatabaseTooNew: this version cannot use it.
        DatabaseUnavailable: it does not answer.
    """
    engine = postgresql.engine(url, pooled=False, bounded=False)
    try:
        taken = migrations.migrate(engine, contract=False, folder=folder)
        with engine.connect() as connection:
            ahead = migrations.pending(migrations.current(connection), migrations.steps(folder))
        if not ahead:
            return Migrated(taken)
        try:
            with postgresql.alone(url):
                return Migrated(taken + migrations.migrate(engine, folder=folder))
        except AlreadyRunning as error:
            return Migrated(taken, tuple(step.revision for step in ahead), error.message)
    except DBAPIError as error:
        raise postgresql.unreachable(url, error.orig or error) from error
    finally:
        engine.dispose()
