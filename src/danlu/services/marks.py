"""Sees to it that the place of a platform's bytes is the one that its database knows."""

from __future__ import annotations

import secrets
from typing import Final

from danlu.blobs.base import Blobs
from danlu.blobs.marks import MARK
from danlu.database import stored
from danlu.database.engine import Store
from danlu.errors import PlatformError

MARK_BITS: Final = 62


def require_same(blobs: Blobs, database: Store, place: str) -> None:
    """Sees to it that a store is its platform's: a number is kept in the database, and beside the bytes.

    A store of another platform, or without this one's bytes, would be used without a word: what jobs refer to would be
    missing, and pruning would remove what the other one's refer to.

    Raises:
        PlatformError: it is not.
    """
    known, here = database.read(stored.mark), blobs.mark()
    if known is None and (here is None or blobs.empty()):  # a new platform; or one whose first start was broken off
        here = blobs.set_mark(secrets.randbits(MARK_BITS))
        mark = here
        known = database.write(lambda tx: stored.set_mark(tx, mark))
    if known == here:
        return
    file, what = f"{place}/{MARK}", "has no mark of a platform" if here is None else "has another platform's mark"
    if known is None:
        raise PlatformError(
            f"{place} has another platform's bytes, and this database knows of none",
            next_step="give each platform a place of its own (DANLU_HOME, DANLU_BLOBS); if that one is no more, remove "
            f"{file}",
        )
    raise PlatformError(
        f"the bytes of this platform (code, logs, outputs) are not in {place}: it {what}",
        next_step="let DANLU_BLOBS name the place where they are, or leave it out for the folder in DANLU_HOME: nothing "
        f"moves by itself. If they are lost for good, write {known} to {file} and start again",
    )
