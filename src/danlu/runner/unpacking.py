"""Unpacks an environment's archive as it arrives: a tar of folders, files and links in gzip members, held to its address.

Nothing is trusted before its last byte: what it makes stays below one folder, is bounded, and is given no name until the
whole archive was what its address says.
"""

from __future__ import annotations

import hashlib
import os
import queue
import tarfile
import threading
import zlib
from typing import BinaryIO, Callable, Iterator, Optional, Set, Union, cast

CHUNK_BYTES = 1 << 20
AHEAD = 16
"""Chunks that are inflated while the disk is behind."""
GZIP = 31
MAX_DEPTH = 64


class Damaged(Exception):
    """An archive is not what its address says, or not what an environment may be."""


class Bounds:
    """What may be unpacked, counted down."""

    def __init__(self, files: int, size_bytes: int) -> None:
        self.files, self.size_bytes = files, size_bytes

    def take(self, size_bytes: int) -> None:
        """Counts one more; raises Damaged where that is too much."""
        self.files -= 1
        self.size_bytes -= size_bytes
        if self.files < 0 or self.size_bytes < 0:
            raise Damaged("the archive has more files or bytes than was said of it")


class Checked:
    """The archive's bytes, hashed on their way."""

    def __init__(self, read: Callable[[int], bytes], address: str) -> None:
        self._read, self._address, self._hasher = read, address, hashlib.sha256()

    def chunks(self) -> Iterator[bytes]:
        """Yields them; raises Damaged in place of an end that is not the right one."""
        while True:
            chunk = self._read(CHUNK_BYTES)
            if not chunk:
                break
            self._hasher.update(chunk)
            yield chunk
        found = "sha256:" + self._hasher.hexdigest()
        if found != self._address:
            raise Damaged("the archive that came is %s, not %s" % (found, self._address))


def inflated(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yields what is in gzip members, at most CHUNK_BYTES at a time; raises Damaged where they are none."""
    inflating = zlib.decompressobj(GZIP)
    begun = False
    for chunk in chunks:
        left, more = chunk, True
        while left or more:
            try:
                data = inflating.decompress(left, CHUNK_BYTES)
            except zlib.error as error:
                raise Damaged("the archive cannot be inflated: %s" % error) from error
            begun = begun or bool(left)
            left, more = inflating.unconsumed_tail, bool(data) and not inflating.eof
            if inflating.eof:
                left, begun = inflating.unused_data, False
                inflating = zlib.decompressobj(GZIP)
            if data:
                yield data
    if begun:
        raise Damaged("the archive ends in the middle of a member")


class Ahead:
    """What a thread makes ready while it is read: inflating and writing side by side. A file to read from, for tarfile."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._queue: "queue.Queue[Union[bytes, BaseException]]" = queue.Queue(AHEAD)
        self._left, self._over, self._given_up = b"", False, threading.Event()
        self._thread = threading.Thread(target=self._run, args=(chunks,), daemon=True)
        self._thread.start()

    def _run(self, chunks: Iterator[bytes]) -> None:
        last: Union[bytes, BaseException] = b""
        try:
            for chunk in chunks:
                if not self._put(chunk):
                    return
        except BaseException as error:  # noqa: BLE001 - it is raised where it is read
            last = error
        self._put(last)

    def _put(self, what: Union[bytes, BaseException]) -> bool:
        while not self._given_up.is_set():
            try:
                self._queue.put(what, timeout=0.5)
            except queue.Full:
                continue
            return True
        return False

    def read(self, size: int) -> bytes:
        """Returns so many bytes, fewer only at the end; raises what the chunks raised."""
        parts, missing = [], size
        while missing > 0:
            if not self._left and not self._over:
                found = self._queue.get()
                if isinstance(found, BaseException):
                    self._over = True
                    raise found
                self._left, self._over = found, not found
            if not self._left:
                break
            part, self._left = self._left[:missing], self._left[missing:]
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def close(self) -> None:
        """Ends the thread."""
        self._given_up.set()
        self._thread.join()


def unpack(read: Callable[[int], bytes], address: str, folder: str, bounds: Bounds) -> None:
    """Unpacks an archive into an empty folder.

    Args:
        read: returns at most so many bytes of it, none at its end.
        address: what it must be.
        folder: where to.
        bounds: what may come of it.

    Raises:
        Damaged: it is not that archive, or none that may be unpacked. What is in the folder is of no use.
    """
    source = Ahead(inflated(Checked(read, address).chunks()))
    try:
        with tarfile.open(fileobj=cast(BinaryIO, source), mode="r|", bufsize=CHUNK_BYTES) as archive:
            folders: Set[str] = {""}
            for member in archive:
                _make(archive, member, folder, folders, bounds)
        while source.read(CHUNK_BYTES):  # to the end, where it is checked
            pass
    except (tarfile.TarError, UnicodeError) as error:
        raise Damaged("the archive cannot be read: %s" % error) from error
    finally:
        source.close()


def _make(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: str, folders: Set[str], bounds: Bounds) -> None:
    name = (
        member.name[:-1] if member.isdir() and member.name.endswith("/") else member.name
    )  # as Python 3.8 has long ones
    parts = name.split("/")
    if not name or len(parts) > MAX_DEPTH or any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise Damaged("the archive has the name %.200r" % name)
    if "/".join(parts[:-1]) not in folders:
        raise Damaged("%.200r is in no folder of the archive" % name)
    path = os.path.join(folder, name)
    try:
        if member.isdir():
            bounds.take(0)
            os.mkdir(path, 0o755)
            folders.add(name)
        elif member.isreg():
            bounds.take(member.size)
            _write(archive, member, path)
        elif member.issym() and _stays(len(parts) - 1, member.linkname):
            bounds.take(0)
            os.symlink(member.linkname, path)
        else:
            raise Damaged("%.200r is no file, folder or link within the archive" % name)
    except FileExistsError:
        raise Damaged("%.200r is there twice" % name) from None


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> None:
    content = archive.extractfile(member)
    assert content is not None  # noqa: S101 - it is a file
    mode = 0o755 if member.mode & 0o111 else 0o644
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    with open(descriptor, "wb", buffering=0) as file:
        left = member.size
        while left:
            data: Optional[bytes] = content.read(min(left, CHUNK_BYTES))
            if not data:
                raise Damaged("the archive ends in the middle of %.200r" % member.name)
            left -= len(data)
            while data:
                data = data[file.write(data) :]
        os.fchmod(descriptor, mode)  # whatever the umask
        os.utime(descriptor, (member.mtime, member.mtime))  # by it byte code is known to be of this source


def _stays(depth: int, target: str) -> bool:
    """Says whether a link so many folders below the top stays below it; ``..`` may only begin its target."""
    parts = target.split("/")
    ups = 0
    while ups < len(parts) and parts[ups] == "..":
        ups += 1
    rest = parts[ups:]
    return ups <= depth and bool(target) and "\0" not in target and all(part not in ("", ".", "..") for part in rest)
