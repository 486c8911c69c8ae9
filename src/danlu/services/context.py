"""What every service works on: the platform's parts, and one call of one actor for one project."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from danlu.api import BY_ID
from danlu.blobs.base import Blobs
from danlu.blobs.streams import Streams
from danlu.database import nonces
from danlu.database.engine import Database, Transaction, write_anew
from danlu.database.leadership import Term
from danlu.database.records import add_event
from danlu.domain.actors import Actor
from danlu.domain.diagnosis import Check
from danlu.domain.environments import Environment
from danlu.domain.events import CALL, Event
from danlu.domain.ids import make_id
from danlu.domain.isolation import Layer
from danlu.domain.keys import AccessKey
from danlu.services.fitting import Empty
from danlu.services.vault import Vault

T = TypeVar("T")
DONE = "done"
HIDING_AT_ONCE = 2


class Clock(Protocol):
    """Tells the time."""

    def now(self) -> int:
        """Returns ns UTC. It never goes back."""

    def wall(self) -> int:
        """Returns ns UTC as the machine tells it, set back or not: for what is compared with other machines' clocks."""


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

    def notify_all(self) -> None:
        """Wakes all who wait for whatever topic: nobody knows what may have changed."""
        with self._condition:
            topics = tuple(self._counts)
        for topic in topics:
            self.notify(topic)

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
    layers: tuple[Layer, ...] = ()
    """The layers of isolation that attempts can have."""
    no_layers: Mapping[str, str] = field(default_factory=dict)
    """Why they cannot have the others."""


@dataclass(frozen=True, slots=True)
class Proof:
    """Whose an access key is, and its secret, as long as nothing was written that could change it.

    Attributes:
        written: what Database.written returned before it was looked up.
    """

    written: int
    key: AccessKey
    secret: bytes = field(repr=False)
    actor: Actor


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
    vault: Vault
    hub: Hub = field(default_factory=Hub)
    proofs: dict[str, Proof] = field(default_factory=dict)
    """By access key: what was found to be true of it. See services/access.py."""
    hiding: AbstractContextManager[Any] = field(default_factory=lambda: threading.BoundedSemaphore(HIDING_AT_ONCE))
    """Entered while secrets are looked for in what jobs send, which takes a processor: the others are for everybody else."""
    nodes: Empty = field(default_factory=Empty)
    url: str = ""
    diagnose: Callable[[Sequence[Environment], bool], tuple[Check, ...]] = lambda _built, _index: ()
    stop_server: Callable[[bool], None] = lambda _jobs_first: None
    term: Callable[[], Term | None] = lambda: None
    """This server's newest time of leading."""

    def new_id(self, letter: str) -> str:
        """Returns a fresh id."""
        return make_id(letter, self.clock.now(), self.random_bits(82))


@dataclass(slots=True)
class Deed:
    """A request that changes something: it is stored who did it, and, if it is signed, that it was done.

    Who did it is not stored of what a program does many times a second (``Operation.audited``), unless it was refused.

    Both are stored in the first transaction of the change, or in one of their own where there is none.

    Attributes:
        operation: its id.
        thing: to what it was done, as its path names it; may be empty.
        source: the address that it came from.
        nonce: (access key, nonce, until when it is to be remembered in s UTC); None where it is not signed.
        left_out: how many like it of the same caller were refused before it, of which no event tells.
        message: what exactly was done, or asked for; never a secret.
    """

    operation: str
    thing: str
    source: str
    request_id: str
    nonce: tuple[str, str, int] | None = None
    stored: bool = False
    left_out: int = 0
    message: str = ""

    def told(self, outcome: str) -> bool:
        """Says whether it is stored who did it."""
        return outcome != DONE or BY_ID[self.operation].audited

    def store(self, tx: Transaction, call: Call, outcome: str, *, told: bool = True) -> None:
        """Stores it; its nonce alone, so that it is not done again, where it is not to be told.

        Raises:
            NotAuthenticated: a request of this nonce was done before.
        """
        if self.nonce is not None:
            nonces.take(tx, *self.nonce, now_s=call.platform.clock.wall() // 1_000_000_000)
        if not (told and self.told(outcome)):
            return
        left_out = f"{self.left_out} more were refused before it" if self.left_out else ""
        message = "; ".join(text for text in (self.message, left_out) if text)
        event = Event(
            at=call.platform.clock.now(), project=call.project, kind=CALL, object_id=self.thing[:80], state=outcome,
            reason=self.operation, actor=call.actor.name, source=self.source, request_id=self.request_id, message=message,
        )  # fmt: skip
        add_event(tx, event)


@dataclass(frozen=True, slots=True)
class Call:
    """One request: who calls, for which project, on which platform; and what it does, if it changes something."""

    platform: Platform
    actor: Actor
    project: str
    deed: Deed | None = None

    def write(self, work: Callable[[Transaction], T]) -> T:
        """Runs ``work`` as Database.write does, with the deed in the same transaction unless it is stored already.

        It reads what it changes itself: where somebody else changes that in between, it is run again.

        Raises:
            NotAuthenticated: it was done before.
        """
        deed = self.deed
        if deed is None or deed.stored:
            return write_anew(self.platform.database, work)

        def both(tx: Transaction) -> T:
            deed.store(tx, self, DONE)
            return work(tx)

        result = write_anew(self.platform.database, both)
        deed.stored = True
        return result

    def begin(self) -> None:
        """Stores the deed before what is no transaction and cannot be undone."""
        self.settle(DONE)

    def settle(self, outcome: str, *, told: bool = True) -> None:
        """Stores the deed unless that was done already: it changed nothing in the database, or failed.

        Args:
            outcome: ``DONE``, or the error's code.
            told: an event tells of it; else only its nonce is stored.
        """
        deed = self.deed
        if deed is not None and not deed.stored:
            if deed.nonce is not None or (told and deed.told(outcome)):
                self.platform.database.write(lambda tx: deed.store(tx, self, outcome, told=told))
            deed.stored = True
