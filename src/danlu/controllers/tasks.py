"""Work beside a loop: what takes long is started once for each thing that it is about, and its loop goes on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from danlu.errors import DanluError

LOG: Final = logging.getLogger("danlu.controllers")
Spawn = Callable[[Callable[[], None]], None]
"""Runs something beside the loop, soon."""

BACKOFF_S: Final = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


class Trials:
    """What failed, how often in a row, and when it is tried again: soon at first, at last every 30 s."""

    def __init__(self) -> None:
        self._failures: dict[str, int] = {}
        self._not_before: dict[str, int] = {}

    def due(self, key: str, now: int) -> bool:
        """Says whether it may be tried (``now`` in ns)."""
        return self._not_before.get(key, 0) <= now

    def failed(self, key: str, now: int) -> tuple[int, float]:
        """Notes a failure; returns (how many in a row, how long it waits now, s)."""
        failures = self._failures.get(key, 0) + 1
        wait_s = BACKOFF_S[min(failures, len(BACKOFF_S)) - 1]
        self._failures[key], self._not_before[key] = failures, now + int(wait_s * 1_000_000_000)
        return failures, wait_s

    def over(self, key: str) -> None:
        """Forgets what was noted: it worked, or is no longer wanted."""
        self._failures.pop(key, None)
        self._not_before.pop(key, None)

    def keep(self, keys: Collection[str]) -> None:
        """Forgets all but ``keys``."""
        for key in set(self._failures) - set(keys):
            self.over(key)

    def wait_s(self, now: int, at_most: float) -> float:
        """Returns how long until something may be tried again."""
        return min([at_most, *(max(0.001, (at - now) / 1e9) for at in [*self._not_before.values()] if at > now)])


class Tasks:
    """At most one task of a key at a time."""

    def __init__(self, spawn: Spawn) -> None:
        self._spawn = spawn
        self._running: set[str] = set()
        self._lock = threading.Lock()

    def running(self) -> frozenset[str]:
        """Returns the keys of what is being done now."""
        with self._lock:
            return frozenset(self._running)

    def start(self, key: str, task: Callable[[], None]) -> None:
        """Does ``task`` beside the loop, unless one of that key is being done."""
        with self._lock:
            if key in self._running:
                return
            self._running.add(key)

        def run() -> None:
            try:
                task()
            finally:
                with self._lock:
                    self._running.discard(key)

        self._spawn(run)


class Workers:
    """Threads for what takes long, beside one loop. What goes wrong there is logged: the loop tries again."""

    def __init__(self, name: str, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)

    def spawn(self, task: Callable[[], None]) -> None:
        """See Spawn."""

        def run() -> None:
            try:
                task()
            except Exception as error:
                known = isinstance(error, DanluError)
                LOG.error("worker: %s: %s", type(error).__name__, error, exc_info=None if known else error)

        self._pool.submit(run)

    def close(self) -> None:
        """Takes no more work; what runs is abandoned, as after a kill."""
        self._pool.shutdown(wait=False, cancel_futures=True)
