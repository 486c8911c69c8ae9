"""Whether trees are all there, remembered by folder: of a tree of which most is known, only what is new is looked at."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Final, Protocol

from danlu.blobs.unused import NOTHING, Condemned
from danlu.domain.summaries import Summary, summarize
from danlu.domain.trees import MAX_DEPTH, MAX_TREE_ENTRIES, Entry, decode, require_address
from danlu.errors import InvalidRequest, NotFound

MAX_REMEMBERED: Final = 100_000
"""Folders, about 200 bytes each."""
MAX_LOOKED_BYTES: Final = 256 * 2**20
"""Of nodes that are not known yet, in one look: as many as the largest tree has with names of usual length."""


class Store(Protocol):
    """What is needed of Blobs."""

    def missing(self, project: str, addresses: Iterable[str]) -> tuple[str, ...]:
        """See Blobs."""

    def read(self, project: str, address: str) -> bytes:
        """See Blobs."""


class Wholeness:
    """Remembers which folders were found whole, with all below them. Blobs go by damage, see ``forget``, or condemned."""

    def __init__(self, blobs: Store) -> None:
        self._blobs = blobs
        self._whole: dict[tuple[str, str], Summary] = {}
        self._condemned: dict[str, int] = {}

    def forget(self, project: str) -> None:
        """A blob of the project is gone: nothing is known any more."""
        for key in [key for key in list(self._whole) if key[0] == project]:
            self._whole.pop(key, None)

    def absent(self, project: str, *roots: str, most: int, condemned: Condemned = NOTHING) -> tuple[str, ...]:
        """Returns what of trees the project does not have, at most so many; below a folder that it lacks, nothing is known.

        A node is decoded once however often it is named, and all of them together are no more than one tree may be: who
        asks pays one request, and decoding lets no other thread run.

        Raises:
            InvalidRequest: a node is wrong, or it is no tree that could be checked out (see ``trees.walk``).
        """
        if self._condemned.get(project, 0) != condemned.at:  # what was whole before may not be any more
            self.forget(project)
            self._condemned[project] = condemned.at
        look = _Look(self, project, most, condemned.addresses)
        for root in dict.fromkeys(roots):
            summary = look.folder(require_address(root), 0)
            if summary is not None and (wrong := summary.wrong()):
                raise InvalidRequest(f"tree {root} {wrong}")
        return tuple(itertools.islice(look.absent, most))


class _Look:
    """One look at trees."""

    def __init__(self, whole: Wholeness, project: str, most: int, condemned: frozenset[str]) -> None:
        self._whole, self._project, self._most, self._condemned = whole, project, most, condemned
        self.absent: dict[str, None] = {}
        self._seen: dict[str, Summary | None] = {}
        self._entries = self._bytes = 0

    def folder(self, address: str, depth: int) -> Summary | None:
        """Returns a folder's summary; None where it or something below it is absent."""
        known = self._whole._whole.get((self._project, address))
        if known is not None:
            return known
        if address in self._seen or len(self.absent) >= self._most:
            return self._seen.get(address)
        try:
            node = None if address in self._condemned else self._whole._blobs.read(self._project, address)
        except NotFound:
            node = None
        if node is None:
            self._add((address,))
            self._seen[address] = None
            return None
        self._bytes += len(node)
        if self._bytes > MAX_LOOKED_BYTES:
            raise InvalidRequest(
                f"{address} and the folders before it have more than {MAX_LOOKED_BYTES} bytes of names"
            )
        entries = decode(node)
        self._entries += len(entries)
        if depth > MAX_DEPTH or self._entries > MAX_TREE_ENTRIES:
            raise InvalidRequest(f"{address} lies too deep in its tree, or there is too much in it")
        self._seen[address] = found = self._summary(entries, depth)
        if found is not None:
            if len(self._whole._whole) >= MAX_REMEMBERED:
                self._whole._whole.clear()
            self._whole._whole[self._project, address] = found
        return found

    def _summary(self, entries: tuple[Entry, ...], depth: int) -> Summary | None:
        gone = self._whole._blobs.missing(self._project, (e.address for e in entries if e.kind == "file"))
        self._add(gone)
        below = {e.address: self.folder(e.address, depth + 1) for e in entries if e.kind == "dir"}
        whole = {address: summary for address, summary in below.items() if summary is not None}
        return summarize(entries, whole) if not gone and len(whole) == len(below) else None

    def _add(self, addresses: Iterable[str]) -> None:
        self.absent.update(dict.fromkeys(addresses))
