"""Append-only streams: logs and metrics. Appending names its offset, so that the same piece twice is there once.

A stream lies in segment files of at most 8 MiB, each named by the position of its first byte. Lines of a log begin with a
decimal time in ns that never decreases, which makes it searchable by time.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from danlu.domain.ids import NAME_PATTERN
from danlu.errors import Conflict, DataDamaged, InvalidRequest, storage_full_is_an_error

SEGMENT_BYTES: Final = 8 * 2**20
SCAN_BYTES: Final = 256 * 1024
LOCKS: Final = 64
SYNCED: Final = 4
MAX_TIME_DIGITS: Final = 20
_PROJECT: Final = re.compile(NAME_PATTERN)
_PART: Final = re.compile(r"^[a-z0-9][a-z0-9-]{0,79}$")


@dataclass(frozen=True, slots=True)
class StreamKey:
    """Names one stream: of which project, of what (an attempt, an environment), which task, log or metrics."""

    project: str
    owner: str
    task: str
    name: str


class Streams:
    """Streams in a folder of this machine."""

    def __init__(self, root: Path, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.root = root
        self.segment_bytes = segment_bytes
        self._locks = [threading.Lock() for _ in range(LOCKS)]

    def _folder(self, key: StreamKey) -> Path:
        if not _PROJECT.fullmatch(key.project) or not all(
            _PART.fullmatch(part) for part in (key.owner, key.task, key.name)
        ):
            raise InvalidRequest(f"{key} does not name a stream")
        return self.root / key.project / "streams" / key.owner / key.task / key.name

    @staticmethod
    def _segments(folder: Path) -> list[tuple[int, Path]]:
        try:
            return sorted((int(path.name), path) for path in folder.iterdir() if path.name.isdigit())
        except FileNotFoundError:
            return []

    def size(self, key: StreamKey) -> int:
        """Returns the stream's length in bytes; 0 for one that does not exist."""
        segments = self._segments(self._folder(key))
        return segments[-1][0] + segments[-1][1].stat().st_size if segments else 0

    def append(self, key: StreamKey, offset: int, data: bytes) -> int:
        """Appends what is new of ``data``, which begins at ``offset``, and returns the stream's length.

        Raises:
            Conflict: ``offset`` lies past the end: something in between is missing. Or what is there already is not what
                ``data`` says.
            StorageFull: the first part of it may be there; sending all of it again adds the rest.
        """
        folder = self._folder(key)
        with self._locks[hash(key) % LOCKS]:
            size = self.size(key)
            if offset > size:
                raise Conflict(f"stream {key.name} of {key.owner} ends at {size}; a piece at {offset} leaves a gap")
            known = min(size - offset, len(data))
            if known and self.read(key, offset, known) != data[:known]:
                raise Conflict(f"stream {key.name} of {key.owner} differs from what was sent again at {offset}")
            rest = memoryview(data)[known:]
            while rest:
                segments = self._segments(folder)
                start, path = segments[-1] if segments else (0, folder / f"{0:020d}")
                if size - start >= self.segment_bytes:
                    start, path = size, folder / f"{size:020d}"
                piece = rest[: self.segment_bytes - (size - start)]
                self._write(path, size - start, piece)
                size += len(piece)
                rest = rest[len(piece) :]
            return size

    @staticmethod
    def _write(path: Path, at: int, piece: memoryview) -> None:
        with storage_full_is_an_error(f"{len(piece)} bytes of a stream"):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                written = 0
                while written < len(piece):
                    written += os.pwrite(descriptor, piece[written:], at + written)
            finally:
                os.close(descriptor)

    def sync(self, key: StreamKey) -> None:
        """Makes what was appended outlive a power failure: the newest segments, as older ones were newest before."""
        folder = self._folder(key)
        with self._locks[hash(key) % LOCKS]:
            newest = [path for _, path in self._segments(folder)[-SYNCED:]]
            for path in [*newest, *([folder, folder.parent, folder.parent.parent] if newest else [])]:
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    def read(self, key: StreamKey, offset: int, max_bytes: int) -> bytes:
        """Returns up to ``max_bytes`` from ``offset``; empty at the end.

        Raises:
            DataDamaged: a segment in between is missing or was cut.
        """
        pieces: list[bytes] = []
        for start, path in self._segments(self._folder(key)):
            if max_bytes <= 0:
                break
            size = path.stat().st_size
            if offset >= start + size:
                continue
            if offset < start:
                raise DataDamaged(f"stream {key.name} of {key.owner} has no bytes from {offset} to {start}")
            with path.open("rb") as file:
                file.seek(offset - start)
                piece = file.read(min(max_bytes, size - (offset - start)))
            pieces.append(piece)
            offset += len(piece)
            max_bytes -= len(piece)
        return b"".join(pieces)

    def tail_offset(self, key: StreamKey, lines: int) -> int:
        """Returns where the last ``lines`` lines begin."""
        at = self.size(key)
        if lines <= 0:
            return at
        found = 0
        while at > 0:
            begin = max(0, at - SCAN_BYTES)
            block = self.read(key, begin, at - begin)
            position = len(block)
            while (position := block.rfind(b"\n", 0, position)) >= 0:
                found += 1
                if found > lines:
                    return begin + position + 1
            at = begin
        return 0

    def seek_time(self, key: StreamKey, since: int) -> int:
        """Returns where the first line begins that is not older than ``since`` (ns UTC); the end when all are."""
        low, high = 0, self.size(key)
        while high - low > SCAN_BYTES:
            middle = (low + high) // 2
            line = self._line_after(key, middle)
            if line is None or line_time(line[1]) >= since:
                high = middle
            else:
                low = line[0]
        at = low
        while block := self.read(key, at, 2 * SCAN_BYTES):
            end = block.rfind(b"\n") + 1
            if not end:
                break
            for whole in block[: end - 1].split(b"\n"):
                if line_time(whole) >= since:
                    return at
                at += len(whole) + 1
        return at

    def _line_after(self, key: StreamKey, offset: int) -> tuple[int, bytes] | None:
        block = self.read(key, offset, 2 * SCAN_BYTES)
        begin = block.find(b"\n") + 1
        end = block.find(b"\n", begin)
        return (offset + begin, block[begin:end]) if begin and end >= 0 else None

    def delete(self, project: str, owner: str) -> None:
        """Removes every stream of an owner. Absent is success."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._folder(StreamKey(project, owner, "x", "x")).parent.parent)


def line_time(line: bytes) -> int:
    """Returns the time that a log's line begins with, ns UTC; 0 where it begins with none."""
    head = line.split(b" ", 1)[0]
    return int(head) if head.isdigit() and len(head) < MAX_TIME_DIGITS else 0
