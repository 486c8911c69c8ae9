"""What of a project's blobs nothing refers to any more: found, condemned, and removed once that has settled.

See blobs/unused.py. Whatever comes to refer to blobs is to be named in ``references``, and has to look whether they are there
in the request that stores the reference, or shortly before.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Final, TypeVar

from danlu.blobs.base import Blobs
from danlu.blobs.unused import SETTLE_S, Condemned, Listed
from danlu.database import stored
from danlu.database.engine import Store, Transaction
from danlu.database.leadership import Fenced
from danlu.database.records import ARTIFACTS, CHECKPOINTS, ENVIRONMENTS, JOBS, OUTPUTS, Records
from danlu.domain.records import Record
from danlu.domain.trees import decode
from danlu.errors import DataDamaged, InvalidRequest, NotFound, TooLarge
from danlu.services.context import Clock

R = TypeVar("R", bound=Record)
PAGE: Final = 1000
AT_ONCE: Final = 100
"""Blobs that are removed between two looks whether that is still to be done."""


def find(database: Store, blobs: Blobs, project: str, before: int) -> list[Listed]:
    """Returns the blobs that were stored before a time, ns UTC, and that nothing refers to."""
    old = [one for one in blobs.listed(project) if one.modified_at < before]
    used = references(database, blobs, project) if old else set()
    return [one for one in old if one.address not in used]


class Removal:
    """Removes what has been condemned for long enough and is still unused.

    How long that is this server's clock tells, from when the server has first seen it: another one's may be wrong. Only who
    leads removes: what others remove late may have been sent again.
    """

    def __init__(self, database: Fenced, blobs: Blobs, clock: Clock) -> None:
        self._database, self._blobs, self._clock = database, blobs, clock
        self._seen: dict[str, tuple[Condemned, int]] = {}

    def step(self) -> None:
        """Looks once at all projects."""
        seen: dict[str, tuple[Condemned, int]] = {}
        for project in self._blobs.condemning():
            condemned, now = self._blobs.condemned(project), self._clock.now()
            if not condemned.addresses:
                continue
            known, since = self._seen.get(project, (None, now))
            seen[project] = condemned, since if known == condemned else now
        self._seen = seen
        for project, (condemned, since) in seen.items():
            if self._clock.now() - since >= SETTLE_S * 1e9:
                self._remove(project, condemned)

    def _remove(self, project: str, condemned: Condemned) -> None:
        gone, size = sorted(condemned.addresses - references(self._database, self._blobs, project)), 0
        for at in range(0, len(gone), AT_ONCE):
            if self._blobs.condemned(project) != condemned:
                break  # another server has removed them, and what is there now was sent again
            self._database.require()
            size += self._blobs.remove(project, gone[at : at + AT_ONCE])
        else:
            self._database.require()
            self._blobs.condemn(project, (), self._clock.wall())
        if size:
            self._database.write(partial(stored.add_blobs, project=project, size_bytes=-size, now=self._clock.now()))


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
