"""Blobs as files: ``ROOT/PROJECT/sha256/ab/cdef...``. No name in a path comes from a user unchecked."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import io
import os
import re
import secrets
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Final

from danlu.blobs.checked import Checked
from danlu.blobs.marks import MARK, read_mark
from danlu.blobs.parts import SUFFIX, Parts
from danlu.blobs.unused import CONDEMNED, Condemnation, Condemned, Listed
from danlu.blobs.wholeness import Wholeness
from danlu.domain.ids import NAME_PATTERN
from danlu.domain.trees import MAX_NODE_BYTES, address_of, require_address
from danlu.errors import DataDamaged, InvalidRequest, NotFound, TooLarge, storage_full_is_an_error
from danlu.runner.formats import sync, write_atomically

SYNC_ONE_BY_ONE: Final = 16
CHUNK_BYTES: Final = 2**20
LEFT_S: Final = 3600.0
"""What nothing was written to for so long no server is at."""
ZEROS: Final = bytes(CHUNK_BYTES)
_SYNCING: Final = ThreadPoolExecutor(8, thread_name_prefix="sync")
_NAME: Final = re.compile(NAME_PATTERN)
_REST: Final = re.compile(r"[0-9a-f]{62}")
"""Of a blob's digest, as its file is called; one that is set aside has a dot before it."""


def _sync_all(paths: Collection[Path]) -> None:
    """Makes files, or the names in folders, of one file system durable: few at the same time, many by one flush of it all.

    What waits at the same time shares the file system's commits.
    """
    if len(paths) <= SYNC_ONE_BY_ONE:
        list(_SYNCING.map(sync, map(str, paths)))
        return
    descriptor = os.open(next(iter(paths)), os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"syncfs: {os.strerror(number)}")
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    """Makes a folder for blobs, durably: a name in it is worth nothing while the folder's own may be lost."""
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync(str(folder.parent))


def _digest(address: str) -> str:
    return require_address(address).removeprefix("sha256:")


class LocalBlobs:
    """Blobs in a folder of this machine."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._parts = root / ".unfinished"
        self._parts.mkdir(mode=0o700, parents=True, exist_ok=True)
        root.chmod(0o700)
        self._received = Parts(self._parts)
        self._wholeness = Wholeness(self)
        self._naming = threading.Lock()
        self._condemnation = Condemnation(self._load_condemned, self._save_condemned)

    def mark(self) -> int | None:
        """See Blobs."""
        with contextlib.suppress(FileNotFoundError):
            return read_mark((self.root / MARK).read_bytes(), self.root)
        return None

    def set_mark(self, mark: int) -> int:
        """See Blobs."""
        unfinished = self._unfinished(self.root / MARK)
        write_atomically(str(unfinished), str(mark).encode())
        with contextlib.suppress(FileExistsError):
            os.link(unfinished, self.root / MARK)
        unfinished.unlink()
        sync(str(self.root))
        return read_mark((self.root / MARK).read_bytes(), self.root)

    def empty(self) -> bool:
        """See Blobs."""
        return not any(_NAME.fullmatch(path.name) for path in self.root.iterdir())

    def _folder(self, project: str) -> Path:
        if not _NAME.fullmatch(project):
            raise InvalidRequest(f"{project[:80]!r} is not a project's name")
        return self.root / project / "sha256"

    def _path(self, project: str, address: str) -> Path:
        digest = _digest(address)
        return self._folder(project) / digest[:2] / digest[2:]

    def missing(self, project: str, addresses: Iterable[str]) -> tuple[str, ...]:
        """See Blobs."""
        root, condemned = self._folder(project), self._condemnation.of(project).addresses
        # as texts: making a Path takes longer than asking for the file
        return tuple(
            address
            for address in addresses
            if address in condemned or not os.path.isfile(f"{root}/{(digest := _digest(address))[:2]}/{digest[2:]}")  # noqa: PTH113
        )

    def absent(self, project: str, *roots: str, most: int) -> tuple[str, ...]:
        """See Blobs."""
        return self._wholeness.absent(project, *roots, most=most, condemned=self._condemnation.of(project))

    def put(self, project: str, address: str, data: BinaryIO) -> tuple[int, int]:
        """See Blobs."""
        path = self._path(project, address)
        self._condemnation.require_none(project, address)
        if path.is_file():
            return 0, 0
        hasher, size = hashlib.sha256(), 0
        with storage_full_is_an_error(f"blob {address}"):
            unfinished = self._unfinished(path)
            try:
                with unfinished.open("xb") as file:
                    while chunk := data.read(CHUNK_BYTES):
                        hasher.update(chunk)
                        if ZEROS.startswith(chunk):  # a hole stays one: who writes nothing fills no disk
                            file.seek(len(chunk), os.SEEK_CUR)
                        else:
                            file.write(chunk)
                        size += len(chunk)
                    file.truncate(size)
                    file.flush()
                    os.fsync(file.fileno())
                if (found := "sha256:" + hasher.hexdigest()) != address:
                    raise InvalidRequest(f"the bytes sent are {found}, not {address}; nothing was stored")
                new = self._named(unfinished, path)
            finally:
                unfinished.unlink(missing_ok=True)
            sync(str(path.parent))
        return (1, size) if new else (0, 0)

    def _named(self, unfinished: Path, path: Path) -> bool:
        """Makes a file the blob, unless that is there by now; returns whether it did."""
        with self._naming:  # a rename would not say who was first
            if path.is_file():
                return False
            unfinished.replace(path)
            return True

    def put_many(self, project: str, blobs: Iterable[tuple[str, bytes]]) -> tuple[int, int]:
        """See Blobs. All files are flushed together, each folder once."""
        written: list[tuple[Path, Path]] = []
        sizes: dict[Path, int] = {}
        count = size = 0
        try:
            with storage_full_is_an_error("an upload"):
                for address, data in blobs:
                    path = self._path(project, address)
                    self._condemnation.require_none(project, address)
                    if path in sizes or path.is_file():
                        continue
                    if address_of(data) != address:
                        raise InvalidRequest(
                            f"the bytes sent are {address_of(data)}, not {address}; nothing was stored"
                        )
                    unfinished = self._unfinished(path)
                    written.append((unfinished, path))
                    with unfinished.open("xb") as file:
                        file.write(data)
                    sizes[path] = len(data)
                _sync_all([unfinished for unfinished, _ in written])
                for unfinished, path in written:
                    if self._named(unfinished, path):
                        count, size = count + 1, size + sizes[path]
        finally:
            for unfinished, _ in written:
                unfinished.unlink(missing_ok=True)
        _sync_all({path.parent for _, path in written})
        return count, size

    def stored_bytes(self, project: str) -> int:
        """See Blobs."""
        return sum(one.size_bytes for one in self.listed(project))

    def listed(self, project: str) -> Iterator[Listed]:
        """See Blobs."""
        folder = self._folder(project)
        for part in folder.iterdir() if folder.is_dir() else ():
            with os.scandir(part) as files:
                for file in files:
                    if _REST.fullmatch(file.name):
                        status = file.stat(follow_symlinks=False)
                        yield Listed(f"sha256:{part.name}{file.name}", status.st_size, status.st_mtime_ns)

    def condemned(self, project: str) -> Condemned:
        """See Blobs."""
        return self._condemnation.now(project)

    def condemn(self, project: str, addresses: Collection[str], at: int) -> None:
        """See Blobs."""
        self._condemnation.set(project, addresses, at)

    def remove(self, project: str, addresses: Collection[str]) -> int:
        """See Blobs."""
        size = 0
        for address in addresses:
            path = self._path(project, address)
            with contextlib.suppress(FileNotFoundError):
                size += path.stat().st_size
                path.unlink()
        return size

    def sweep(self) -> None:
        """See Blobs."""
        self._received.sweep()

    def condemning(self) -> tuple[str, ...]:
        """See Blobs."""
        folder = self.root / CONDEMNED
        return tuple(path.name for path in folder.iterdir()) if folder.is_dir() else ()

    def _condemned(self, project: str) -> Path:
        return self.root / CONDEMNED / self._folder(project).parent.name

    def _load_condemned(self, project: str) -> bytes | None:
        try:
            return self._condemned(project).read_bytes()
        except FileNotFoundError:
            return None

    def _save_condemned(self, project: str, data: bytes) -> None:
        path = self._condemned(project)
        _make_folder(path.parent)
        with storage_full_is_an_error("the list of what is to be removed"):
            unfinished = self._parts / secrets.token_hex(8)
            unfinished.write_bytes(data)
            sync(str(unfinished))
            unfinished.replace(path)
            sync(str(path.parent))

    def received(self, project: str, address: str) -> int:
        """See Blobs."""
        path = self._path(project, address)
        return path.stat().st_size if path.is_file() else self._received.received(project, _digest(address))

    def append(self, project: str, address: str, piece: BinaryIO, *, offset: int, size: int) -> int:
        """See Blobs."""
        path = self._path(project, address)
        self._condemnation.require_none(project, address)
        if path.is_file():
            return path.stat().st_size

        def store(whole: Path) -> None:
            _make_folder(path.parent)
            whole.replace(path)
            sync(str(path.parent))

        return self._received.append(project, _digest(address), piece, offset=offset, size=size, store=store)

    def start(self) -> None:
        """Removes what uploads left unfinished that a killed server had begun, but for what may go on.

        What is young may be another server's, of the same folder, which is at it.
        """
        for left in self._parts.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if left.suffix != SUFFIX and time.time() - left.stat().st_mtime > LEFT_S:
                    left.unlink()
        self._received.sweep()

    def _unfinished(self, path: Path) -> Path:
        """Makes the blob's folder and returns where its bytes are gathered first."""
        _make_folder(path.parent)
        return self._parts / f"{path.name[:16]}.{secrets.token_hex(8)}"

    def open(self, project: str, address: str) -> BinaryIO:
        """See Blobs. Its ``fileno()`` is the file's, for its size."""
        try:
            file = self._path(project, address).open("rb", buffering=0)
        except FileNotFoundError:
            raise NotFound(f"project {project} has no blob {address}") from None
        size = os.fstat(file.fileno()).st_size
        return io.BufferedReader(Checked(file, size, address, lambda: self.damaged(project, address)), CHUNK_BYTES)

    def read(self, project: str, address: str) -> bytes:
        """See Blobs."""
        with self.open(project, address) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_NODE_BYTES:
                raise TooLarge(f"blob {address} is larger than {MAX_NODE_BYTES} bytes")
            return file.read()

    def damaged(self, project: str, address: str) -> DataDamaged:
        """Sets a damaged blob aside, so that it can be sent again, and returns the error to raise."""
        path = self._path(project, address)
        aside = path.with_name(f".{path.name}.damaged")
        with contextlib.suppress(FileNotFoundError):
            path.replace(aside)
        self._wholeness.forget(project)
        return DataDamaged(f"blob {address} of project {project} is damaged on disk; it was set aside as {aside}")
