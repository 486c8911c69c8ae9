"""A folder to a tree and back: the one walker, for a user's code (client) and for what jobs leave (server).

Runs on every system. Where the system has them, folders are opened by descriptor and without following links, so that what
another process swaps in meanwhile is never followed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from danlu.blobs.ignores import IGNORE_FILES, MAX_IGNORE_BYTES, Ignores, ignored
from danlu.domain.trees import (
    ADDRESS,
    MAX_DEPTH,
    MAX_ENTRIES,
    MAX_NODE_BYTES,
    MAX_PATH_BYTES,
    MAX_TREE_ENTRIES,
    Entry,
    address_of,
    encode,
    link_stays_inside,
    require_name,
    totals,
    walk,
)
from danlu.errors import DataDamaged, InvalidSpec

MAX_ENTRY_BYTES: Final = 6 * 255 + 6 * 4096 + 300
"""No entry is longer in a node: a name and a link's target, each byte escaped."""
MAX_SKIPPED: Final = 100
READ_BYTES: Final = 2**20
MAX_HOLE_BYTES: Final = 2**38
"""What all holes in a job's outputs may come to: they take nothing of a disk, but a core's time, a minute for each 64 GiB."""
NEVER_READABLE: Final = frozenset(
    {errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG}
)
FICLONE: Final = 0x40049409
"""Linux's ioctl, the same on all its machines that Danlu's server runs on."""
RACY_NS: Final = 2_000_000_000
NOFOLLOW: Final = getattr(os, "O_NOFOLLOW", 0)
OPEN_FLAGS: Final = os.O_RDONLY | NOFOLLOW | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
BY_DESCRIPTOR: Final = os.open in os.supports_dir_fd and os.scandir in os.supports_fd
_NOT_ON_WINDOWS: Final = re.compile(
    r"""[<>:"|?*\\\x00-\x1f]|[. ]$|^(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])\s*(\.|$)""", re.IGNORECASE
)

Progress = Callable[[int, int], None]
"""Called with (files, bytes) done so far."""


@dataclass(slots=True)
class Scan:
    """A folder's tree: ``nodes`` by address, ``files`` as (address -> path, size); what could not be taken and why.

    Of ``nodes`` a folder comes after those in it.
    """

    root: str = ""
    nodes: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, tuple[str, int]] = field(default_factory=dict)
    count: int = 0
    size_bytes: int = 0
    skipped: list[str] = field(default_factory=list)


class Cache:
    """Addresses of files by (path, size, times, inode), so that an unchanged file is not read again.

    A file changed within two seconds of its reading is read again the next time: its times could not tell (git's "racy"
    rule).
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known: dict[str, list[object]] = {}
        self._next: dict[str, list[object]] = {}
        self._changed = False
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            loaded = json.loads(file.read_bytes())
            self._known = dict(loaded["files"]) if loaded["format"] == 1 else {}

    def get(self, path: str, status: os.stat_result) -> str | None:
        """Returns a file's address if it has not changed."""
        known = self._known.get(path)
        if not isinstance(known, list) or len(known) != 5 or known[:4] != _stamp(status):
            return None
        address = known[4]
        if not isinstance(address, str) or not ADDRESS.fullmatch(address):
            return None
        self._next[path] = known
        return address

    def put(self, path: str, status: os.stat_result, address: str, read_at: int) -> None:
        """Remembers a file's address, unless it changed too recently to tell."""
        if read_at - max(status.st_mtime_ns, status.st_ctime_ns) > RACY_NS:
            self._next[path] = [*_stamp(status), address]
            self._changed = True

    def save(self) -> None:
        """Stores what this scan saw, unless it is known already. A cache that cannot be stored only costs time."""
        if not self._changed and len(self._next) == len(self._known):
            return
        unfinished = self._file.with_suffix(f".{os.getpid()}.part")
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_text(json.dumps({"format": 1, "files": self._next}))
            unfinished.replace(self._file)


def _stamp(status: os.stat_result) -> list[object]:
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _holes(descriptor: int, status: os.stat_result, most: int) -> int:
    """Returns how many bytes of a file are holes, or some number over ``most``. Only where the file system tells."""
    found, at = 0, 0
    if status.st_blocks * 512 >= status.st_size:
        return 0
    while at < status.st_size and found <= most:
        hole = os.lseek(descriptor, at, os.SEEK_HOLE)
        try:
            at = os.lseek(descriptor, hole, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # nothing but a hole follows
                raise
            at = status.st_size
        found += max(0, at - hole)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return found


def scan(root: Path, *, code: bool, now: int, cache: Cache | None = None, progress: Progress | None = None) -> Scan:
    """Returns the tree of a folder.

    Args:
        root: the folder.
        code: it is a user's code: ignore files are honoured and what cannot be read is an error. Otherwise it is what a
            job left: everything is taken, and what cannot be is listed in ``skipped``.
        now: ns UTC, for the cache.
        cache: see Cache.
        progress: called now and then.

    Raises:
        InvalidSpec: (code) something cannot be read, a link leaves the folder, or it is larger than a tree can be.
    """
    scanner = _Scanner(root, code, now, cache, progress)
    scanner.scan.root, scanner.scan.size_bytes, scanner.scan.count = scanner.folder(str(root), None, "", 0, [])
    if cache is not None:
        cache.save()
    return scanner.scan


class _Scanner:
    """Walks. Paths are texts here and in checkout: making a Path costs more than looking at a file."""

    def __init__(self, root: Path, code: bool, now: int, cache: Cache | None, progress: Progress | None) -> None:
        self.root, self.code, self.now, self.cache, self.progress = root, code, now, cache, progress
        self.scan = Scan()
        self.owner = -1
        self._entries = self._done_files = self._done_bytes = 0
        self._hole_bytes_left = MAX_HOLE_BYTES

    def trouble(self, relative: str, why: str) -> None:
        """Raises for code; lists it for what a job left."""
        if self.code:
            raise InvalidSpec(
                f"{self.root / relative}: {why}", next_step="mend it, or name it in .danluignore to leave it out"
            )
        self.skip(relative, why)

    def unreadable(self, relative: str, error: OSError) -> None:
        """Does the same for what the system refuses. Of what a job left, only what will never be readable is given up."""
        if not self.code and error.errno not in NEVER_READABLE:
            raise error
        self.trouble(relative, f"it cannot be read: {error.strerror}")

    def skip(self, relative: str, why: str) -> None:
        if len(self.scan.skipped) < MAX_SKIPPED:
            self.scan.skipped.append(f"{relative}: {why}"[:500])

    def folder(
        self, path: str, parent: int | None, relative: str, depth: int, ignores: list[Ignores]
    ) -> tuple[str, int, int]:
        """Returns a folder's (address, bytes, files)."""
        entries: list[Entry] = []
        descriptor = -1
        try:
            if BY_DESCRIPTOR:
                name = path if parent is None else path.rpartition(os.sep)[2]
                flags = os.O_RDONLY | os.O_DIRECTORY | (0 if parent is None and self.code else NOFOLLOW)
                descriptor = os.open(name, flags, dir_fd=parent)
                self.owner = os.fstat(descriptor).st_uid if parent is None else self.owner
            with os.scandir(descriptor if descriptor >= 0 else path) as listing:
                found = sorted(itertools.islice(listing, MAX_TREE_ENTRIES + 1), key=lambda e: e.name)
            if self.code:
                ignores = [*ignores, *self._ignores(path, descriptor, relative)]
            for item in found:
                inner = f"{relative}/{item.name}" if relative else item.name
                if not (self.code and self._ignored(item, path, inner, ignores)):
                    entry = self._entry(item, f"{path}{os.sep}{item.name}", descriptor, inner, depth, ignores)
                    if entry is not None:
                        entries.append(entry)
        except OSError as error:
            self.unreadable(relative or ".", error)
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        entries = self._fitting(entries, relative or ".")
        node = encode(entries)
        address = address_of(node)
        self.scan.nodes[address] = node
        return (address, *totals(entries))

    def _fitting(self, entries: list[Entry], relative: str) -> list[Entry]:
        """Returns what of a folder fits into one node: all of it, but for monstrous ones."""
        if len(entries) * MAX_ENTRY_BYTES <= MAX_NODE_BYTES:
            return entries
        size, kept = 0, list[Entry]()
        for entry in entries:
            size += len(encode((entry,)))
            if size > MAX_NODE_BYTES or len(kept) == MAX_ENTRIES:
                self.trouble(relative, f"a folder holds at most {MAX_ENTRIES} names in {MAX_NODE_BYTES} bytes")
                break
            kept.append(entry)
        return kept

    def _entry(
        self,
        item: os.DirEntry[str],
        path: str,
        parent: int,
        relative: str,
        depth: int,
        ignores: list[Ignores],
    ) -> Entry | None:
        dir_fd = parent if parent >= 0 else None
        target = ""
        try:
            require_name(item.name)
            status = item.stat(follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                target = os.readlink(item.name if dir_fd is not None else path, dir_fd=dir_fd)
                target.encode()
            if len(relative.encode()) > MAX_PATH_BYTES:
                raise ValueError(f"its path has more than {MAX_PATH_BYTES} bytes")
        except ValueError as error:
            self.trouble(relative.encode(errors="backslashreplace").decode()[:400], f"it cannot be stored: {error}")
            return None
        except OSError as error:
            self.unreadable(relative, error)
            return None
        if self._entries >= MAX_TREE_ENTRIES:
            self.trouble(relative, f"more than {MAX_TREE_ENTRIES} names in all")
            return None
        self._entries += 1
        if stat.S_ISDIR(status.st_mode):
            if depth >= MAX_DEPTH:
                self.trouble(relative, f"it lies more than {MAX_DEPTH} folders deep")
                return None
            address, size, files = self.folder(path, dir_fd, relative, depth + 1, ignores)
            return Entry(item.name, "dir", address, size=size, files=files)
        if stat.S_ISLNK(status.st_mode):
            if link_stays_inside(depth, target):
                return Entry(item.name, "link", target=target)
            self.trouble(relative, f"this link leaves the folder: {target}")
            return None
        if not stat.S_ISREG(status.st_mode):
            self.skip(relative, "a socket, pipe or device is left out")
            return None
        known = self.cache.get(relative, status) if self.cache is not None else None
        if known is not None:
            return self._taken(item.name, path, known, status)
        return self._file(item.name, path, dir_fd, relative)

    def _taken(self, name: str, path: str, address: str, status: os.stat_result) -> Entry:
        self.scan.files[address] = (path, status.st_size)
        self._done_files += 1
        self._done_bytes += status.st_size
        if self.progress is not None and self._done_files % 64 == 0:
            self.progress(self._done_files, self._done_bytes)
        return Entry(name, "file", address, 0o755 if status.st_mode & 0o100 else 0o644, status.st_size)

    def _file(self, name: str, path: str, dir_fd: int | None, relative: str) -> Entry | None:
        for _ in range(3):
            try:
                descriptor = os.open(name if dir_fd is not None else path, OPEN_FLAGS, dir_fd=dir_fd)
            except OSError as error:
                self.unreadable(relative, error)
                return None
            with open(descriptor, "rb", buffering=0) as file:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    self.skip(relative, "a socket, pipe or device is left out")
                    return None
                if not self.code and status.st_uid != self.owner and self.owner >= 0:
                    self.skip(relative, "it belongs to another user")
                    return None
                if not self.code:
                    holes = _holes(descriptor, status, self._hole_bytes_left)
                    if holes > self._hole_bytes_left:
                        self.skip(
                            relative, f"outputs have at most {MAX_HOLE_BYTES} bytes of holes: leave a packed copy"
                        )
                        return None
                    self._hole_bytes_left -= holes
                address = self._address(file, relative, status)
                if _stamp(os.fstat(descriptor)) == _stamp(status):
                    return self._taken(name, path, address, status)
        self.trouble(relative, "it changes while it is read")
        return None

    def _address(self, file: BinaryIO, relative: str, status: os.stat_result) -> str:
        hasher = hashlib.sha256()
        while chunk := file.read(READ_BYTES):
            hasher.update(chunk)
        address = "sha256:" + hasher.hexdigest()
        if self.cache is not None:
            self.cache.put(relative, status, address, self.now)
        return address

    def _ignores(self, path: str, descriptor: int, relative: str) -> list[Ignores]:
        found = []
        dir_fd = descriptor if descriptor >= 0 else None
        for name in IGNORE_FILES:
            at = name if dir_fd is not None else f"{path}{os.sep}{name}"
            try:
                status = os.stat(at, dir_fd=dir_fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            where = f"{relative}/{name}" if relative else name
            if not stat.S_ISREG(status.st_mode):
                self.trouble(where, "an ignore file must be a file, not a link or a folder")
                continue
            with open(os.open(at, OPEN_FLAGS, dir_fd=dir_fd), "rb") as file:
                data = file.read(MAX_IGNORE_BYTES + 1)
            if len(data) > MAX_IGNORE_BYTES:
                self.trouble(where, f"an ignore file has at most {MAX_IGNORE_BYTES} bytes")
            try:
                found.append(Ignores(relative, data.decode("utf-8-sig", errors="replace")))
            except ValueError as error:
                self.trouble(where, f"a line of it is not a pattern: {error}")
        return found

    def _ignored(self, item: os.DirEntry[str], path: str, relative: str, ignores: list[Ignores]) -> bool:
        folder, venv = item.is_dir(follow_symlinks=False), False
        if folder:
            with contextlib.suppress(OSError):  # what cannot be looked into is told later, unless it is ignored
                venv = os.path.isfile(f"{path}{os.sep}{item.name}{os.sep}pyvenv.cfg")  # noqa: PTH113 - once a folder
        return ignored(relative, folder, ignores, unless_said=venv)


class Reader(Protocol):
    """Gives blobs by address."""

    def open(self, address: str) -> BinaryIO:
        """Opens a blob; the caller closes it."""


Place = Callable[[Reader, Entry, str], int]
"""Makes the file of an entry under a name that is free; returns its size."""


def checkout(
    reader: Reader, root: str, destination: Path, *, progress: Progress | None = None, place: Place | None = None
) -> tuple[int, int]:
    """Writes a tree into ``destination``, which must be empty or absent; returns (files, bytes).

    Regular files, folders and links that stay inside; nothing else can come out of a tree. Nothing is written through a
    link: everything is made under a name that was free, and links are made last.

    Args:
        reader: has the blobs.
        root: the tree's address.
        destination: the folder.
        progress: see Progress.
        place: makes the files; left out, each is a private copy.

    Raises:
        InvalidRequest: it is not a tree, or it leads out of itself, or is too deep or large.
        InvalidSpec: the destination is not empty, or this system cannot hold one of the names.
        DataDamaged: a blob is not what its address says; the copy is not complete.
    """
    place = place or copy_file
    destination.mkdir(parents=True, exist_ok=True)
    if any(destination.iterdir()):
        raise InvalidSpec(f"{destination} is not empty", next_step="name a folder that does not exist yet")
    files = size = 0
    links: list[tuple[str, str]] = []
    for parts, entries in walk(root, lambda address: _checked(reader, address)):
        folder = str(destination.joinpath(*parts))
        for entry in entries:
            path = f"{folder}{os.sep}{entry.name}"
            if os.name == "nt" and windows_refuses(entry.name):
                raise InvalidSpec(f"Windows cannot hold the name {entry.name!r}, in {'/'.join(parts) or 'the tree'}")
            if entry.kind == "link":
                links.append((path, entry.target))
                continue
            with _taken_is_an_error(path):
                if entry.kind == "dir":
                    os.mkdir(path, 0o755)  # noqa: PTH102 - see _Scanner
                    continue
                size += place(reader, entry, path)
            files += 1
            if progress is not None:
                progress(files, size)
    for path, target in links:
        with _taken_is_an_error(path):
            Path(path).symlink_to(target)
    return files, size


@contextlib.contextmanager
def _taken_is_an_error(path: str) -> Iterator[None]:
    try:
        yield
    except FileExistsError:
        raise InvalidSpec(
            f"{path} is there already under a name that this file system takes for the same",
            next_step="use a file system that tells upper case from lower case",
        ) from None


def windows_refuses(name: str) -> bool:
    """Says whether Windows takes a name for something else than a file in this folder."""
    return _NOT_ON_WINDOWS.search(name) is not None


def _checked(reader: Reader, address: str) -> bytes:
    with reader.open(address) as file:
        data = file.read(MAX_NODE_BYTES + 1)
    if len(data) <= MAX_NODE_BYTES and address_of(data) != address:
        raise DataDamaged(f"blob {address} is not what its address says")
    return data  # walk() refuses what is too large


def copy_file(reader: Reader, entry: Entry, path: str) -> int:
    """See Place: a private copy, checked. Where the file system can share blocks until one of them is written, it does.

    Raises:
        DataDamaged: the blob is not what its address says; there is no file.
    """
    hasher, size = hashlib.sha256(), 0
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NOFOLLOW | getattr(os, "O_BINARY", 0)
    with reader.open(entry.address) as source:
        descriptor = os.open(path, flags, entry.mode)
        try:
            with open(descriptor, "wb", buffering=0) as target:
                cloned = entry.size > 0 and _clone(source, descriptor)
                while size <= entry.size and (chunk := source.read(READ_BYTES)):
                    hasher.update(chunk)
                    if not cloned:
                        write_all(target, chunk)
                    size += len(chunk)
            if size != entry.size or "sha256:" + hasher.hexdigest() != entry.address:
                raise DataDamaged(f"blob {entry.address} of {entry.name} is not what its address and its size say")
        except BaseException:
            os.unlink(path)  # noqa: PTH108
            raise
    return size


def write_all(target: BinaryIO, data: bytes) -> None:
    """Writes all of it to a file without a buffer, which may take less at once."""
    left = memoryview(data)
    while left:
        left = left[target.write(left) :]


def _clone(source: BinaryIO, target: int) -> bool:
    """Makes an empty file share the source's blocks; returns whether it does."""
    if not sys.platform.startswith("linux"):
        return False
    import fcntl

    try:
        fcntl.ioctl(target, FICLONE, source.fileno())
    except OSError:  # another file system, one that cannot, or not a file at all
        return False
    return True
