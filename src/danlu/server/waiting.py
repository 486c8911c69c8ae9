"""Waiting in the event loop for what may have changed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from danlu.services.context import Hub


class Waiter:
    """Waits in the event loop for a notification on one of some topics."""

    def __init__(self, hub: Hub, topics: frozenset[str]) -> None:
        self._hub, self._topics = hub, topics
        self._event = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Listens while the block runs; what comes before a wait is not missed."""
        leave = self._hub.listen(self._heard)
        try:
            yield
        finally:
            leave()

    def _heard(self, topic: str) -> None:
        if topic in self._topics and not self._event.is_set():
            with contextlib.suppress(RuntimeError):  # the event loop has ended
                self._loop.call_soon_threadsafe(self._event.set)

    def now(self) -> float:
        """Returns the event loop's time, s."""
        return self._loop.time()

    async def wait(self, timeout_s: float) -> None:
        """Returns at a notification since the last call, at the latest after ``timeout_s``."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._event.wait(), timeout_s)
        self._event.clear()
