"""Streams in a bucket, seen by all servers. Each piece that is appended is an object named by where it begins.

An object is put only if there is none, so of two servers that append at the same place one is told to look again. Small
objects are put together in the end: ``COUNT`` of one level, one after the other, become one of the next level, named by its
begin, end and level. It has the same bytes, so whoever reads may take either. What it was made of is removed only when it is
``OLD_S`` old, that nobody who has looked at the end of the stream before puts something into its place.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from danlu.blobs.bucket import Absent, Bucket
from danlu.blobs.streams import SEGMENT_BYTES, StreamKey, Streams
from danlu.errors import Conflict, DataDamaged, StorageUnavailable

COUNT: Final = 64
OLD_S: Final = 600.0
END_S: Final = 60.0
"""For so long a server believes that a stream ends where it has ended it."""
MAX_ENDS: Final = 10_000
TRIES: Final = 5


class _Segment(NamedTuple):
    start: int
    end: int
    level: int
    key: str
    modified_at: int


class BucketStreams(Streams):
    """Streams in a bucket.

    Args:
        bucket: where.
        segment_bytes: no object is larger.
        old_s: see above.
    """

    def __init__(self, bucket: Bucket, *, segment_bytes: int = SEGMENT_BYTES, old_s: float = OLD_S) -> None:
        self._bucket, self._segment_bytes, self._old_s = bucket, segment_bytes, old_s
        self._ends: dict[StreamKey, tuple[float, int]] = {}
        self._lock = threading.Lock()

    def size(self, key: StreamKey) -> int:
        """See Streams."""
        segments = _largest(self._all(key))
        return segments[-1].end if segments else 0

    def append(self, key: StreamKey, offset: int, data: bytes) -> int:
        """See Streams. It is durable then."""
        folder = key.folder
        for _ in range(TRIES):
            size = self._known_end(key)
            if size is None or size < offset:  # another server may have gone on from there
                found = self._all(key)
                segments = _largest(found)
                size = segments[-1].end if segments else 0
                self._put_together(key, segments)
                self._bucket.delete(self._replaced(found, segments))
            rest = self._new(key, offset, data, size)
            while rest:
                piece = rest[: self._segment_bytes]
                if not self._bucket.put_new(f"{folder}/{size:020d}", bytes(piece)):
                    break  # somebody else was first, or an answer was lost
                size += len(piece)
                rest = rest[len(piece) :]
            self._set_end(key, None if rest else size)
            if not rest:
                return size
        raise Conflict(f"others append to stream {key.name} of {key.owner} at the same time", next_step="try again")

    def sync(self, key: StreamKey) -> None:
        """See Streams: it is durable."""

    def read(self, key: StreamKey, offset: int, max_bytes: int) -> bytes:
        """See Streams."""
        for _ in range(TRIES):
            try:
                return b"".join(self._bucket.each(self._some, self._wanted(key, offset, max_bytes)))
            except Absent:
                continue  # it was put together with others meanwhile
        raise StorageUnavailable(f"stream {key.name} of {key.owner} changes faster than it can be read")

    def delete(self, project: str, owner: str) -> None:
        """See Streams."""
        folder = StreamKey(project, owner, "x", "x").folder.rpartition("/x/x")[0]
        self._bucket.delete([one.key for one in self._bucket.objects(folder)])
        with self._lock:
            for key in [key for key in self._ends if (key.project, key.owner) == (project, owner)]:
                del self._ends[key]

    def _known_end(self, key: StreamKey) -> int | None:
        with self._lock:
            at, end = self._ends.get(key, (0.0, 0))
        return end if at and time.monotonic() - at < END_S else None

    def _set_end(self, key: StreamKey, end: int | None) -> None:
        """Remembers an end until the stream is to be listed again, where small objects are put together too."""
        with self._lock:
            at, _ = self._ends.pop(key, (0.0, 0))
            if end is not None:
                now = time.monotonic()
                while len(self._ends) >= MAX_ENDS:
                    self._ends.pop(next(iter(self._ends)))
                self._ends[key] = (at if at and now - at < END_S else now), end

    def _all(self, key: StreamKey) -> list[_Segment]:
        """Returns all objects of a stream, at the same start the longest first."""
        found = list[_Segment]()
        for one in self._bucket.objects(key.folder):
            start, _, rest = one.key.rpartition("/")[2].partition(".")
            end, _, level = rest.partition(".")
            until = int(end) if end else int(start) + one.size_bytes
            found.append(_Segment(int(start), until, int(level or 0), one.key, one.modified_at))
        return sorted(found, key=lambda one: (one.start, -one.end))

    def _wanted(self, key: StreamKey, offset: int, max_bytes: int) -> Iterator[tuple[str, int, int]]:
        """Yields (object, from where, how many bytes) of what is asked for."""
        until = offset + max(0, max_bytes)
        for segment in _largest(self._all(key)):
            if offset >= until or offset >= segment.end:
                continue
            if offset < segment.start:
                raise DataDamaged(f"stream {key.name} of {key.owner} has no bytes from {offset} to {segment.start}")
            end = min(until, segment.end)
            yield segment.key, offset - segment.start, end - offset
            offset = end

    def _some(self, wanted: tuple[str, int, int]) -> bytes:
        return self._bucket.get_range(*wanted)

    def _put_together(self, key: StreamKey, segments: Sequence[_Segment]) -> None:
        """Makes large objects of many small ones, and removes what has become part of larger ones for long enough."""
        for level, group in itertools.groupby(segments, lambda one: one.level):
            run = list(group)
            while len(run) >= COUNT:
                some, run = run[:COUNT], run[COUNT:]
                start, end = some[0].start, some[-1].end
                if end - start <= self._segment_bytes:
                    data = self.read(key, start, end - start)
                    self._bucket.put_new(f"{key.folder}/{start:020d}.{end:020d}.{level + 1}", data)

    def _replaced(self, found: Sequence[_Segment], segments: Sequence[_Segment]) -> list[str]:
        """Returns which objects have been part of larger ones for long enough."""
        before, number, gone = time.time_ns() - int(self._old_s * 1e9), 0, list[str]()
        for one in found:
            while number + 1 < len(segments) and segments[number + 1].start <= one.start:
                number += 1
            larger = segments[number]
            if larger.key != one.key and max(larger.modified_at, one.modified_at) < before:
                gone.append(one.key)
        return gone


def _largest(found: Sequence[_Segment]) -> list[_Segment]:
    """Returns the largest segments that together are the stream. What begins within another one is part of it."""
    end, segments = 0, list[_Segment]()
    for one in found:
        if one.start >= end and one.end > one.start:
            segments.append(one)
            end = one.end
    return segments
