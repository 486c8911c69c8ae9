"""Forgets the nonces of requests that are refused for their age alone by now."""

from __future__ import annotations

from typing import Final

from danlu.database import nonces
from danlu.database.leadership import Fenced
from danlu.services.context import Clock

SECOND: Final = 1_000_000_000
LOOK_S: Final = 60.0
NEXT_S: Final = 0.1


class NoncesController:
    """Sweeps a bounded number in each step."""

    def __init__(self, database: Fenced, clock: Clock) -> None:
        self._database, self._clock = database, clock

    def step(self) -> float:
        """Forgets some; returns after how many seconds to look again."""
        now_s = self._clock.wall() // SECOND
        swept = self._database.write(lambda tx: nonces.forget(tx, now_s))
        return NEXT_S if swept >= nonces.SWEPT_AT_ONCE else LOOK_S
