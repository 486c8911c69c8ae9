"""What goes wrong in a simulated life: clocks are set; servers are killed, or stand still, in the middle of a write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from danlu.database import leadership
from danlu.database.engine import Database, Transaction

T = TypeVar("T")
SECOND = 1_000_000_000
START = 1_700_000_000_000_000_000


class Killed(BaseException):
    """The server was killed here."""


@dataclass
class Time:
    """What time it really is."""

    at: int = START

    def now(self) -> int:
        self.at += 1000  # time goes on
        return self.at


@dataclass
class SimulatedClock:
    """What the server's machine believes."""

    time: Time
    wrong_by: int = 0

    def now(self) -> int:
        return self.time.now() + self.wrong_by


class Counted(Database):
    """The real database, which counts what is written: promises of it are not checked again where nothing was."""

    writes = 0

    def write(self, work: Callable[[Transaction], T]) -> T:
        self.writes += 1
        return super().write(work)


@dataclass
class ShakyDatabase:
    """The real database; its caller may be killed before or after a commit, and others act between transactions."""

    real: Database
    random: Random
    kill: float = 0.0
    between: Callable[[], None] | None = None
    busy: bool = False
    pause: float = 0.0
    stands_still: Callable[[], None] = lambda: None

    @property
    def dialect(self) -> str:
        return self.real.dialect

    def _perhaps(self) -> None:
        if self.random.random() < self.kill:
            raise Killed
        if self.pause and self.random.random() < self.pause:
            self.stands_still()

    def write(self, work: Callable[[Transaction], T]) -> T:
        if self.between is not None and not self.busy:
            self.busy = True
            try:
                self.between()
            finally:
                self.busy = False
        self._perhaps()
        result = self.real.write(work)
        self._perhaps()
        return result

    def read(self, work: Callable[[Transaction], T]) -> T:
        return self.real.read(work)


@dataclass
class OfTerm:
    """The database as one leader has it below its fence. What is stored here by a leader that another one has followed is a
    broken promise."""

    shaky: ShakyDatabase
    epoch: int
    late: list[str]

    def write(self, work: Callable[[Transaction], T]) -> T:
        def watched(tx: Transaction) -> T:
            result = work(tx)
            led = leadership.newest(tx)
            if led is not None and led.epoch != self.epoch:
                self.late.append(f"a leader of epoch {self.epoch} wrote, and the newest was {led.epoch}")
            return result

        return self.shaky.write(watched)

    def read(self, work: Callable[[Transaction], T]) -> T:
        return self.shaky.read(work)
