"""The frames of a session: what goes between client, server and runner while something is done inside a running job.

A frame is one byte, its kind, and its bytes. On a web socket a message is a frame. On a byte stream four bytes, big endian,
tell before it how many follow. A side that reads says how much it has taken by *credit* frames: what was sent and not yet
taken is never more than the window, so nobody has to keep more than that, and whoever reads slowly slows down who writes.
"""

from __future__ import annotations

import json
import struct
from typing import Any, Dict, Iterator, List, Mapping, Tuple

DATA_BYTES = 65_536
"""So many bytes of input or output are in a frame at most."""
WINDOW_BYTES = 1 << 20
"""So many bytes may be under way in one direction. Standard output and error share one window."""
JSON_BYTES = 16_384
REQUEST_BYTES = 512 << 10

REQUEST, STDIN, EOF, RESIZE, CREDIT = b"q", b"i", b"f", b"w", b"c"
STARTED, STDOUT, STDERR, EXIT, PROBLEM = b"s", b"o", b"e", b"x", b"p"

FROM_CLIENT: Mapping[bytes, int] = {REQUEST: REQUEST_BYTES, STDIN: DATA_BYTES, EOF: 0, RESIZE: 4, CREDIT: 4}
FROM_RUNNER: Mapping[bytes, int] = {
    STARTED: JSON_BYTES, STDOUT: DATA_BYTES, STDERR: DATA_BYTES, CREDIT: 4, EXIT: JSON_BYTES, PROBLEM: JSON_BYTES,
}  # fmt: skip
"""What each side may send, and how many bytes of it in a frame."""
MEANINGS: Mapping[bytes, str] = {
    REQUEST: "client, first: what to do, a SessionRequest",
    STDIN: "client: input",
    EOF: "client: the end of the input",
    RESIZE: "client: the terminal's rows and columns, two bytes each, big endian",
    CREDIT: "both: four bytes, big endian: so many bytes of input or output were taken",
    STARTED: "server: it runs, in this `task` of so many `tasks`",
    STDOUT: "server: standard output; all that a terminal shows",
    STDERR: "server: standard error",
    EXIT: "server, last: how it ended, a SessionEnd",
    PROBLEM: "server, last: it could not be done, or was cut off; a problem",
}
"""Every kind: who sends it, and what it means."""

_HEAD = struct.Struct("!I")
_SIZE = struct.Struct("!HH")
Frame = Tuple[bytes, bytes]


class FrameError(ValueError):
    """The other side has sent what it may not send."""


def encode(kind: bytes, data: bytes = b"") -> bytes:
    """Returns a frame as it goes over a byte stream."""
    return _HEAD.pack(len(data) + 1) + kind + data


def encode_json(kind: bytes, value: Mapping[str, Any]) -> bytes:
    """Returns a frame with JSON in it."""
    return encode(kind, json.dumps(value).encode())


def checked(message: bytes, allowed: Mapping[bytes, int]) -> Frame:
    """Returns (kind, data) of one message.

    Raises:
        FrameError: no such kind is allowed, or it is too long.
    """
    kind, data = message[:1], message[1:]
    if kind not in allowed:
        raise FrameError("a frame of kind %r is not expected here" % kind)
    if len(data) > allowed[kind]:
        raise FrameError("a frame of kind %r has at most %d bytes; this one has %d" % (kind, allowed[kind], len(data)))
    return kind, data


class Decoder:
    """Takes a byte stream apart into frames. It never keeps more than one of them."""

    def __init__(self, allowed: Mapping[bytes, int]) -> None:
        self._allowed = allowed
        self._most = max(allowed.values()) + 1
        self._kept = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yields the frames that ``data`` completes.

        Raises:
            FrameError: what comes is no frame that is allowed.
        """
        self._kept += data
        at = 0
        try:
            while len(self._kept) - at >= _HEAD.size:
                (length,) = _HEAD.unpack_from(self._kept, at)
                if not 1 <= length <= self._most:
                    raise FrameError("a frame has from 1 to %d bytes, not %d" % (self._most, length))
                if len(self._kept) - at > _HEAD.size:  # a wrong kind is refused before its bytes have come
                    kind = bytes(self._kept[at + _HEAD.size : at + _HEAD.size + 1])
                    if length - 1 > self._allowed.get(kind, -1):
                        raise FrameError("a frame of kind %r and %d bytes is not expected here" % (kind, length - 1))
                end = at + _HEAD.size + length
                if len(self._kept) < end:
                    return
                message = bytes(self._kept[at + _HEAD.size : end])
                at = end
                yield checked(message, self._allowed)
        finally:
            del self._kept[:at]

    @property
    def between(self) -> bool:
        """Whether the last frame is whole."""
        return not self._kept


class Window:
    """How many bytes may still be sent before some of them are taken."""

    def __init__(self, size_bytes: int = WINDOW_BYTES) -> None:
        self._size = self.left = size_bytes

    def use(self, count: int) -> None:
        """Counts bytes that are sent; raises FrameError where more are sent than may be."""
        if count > self.left:
            raise FrameError("%d bytes were sent where %d were left of the window" % (count, self.left))
        self.left -= count

    def give(self, data: bytes) -> None:
        """Counts bytes that were taken, as a credit frame tells; raises FrameError where those were never sent."""
        if len(data) != 4:
            raise FrameError("a credit has four bytes; this one has %d" % len(data))
        (count,) = _HEAD.unpack(data)
        if self.left + count > self._size:
            raise FrameError("%d bytes were taken where only %d were under way" % (count, self._size - self.left))
        self.left += count


class Taken:
    """Counts what was taken, and tells when it is time to say so: not for every byte, and before the other side waits."""

    def __init__(self, size_bytes: int = WINDOW_BYTES) -> None:
        self._step, self._count = size_bytes // 4, 0

    def take(self, count: int) -> List[bytes]:
        """Returns the data of the credit frame that is due, if one is."""
        self._count += count
        if self._count < self._step:
            return []
        due, self._count = self._count, 0
        return [_HEAD.pack(due)]


def size_of(data: bytes) -> Tuple[int, int]:
    """Returns (rows, columns) of a resize frame."""
    if len(data) != _SIZE.size:
        raise FrameError("a terminal's size has four bytes; this one has %d" % len(data))
    rows, columns = _SIZE.unpack(data)
    return rows, columns


def pack_size(rows: int, columns: int) -> bytes:
    """Returns the data of a resize frame."""
    return _SIZE.pack(min(max(rows, 0), 65_535), min(max(columns, 0), 65_535))


def parse_json(data: bytes) -> Dict[str, Any]:
    """Returns the object in a frame; raises FrameError where it holds none."""
    try:
        value = json.loads(data.decode())
    except (ValueError, RecursionError):
        raise FrameError("a frame holds no JSON") from None
    if not isinstance(value, dict):
        raise FrameError("a frame holds no JSON object")
    return value
