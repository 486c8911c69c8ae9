"""The schema's history: one file a step, applied in order by Alembic at start."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, func, select

from danlu.errors import DatabaseTooNew

LOCK: Final = 0x64616E6C75
"""Held by the server that changes the schema; "danlu" as a number."""
_ONE_AT_A_TIME: Final = threading.Lock()  # Alembic keeps its context in module variables


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.set_main_option("path_separator", "os")
    return config


def head() -> str:
    """Returns the newest revision that this version knows."""
    newest = ScriptDirectory.from_config(_config()).get_current_head()
    if newest is None:
        raise RuntimeError("the package has no migrations")
    return newest


def revisions() -> frozenset[str]:
    """Returns every revision that this version knows."""
    return frozenset(script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions())


def migrate(engine: Engine) -> None:
    """Brings a database to the newest revision, in one transaction. Idempotent; several servers may do it at once.

    Raises:
        DatabaseTooNew: a later version of Danlu has written it.
    """
    config = _config()
    with _ONE_AT_A_TIME, engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(select(func.pg_advisory_xact_lock(LOCK)))
        found = MigrationContext.configure(connection).get_current_revision()
        if found is not None and found not in revisions():
            raise DatabaseTooNew(
                f"the database was written by a newer version of Danlu (schema {found}; this one knows up to {head()}); "
                "it was not written to",
                next_step="start that version again",
            )
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
