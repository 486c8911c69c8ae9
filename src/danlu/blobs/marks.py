"""The mark of a store: a number beside the bytes, which their platform's database knows too."""

from __future__ import annotations

from typing import Final

from danlu.errors import DataDamaged

MARK: Final = ".platform"
"""Its name in the store. It has the number, as text."""


def read_mark(data: bytes, place: object) -> int:
    """Returns a store's number.

    Raises:
        DataDamaged: it is none.
    """
    try:
        return int(data)
    except ValueError:
        raise DataDamaged(
            f"{place}/{MARK} does not tell whose platform's bytes these are: {data[:40]!r}",
            next_step="move it away: the next start names the number that belongs there",
        ) from None
