"""Forgets events that are older than they are kept for, or more than are kept."""

from __future__ import annotations

import logging
from typing import Final

from danlu.database import queries
from danlu.database.leadership import Fenced
from danlu.services.context import Clock

LOG: Final = logging.getLogger("danlu.controllers")
DAY_NS: Final = 86_400 * 1_000_000_000
LOOK_S: Final = 60.0
NEXT_S: Final = 0.1


class EventsController:
    """Sweeps a bounded number in each step, the oldest first.

    Args:
        kept_days: how long an event is kept.
        most: how many are kept, however young the others are.
    """

    def __init__(self, database: Fenced, clock: Clock, *, kept_days: float, most: int) -> None:
        self._database, self._clock = database, clock
        self._kept_days, self._most = kept_days, most
        self._told = False

    def step(self) -> float:
        """Forgets some; returns after how many seconds to look again."""
        before = self._clock.now() - int(self._kept_days * DAY_NS)
        swept = self._database.write(lambda tx: queries.forget_events(tx, before, self._most))
        if swept.too_many and not self._told:
            self._told = True
            LOG.warning(
                "there are more than %d events: the oldest are forgotten before they are %g days old. To keep more: "
                "danlu up --max-events; to keep all elsewhere: danlu events --calls -w -o json",
                self._most, self._kept_days,
            )  # fmt: skip
        return NEXT_S if swept.events >= queries.EVENTS_AT_ONCE else LOOK_S
