"""The bytes of what attempts in pods leave: as any upload, but counted as results, of which none is refused for a quota.

Only what an attempt sends and never tells of is bounded: see ``stored.results``.
"""

from __future__ import annotations

from typing import BinaryIO, Final

from danlu.api import MAX_PACK_BYTES
from danlu.api.bodies import Addresses, AddressesAndTrees, OffsetQuery, PieceQuery, Received, Stored
from danlu.domain.trees import unpack
from danlu.errors import InvalidRequest, TooLarge
from danlu.services import blobs, stored
from danlu.services.context import Call
from danlu.services.reports import require_own

SKIP_BYTES: Final = 2**20


def missing(call: Call, attempt: str, body: AddressesAndTrees) -> Addresses:
    """Returns which of these blobs, and what of these trees, the project does not have yet."""
    require_own(call, attempt)
    return blobs.missing(call, body)


def pack(call: Call, attempt: str, body: bytes) -> Stored:
    """Stores the blobs of a pack; all of them are durable when it returns."""
    require_own(call, attempt)
    if len(body) > MAX_PACK_BYTES:
        raise TooLarge(f"a pack has at most {MAX_PACK_BYTES} bytes; this one has {len(body)}")
    found, store = dict(unpack(body)), call.platform.blobs
    call.begin()
    new = sum(len(found[address]) for address in store.missing(call.project, found))
    with stored.results(call.platform.database, call.platform.clock, call.project, new, attempt_id=attempt) as storing:
        count, storing.new_bytes = store.put_many(call.project, found.items())
    return Stored(blobs=count, size_bytes=storing.new_bytes)


def received(call: Call, attempt: str, address: str) -> Received:
    """Returns how much of a blob has arrived in pieces."""
    require_own(call, attempt)
    return blobs.received(call, address)


def append(call: Call, attempt: str, address: str, query: PieceQuery, body: bytes) -> Received:
    """Adds a piece to a blob, which is stored with its last one."""
    require_own(call, attempt)
    return blobs.appended(call, address, query, body, limited=False)


def get(call: Call, attempt: str, address: str, query: OffsetQuery) -> BinaryIO:
    """Opens one blob of the project, from a byte on; the caller closes it."""
    require_own(call, attempt)
    file = blobs.get(call, address)
    left = query.offset
    while left:  # read, not skipped: so the bytes that follow are still known to be right
        passed = len(file.read(min(SKIP_BYTES, left)))
        if not passed:
            file.close()
            raise InvalidRequest(f"blob {address} has {query.offset - left} bytes: none at {query.offset}")
        left -= passed
    return file
