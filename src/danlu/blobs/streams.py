"""Append-only streams: logs and metrics. Appending names its offset, so that the same piece twice is there once.

A stream lies in segments, each named by the position of its first byte. Lines of a log begin with a decimal time in ns that
never decreases, which makes it searchable by time.
"""

from __future__ import annotations

import abc
import re
from dataclasses import dataclass
from typing import Final

from danlu.domain.ids import NAME_PATTERN
from danlu.errors import Conflict, InvalidRequest

SEGMENT_BYTES: Final = 8 * 2**20
SCAN_BYTES: Final = 256 * 1024
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

    @property
    def folder(self) -> str:
        """Returns where it lies in a store: no part of it comes from a user unchecked."""
        if not _PROJECT.fullmatch(self.project) or not all(
            _PART.fullmatch(part) for part in (self.owner, self.task, self.name)
        ):
            raise InvalidRequest(f"{self} does not name a stream")
        return f"{self.project}/streams/{self.owner}/{self.task}/{self.name}"


class Streams(abc.ABC):
    """Streams, wherever they are kept."""

    @abc.abstractmethod
    def size(self, key: StreamKey) -> int:
        """Returns the stream's length in bytes; 0 for one that does not exist."""

    @abc.abstractmethod
    def append(self, key: StreamKey, offset: int, data: bytes) -> int:
        """Appends what is new of ``data``, which begins at ``offset``, and returns the stream's length.

        Raises:
            Conflict: ``offset`` lies past the end: something in between is missing. Or what is there already is not what
                ``data`` says.
            StorageFull: the first part of it may be there; sending all of it again adds the rest.
        """

    @abc.abstractmethod
    def sync(self, key: StreamKey) -> None:
        """Makes what was appended outlive a power failure."""

    @abc.abstractmethod
    def read(self, key: StreamKey, offset: int, max_bytes: int) -> bytes:
        """Returns up to ``max_bytes`` from ``offset``; empty at the end.

        Raises:
            DataDamaged: a segment in between is missing or was cut.
        """

    @abc.abstractmethod
    def delete(self, project: str, owner: str) -> None:
        """Removes every stream of an owner. Absent is success."""

    def _new(self, key: StreamKey, offset: int, data: bytes, size: int) -> memoryview:
        """Returns what is new of ``data``, where a stream has ``size`` bytes; raises Conflict as ``append`` does."""
        if offset > size:
            raise Conflict(f"stream {key.name} of {key.owner} ends at {size}; a piece at {offset} leaves a gap")
        known = min(size - offset, len(data))
        if known and self.read(key, offset, known) != data[:known]:
            raise Conflict(f"stream {key.name} of {key.owner} differs from what was sent again at {offset}")
        return memoryview(data)[known:]

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


def line_time(line: bytes) -> int:
    """Returns the time that a log's line begins with, ns UTC; 0 where it begins with none."""
    head = line.split(b" ", 1)[0]
    return int(head) if head.isdigit() and len(head) < MAX_TIME_DIGITS else 0
