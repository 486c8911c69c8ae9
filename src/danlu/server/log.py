"""The server's own log: bounded, so that a fault that repeats itself cannot fill the disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

RECORDS: Final = 200
PERIOD_S: Final = 10.0


class RateLimit(logging.Filter):
    """Lets RECORDS records pass in PERIOD_S; the first one after that says how many were left out."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._monotonic = monotonic
        self._since, self._passed, self._dropped = monotonic(), 0, 0

    def filter(self, record: logging.LogRecord) -> bool:
        """See logging.Filter."""
        now = self._monotonic()
        if now - self._since >= PERIOD_S:
            if self._dropped:
                record.msg, record.args = f"({self._dropped} records were left out) {record.getMessage()}", None
            self._since, self._passed, self._dropped = now, 0, 0
        self._passed += 1
        if self._passed > RECORDS:
            self._dropped += 1
            return False
        return True
