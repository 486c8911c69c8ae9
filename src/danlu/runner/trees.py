"""A folder as a Merkle tree of content addresses, read beside the user's process: the format of ``domain/trees.py``.

What is read here with the standard library alone is the same tree, byte for byte, as the platform makes of the same folder.
A folder is told of after all that is in it, so that nothing but the folders above a file is held while it is read.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import re
import stat
from typing import Any, Callable, Collection, Dict, Iterable, List, NamedTuple, Optional, Tuple

MAX_NODE_BYTES = 16 << 20
MAX_ENTRIES = 100_000
MAX_DEPTH = 64
MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 3000
MAX_TARGET_BYTES = 4096
MAX_TREE_ENTRIES = 1_000_000
MODES = (0o644, 0o755)
MAX_ENTRY_BYTES = 6 * 255 + 6 * 4096 + 300
MAX_SKIPPED = 100
MAX_SAID = 500
MAX_HOLE_BYTES = 1 << 36
"""What all holes in a folder may come to: they take nothing of a disk, but are sent as so many zeros."""
READ_BYTES = 1 << 20
TRIALS = 3
NEVER_READABLE = frozenset((errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG))
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_ADDRESS = re.compile(r"sha256:[0-9a-f]{64}")
_DRIVE = re.compile(r"[A-Za-z]:")
_FIELDS = {
    "file": {"name", "kind", "mode", "size", "address"},
    "dir": {"name", "kind", "size", "files", "address"},
    "link": {"name", "kind", "target"},
}


class TreeError(Exception):
    """It is no tree, or cannot be kept or brought back; the text says why."""


class Changed(TreeError):
    """It has changed while it was read."""


class Entry(NamedTuple):
    """One name in a folder. ``files`` and ``size`` of a folder are totals of all below it."""

    name: str
    kind: str
    address: str = ""
    mode: int = 0o644
    size: int = 0
    files: int = 0
    target: str = ""


class Blob(NamedTuple):
    """What a tree consists of: a file, to be read again at its path, or a folder's node, whose bytes are here."""

    address: str
    size: int
    path: str = ""
    node: bytes = b""


def address_of(data: bytes) -> str:
    """Returns the address of these bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def link_stays_inside(depth: int, target: str) -> bool:
    """Says whether a link ``depth`` folders below the root, with this target, ends inside the tree."""
    if not target or target.startswith("/") or "\0" in target or "\\" in target or _DRIVE.match(target):
        return False
    parts = [part for part in target.split("/") if part not in ("", ".")]
    ups = next((at for at, part in enumerate(parts) if part != ".."), len(parts))
    return ups <= depth and ".." not in parts[ups:]


def encode(entries: Iterable[Entry]) -> bytes:
    """Returns a node's bytes; raises TreeError where they are more than a node holds."""
    listed: List[Dict[str, Any]] = []
    for entry in sorted(entries, key=lambda e: e.name.encode()):
        said: Dict[str, Any] = {"name": entry.name, "kind": entry.kind}
        if entry.kind == "file":
            said.update(mode=entry.mode, size=entry.size, address=entry.address)
        elif entry.kind == "dir":
            said.update(size=entry.size, files=entry.files, address=entry.address)
        else:
            said.update(target=entry.target)
        listed.append(said)
    data = json.dumps({"format": 1, "entries": listed}, separators=(",", ":"), ensure_ascii=False).encode()
    if len(listed) > MAX_ENTRIES or len(data) > MAX_NODE_BYTES:
        raise TreeError("a folder has %d names in %d bytes, which is too much" % (len(listed), len(data)))
    return data


def decode(data: bytes) -> Tuple[Entry, ...]:
    """Returns a node's entries; raises TreeError where the bytes are not exactly what ``encode`` makes of them."""
    try:
        node = json.loads(data.decode())
        if not isinstance(node["entries"], list) or node["format"] != 1 or set(node) != {"format", "entries"}:
            raise ValueError("it is not of format 1")
        entries = tuple(_entry(raw) for raw in node["entries"])
        if len({entry.name for entry in entries}) != len(entries):
            raise ValueError("a name is there twice")
        if encode(entries) != data:
            raise ValueError("it is not in canonical form")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise TreeError("this is not a tree node: %s" % ascii(str(error))[:200]) from error
    return entries


def _entry(raw: Dict[str, Any]) -> Entry:
    kind = raw["kind"]
    if set(raw) != _FIELDS.get(kind):
        raise ValueError("an entry of kind %r with fields %s" % (kind, sorted(raw)))
    require_name(raw["name"])
    for number in ("size", "files"):
        if number in raw and (type(raw[number]) is not int or not 0 <= raw[number] < 1 << 63):
            raise ValueError("%s is %r" % (number, raw[number]))
    if kind == "file" and (type(raw["mode"]) is not int or raw["mode"] not in MODES):
        raise ValueError("mode is %r" % raw["mode"])
    if kind == "link":
        target = raw["target"]
        if not isinstance(target, str) or len(target.encode()) > MAX_TARGET_BYTES:
            raise ValueError("a link's target is no short text")
        if not link_stays_inside(MAX_DEPTH, target):
            raise ValueError("the link %r leaves its tree" % raw["name"])
    elif not isinstance(raw["address"], str) or not _ADDRESS.fullmatch(raw["address"]):
        raise ValueError("address is %r" % raw["address"])
    return Entry(**raw)


def require_name(name: object) -> None:
    """Raises ValueError unless ``name`` can be one name in a folder."""
    wrong = not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\0" in name
    if wrong or len(str(name).encode()) > MAX_NAME_BYTES:
        raise ValueError("%r cannot be a file's name" % str(name)[:80])


def totals(entries: Iterable[Entry]) -> Tuple[int, int]:
    """Returns (bytes, files) of a folder and all below it."""
    size = files = 0
    for entry in entries:
        size += entry.size
        files += entry.files if entry.kind == "dir" else entry.kind == "file"
    return size, files


def _stamp(status: os.stat_result) -> Tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ino


def _holes(descriptor: int, status: os.stat_result, most: int) -> int:
    """Returns how many bytes of a file are holes, or some number over ``most``."""
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


class Reading:
    """Reads a folder.

    Args:
        root: the folder.
        take: called with every blob, a folder's after those in it; the same one may come again.
        only: of the names at the top, those that are wanted; None: all.
        strict: what cannot be read, or changes meanwhile, is an error; else it is left out, and named in ``skipped``.
    """

    def __init__(
        self, root: str, take: Callable[[Blob], None], only: Optional[Collection[str]] = None, strict: bool = False
    ) -> None:
        self._root, self._take, self._only, self._strict = root, take, only, strict
        self._entries = 0
        self._hole_bytes_left = MAX_HOLE_BYTES
        self.skipped: List[str] = []

    def run(self) -> Entry:
        """Returns the whole folder's entry: its address and totals.

        Raises:
            Changed: (strict) something is gone or is being written.
            OSError: what may be readable later cannot be read.
        """
        return self._folder(self._root, "", 0)

    def _skip(self, relative: str, why: str) -> None:
        if len(self.skipped) < MAX_SKIPPED:
            text = "%s: %s" % (relative, why)
            self.skipped.append(text.encode(errors="backslashreplace").decode()[:MAX_SAID])

    def _trouble(self, relative: str, why: str) -> None:
        if self._strict:
            raise Changed("%s: %s" % (relative, why))
        self._skip(relative, why)

    def _unreadable(self, relative: str, error: OSError) -> None:
        if error.errno not in NEVER_READABLE:
            raise error
        self._trouble(relative, "it cannot be read: %s" % error.strerror)

    def _folder(self, path: str, relative: str, depth: int) -> Entry:
        entries: List[Entry] = []
        try:
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            with os.scandir(path) as listing:
                found = sorted(itertools.islice(listing, MAX_TREE_ENTRIES + 1), key=lambda e: e.name)
            for item in found:
                if relative or self._only is None or item.name in self._only:
                    entry = self._entry(item, "%s/%s" % (relative, item.name) if relative else item.name, depth)
                    if entry is not None:
                        entries.append(entry)
        except OSError as error:
            self._unreadable(relative or ".", error)
        node = encode(self._fitting(entries, relative or "."))
        size, files = totals(entries)
        self._take(Blob(address_of(node), len(node), node=node))
        return Entry(os.path.basename(path), "dir", address_of(node), size=size, files=files)

    def _fitting(self, entries: List[Entry], relative: str) -> List[Entry]:
        """Cuts a folder down to what fits into one node: all of it, but for monstrous ones."""
        if len(entries) * MAX_ENTRY_BYTES > MAX_NODE_BYTES:
            size = 0
            for at, entry in enumerate(entries):
                size += len(encode([entry]))
                if size > MAX_NODE_BYTES or at == MAX_ENTRIES:
                    self._trouble(
                        relative, "a folder holds at most %d names in %d bytes" % (MAX_ENTRIES, MAX_NODE_BYTES)
                    )
                    del entries[at:]
                    break
        return entries

    def _entry(self, item: "os.DirEntry[str]", relative: str, depth: int) -> Optional[Entry]:
        target = ""
        try:
            require_name(item.name)
            status = item.stat(follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                target = os.readlink(item.path)
                target.encode()
            if len(relative.encode()) > MAX_PATH_BYTES:
                raise ValueError("its path has more than %d bytes" % MAX_PATH_BYTES)
        except ValueError as error:
            self._trouble(relative, "it cannot be stored: %s" % error)
            return None
        except OSError as error:
            self._unreadable(relative, error)
            return None
        if self._entries >= MAX_TREE_ENTRIES:
            self._trouble(relative, "more than %d names in all" % MAX_TREE_ENTRIES)
            return None
        self._entries += 1
        if stat.S_ISDIR(status.st_mode):
            if depth >= MAX_DEPTH:
                self._trouble(relative, "it lies more than %d folders deep" % MAX_DEPTH)
                return None
            return self._folder(item.path, relative, depth + 1)
        if stat.S_ISLNK(status.st_mode):
            if link_stays_inside(depth, target):
                return Entry(item.name, "link", target=target)
            self._skip(relative, "this link leaves the folder: %s" % target)
            return None
        if not stat.S_ISREG(status.st_mode):
            self._skip(relative, "a socket, pipe or device is left out")
            return None
        return self._file(item.name, item.path, relative)

    def _file(self, name: str, path: str, relative: str) -> Optional[Entry]:
        for _ in range(1 if self._strict else TRIALS):
            try:
                descriptor = os.open(path, READ)
            except OSError as error:
                self._unreadable(relative, error)
                return None
            with open(descriptor, "rb", buffering=0) as file:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    self._trouble(relative, "it is no file any more")
                    return None
                holes = _holes(descriptor, status, self._hole_bytes_left)
                if holes > self._hole_bytes_left:
                    self._trouble(
                        relative, "of holes there are more than %d bytes: leave a packed copy" % MAX_HOLE_BYTES
                    )
                    return None
                hasher = hashlib.sha256()
                for chunk in iter(lambda: file.read(READ_BYTES), b""):
                    hasher.update(chunk)
                if _stamp(os.fstat(descriptor)) == _stamp(status):
                    self._hole_bytes_left -= holes
                    address = "sha256:" + hasher.hexdigest()
                    self._take(Blob(address, status.st_size, path))
                    return Entry(name, "file", address, 0o755 if status.st_mode & 0o100 else 0o644, status.st_size)
        self._trouble(relative, "it changes while it is read")
        return None
