"""A blob that is another one with its middle replaced: how a long folder's node travels when one name in it changes. Pure."""

from __future__ import annotations

from pydantic import Field

from danlu.domain.records import Value
from danlu.domain.trees import ADDRESS_PATTERN, MAX_NODE_BYTES, address_of
from danlu.errors import InvalidRequest

CONTINUED = 0b1000_0000
"""A byte of UTF-8 within a character begins with these two bits."""


class Splice(Value):
    """The first and the last bytes of a blob that is there, and between them a text."""

    address: str = Field(pattern=ADDRESS_PATTERN, description="of what comes out")
    base: str = Field(pattern=ADDRESS_PATTERN, description="of the blob that is there")
    head_bytes: int = Field(ge=0, le=MAX_NODE_BYTES, description="kept of the base's beginning")
    middle: str = Field(max_length=MAX_NODE_BYTES, description="what stands between")
    tail_bytes: int = Field(ge=0, le=MAX_NODE_BYTES, description="kept of the base's end")


def spliced(base: bytes, splice: Splice) -> bytes:
    """Returns what comes out.

    Raises:
        InvalidRequest: the base is shorter than what is kept of it.
    """
    if splice.head_bytes + splice.tail_bytes > len(base):
        raise InvalidRequest(
            f"{splice.head_bytes} + {splice.tail_bytes} bytes of {splice.base} are to be kept; it has {len(base)}"
        )
    return base[: splice.head_bytes] + splice.middle.encode() + base[len(base) - splice.tail_bytes :]


def splice_of(base: bytes, data: bytes) -> Splice:
    """Returns how ``data`` comes out of ``base``, both of them UTF-8, with the longest possible beginning and end kept."""
    most = min(len(base), len(data))
    head = _common(base, data, most)
    while head and head < len(data) and data[head] & 0b1100_0000 == CONTINUED:
        head -= 1
    tail = _common(base[::-1], data[::-1], most - head)
    while tail and data[len(data) - tail] & 0b1100_0000 == CONTINUED:
        tail -= 1
    return Splice(
        address=address_of(data), base=address_of(base), head_bytes=head,
        middle=data[head : len(data) - tail].decode(), tail_bytes=tail,
    )  # fmt: skip


def _common(one: bytes, other: bytes, most: int) -> int:
    """Returns how many bytes, at most so many, both begin with."""
    low, high = 0, most
    while low < high:  # by halves, as comparing slices is much quicker than comparing bytes
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low
