"""What is done to a platform's database without its server: ``python -m danlu.server.offline``, which ``danlu db`` runs.

It says on stdout, a JSON object a line, how far it is, what came out of it, or what went wrong.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from danlu import __version__
from danlu.config import Settings, database_url, default_home
from danlu.database import migrations, moving, postgresql, schema, sqlite_file
from danlu.database.copying import Copied
from danlu.database.engine import Database
from danlu.domain.databases import DatabaseChange, DatabaseStatus, PendingStep
from danlu.errors import AlreadyRunning, Conflict, DanluError, NotFound, PlatformError, storage_full_is_an_error
from danlu.server import keys
from danlu.server.main import prepare_home, take_lock
from danlu.services import first_user
from danlu.services.vault import Vault

SQLITE: Final = "danlu.db"


def main(words: Sequence[str] | None = None) -> int:
    """Does what it is asked; returns the exit code."""
    parser = argparse.ArgumentParser(prog="danlu.server.offline")
    parser.add_argument("verb", choices=("status", "migrate", "move", "undo", "backup", "restore", "first-key"))
    parser.add_argument("--home", type=Path)
    parser.add_argument("--to")
    parser.add_argument("--file", type=Path)
    asked = parser.parse_args(words)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        home = asked.home or default_home(os.environ, root=os.geteuid() == 0)
        if asked.verb == "first-key":
            key_id, secret = first_key(home)
            _say(access_key_id=key_id, secret=secret)
            return 0
        with storage_full_is_an_error("this"):
            found = _do(asked.verb, home, asked.to, asked.file)
    except DanluError as error:
        _say(error=error.to_problem())
        return 1
    except OSError as error:
        _say(error=PlatformError(f"{error.filename or 'the data folder'}: {error.strerror}").to_problem())
        return 1
    _say(done=found.model_dump(mode="json"))
    return 0


def first_key(home: Path) -> tuple[str, str]:
    """Returns the first administrator's access key of servers that share a database; a new one where it has ended.

    Raises:
        PlatformError: the data folder has that key, or nobody has it.
    """
    url, kept, now = database_url(os.environ), keys.load(keys.make_folder(home), os.environ), time.time_ns()
    if url is None or not kept.given:
        raise PlatformError(
            "this is for servers that share a database and a master key: DANLU_DATABASE_URL and DANLU_MASTER_KEY",
            next_step=f"the data folder has the key: {home / first_user.FILE}; for a new one: {first_user.NEW_KEY}",
        )
    database, vault = Database.open(url), Vault(kept.master, secrets.token_bytes)
    found = first_user.settle(database, vault, None, now, new_master=False, shared=True)
    if found.key is None:
        found = first_user.settle(database, vault, None, now, new_master=False)
    database.close()
    if found.key is None:
        raise PlatformError("there is no access key of a first administrator", next_step=found.told)
    return found.key


def _do(verb: str, home: Path, to: str | None, file: Path | None) -> DatabaseStatus | DatabaseChange:
    url, path = database_url(os.environ), home / SQLITE
    if verb == "status":
        return status(path, url)
    if verb == "migrate":
        return migrate(path, url)
    if verb == "backup":
        return backup(path, url, _given(file))
    if verb == "restore":
        return restore(path, url, _given(file))
    _own(home)
    if verb == "undo":
        was = moving.undo(path)
        return DatabaseChange(what="undone", database=str(path), message=f"what was stored in {was} since stays there")
    target = to or url
    if target is None:
        raise PlatformError("nobody says where to", next_step="danlu db move --to postgresql://USER@HOST/DATABASE")
    copied = moving.move(path, target, now=time.time_ns(), progress=_progress)
    return _copied("moved", postgresql.shown(target), copied)


def status(path: Path, url: str | None) -> DatabaseStatus:
    """Returns where the database is and which schema it has. Changes nothing."""
    moved = moving.moved(path)
    found = schema.look_at_file(path) if url is None else schema.look_at(url)
    ahead = migrations.pending(found.revision, migrations.steps())
    return DatabaseStatus(
        kind="sqlite" if url is None else "postgresql", database=found.database, schema_revision=found.revision,
        newest=migrations.head(), version=__version__, size_bytes=found.size_bytes,
        pending=tuple(PendingStep(revision=s.revision, summary=s.summary, contract=s.contract) for s in ahead),
        servers=int(_is_locked(path.parent)) if found.servers is None else found.servers,
        moved_to=moved.to if moved else None,
    )  # fmt: skip


def migrate(path: Path, url: str | None) -> DatabaseChange:
    """Brings a database to this version's schema: what is added at once, what takes away once no server is left."""
    if url is None:
        _own(path.parent)
        done = schema.migrate_file(path, now=time.time_ns())
    else:
        done = schema.migrate(url)
    message = "" if done.steps else f"no step was to be taken: its schema is {migrations.head()}"
    if done.left:
        message = (
            f"{', '.join(done.left)} takes away what older servers need, and waits: {done.why}. This version of Danlu runs "
            "with and without it; repeat this when no server runs"
        )
    shown = str(path) if url is None else postgresql.shown(url)
    return DatabaseChange(what="migrated", database=shown, steps=done.steps, message=message)


def backup(path: Path, url: str | None, file: Path) -> DatabaseChange:
    """Copies the database to a file that is not there yet. A server may run meanwhile."""
    if file.exists():
        raise Conflict(f"{file} is there already, and is not overwritten", next_step="choose another name")
    if not file.parent.is_dir():
        raise NotFound(f"there is no folder {file.parent}", next_step=f"mkdir -p {file.parent}")
    if url is not None:
        return _copied("copied", str(file), moving.back_up(url, file, _progress))
    moving.require_here(path)
    if sqlite_file.check(path) is None:
        raise NotFound(f"there is no database in {path}", next_step="danlu db status tells more")
    sqlite_file.copy(path, file)
    return DatabaseChange(what="copied", database=str(file), message="checked by SQLite")


def restore(path: Path, url: str | None, file: Path) -> DatabaseChange:
    """Puts a copy in a place where no database is."""
    if not file.exists():
        raise NotFound(
            f"there is no file {file}",
            next_step="copies lie in the folder backups of DANLU_HOME, and where you made them",
        )
    _own(path.parent)
    if url is not None:
        copied = moving.restore(file, url, path.parent / "cache", _progress)
        return _copied("restored", postgresql.shown(url), copied)
    done = moving.restore_file(file, path, _progress)
    if done is not None:
        return _copied("restored", str(path), done)
    return DatabaseChange(
        what="restored",
        database=str(path),
        message="it is an older version's: danlu up brings it to this version's schema",
    )


def _own(home: Path) -> None:
    """Keeps servers of a data folder from starting until this process has ended."""
    prepare_home(Settings(home))
    try:
        take_lock(home)
    except AlreadyRunning as error:
        raise AlreadyRunning(error.message, next_step="danlu down, then repeat; jobs go on meanwhile") from None


def _is_locked(home: Path) -> bool:
    if not (home / "lock").exists():
        return False
    try:
        os.close(take_lock(home))
    except AlreadyRunning:
        return True
    except OSError:
        return False
    return False


def _given(file: Path | None) -> Path:
    if file is None:
        raise PlatformError("a file has to be named", next_step="danlu db backup FILE")
    return file.absolute()


def _copied(what: str, database: str, copied: Copied) -> DatabaseChange:
    return DatabaseChange(
        what=what, database=database, tables=len(copied.rows), rows=copied.total, last_event=copied.last_event,
        message="every value of every row was read back and is the same",
    )  # fmt: skip


def _progress(label: str, done: int, total: int) -> None:
    _say(progress=[label, done, total])


def _say(**line: Any) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
