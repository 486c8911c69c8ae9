"""A tree that comes over the wire as a pack, laid out as a folder while it comes.

A pack is a sequence of frames: 32 bytes of SHA-256, 8 bytes of length (big-endian), the bytes. A folder's description comes
before what is in it, and everything once, however often it is there. So each frame is known before it comes, with its size:
nothing else is taken, and what comes is bounded by what the tree says. Nothing is written through a link: everything is made
under a name that was free, and links, which must stay inside, are made last.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from typing import Dict, Iterable, Iterator, List, NamedTuple, Tuple

from .trees import MAX_DEPTH, MAX_NODE_BYTES, MAX_TREE_ENTRIES, Entry, TreeError, decode, link_stays_inside

HEAD_BYTES = 40
Place = Tuple[str, int]
"""A path, and a file's mode or a folder's depth."""


class Damaged(Exception):
    """What came is not the tree that was asked for."""


class _File(NamedTuple):
    size: int
    places: List[Place]


class Unpacking:
    """Lays out one tree.

    Args:
        root: its address.
        folder: where; it must be empty.
    """

    def __init__(self, root: str, folder: str) -> None:
        self._nodes: Dict[str, List[Place]] = {root: [(folder, 0)]}
        self._files: Dict[str, _File] = {}
        self._placed: Dict[str, str] = {}
        self._known: Dict[str, Tuple[Entry, ...]] = {}
        self._links: List[Tuple[str, str]] = []
        self._entries = 0

    def run(self, chunks: Iterable[bytes]) -> None:
        """Takes the pack, cut anywhere.

        Raises:
            Damaged: it is not that of the tree, or not all of it.
            OSError: the disk is full, or the like.
        """
        source = _Source(chunks)
        while True:
            head = source.exactly(HEAD_BYTES, at_end=True)
            if not head:
                break
            address, size = "sha256:" + head[:32].hex(), int.from_bytes(head[32:], "big")
            if address in self._nodes:
                self._node(address, size, source)
            elif address in self._files:
                self._file(address, size, source)
            else:
                raise Damaged("%s is not what comes next, or not of the tree" % address)
        missing = next(iter([*self._nodes, *self._files]), None)
        if missing is not None:
            raise Damaged("the tree is not complete: %s is missing" % missing)
        for path, target in self._links:
            os.symlink(target, path)

    def _node(self, address: str, size: int, source: "_Source") -> None:
        if size > MAX_NODE_BYTES:
            raise Damaged("%s describes a folder in %d bytes: too many" % (address, size))
        data = source.exactly(size)
        if "sha256:" + hashlib.sha256(data).hexdigest() != address:
            raise Damaged("%s is not what its address says" % address)
        try:
            self._known[address] = decode(data)
        except TreeError as error:
            raise Damaged("%s: %s" % (address, error)) from error
        for path, depth in self._nodes.pop(address):
            self._enter(address, path, depth)

    def _enter(self, address: str, path: str, depth: int) -> None:
        """Makes what a folder has in it, as far as that has come."""
        entries = self._known[address]
        self._entries += len(entries)
        if self._entries > MAX_TREE_ENTRIES or depth > MAX_DEPTH:
            raise Damaged("the tree has more than %d names or %d levels" % (MAX_TREE_ENTRIES, MAX_DEPTH))
        for entry in entries:
            inner = os.path.join(path, entry.name)
            if entry.kind == "link":
                if not link_stays_inside(depth, entry.target):
                    raise Damaged("the link %s leaves its tree" % entry.name)
                self._links.append((inner, entry.target))
            elif entry.kind == "dir":
                os.mkdir(inner, 0o755)
                if entry.address in self._known:
                    self._enter(entry.address, inner, depth + 1)
                else:
                    self._nodes.setdefault(entry.address, []).append((inner, depth + 1))
            elif entry.address in self._placed:
                _copy(self._placed[entry.address], inner, entry.mode)
            else:
                self._files.setdefault(entry.address, _File(entry.size, [])).places.append((inner, entry.mode))

    def _file(self, address: str, size: int, source: "_Source") -> None:
        wanted = self._files.pop(address)
        if size != wanted.size:
            raise Damaged("%s has %d bytes, and its tree says %d" % (address, size, wanted.size))
        (path, mode), hasher = wanted.places[0], hashlib.sha256()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            for piece in source.pieces(size):
                hasher.update(piece)
                file.write(piece)
        if "sha256:" + hasher.hexdigest() != address:
            raise Damaged("%s is not what its address says" % address)
        self._placed[address] = path
        for other, its_mode in wanted.places[1:]:
            _copy(path, other, its_mode)


def empty(folder: str) -> None:
    """Removes what is in a folder that was filled by nobody else."""
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)


class _Source:
    """Bytes that come in chunks, taken in other sizes."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks, self._held = iter(chunks), b""

    def exactly(self, size: int, *, at_end: bool = False) -> bytes:
        """Returns so many bytes; nothing where they have ended and may."""
        found = b"".join(self.pieces(size, at_end=at_end))
        if found and len(found) < size:
            raise Damaged("the pack is cut short")
        return found

    def pieces(self, size: int, *, at_end: bool = False) -> Iterator[bytes]:
        """Yields so many bytes, as they come."""
        left = size
        while left:
            if not self._held:
                self._held = next(self._chunks, b"")
            if not self._held:
                if at_end:
                    return
                raise Damaged("the pack is cut short")
            piece, self._held = self._held[:left], self._held[left:]
            left -= len(piece)
            yield piece


def _copy(source: str, path: str, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    with open(source, "rb") as whole, os.fdopen(descriptor, "wb") as file:
        shutil.copyfileobj(whole, file, 1 << 20)
