"""Large blobs that come piece by piece: what has arrived outlives the sender, the connection and the server."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from danlu.blobs.folders import write_all
from danlu.errors import Conflict, InvalidRequest, storage_full_is_an_error

if TYPE_CHECKING:
    from hashlib import _Hash

SUFFIX: Final = ".part"
KEPT_S: Final = 7 * 86400.0
"""What nobody has added to for so long is removed."""
MAX_HASHED: Final = 64
"""Uploads of which the hash so far is remembered. That of others is computed once, with their last piece: a small piece must
not cost reading all that came before it."""
CHUNK_BYTES: Final = 2**20


class Hashes:
    """The hash so far of the uploads that were added to last, by name."""

    def __init__(self) -> None:
        self._hashed: dict[str, tuple[int, _Hash]] = {}
        self._lock = threading.Lock()

    def remember(self, name: str, end: int, hasher: _Hash) -> None:
        """Keeps the hash of an upload's first ``end`` bytes."""
        with self._lock:
            while len(self._hashed) >= MAX_HASHED:
                self._hashed.pop(next(iter(self._hashed)))
            self._hashed[name] = end, hasher

    def taken(self, name: str, offset: int) -> _Hash | None:
        """Returns the hash of an upload's first ``offset`` bytes, and forgets it; None where it is not known."""
        with self._lock:
            at, hasher = self._hashed.pop(name, (0, hashlib.sha256()))
        return hasher if at == offset else None  # else of an earlier try, or forgotten


class Parts:
    """Unfinished blobs in a folder, as ``PROJECT~DIGEST.part``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._hashes = Hashes()

    def sweep(self) -> None:
        """Removes what was given up."""
        for path in self._folder.glob(f"*{SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > KEPT_S:
                    path.unlink()

    def received(self, project: str, digest: str) -> int:
        """Returns how many bytes have arrived."""
        try:
            return self._path(project, digest).stat().st_size
        except FileNotFoundError:
            return 0

    def append(
        self, project: str, digest: str, piece: BinaryIO, *, offset: int, size: int, store: Callable[[Path], None]
    ) -> int:
        """Adds a piece; returns how many bytes there are now. With the last one, ``store`` gets the whole file.

        Args:
            project: whose blob.
            digest: of the whole.
            piece: the bytes.
            offset: where they begin.
            size: of the whole.
            store: makes the file the blob.

        Raises:
            Conflict: the piece does not begin where the last one ended, or another one is being added.
            InvalidRequest: it is too long: it is not added. Or all together is not what the address says: all is removed.
        """
        path = self._path(project, digest)
        if not path.exists():
            self.sweep()
        with storage_full_is_an_error("an upload"), _locked(path) as file:
            there = file.seek(0, os.SEEK_END)
            if there != offset:
                raise Conflict(f"the piece begins at byte {offset}, but {there} bytes have arrived", received=there)
            hasher = self._hashes.taken(path.name, offset)
            end = _added(file, piece, hasher, offset, size)
            if end < size:
                if hasher is not None:
                    self._hashes.remember(path.name, end, hasher)
                return end
            found = (hasher or _hash_of(file)).hexdigest()
            if found != digest:
                path.unlink()
                raise InvalidRequest(f"the bytes sent are sha256:{found}, not sha256:{digest}; nothing was stored")
            os.fsync(file.fileno())
            store(path)
        return end

    def _path(self, project: str, digest: str) -> Path:
        return self._folder / f"{project}~{digest}{SUFFIX}"


def _hash_of(file: BinaryIO) -> _Hash:
    hasher = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(CHUNK_BYTES):
        hasher.update(chunk)
    return hasher


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """Opens a part, which is made if need be, for one at a time."""
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+b", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict("another piece of this blob is being stored", next_step="wait a moment") from None
        now = path.stat() if path.exists() else None
        if now is None or not os.path.samestat(now, os.fstat(file.fileno())):
            raise Conflict("the blob was completed just now")  # what is open here is a stored blob, which never changes
        yield file


def _added(file: BinaryIO, piece: BinaryIO, hasher: _Hash | None, offset: int, size: int) -> int:
    """Writes a piece to the end of a part, whole or not at all; returns where it ends."""
    at = offset
    try:
        while chunk := piece.read(CHUNK_BYTES):
            if at + len(chunk) > size:
                raise InvalidRequest(
                    f"the blob has {size} bytes; this piece goes on to byte {at + len(chunk)} at least"
                )
            if hasher is not None:
                hasher.update(chunk)
            write_all(file, chunk)
            at += len(chunk)
    except BaseException:
        file.truncate(offset)
        raise
    return at
