"""Runners in pods that wait for a wish: one look at the database for all of them, however many they are."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from typing import Final

import anyio.to_thread

from danlu.api.bodies import WishesQuery
from danlu.domain.notices import Wishes
from danlu.errors import DanluError, StaleAttempt
from danlu.server.waiting import Waiter
from danlu.services import wishes
from danlu.services.context import Call, Platform
from danlu.services.reports import require_own

LOG: Final = logging.getLogger("danlu.server")
LOOK_S: Final = 1.0
"""Without a hint: another server may have been told, or the time of a gang be over."""
PAUSE_S: Final = 0.05
SHARE: Final = 2.0
"""A look that took long is followed by a pause in proportion, so that many who wait leave the processor to others."""
TOPICS: Final = frozenset({"jobs", "attempts", "wishes"})


class WishesBoard:
    """The attempts that wait. ``end`` ends all waits, so that a server can stop."""

    def __init__(self) -> None:
        self._waiting: Counter[str] = Counter()
        self._found: dict[str, Wishes | None] = {}
        self._look_at = wishes.Look()
        self._looked = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        self._ending = False

    def end(self) -> None:
        """Answers all who wait, and from now on at once."""
        self._ending = True

    async def wait(self, call: Call, attempt: str, query: WishesQuery) -> Wishes:
        """Returns what is wished once that is not what the caller knows, or when the time is over.

        Raises:
            NotAllowed: it is another attempt's.
            StaleAttempt: the attempt is over, or is so by now.
        """
        require_own(call, attempt)
        loop = asyncio.get_running_loop()
        until = loop.time() + query.timeout_s
        self._waiting[attempt] += 1  # before the first look, so that nothing is missed after it
        try:
            wished = await anyio.to_thread.run_sync(wishes.require, call.platform, attempt)
            while wished.tag == query.known and loop.time() < until and not self._ending:
                if self._looking is None or self._looking.done():
                    self._looked = asyncio.Event()
                    self._looking = asyncio.create_task(self._look(call.platform))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._looked.wait(), until - loop.time())
                found = self._found.get(attempt, wished)
                if found is None:
                    raise StaleAttempt(f"attempt {attempt} is over")
                wished = found
            return wished
        finally:
            self._waiting -= Counter([attempt])
            self._found.pop(attempt, None)

    async def _look(self, platform: Platform) -> None:
        """Looks again and again for all who wait, until nobody does."""
        waiter, took_s = Waiter(platform.hub, TOPICS), 0.0
        with waiter.listening():
            while self._waiting:
                await waiter.wait(LOOK_S)
                await asyncio.sleep(min(LOOK_S, max(PAUSE_S, SHARE * took_s)))  # many hints become one look
                began = time.monotonic()
                try:
                    found = await anyio.to_thread.run_sync(self._look_at.of, platform, set(self._waiting))
                except DanluError as error:
                    LOG.warning("what is wished of attempts cannot be told now: %s", error)
                    continue
                took_s = time.monotonic() - began
                self._found = {one: found[one] for one in self._waiting if one in found}
                self._looked.set()
                self._looked = asyncio.Event()
