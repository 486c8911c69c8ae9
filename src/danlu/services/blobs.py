"""Uploaded bytes: code trees by content address, only what the project does not have yet."""

from __future__ import annotations

from typing import BinaryIO

from danlu.api import MAX_PACK_BYTES, Addresses, Stored
from danlu.domain.trees import MAX_DEPTH, decode, unpack
from danlu.errors import InvalidSpec, TooLarge
from danlu.services.context import Call

MAX_TREE_FILES = 1_000_000


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
    """Raises InvalidSpec unless the tree and every file in it are there."""
    blobs = call.platform.blobs
    waiting, seen, files = [(root, 0)], set[str](), set[str]()
    while waiting:
        address, depth = waiting.pop()
        if address in seen:
            continue
        seen.add(address)
        if depth > MAX_DEPTH or len(files) > MAX_TREE_FILES:
            raise InvalidSpec(f"code {root} is too deep or too large: {MAX_DEPTH} levels, {MAX_TREE_FILES} files")
        if blobs.missing(call.project, (address,)):
            raise InvalidSpec(f"code {root} is not complete: {address} was not uploaded", next_step="upload it again")
        for entry in decode(blobs.read(call.project, address)):
            if entry.kind == "dir":
                waiting.append((entry.address, depth + 1))
            elif entry.kind == "file":
                files.add(entry.address)
    absent = blobs.missing(call.project, sorted(files))
    if absent:
        raise InvalidSpec(
            f"code {root} is not complete: {len(absent)} of {len(files)} files were not uploaded, first {absent[0]}",
            next_step="upload it again",
        )
