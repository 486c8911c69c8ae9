"""What every service works on: the platform's parts, and one call of one actor for one project."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from danlu.blobs.base import Blobs
from danlu.blobs.streams import Streams
from danlu.database.engine import Database
from danlu.domain.actors import Actor
from danlu.domain.diagnosis import Check
from danlu.domain.environments import Environment
from danlu.domain.ids import make_id


class Clock(Protocol):
    """Tells the time."""

    def now(self) -> int:
        """Returns ns UTC."""


class Hub:
    """Says that something of a topic may have changed. A hint shortens a wait; it never carries what changed."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._counts: dict[str, int] = defaultdict(int)
        self._listeners: dict[object, Callable[[str], None]] = {}

    def notify(self, topic: str) -> None:
        """Wakes all who wait for ``topic``. Callable from any thread."""
        with self._condition:
            self._counts[topic] += 1
            self._condition.notify_all()
            listeners = tuple(self._listeners.values())
        for listener in listeners:
            listener(topic)

    def count(self, topic: str) -> int:
        """Returns how often ``topic`` was notified."""
        with self._condition:
            return self._counts[topic]

    def wait(self, topic: str, seen: int, timeout_s: float) -> int:
        """Returns the count of ``topic`` as soon as it differs from ``seen``, at the latest after ``timeout_s``."""
        with self._condition:
            self._condition.wait_for(lambda: self._counts[topic] != seen, timeout_s)
            return self._counts[topic]

    def listen(self, listener: Callable[[str], None]) -> Callable[[], None]:
        """Calls ``listener(topic)`` at every notification until the returned function is called. It must not block."""
        key = object()
        with self._condition:
            self._listeners[key] = listener

        def leave() -> None:
            with self._condition:
                self._listeners.pop(key, None)

        return leave


@dataclass(frozen=True, slots=True)
class PlatformFacts:
    """What does not change while a server runs."""

    home: str
    started_at: int
    isolation: str
    host_environment: bool
    separate_users: bool = False
    warnings: tuple[str, ...] = ()
    images: str = ""
    """The engine that runs container images, with its version; empty: none does."""
    no_images: str = ""


@dataclass(slots=True)
class Platform:
    """The parts that services use. ``url`` is known once the server listens."""

    database: Database
    blobs: Blobs
    streams: Streams
    clock: Clock
    random_bits: Callable[[int], int]
    facts: PlatformFacts
    attempt_key: bytes
    bootstrap_digest: str
    hub: Hub = field(default_factory=Hub)
    url: str = ""
    diagnose: Callable[[Sequence[Environment], bool], tuple[Check, ...]] = lambda _built, _index: ()
    stop_server: Callable[[bool], None] = lambda _jobs_first: None

    def new_id(self, letter: str) -> str:
        """Returns a fresh id."""
        return make_id(letter, self.clock.now(), self.random_bits(82))


@dataclass(frozen=True, slots=True)
class Call:
    """One request: who calls, for which project, on which platform."""

    platform: Platform
    actor: Actor
    project: str
