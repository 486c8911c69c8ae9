"""The server's time: the machine's, but never backwards and never standing still."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class SystemClock:
    """Follows the machine's clock where that goes forward. Where it is set back, time goes on from where it was.

    So no timeout is missed and no record is older than the one before, whatever sets the machine's clock. A restart
    begins with the machine's clock again.
    """

    def __init__(
        self, wall: Callable[[], int] = time.time_ns, monotonic: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self._wall, self._monotonic = wall, monotonic
        self._last, self._at = wall(), monotonic()
        self._lock = threading.Lock()

    def now(self) -> int:
        """See Clock."""
        with self._lock:
            at = self._monotonic()
            self._last = max(self._wall(), self._last + at - self._at)
            self._at = at
            return self._last

    def wall(self) -> int:
        """See Clock."""
        return self._wall()
