"""A SQLite file as a file: refused when damaged or too new, without a byte written; backed up while in use."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from danlu.database import migrations
from danlu.database.migrations import WRITTEN_BY
from danlu.errors import DatabaseDamaged, DatabaseUnavailable, StorageFull
from danlu.runner.formats import sync

HEADER: Final = b"SQLite format 3\x00"
BACKUPS: Final = "backups"
BACKUP_PATTERN: Final = "danlu-*.db"
BEFORE_MIGRATION: Final = "-before-migration"
KEPT_DAYS: Final = 7
DAY_CHARACTERS: Final = len("danlu-20261124")


def check(path: Path) -> str | None:
    """Returns the schema's version, None of a new file; raises unless it is sound and known. Writes nothing.

    After a crash a write-ahead log beside the file is normal: it is read as part of the database.

    Raises:
        DatabaseDamaged: its contents contradict themselves; the newest backup is named.
        DatabaseTooNew: a later version of Danlu has written it.
    """
    if not path.exists() or path.stat().st_size == 0:
        log = path.with_name(path.name + "-wal")
        if (log.exists() and log.stat().st_size) or any((path.parent / BACKUPS).glob(BACKUP_PATTERN)):
            raise _damaged(path, "it is empty or missing, though there was one")
        return None
    with path.open("rb") as file:
        if file.read(16) != HEADER:
            raise _damaged(path, "it does not begin as a SQLite file does")
    try:
        connection = sqlite3.connect(to_read(path), uri=True)
        try:
            found = [row[0] for row in connection.execute("PRAGMA quick_check(5)")]
            if found != ["ok"]:
                raise _damaged(path, "; ".join(str(line) for line in found))
            names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            version = (
                connection.execute("SELECT version_num FROM alembic_version").fetchone()
                if "alembic_version" in names
                else None
            )
            written_by = (
                connection.execute(
                    "SELECT value FROM counters WHERE project = '' AND name = ?", (WRITTEN_BY,)
                ).fetchone()
                if "counters" in names
                else None
            )
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        raise _damaged(path, str(error)) from error
    if version is not None:
        migrations.require_known(
            str(path), version[0], None if written_by is None else int(written_by[0]), known=migrations.revisions(),
            step="restore a backup made by this version",
        )  # fmt: skip
    return None if version is None else str(version[0])


def to_read(path: Path) -> str:
    """Returns the address of a file that nobody writes to, for reading alone."""
    # without a log nothing may be created beside the file; with one, SQLite must read it to see the newest state
    waiting = path.with_name(path.name + "-wal")
    immutable = "" if waiting.exists() and waiting.stat().st_size else "&immutable=1"
    return f"{path.absolute().as_uri()}?mode=ro{immutable}"


def _damaged(path: Path, finding: str) -> DatabaseDamaged:
    backups = sorted((path.parent / BACKUPS).glob(BACKUP_PATTERN))
    if backups:
        step = (
            f"the newest backup: move {path} away with its -wal and -shm, which belong to no other, "
            f"then cp {backups[-1]} {path}"
        )
    else:
        step = f"there is no backup in {path.parent / BACKUPS}; keep the file for repair by sqlite3 .recover"
    return DatabaseDamaged(f"{path} is damaged: {finding}; it was not written to", next_step=step)


def backup(path: Path, folder: Path, *, now: int, migration: bool = False) -> Path | None:
    """Copies a database in use to ``folder`` and returns the copy, checked and complete, or None where there is no file.

    What stays: the newest of each of the last KEPT_DAYS days that have one, and the newest that was made before a
    ``migration``. A copy that was not finished is never seen under a backup's name.

    Raises:
        StorageFull, DatabaseUnavailable: there is no new copy; the older ones are untouched.
    """
    if not path.exists() or path.stat().st_size == 0:
        return None
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    stamp = datetime.fromtimestamp(now / 1e9, UTC).strftime("%Y%m%dT%H%M%SZ")
    finished = folder / f"danlu-{stamp}{BEFORE_MIGRATION if migration else ''}.db"
    copy(path, finished)
    copies = sorted(folder.glob(BACKUP_PATTERN))
    by_day = {copy.name[:DAY_CHARACTERS]: copy for copy in copies}
    before_migrations = [copy for copy in copies if copy.stem.endswith(BEFORE_MIGRATION)]
    for old in set(copies) - set([*by_day.values()][-KEPT_DAYS:]) - set(before_migrations[-1:]):
        old.unlink()
    return finished


def copy(path: Path, finished: Path) -> None:
    """Copies a database, which may be in use, to a file that nobody sees before it is checked and complete.

    Raises:
        StorageFull, DatabaseUnavailable: there is no copy.
    """
    unfinished = part_of(finished)
    try:
        with (
            contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as source,
            contextlib.closing(sqlite3.connect(unfinished)) as target,
        ):
            source.backup(target)
        finish(unfinished, finished)
    except sqlite3.Error as error:
        raise not_copied(path, error) from error
    finally:
        discard(unfinished)


def part_of(finished: Path) -> Path:
    """Returns where a file is made that is to be seen only when it is complete."""
    return finished.with_name(f".{finished.name}.{os.getpid()}.part")


def finish(unfinished: Path, finished: Path) -> None:
    """Gives a file its name, once it is checked and on the disk."""
    with contextlib.closing(sqlite3.connect(unfinished)) as target:
        if target.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise DatabaseDamaged(f"the copy {finished} does not pass its check")
    unfinished.chmod(0o600)
    sync(str(unfinished))
    unfinished.replace(finished)
    sync(str(finished.parent))


def discard(unfinished: Path) -> None:
    """Removes what was not finished, and what SQLite has put beside it."""
    for suffix in ("", "-journal", "-wal", "-shm"):
        unfinished.with_name(unfinished.name + suffix).unlink(missing_ok=True)


def not_copied(what: object, error: sqlite3.Error) -> StorageFull | DatabaseUnavailable:
    """Returns the error that says why there is no copy."""
    if "full" in str(error):
        return StorageFull(f"no room on the disk for a copy of {what}; nothing was changed")
    return DatabaseUnavailable(f"a copy of {what} could not be made: {error}")
