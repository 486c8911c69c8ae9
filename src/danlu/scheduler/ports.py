"""Ports leased to gangs, on each node for as long as an attempt holds its resources."""

from __future__ import annotations

import zlib
from collections.abc import Collection
from typing import Final

FIRST: Final = 20_000
LAST: Final = 32_767
"""Below the range from which Linux gives ports to outgoing connections."""
COUNT: Final = LAST - FIRST + 1


def lease(attempt_id: str, count: int, taken: Collection[int]) -> tuple[int, ...] | None:
    """Returns ``count`` ports that are not ``taken``; None where there are not so many.

    The first one follows from the attempt's id: the next attempt of a job begins elsewhere, so that a port which a stranger
    has taken, or which the kernel still keeps from the attempt before, is not met again.
    """
    begin = zlib.crc32(attempt_id.encode()) % COUNT
    found: list[int] = []
    for step in range(COUNT):
        if len(found) == count:
            break
        port = FIRST + (begin + step) % COUNT
        if port not in taken:
            found.append(port)
    return tuple(found) if len(found) == count else None
