"""How many bytes each project stores: a sum, and beside it what is replaced rather than added.

The sum has both: ``blob_bytes``, which grow as blobs are stored, and the *things* of a project, each with a name: what a
job's checkpoints take, an upload that comes in pieces. Each upload counts up ``changes``, so that who has counted the blobs
on the disk knows whether that still holds.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from sqlalchemy import delete, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from danlu.database import queries, tables
from danlu.database.engine import Transaction

AT_ONCE: Final = 10
UNREFERENCED: Final = "unreferenced/"
MARK: Final = "blobs' mark"
"""The counter that is the number of the store where blobs are."""


class Thing(NamedTuple):
    """What a project stores beside whole blobs. ``until``: when to look whether it is still there, ns UTC; 0: never."""

    project: str
    name: str
    size_bytes: int
    until: int = 0


class Uncounted(NamedTuple):
    """A project whose blobs are to be counted. ``changes``: None where nothing was ever stored for it."""

    project: str
    changes: int | None


def add_blobs(tx: Transaction, project: str, size_bytes: int, now: int, *, again: bool = False) -> None:
    """Counts blobs that are stored from now on; fewer than 0: that are not after all. ``again``: all are to be counted."""
    _add(tx, project, now, used_bytes=size_bytes, blob_bytes=size_bytes, upload=True)
    if again:
        tx.connection.execute(update(tables.stored).where(tables.stored.c.project == project).values(counted_at=0))


def thing(tx: Transaction, project: str, name: str) -> Thing | None:
    """Returns what is counted under a name."""
    things = tables.stored_things.c
    query = select(things.project, things.name, things.size_bytes, things.until)
    row = tx.connection.execute(query.where(things.project == project, things.name == name)).one_or_none()
    return None if row is None else Thing(*row)


def set_thing(tx: Transaction, new: Thing, now: int, *, upload: bool) -> None:
    """Counts a thing in place of what was counted under its name; of 0 bytes it is gone. ``upload``: it becomes a blob."""
    if not upload and (thing(tx, new.project, new.name) or Thing(new.project, new.name, 0)) == new:
        return
    _add(tx, new.project, now, upload=upload)  # from here on nobody else changes a thing of the project
    _replace(tx, new, now, upload=upload)


def arrived(tx: Transaction, whole: Thing, now: int) -> None:
    """Counts a thing as a blob of that size from now on, if it is still there."""
    _add(tx, whole.project, now, upload=True)
    if thing(tx, whole.project, whole.name) is not None:
        _replace(tx, whole._replace(size_bytes=0), now, upload=True)
        add_blobs(tx, whole.project, whole.size_bytes, now)


def _replace(tx: Transaction, new: Thing, now: int, *, upload: bool) -> None:
    old = thing(tx, new.project, new.name)
    _put(tx, new)
    more = new.size_bytes - (0 if old is None else old.size_bytes)
    _add(tx, new.project, now, used_bytes=more, upload=upload)


def _put(tx: Transaction, new: Thing) -> None:
    things = tables.stored_things
    tx.connection.execute(delete(things).where(things.c.project == new.project, things.c.name == new.name))
    if new.size_bytes:
        tx.connection.execute(insert(things).values(new._asdict()))


def add_unreferenced(tx: Transaction, project: str, attempt_id: str, size_bytes: int, now: int) -> int:
    """Adds to what an attempt has sent that nothing refers to yet, or takes from it; returns what that is now.

    These bytes are counted as blobs or uploads: this counts nothing to what its project stores.
    """
    _add(tx, project, now, upload=False)  # as in set_thing
    name = f"{UNREFERENCED}{attempt_id}"
    known = thing(tx, project, name)
    new = Thing(project, name, max(0, size_bytes + (0 if known is None else known.size_bytes)))
    _put(tx, new)
    return new.size_bytes


def forget_unreferenced(tx: Transaction, project: str, attempt_id: str) -> None:
    """Forgets what an attempt has sent: it sends nothing any more."""
    _put(tx, Thing(project, f"{UNREFERENCED}{attempt_id}", 0))


def names(tx: Transaction, prefix: str) -> list[str]:
    """Returns the names of all projects' things that begin with a prefix."""
    name = tables.stored_things.c.name
    return [str(row[0]) for row in tx.connection.execute(select(name).where(name.startswith(prefix, autoescape=True)))]


def overdue(tx: Transaction, now: int) -> list[Thing]:
    """Returns some of the things of which somebody has to look whether they are still there."""
    things = tables.stored_things.c
    query = select(things.project, things.name, things.size_bytes, things.until)
    query = query.where(things.until > 0, things.until <= now).order_by(things.until).limit(AT_ONCE)
    return [Thing(*row) for row in tx.connection.execute(query)]


def used(tx: Transaction, below: str | None = None) -> dict[str, int]:
    """Returns how many bytes each project stores, of those below a quota or of all; those that store nothing are left out."""
    stored = tables.stored.c
    query = select(stored.project, stored.used_bytes).where(stored.used_bytes > 0)
    if below is not None:
        query = query.where(stored.project.in_(queries.projects_below(below)))
    return {str(project): int(size) for project, size in tx.connection.execute(query)}


def uncounted(tx: Transaction, *, since: int, quiet_since: int) -> list[Uncounted]:
    """Returns some projects whose blobs were not counted on the disk after a time, and not changed after another (ns UTC)."""
    stored, projects = tables.stored.c, tables.projects.c
    query = (
        select(projects.id, stored.changes)
        .select_from(tables.projects.outerjoin(tables.stored, stored.project == projects.id))
        .where(
            or_(stored.project.is_(None), stored.counted_at < since),
            or_(stored.project.is_(None), stored.changed_at <= quiet_since),
        )
    )
    return [Uncounted(*row) for row in tx.connection.execute(query.order_by(projects.id).limit(AT_ONCE))]


def counted(tx: Transaction, found: Uncounted, blob_bytes: int, now: int) -> bool:
    """Stores how many bytes of blobs there are on the disk, unless something has changed since; returns whether it did."""
    stored = tables.stored.c
    if found.changes is None:
        row = _row(found.project) | {"used_bytes": blob_bytes, "blob_bytes": blob_bytes, "counted_at": now}
        return bool(tx.connection.execute(_insert(tx).values(row).on_conflict_do_nothing()).rowcount)
    query = update(tables.stored).where(stored.project == found.project, stored.changes == found.changes)
    used_bytes = stored.used_bytes - stored.blob_bytes + blob_bytes
    done = tx.connection.execute(query.values(used_bytes=used_bytes, blob_bytes=blob_bytes, counted_at=now))
    return bool(done.rowcount)


def _add(tx: Transaction, project: str, now: int, *, upload: bool, used_bytes: int = 0, blob_bytes: int = 0) -> None:
    stored = tables.stored.c
    row = _row(project) | {"used_bytes": used_bytes, "blob_bytes": blob_bytes}
    change: dict[str, object] = {
        "used_bytes": stored.used_bytes + used_bytes, "blob_bytes": stored.blob_bytes + blob_bytes,
    }  # fmt: skip
    if upload:
        row |= {"changes": 1, "changed_at": now}
        change |= {"changes": stored.changes + 1, "changed_at": now}
    insertion = _insert(tx).values(row)
    tx.connection.execute(insertion.on_conflict_do_update(index_elements=[stored.project], set_=change))


def _row(project: str) -> dict[str, object]:
    return {"project": project, "used_bytes": 0, "blob_bytes": 0, "changes": 0, "changed_at": 0, "counted_at": 0}


def _insert(tx: Transaction) -> Any:
    return (postgresql.insert if tx.dialect == "postgresql" else sqlite.insert)(tables.stored)


def mark(tx: Transaction) -> int | None:
    """Returns the number of the store where blobs are; None where none was used yet."""
    row = tables.counters.c
    found = tx.connection.execute(select(row.value).where(row.project == "", row.name == MARK)).scalar_one_or_none()
    return None if found is None else int(found)


def set_mark(tx: Transaction, number: int) -> int:
    """Remembers it unless one is; returns the one that is."""
    build: Any = postgresql.insert if tx.dialect == "postgresql" else sqlite.insert
    statement = build(tables.counters).values(project="", name=MARK, value=number).on_conflict_do_nothing()
    tx.connection.execute(statement)
    known = mark(tx)
    return number if known is None else known
