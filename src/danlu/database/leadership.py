"""Which server leads: one lease, by the database's clock, and the epoch that every write of a leader is held against.

Controllers work on one server at a time. Whoever takes the lead counts up the epoch; a transaction of a controller names the
epoch of its server's term, and is refused where another one is the newest. On PostgreSQL the epoch is the row's key: a write
holds it FOR KEY SHARE, which a renewal (no change of the key) passes by and a takeover (FOR UPDATE) waits for. So a write was
either done before the takeover, and is seen by the next leader, or finds the new epoch. A leader that stands still in the
middle of a transaction is undone by the database itself: see WRITE_PAUSE_MS in engine.py. The one server that owns a SQLite
file leads for as long as it runs: the same code, but the lease does not end by itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

from sqlalchemy import insert, select, text, update
from sqlalchemy.dialects import postgresql

from danlu.database import tables
from danlu.database.engine import Store, Transaction
from danlu.errors import LeadershipLost

T = TypeVar("T")
SECOND: Final = 1_000_000_000
FOREVER: Final = 2**63 - 1
LONGEST_S: Final = 300.0
"""No lease of PostgreSQL's lasts longer. One that seems to was given by a clock that was put back since, or by a file."""
NOW: Final = {
    "postgresql": text("SELECT (extract(epoch FROM clock_timestamp()) * 1000000000)::bigint"),
    "sqlite": text("SELECT CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) * 1000000"),
}


class Candidate(NamedTuple):
    """A server that may lead.

    Attributes:
        holder: its process; no other one has ever had this name.
        place: where it runs, for who reads it.
        folder: its data folder's own name: of two processes of one folder the earlier is dead, as the folder's lock says.
    """

    holder: str
    place: str
    folder: str = ""


class Lease(NamedTuple):
    """Who leads, since when and until when at least (ns UTC by the database's clock; ``left_ns`` is from now on)."""

    epoch: int
    holder: str
    place: str
    folder: str
    since: int
    until: int
    left_ns: int


def newest(tx: Transaction) -> Lease | None:
    """Returns who leads, or led last; None where nobody ever has."""
    row = tx.connection.execute(select(tables.leadership)).one_or_none()
    return None if row is None else Lease(**row._mapping, left_ns=_left(tx, row.until, now(tx)))


def take(tx: Transaction, who: Candidate, lease_s: float, *, starting: bool = False) -> Lease | None:
    """Takes the lead with the next epoch for ``lease_s``; None where somebody else has it.

    What is left of its own lease keeps nobody from it; where the process is ``starting``, nor what another one of its folder
    has left.
    """
    query = select(tables.leadership).with_for_update()  # waits for the writes of who has led
    old, alone = tx.connection.execute(query).one_or_none(), tx.dialect == "sqlite"
    at = now(tx)
    until = FOREVER if alone else at + int(lease_s * SECOND)
    row = {"epoch": 1, **who._asdict(), "since": at, "until": until}
    if old is None:
        first = insert(tables.leadership) if alone else postgresql.insert(tables.leadership).on_conflict_do_nothing()
        won = tx.connection.execute(first.values(row).returning(tables.leadership.c.epoch)).one_or_none() is not None
    else:
        own = old.holder == who.holder or (starting and bool(who.folder) and old.folder == who.folder)
        if not (alone or own or not _left(tx, old.until, at)):
            return None
        row["epoch"] = old.epoch + 1
        won = bool(tx.connection.execute(update(tables.leadership).values(row)).rowcount)
    return Lease(**row, left_ns=until - at) if won else None


def renew(tx: Transaction, lease: Lease, lease_s: float) -> bool:
    """Holds the lease from now on for so long again; returns False where another one has the lead."""
    until = FOREVER if tx.dialect == "sqlite" else now(tx) + int(lease_s * SECOND)
    mine = tables.leadership.c.epoch == lease.epoch
    return bool(tx.connection.execute(update(tables.leadership).where(mine).values(until=until)).rowcount)


def release(tx: Transaction, lease: Lease) -> None:
    """Lets others take the lead at once, if it is still held."""
    mine = tables.leadership.c.epoch == lease.epoch
    tx.connection.execute(update(tables.leadership).where(mine).values(until=0))


def _left(tx: Transaction, until: int, at: int) -> int:
    """Returns how long a lease keeps others away."""
    left = max(0, until - at)
    return left if tx.dialect == "sqlite" or left <= LONGEST_S * SECOND else 0


def now(tx: Transaction) -> int:
    """Returns ns UTC by the database's clock."""
    return int(tx.connection.execute(NOW[tx.dialect]).scalar_one())


def require(tx: Transaction, epoch: int) -> None:
    """Holds on to an epoch until the transaction ends.

    Raises:
        LeadershipLost: it is not the newest.
    """
    row = tables.leadership.c
    query = select(row.epoch).where(row.epoch == epoch).with_for_update(read=True, key_share=True)
    if tx.connection.execute(query).one_or_none() is None:
        led = newest(tx)
        whose = "nobody leads" if led is None else f"{led.place} leads with epoch {led.epoch}"
        raise LeadershipLost(f"a write with epoch {epoch} was refused: {whose}")


def monotonic() -> int:
    """Returns ns that go on while the machine sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Term:
    """One time of leading: from a takeover until it is over, by the machine's own clock. It never begins again.

    Args:
        lease: what was taken.
        until: when others may take it, less a margin, on the scale of ``clock`` (ns).
        clock: that never stands still.
    """

    def __init__(self, lease: Lease, until: int, clock: Callable[[], int] = monotonic) -> None:
        self.lease = lease
        self._until, self._clock = until, clock
        self._over = threading.Event()

    @property
    def leads(self) -> bool:
        """Whether nobody else can have taken the lead yet."""
        if not self._over.is_set() and self._clock() >= self._until:
            self._over.set()
        return not self._over.is_set()

    def over(self, timeout_s: float) -> bool:
        """Waits until it was ended, for so long at most; returns whether it is over."""
        self._over.wait(timeout_s)
        return not self.leads

    def prolong(self, until: int) -> None:
        """Goes on until then, if it is not over."""
        if self.leads:
            self._until = until

    def end(self) -> None:
        """Is over."""
        self._over.set()

    def require(self) -> None:
        """Raises LeadershipLost where it is over."""
        if not self.leads:
            raise LeadershipLost(f"the term with epoch {self.lease.epoch} is over")


class Fenced:
    """The database as controllers have it: what they write is stored only while their server leads.

    There is no other way to it for them: tests/contracts/test_leadership.py.
    """

    def __init__(self, database: Store, term: Term) -> None:
        self._database, self._term = database, term

    def require(self) -> None:
        """Raises LeadershipLost where the term is over: asked before an effect that is no transaction."""
        self._term.require()

    def read(self, work: Callable[[Transaction], T]) -> T:
        """See Database."""
        return self._database.read(work)

    def write(self, work: Callable[[Transaction], T]) -> T:
        """See Database.

        Raises:
            LeadershipLost: the term is over. Nothing was stored.
        """
        self._term.require()

        def led(tx: Transaction) -> T:
            require(tx, self._term.lease.epoch)
            return work(tx)

        return self._database.write(led)
