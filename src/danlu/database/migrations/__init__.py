"""The schema's history: one file a step, applied in order by Alembic.

A step *expands*: it adds tables, columns that older servers need not know, indexes. One that takes away or narrows says
``CONTRACT = True``: where several servers share a database it waits for ``danlu db migrate``, until none of the versions
that still need what it takes away is running.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import Script, ScriptDirectory
from sqlalchemy import Connection, Engine, func, select, text
from sqlalchemy.exc import DBAPIError

from danlu import __version__
from danlu.errors import DatabaseTooNew

LOCK: Final = 0x64616E6C75
"""Held by the server that changes the schema; "danlu" as a number."""
LOCK_WAIT_S: Final = 120
"""For another server that changes the schema."""
TABLE_WAIT_S: Final = 10
"""For whoever uses a table that is to change: all that come later wait behind it."""
FOLDER: Final = Path(__file__).parent
WRITTEN_BY: Final = "danlu version"
"""The counter that says which version has changed the schema last."""
PART: Final = 1000
_ONE_AT_A_TIME: Final = threading.Lock()  # Alembic keeps its context in module variables


@dataclass(frozen=True, slots=True)
class Step:
    """One step. ``contract``: it takes away what older versions need."""

    revision: str
    summary: str
    contract: bool


def _config(folder: Path) -> Config:
    config = Config()
    config.set_main_option("script_location", str(folder))
    config.set_main_option("path_separator", "os")
    return config


def _scripts(folder: Path) -> list[Script]:
    """Returns every step, the oldest first."""
    return [*ScriptDirectory.from_config(_config(folder)).walk_revisions()][::-1]


def steps(folder: Path = FOLDER) -> tuple[Step, ...]:
    """Returns every step that this version knows, the oldest first."""
    return tuple(
        Step(one.revision, (one.doc or "").splitlines()[0], bool(getattr(one.module, "CONTRACT", False)))
        for one in _scripts(folder)
    )


def head() -> str:
    """Returns the newest revision that this version knows."""
    return steps()[-1].revision


def revisions() -> frozenset[str]:
    """Returns every revision that this version knows."""
    return frozenset(step.revision for step in steps())


def pending(found: str | None, known: Sequence[Step]) -> tuple[Step, ...]:
    """Returns the steps that come after a revision; None: a database that has none."""
    if found is None:
        return tuple(known)
    return tuple(known[[step.revision for step in known].index(found) + 1 :])


def current(connection: Connection) -> str | None:
    """Returns a database's revision; None of one without a schema."""
    return MigrationContext.configure(connection).get_current_revision()


def migrate(engine: Engine, *, contract: bool = True, folder: Path = FOLDER) -> tuple[str, ...]:
    """Brings a database to the newest revision, in one transaction, and returns the steps that were taken.

    Idempotent; several servers may do it at once. Without ``contract``, and unless the database is new, it stops before the
    first step that takes something away.

    Raises:
        DatabaseTooNew: a later version of Danlu has written it.
    """
    with engine.begin() as connection:
        return migrate_in(connection, contract=contract, folder=folder)


def migrate_in(connection: Connection, *, contract: bool = True, folder: Path = FOLDER) -> tuple[str, ...]:
    """Does it within a transaction of the caller's; see ``migrate``."""
    config, known = _config(folder), steps(folder)
    with _ONE_AT_A_TIME:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_WAIT_S}s'"))
            connection.execute(select(func.pg_advisory_xact_lock(LOCK)))
            connection.execute(text(f"SET LOCAL lock_timeout = '{TABLE_WAIT_S}s'"))
        found = current(connection)
        version = written_by(connection) if found else None
        require_known("the database", found, version, known={step.revision for step in known})
        ahead = pending(found, known)
        if found is not None and not contract:
            first = next((at for at, step in enumerate(ahead) if step.contract), len(ahead))
            ahead = ahead[:first]
        if not ahead:
            return ()
        config.attributes["connection"] = connection
        command.upgrade(config, ahead[-1].revision)
        connection.execute(text("DELETE FROM counters WHERE project = '' AND name = :name"), {"name": WRITTEN_BY})
        connection.execute(
            text("INSERT INTO counters (project, name, value) VALUES ('', :name, :value)"),
            {"name": WRITTEN_BY, "value": as_number(__version__)},
        )
    return tuple(step.revision for step in ahead)


def require_known(what: str, found: str | None, version: int | None, *, known: Collection[str], step: str = "") -> None:
    """Raises unless a revision is one that this version knows.

    Args:
        what: the database, as it is called.
        found: its revision; None: it has none.
        known: the revisions that this version knows.
        version: which version of Danlu wrote it, as a number; None: that is not known.
        step: what else can be done than to install that version.

    Raises:
        DatabaseTooNew: it is not.
    """
    if found is None or found in known:
        return
    by = f"Danlu {as_version(version)}, newer than this" if version else "a newer version of Danlu than this"
    install = f"pip install 'danlu>={as_version(version)}'" if version else "install that version again"
    raise DatabaseTooNew(
        f"{what} was written by {by}: its schema is {found}, Danlu {__version__} knows up to {max(known)}; "
        "it was not written to",
        next_step=f"{install}{step and '; or '}{step}",
    )


def written_by(connection: Connection) -> int | None:
    """Returns the version, as a number, that has changed a database's schema last; None where that is not known."""
    query = text("SELECT value FROM counters WHERE project = '' AND name = :name")
    try:
        with connection.begin_nested():
            found = connection.execute(query, {"name": WRITTEN_BY}).scalar_one_or_none()
    except DBAPIError:  # a newer one may have no such table
        return None
    return None if found is None else int(found)


def as_number(version: str) -> int:
    """Returns a version as a number, in the same order: 0.12.3 is 12003."""
    parts = [int("".join(letter for letter in part if letter.isdigit()) or 0) for part in version.split(".")[:3]]
    major, minor, patch = (min(part, PART - 1) for part in [*parts, 0, 0][:3])
    return (major * PART + minor) * PART + patch


def as_version(number: int) -> str:
    """Returns the version that a number stands for."""
    return f"{number // PART**2}.{number // PART % PART}.{number % PART}"
