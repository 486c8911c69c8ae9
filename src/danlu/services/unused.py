"""What of a project's blobs nothing refers to any more: found, condemned, and removed once that has settled.

See blobs/unused.py. Whatever comes to refer to blobs is to be named in ``references``, and has to look whether they are there
in the request that stores the reference, or shortly before.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Final, TypeVar

from danlu.blobs.base import Blobs
from danlu.blobs.unused import SETTLE_S, Listed
from danlu.database import stored
from danlu.database.engine import Store, Transaction
from danlu.database.records import ARTIFACTS, CHECKPOINTS, ENVIRONMENTS, JOBS, OUTPUTS, Records
from danlu.domain.records import Record
from danlu.domain.trees import decode
from danlu.errors import DataDamaged, InvalidRequest, NotFound, TooLarge
from danlu.services.context import Clock

R = TypeVar("R", bound=Record)
PAGE: Final = 1000
AT_ONCE: Final = 1000


def find(database: Store, blobs: Blobs, project: str, before: int) -> list[Listed]:
    """Returns the blobs that were stored before a time, ns UTC, and that nothing refers to."""
    old = [one for one in blobs.listed(project) if one.modified_at < before]
    used = references(database, blobs, project) if old else set()
    return [one for one in old if one.address not in used]


def collect(database: Store, blobs: Blobs, clock: Clock) -> None:
    """Removes what has been condemned for long enough and is still unused."""
    for project in blobs.condemning():
        condemned = blobs.condemned(project)
        if not condemned.addresses or clock.wall() - condemned.at < SETTLE_S * 1e9:
            continue
        gone, size = sorted(condemned.addresses - references(database, blobs, project)), 0
        for at in range(0, len(gone), AT_ONCE):
            if blobs.condemned(project) != condemned:
                break  # another server has removed them, and what is there now was sent again
            size += blobs.remove(project, gone[at : at + AT_ONCE])
        else:
            blobs.condemn(project, (), clock.wall())
        if size:
            database.write(partial(stored.add_blobs, project=project, size_bytes=-size, now=clock.now()))


def references(database: Store, blobs: Blobs, project: str) -> set[str]:
    """Returns the addresses of all that a project's records refer to, and of all below it."""
    found, waiting = set[str](), list[str]()
    for job in _each(database, JOBS, project):
        diff = None if job.spec.git is None else job.spec.git.diff
        found |= {diff} if diff is not None else set()
        waiting += [job.spec.code] if job.spec.code is not None else []
    # what tasks sent becomes an artifact: who looked the other way round could miss both
    waiting += [outputs.tree for outputs in _each(database, OUTPUTS, project)]
    waiting += [artifact.tree for artifact in _each(database, ARTIFACTS, project)]
    waiting += [checkpoint.tree for checkpoint in _each(database, CHECKPOINTS, project)]
    archives = (environment.archive for environment in _each(database, ENVIRONMENTS, project))
    found |= {archive.address for archive in archives if archive is not None}
    while waiting:
        tree = waiting.pop()
        if tree in found:
            continue
        found.add(tree)
        try:
            entries = decode(blobs.read(project, tree))
        except (NotFound, DataDamaged, InvalidRequest, TooLarge):
            continue  # what is below it nobody can reach by it
        waiting += [entry.address for entry in entries if entry.kind == "dir"]
        found.update(entry.address for entry in entries if entry.kind == "file")
    return found


def _each(database: Store, records: Records[R], project: str) -> Iterator[R]:
    """Yields a project's records, newest first: what is stored meanwhile was looked at by who stored it."""
    cursor: str | None = None
    while True:

        def work(tx: Transaction, cursor: str | None = cursor) -> tuple[tuple[R, ...], str | None]:
            page = records.page(tx, limit=PAGE, cursor=cursor, project=project)
            return page.items, page.next_cursor

        items, cursor = database.read(work)
        yield from items
        if cursor is None:
            return
