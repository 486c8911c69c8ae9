"""Streams as files: ``ROOT/PROJECT/streams/OWNER/TASK/NAME/``, segments of at most 8 MiB that are written in place."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from pathlib import Path
from typing import Final

from danlu.blobs.streams import SEGMENT_BYTES, StreamKey, Streams
from danlu.errors import DataDamaged, storage_full_is_an_error

LOCKS: Final = 64
SYNCED: Final = 4


class LocalStreams(Streams):
    """Streams in a folder of this machine."""

    def __init__(self, root: Path, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.root = root
        self.segment_bytes = segment_bytes
        self._locks = [threading.Lock() for _ in range(LOCKS)]

    def _folder(self, key: StreamKey) -> Path:
        return self.root / key.folder

    @staticmethod
    def _segments(folder: Path) -> list[tuple[int, Path]]:
        try:
            return sorted((int(path.name), path) for path in folder.iterdir() if path.name.isdigit())
        except FileNotFoundError:
            return []

    def size(self, key: StreamKey) -> int:
        """See Streams."""
        segments = self._segments(self._folder(key))
        return segments[-1][0] + segments[-1][1].stat().st_size if segments else 0

    def append(self, key: StreamKey, offset: int, data: bytes) -> int:
        """See Streams."""
        folder = self._folder(key)
        with self._locks[hash(key) % LOCKS]:
            size = self.size(key)
            rest = self._new(key, offset, data, size)
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
        """See Streams: the newest segments, as older ones were newest before."""
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
        """See Streams."""
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

    def delete(self, project: str, owner: str) -> None:
        """See Streams."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._folder(StreamKey(project, owner, "x", "x")).parent.parent)
