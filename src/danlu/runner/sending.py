"""The blobs of trees, brought to the server: those that it lacks, small ones many at a time, large ones in pieces.

What has arrived of a large one is kept there, so that whoever is killed, or loses the connection, goes on where it ended. No
more is held in memory than a pack.
"""

from __future__ import annotations

import os
import time
from typing import Dict, List, Optional

from .channel import Channel, Refused
from .trees import READ, Blob, Changed, address_of

SMALL_BYTES, PACK_BYTES, PIECE_BYTES = 1 << 20, 8 << 20, 8 << 20
AT_ONCE = 1000
WRONG, CONFLICT = "InvalidRequest", "Conflict"
PATIENCE_S, PAUSE_S = 300.0, 0.5
"""So long somebody else may be sending the same without getting any further."""


class Sending:
    """Sends blobs.

    Args:
        channel: the caller's own.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._waiting: Dict[str, Blob] = {}
        self._held = 0

    def take(self, blob: Blob) -> None:
        """Takes a blob, and sends some when there are enough.

        Raises:
            Changed: a file is not what it was when its address was computed.
            Over, GaveUp, Refused: it cannot be sent.
        """
        if blob.address not in self._waiting:
            self._waiting[blob.address] = blob
            self._held += len(blob.node)
        if len(self._waiting) >= AT_ONCE or self._held >= PACK_BYTES:
            self.flush()

    def flush(self) -> None:
        """Sends all that was taken; raises what ``take`` does."""
        waiting, self._waiting, self._held = self._waiting, {}, 0
        if not waiting:
            return
        found = self._channel.json("POST", "/blobs/missing", {"addresses": list(waiting)})
        pack: List[bytes] = []
        size = 0
        for blob in (waiting[address] for address in found["addresses"] if address in waiting):
            if blob.size > SMALL_BYTES:
                self._large(blob)
                continue
            data = blob.node or _bytes_of(blob)
            if size + len(data) > PACK_BYTES:
                self._send(pack)
                pack, size = [], 0
            pack.append(bytes.fromhex(blob.address.partition(":")[2]) + len(data).to_bytes(8, "big") + data)
            size += len(data)
        self._send(pack)

    def _send(self, pack: List[bytes]) -> None:
        if pack:
            self._channel.call("POST", "/blobs", b"".join(pack))

    def _large(self, blob: Blob) -> None:
        file: Optional[int] = None if blob.node else _open(blob)
        try:
            there = self._received(blob)
            moved_at = time.monotonic()
            while True:
                offset = min(there, blob.size)
                if file is None:
                    piece = blob.node[offset : offset + PIECE_BYTES]
                else:
                    piece = os.pread(file, min(PIECE_BYTES, blob.size - offset), offset)
                if not piece and offset < blob.size:
                    raise Changed("%s has become shorter" % blob.path)
                before, there = there, self._append(blob, piece, offset)
                if there >= blob.size:
                    return
                if there != before:
                    moved_at = time.monotonic()
                elif time.monotonic() - moved_at > PATIENCE_S:
                    raise Changed(
                        "%s is being sent by another one, which does not get on" % (blob.path or blob.address)
                    )
                else:
                    time.sleep(PAUSE_S)
        finally:
            if file is not None:
                os.close(file)

    def _received(self, blob: Blob) -> int:
        return int(self._channel.json("GET", "/blobs/%s/received" % blob.address)["size_bytes"])

    def _append(self, blob: Blob, piece: bytes, offset: int) -> int:
        """Sends a piece, an empty one where all has arrived but was not put together; returns how much has arrived."""
        query = {"offset": offset, "size_bytes": blob.size}
        try:
            answer = self._channel.call("PUT", "/blobs/%s" % blob.address, piece, query=query)
        except Refused as error:
            if error.code == CONFLICT:  # it had arrived, and the answer was lost; or another pod sends the same
                there = self._received(blob)
                return there if there < blob.size else offset  # whether it is whole is only known from an answer
            if error.code == WRONG:
                raise Changed("%s is not what it was when it was read" % (blob.path or blob.address)) from error
            raise
        return int(self._channel.json_of(answer)["size_bytes"])


def _open(blob: Blob) -> int:
    try:
        return os.open(blob.path, READ)
    except OSError as error:
        raise Changed("%s is gone: %s" % (blob.path, error.strerror)) from error


def _bytes_of(blob: Blob) -> bytes:
    with open(_open(blob), "rb") as file:
        data = file.read(blob.size + 1)
    if address_of(data) != blob.address:
        raise Changed("%s is not what it was when it was read" % blob.path)
    return data
