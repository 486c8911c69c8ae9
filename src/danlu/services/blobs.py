"""Uploaded bytes: code trees by content address, only what the project does not have yet."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import BinaryIO, Final

from danlu.api import MAX_PACK_BYTES, MAX_SPLICED_BYTES
from danlu.api.bodies import (
    MAX_ADDRESSES,
    Addresses,
    AddressesAndTrees,
    PieceQuery,
    PruneBlobsRequest,
    Received,
    Splices,
    Stored,
)
from danlu.blobs.unused import MAX_CONDEMNED
from danlu.domain.splices import spliced
from danlu.domain.trees import unpack
from danlu.domain.views import PrunedBlobs
from danlu.errors import Conflict, InvalidRequest, InvalidSpec, TooLarge
from danlu.services import stored, unused
from danlu.services.context import Call

MAX_TOLD: Final = 100


def missing(call: Call, body: AddressesAndTrees) -> Addresses:
    """Returns which of these blobs, and what of these trees, the project does not have yet."""
    call.begin()
    blobs = call.platform.blobs
    found = dict.fromkeys(blobs.missing(call.project, body.addresses))
    found.update(dict.fromkeys(blobs.absent(call.project, *body.trees, most=MAX_ADDRESSES - len(found))))
    return Addresses(addresses=tuple(found))


def pack(call: Call, body: bytes) -> Stored:
    """Stores the blobs of a pack; all of them are durable when it returns."""
    if len(body) > MAX_PACK_BYTES:
        raise TooLarge(f"a pack has at most {MAX_PACK_BYTES} bytes; this one has {len(body)}")
    return _put_many(call, dict(unpack(body)))


def splice(call: Call, body: Splices) -> Stored:
    """Stores blobs made of others of the project; all of them are durable when it returns."""
    blobs, total = call.platform.blobs, 0
    bases: dict[str, bytes] = {}

    def counted(data: bytes) -> bytes:
        nonlocal total
        total += len(data)
        if total > MAX_SPLICED_BYTES:
            raise TooLarge(
                f"what is spliced in one request, and what of, has at most {MAX_SPLICED_BYTES} bytes together",
                next_step="send fewer splices at once, or the blobs themselves",
            )
        return data

    def made() -> Iterator[tuple[str, bytes]]:
        for one in body.splices:
            if one.base not in bases:
                bases[one.base] = counted(blobs.read(call.project, one.base))
            yield one.address, counted(spliced(bases[one.base], one))

    return _put_many(call, dict(made()))


def _put_many(call: Call, found: dict[str, bytes]) -> Stored:
    missing = call.platform.blobs.missing(call.project, found)
    with stored.upload(call, sum(len(found[address]) for address in missing)) as storing:
        count, storing.new_bytes = call.platform.blobs.put_many(call.project, found.items())
    return Stored(blobs=count, size_bytes=storing.new_bytes)


def put(call: Call, address: str, body: BinaryIO) -> Stored:
    """Stores one blob."""
    size = body.seek(0, os.SEEK_END)
    body.seek(0)
    missing = call.platform.blobs.missing(call.project, (address,))
    with stored.upload(call, size if missing else 0) as storing:
        count, storing.new_bytes = call.platform.blobs.put(call.project, address, body)
    return Stored(blobs=count, size_bytes=storing.new_bytes)


def received(call: Call, address: str) -> Received:
    """Returns how much of a blob has arrived in pieces."""
    return Received(size_bytes=call.platform.blobs.received(call.project, address))


def append(call: Call, address: str, query: PieceQuery, body: bytes) -> Received:
    """Adds a piece to a blob, which is stored with its last one."""
    return appended(call, address, query, body, limited=True)


def appended(call: Call, address: str, query: PieceQuery, body: bytes, *, limited: bool) -> Received:
    """Does so, within the project's limits or not: see ``stored.piece``."""
    size = query.offset + len(body) if query.size_bytes is None else query.size_bytes
    blobs = call.platform.blobs
    if not blobs.missing(call.project, (address,)):
        call.begin()
        return Received(size_bytes=blobs.received(call.project, address))
    stored.piece(call, address, size, limited=limited)
    try:
        there = blobs.append(call.project, address, io.BytesIO(body), offset=query.offset, size=size)
    except InvalidRequest:
        if not blobs.received(call.project, address):
            stored.refused(call, address)
        raise
    if there >= size:
        stored.whole(call, address, there)
    return Received(size_bytes=there)


def prune(call: Call, body: PruneBlobsRequest) -> PrunedBlobs:
    """Condemns the project's blobs that nothing refers to and that were stored long enough ago; dry runs only tell."""
    platform, now = call.platform, call.platform.clock.wall()
    waiting = platform.blobs.condemned(call.project).addresses
    if waiting and not body.dry_run:
        raise Conflict(
            f"{len(waiting)} blobs of {call.project} are being removed already",
            next_step="wait some minutes, then repeat",
        )
    found = unused.find(platform.database, platform.blobs, call.project, now - int(body.unused_for * 1e9))[
        :MAX_CONDEMNED
    ]
    if found and not body.dry_run:
        call.begin()
        platform.blobs.condemn(call.project, [one.address for one in found], now)
        platform.hub.notify("stored")
    return PrunedBlobs(blobs=len(found), size_bytes=sum(one.size_bytes for one in found), dry_run=body.dry_run)


def get(call: Call, address: str) -> BinaryIO:
    """Opens one blob of the project; the caller closes it."""
    return call.platform.blobs.open(call.project, address)


def require_tree(call: Call, root: str, what: str = "code") -> None:
    """Raises InvalidSpec unless it is a tree, and all of it is there."""
    absent = call.platform.blobs.absent(call.project, root, most=MAX_TOLD)
    if absent:
        others = f", nor were {len(absent) - 1} more" if len(absent) < MAX_TOLD else ", nor were others"
        raise InvalidSpec(
            f"{what} {root} is not complete: {absent[0]} was not uploaded{others if len(absent) > 1 else ''}",
            next_step="upload it again",
        )


def require(call: Call, address: str) -> None:
    """Raises InvalidSpec unless the blob is there."""
    if call.platform.blobs.missing(call.project, (address,)):
        raise InvalidSpec(f"{address} was not uploaded", next_step="upload it again")
