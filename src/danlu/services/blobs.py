"""Uploaded bytes: code trees by content address, only what the project does not have yet."""

from __future__ import annotations

from typing import BinaryIO

from danlu.api import MAX_PACK_BYTES, Addresses, Stored
from danlu.domain.trees import unpack, walk
from danlu.errors import InvalidSpec, NotFound, TooLarge
from danlu.services.context import Call


def missing(call: Call, body: Addresses) -> Addresses:
    """Returns which of these blobs the project does not have yet."""
    return Addresses(addresses=call.platform.blobs.missing(call.project, body.addresses))


def pack(call: Call, body: bytes) -> Stored:
    """Stores the blobs of a pack; all of them are durable when it returns."""
    if len(body) > MAX_PACK_BYTES:
        raise TooLarge(f"a pack has at most {MAX_PACK_BYTES} bytes; this one has {len(body)}")
    count, size = call.platform.blobs.put_many(call.project, unpack(body))
    return Stored(blobs=count, size_bytes=size)


def put(call: Call, address: str, body: BinaryIO) -> Stored:
    """Stores one blob."""
    return Stored(blobs=1, size_bytes=call.platform.blobs.put(call.project, address, body))


def get(call: Call, address: str) -> BinaryIO:
    """Opens one blob of the project; the caller closes it."""
    return call.platform.blobs.open(call.project, address)


def require_tree(call: Call, root: str) -> None:
    """Raises InvalidSpec unless it is a tree, and all of it is there."""
    blobs = call.platform.blobs

    def read(address: str) -> bytes:
        try:
            return blobs.read(call.project, address)
        except NotFound:
            raise InvalidSpec(
                f"code {root} is not complete: {address} was not uploaded", next_step="upload it again"
            ) from None

    files = {entry.address for _, entries in walk(root, read) for entry in entries if entry.kind == "file"}
    absent = blobs.missing(call.project, sorted(files))
    if absent:
        raise InvalidSpec(
            f"code {root} is not complete: {len(absent)} of {len(files)} files were not uploaded, first {absent[0]}",
            next_step="upload it again",
        )
