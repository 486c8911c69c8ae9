"""A controller's thread: it looks when something may have changed, and now and then anyway."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from danlu.errors import DanluError, LeadershipLost
from danlu.services.context import Hub

LOG: Final = logging.getLogger("danlu.controllers")
PAUSE_AFTER_ERROR_S: Final = (0.1, 0.5, 2.0, 10.0)
REST_FACTOR: Final = 2.0
MAX_REST_S: Final = 1.0
MIN_REST_STEP_S: Final = 0.05


class Loop:
    """Calls ``step`` for ever. ``step`` takes no input and returns after how many seconds it wants to look again.

    A hint on one of ``topics`` only shortens the wait. A step that took long is followed by a rest in proportion, so that
    a long queue never takes the processor from those who ask the server. An error is logged, counted and tried again; that
    another server leads ends it.
    """

    def __init__(self, name: str, step: Callable[[], float], hub: Hub, topic: str) -> None:
        self.name = name
        self.errors = 0
        self._step, self._hub, self._topic = step, hub, topic
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Asks it to end after its present step; returns whether it did within ``timeout_s``."""
        self._ending.set()
        self._hub.notify(self._topic)
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        failures = 0
        while not self._ending.is_set():
            seen = self._hub.count(self._topic)
            began = time.monotonic()
            try:
                wait_s = self._step()
            except LeadershipLost as error:
                LOG.warning("%s ends: %s", self.name, error)
                return
            except Exception as error:
                self.errors += 1
                known = isinstance(error, DanluError)
                LOG.error("%s: %s: %s", self.name, type(error).__name__, error, exc_info=None if known else error)
                self._ending.wait(PAUSE_AFTER_ERROR_S[min(failures, len(PAUSE_AFTER_ERROR_S) - 1)])
                failures += 1
                continue
            failures = 0
            took = time.monotonic() - began
            if took > MIN_REST_STEP_S:
                self._ending.wait(min(MAX_REST_S, REST_FACTOR * took))
            if wait_s > 0 and not self._ending.is_set():
                self._hub.wait(self._topic, seen, wait_s)
