"""What one caller may take: so many requests a second, so many at the same time, so many streams; and how slow it may be."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from danlu.domain.actors import Actor
from danlu.errors import TooManyRequests

MAX_KNOWN: Final = 10_000
"""Of how many callers it is kept how much they have left; who has it all need not be known."""
MAX_REQUESTS: Final = 512
MAX_STREAMS: Final = 256
FOR_ADMINISTRATORS: Final = 16
"""One in so many turns is left to them: whatever all others do, they can look at it and end it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one user, over all keys and tokens, may take; or one project's jobs, all of their attempts together.

    Attributes:
        requests_per_s: on average.
        burst_requests: at once, after a pause.
        requests: that are being answered at the same time, streams and sessions among them.
        streams: that are open at the same time.
        stored_refusals_per_s: how many of one caller's failed calls of one operation are stored, on average; the others are
            counted, so that nobody fills the disk by asking for what is not allowed.
        burst_stored_refusals: at once, after a pause.
        body_silence_s: how long nothing of a body may come, and after which the next limit holds.
        body_bytes_per_s: the slowest that a body may come on average.
        waits: how many runners in pods wait for a wish at the same time: they take no turn from who asks for something.
        look_s: how often it is looked again, without a hint, at what is answered over time, and whether who is answered may
            still have it.
    """

    requests_per_s: float = 500.0
    burst_requests: int = 1000
    requests: int = 128
    streams: int = 64
    waits: int = 4096
    stored_refusals_per_s: float = 0.2
    burst_stored_refusals: int = 20
    body_silence_s: float = 30.0
    body_bytes_per_s: float = 256.0
    look_s: float = 2.0


def who(actor: Actor) -> str:
    """Returns whose limits an actor's requests count against. A project's jobs share, however many they are."""
    return actor.user or f"jobs of {actor.project}"


class Rates:
    """Token buckets, one for each caller: ``burst`` at once, ``per_s`` on average."""

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s, self._burst = per_s, float(burst)
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, name: str, now_s: float) -> float:
        """Takes one, if there is one; returns 0, or after how many seconds there is."""
        left = self._now(name, now_s)
        if left < 1.0:
            self._left[name] = left, now_s
            return (1.0 - left) / self._per_s
        if name not in self._left and len(self._left) >= MAX_KNOWN:
            self._forget(now_s)
        self._left[name] = left - 1.0, now_s
        return 0.0

    def _now(self, name: str, now_s: float) -> float:
        left, at = self._left.get(name, (self._burst, now_s))
        return min(self._burst, left + (now_s - at) * self._per_s)

    def _forget(self, now_s: float) -> None:
        """Forgets who has it all; then, if those were few, the half that was known first."""
        self._left = {name: one for name, one in self._left.items() if self._now(name, now_s) < self._burst}
        for name in [*self._left][: max(0, len(self._left) - MAX_KNOWN // 2)]:
            del self._left[name]


class Turns:
    """How many of something each caller has at the same time, and all of them. Jobs never have more than half.

    The other half is for people: whatever jobs do, somebody can look at them and stop them. A few are for administrators.
    """

    def __init__(self, each: int, most: int, what: str) -> None:
        self._each, self._most, self._what = each, most, what
        self._taken: Counter[str] = Counter()
        self._jobs = 0

    def require(self, actor: Actor) -> None:
        """Raises TooManyRequests unless a caller may have one more."""
        of_a_job = actor.attempt_id is not None
        if self._taken[who(actor)] >= self._each:
            owner = f"of the {who(actor)}" if of_a_job else "of yours"
            raise TooManyRequests(
                f"{owner}, {self._each} {self._what} already",
                next_step="end some of them, or wait a moment; then repeat",
            )
        if of_a_job and self._jobs >= self._most // 2:
            raise TooManyRequests(f"of all jobs, {self._jobs} {self._what} already", next_step="repeat it in a moment")
        if self._taken.total() >= self._most - (0 if actor.administrator else self._most // FOR_ADMINISTRATORS):
            raise TooManyRequests(f"{self._taken.total()} {self._what} already", next_step="repeat it in a moment")

    @contextlib.contextmanager
    def one(self, actor: Actor) -> Iterator[None]:
        """Has one more while the block runs; raises TooManyRequests where that is one too many."""
        self.require(actor)
        name, of_a_job = who(actor), actor.attempt_id is not None
        self._taken[name] += 1
        self._jobs += of_a_job
        try:
            yield
        finally:
            self._jobs -= of_a_job
            self._taken[name] -= 1
            if not self._taken[name]:
                del self._taken[name]


def too_fast(limits: Limits, wait_s: float) -> TooManyRequests:
    """Returns what who asks too often is answered."""
    return TooManyRequests(
        f"one user may send {limits.requests_per_s:g} requests a second, {limits.burst_requests} at once",
        next_step=f"repeat it after {wait_s:.3g} s", retry_after_s=math.ceil(wait_s),
    )  # fmt: skip
