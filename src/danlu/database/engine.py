"""Transactions: one behaviour on SQLite and PostgreSQL.

SQLite has one writer. Its thread takes all work that waits, runs each piece in a savepoint of one transaction, commits once
with one fsync, and only then answers every caller: hundreds of durable writes cost one. PostgreSQL groups commits itself;
there each piece of work is an ordinary transaction, repeated when the database asks for it. Work is SQL only, in
milliseconds: no network, process or file call belongs in it.
"""

from __future__ import annotations

import contextlib
import queue
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, func, insert, make_url, select
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool

from danlu.database import migrations, postgresql, sqlite_file, tables
from danlu.errors import DanluError, DatabaseUnavailable, StorageFull, Unavailable, VersionConflict

T = TypeVar("T")
MAX_WAITING: Final = 4096
MAX_BATCH: Final = 256
MAX_BATCH_S: Final = 0.05
WRITE_TIMEOUT_S: Final = 60.0
BUSY_TIMEOUT_MS: Final = 10_000
RETRIES: Final = 8
WRITE_PAUSE_MS: Final = 4000
"""So long a transaction that writes may do nothing before PostgreSQL ends it: a server that was stopped in the middle of one,
or is cut off, must not keep its locks. Less than a leader's lease: see leadership.py."""
RETRIED_STATES: Final = ("40001", "40P01")
SETTLE_TIMEOUT_S: Final = 20.0
"""How long it is asked whether a commit was stored whose answer was lost."""
SETTLE_PAUSE_S: Final = 0.2
BUSY: Final = "the database is busy: all of its connections have been in use for long"
EVENTS_LOCK: Final = 0x6576656E7473
"""Held by who is giving numbers to events; "events" as a number."""


@dataclass(slots=True)
class Transaction:
    """One open transaction. It must not leave the function that it was given to.

    Attributes:
        events: rows of the table of events, stored when all else is done. On PostgreSQL a lock is held from there to the end
            of the commit, so that their numbers are in the order of commits: a reader who has seen one has seen all before
            it. Taken last, the lock is short and cannot be part of a deadlock.
    """

    connection: Connection
    dialect: str
    events: list[dict[str, Any]] = field(default_factory=list)
    touched: set[str] = field(default_factory=set)
    """The kinds of records that were written."""
    committing: bool = False
    """Whether nothing but the commit is left: from here on it may be stored."""

    def store_events(self) -> None:
        """Stores the events; nothing else may follow but the end of the transaction."""
        if not self.events:
            return
        if self.dialect == "postgresql":
            self.connection.execute(select(func.pg_advisory_xact_lock(EVENTS_LOCK)))
        self.connection.execute(insert(tables.events), self.events)


class Store(Protocol):
    """Who can be asked to write and read: the database, or a view of it."""

    def write(self, work: Callable[[Transaction], T]) -> T:
        """See Database."""

    def read(self, work: Callable[[Transaction], T]) -> T:
        """See Database."""


class Database:
    """Durable writes and consistent reads."""

    def __init__(self, engine: Engine, readers: Engine, first: Engine | None = None) -> None:
        self._engine, self._readers, self._first = engine, readers, first or engine
        self.dialect = engine.dialect.name
        self._open = True
        self._inside = 0
        self._left = threading.Condition()
        self._writer = _Writer(engine) if self.dialect == "sqlite" else None

    @classmethod
    def open(cls, url: str | URL, *, write_pause_ms: int = WRITE_PAUSE_MS) -> Database:
        """Opens the database, brought to this version's schema.

        Raises:
            DatabaseDamaged, DatabaseTooNew: it was not written to.
            DatabaseUnavailable: it does not answer.
        """
        parsed, first = make_url(url), None
        if parsed.get_backend_name() == "sqlite":
            path = Path(parsed.database or "")
            sqlite_file.check(path)
            engine, readers = (_sqlite(url, connections) for connections in (2, 24))
            event.listen(readers, "connect", _only_reads)
            for one, begin in ((engine, "BEGIN IMMEDIATE"), (readers, "BEGIN")):
                event.listen(one, "begin", partial(_begin_sqlite, begin=begin))
        else:
            engine, readers = postgresql.engine(parsed, pause_ms=write_pause_ms), postgresql.engine(parsed)
            first = postgresql.engine(parsed, pause_ms=write_pause_ms, connections=(1, 1))
        try:
            # of several servers, older ones may still need what a step takes away
            migrations.migrate(engine, contract=engine.dialect.name == "sqlite")
            return cls(engine, readers, first)
        except DBAPIError as error:
            engine.dispose()
            raise _translated(error) from error
        except BaseException:
            engine.dispose()
            raise

    def write(self, work: Callable[[Transaction], T]) -> T:
        """Runs ``work`` in a transaction and returns its result once it is durable.

        An exception in ``work`` undoes this work alone and is raised here.

        Raises:
            StorageFull, DatabaseUnavailable: nothing was stored.
        """
        with self._entered():
            return self._run(work, self._engine) if self._writer is None else self._writer.run(work)

    def write_first(self, work: Callable[[Transaction], T]) -> T:
        """Writes as ``write`` does; on PostgreSQL by a connection that is kept for this, however many others write."""
        with self._entered():
            return self._run(work, self._first) if self._writer is None else self._writer.run(work)

    def written(self, kinds: Iterable[str]) -> int | None:
        """Returns a number that has changed once a record of these kinds may have: what was read before is still true
        while it is the same. None where nobody can tell: others write to the database too, or it is being written just now.
        """
        return None if self._writer is None else self._writer.written(kinds)

    def _run(self, work: Callable[[Transaction], T], engine: Engine) -> T:
        for trial in range(RETRIES):
            transaction = None
            try:
                with engine.connect() as connection:
                    begun = connection.begin()
                    transaction = Transaction(connection, self.dialect)
                    result = work(transaction)
                    _require_sound(connection)
                    transaction.store_events()
                    transaction.committing = True
                    begun.commit()
                return result
            except PoolTimeout as error:
                raise Unavailable(BUSY) from error
            except DBAPIError as error:
                if transaction is not None and transaction.committing and error.connection_invalidated:
                    if self._was_stored(transaction, error):
                        return result
                elif not _repeatable(error, begun=transaction is not None):
                    raise _translated(error) from error
                if trial == RETRIES - 1:
                    raise _translated(error) from error
        raise AssertionError("the last trial returns or raises")

    def _was_stored(self, transaction: Transaction, lost: DBAPIError) -> bool:
        """Says whether a transaction was stored, of which the answer to its commit was lost.

        Its events are stored with it, and it holds the lock of events to its end: who has the lock after it, sees.

        Raises:
            DatabaseUnavailable: that cannot be told.
        """
        unknown = DatabaseUnavailable(
            f"the database went away while it stored this: it may be stored or not ({str(lost.orig).strip()})",
            next_step="look whether it was done before you repeat it",
        )
        if not transaction.events:
            raise unknown from lost
        last, events = transaction.events[-1], tables.events.c
        query = select(events.seq).where(events.object_id == last["object_id"], events.body == last["body"]).limit(1)
        until = time.monotonic() + SETTLE_TIMEOUT_S
        while True:
            try:
                with self._engine.begin() as connection:
                    connection.execute(select(func.pg_advisory_xact_lock(EVENTS_LOCK)))
                    return connection.execute(query).one_or_none() is not None
            except (DBAPIError, PoolTimeout) as error:
                if time.monotonic() >= until:
                    raise unknown from error
                time.sleep(SETTLE_PAUSE_S)

    def read(self, work: Callable[[Transaction], T]) -> T:
        """Runs ``work`` on one consistent snapshot; it cannot write.

        Raises:
            DatabaseUnavailable: the database does not answer, is closed, or was to be written to.
            Unavailable: too many read already.
        """
        with self._entered():
            try:
                with self._reading() as connection:
                    return work(Transaction(connection, self.dialect))
            except DBAPIError as error:
                raise _translated(error) from error
            except PoolTimeout as error:
                raise Unavailable(BUSY) from error

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self._readers.connect() as connection:
            if self.dialect == "postgresql":
                connection = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            with connection.begin():
                yield connection

    @contextlib.contextmanager
    def _entered(self) -> Iterator[None]:
        with self._left:
            if not self._open:
                raise DatabaseUnavailable("the database is closed")
            self._inside += 1
        try:
            yield
        finally:
            with self._left:
                self._inside -= 1
                self._left.notify_all()

    def close(self) -> None:
        """Ends all connections; work that has begun or waits is done first. What comes later is refused."""
        with self._left:
            self._open = False
            self._left.wait_for(lambda: self._inside == 0, WRITE_TIMEOUT_S)
        if self._writer is not None:
            self._writer.close()
        for engine in (self._readers, self._first, self._engine):
            engine.dispose()


def write_anew(database: Store, work: Callable[[Transaction], T]) -> T:
    """Writes, as Database.write, what reads all that it changes itself: where others change that in between it is run anew.

    On SQLite nobody can. On PostgreSQL users, controllers and other servers write at the same time.

    Raises:
        VersionConflict: others have changed it each time.
    """
    for _ in range(RETRIES - 1):
        with contextlib.suppress(VersionConflict):
            return database.write(work)
    return database.write(work)


def _repeatable(error: DBAPIError, *, begun: bool) -> bool:
    """Says whether work of which nothing was stored is run again: others were in its way, or its connection was lost."""
    return getattr(error.orig, "sqlstate", None) in RETRIED_STATES or (begun and error.connection_invalidated)


def _require_sound(connection: Connection) -> None:
    """Raises where an error was swallowed: PostgreSQL would answer the commit by undoing everything, and say nothing."""
    driver: Any = connection.connection.dbapi_connection
    if driver.info.transaction_status == driver.info.transaction_status.INERROR:
        raise RuntimeError("work swallowed an error of the database; nothing of it was stored")


def _sqlite(url: str | URL, connections: int) -> Engine:
    """Returns an engine of at most so many connections to a SQLite file."""
    kept = min(connections, 8)
    engine = create_engine(
        url, poolclass=QueuePool, pool_size=kept, max_overflow=connections - kept,
        connect_args={"check_same_thread": False},
    )  # fmt: skip
    event.listen(engine, "connect", _prepare_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # transactions are begun by _begin_sqlite, not by the driver's guesses
    for statement in (
        "PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", "PRAGMA foreign_keys = ON",
        f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}",
    ):  # fmt: skip
        connection.execute(statement)
    found = connection.execute("PRAGMA synchronous").fetchone()[0]
    mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
    if found != 2 or str(mode).lower() != "wal":
        raise DatabaseUnavailable(f"SQLite refuses synchronous=FULL with WAL: it says {found}, {mode}")


def _only_reads(connection: sqlite3.Connection, _record: Any) -> None:
    connection.execute("PRAGMA query_only = ON")


def _begin_sqlite(connection: Connection, *, begin: str) -> None:
    connection.exec_driver_sql(begin)


def _translated(error: DBAPIError) -> DanluError:
    said = str(error.orig)
    if "disk is full" in said or "No space left" in said or "database or disk is full" in said:
        return StorageFull("the database's disk is full; nothing of this request was stored")
    if isinstance(error, OperationalError):
        return DatabaseUnavailable(f"the database does not answer: {said.strip()}")
    return DatabaseUnavailable(f"the database refused: {said.strip()}")


@dataclass(slots=True)
class _Work:
    run: Callable[[Transaction], Any]
    answer: Future[Any]


class _Writer:
    """The thread that owns all writing to a SQLite file."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting: queue.Queue[_Work | None] = queue.Queue(MAX_WAITING)
        self._written: Counter[str] = Counter()
        self._storing: set[str] = set()
        self._thread = threading.Thread(target=self._loop, name="database-writer", daemon=True)
        self._thread.start()

    def run(self, work: Callable[[Transaction], T]) -> T:
        if threading.current_thread() is self._thread:
            raise RuntimeError("write() inside write(): give the outer work's transaction to the inner one")
        answer: Future[T] = Future()
        try:
            self._waiting.put(_Work(work, answer), timeout=WRITE_TIMEOUT_S)
        except queue.Full:
            raise Unavailable(f"the database is busy: {MAX_WAITING} writes wait") from None
        return answer.result()

    def written(self, kinds: Iterable[str]) -> int | None:
        """See Database."""
        asked = tuple(kinds)
        return None if self._storing.intersection(asked) else sum(self._written[kind] for kind in asked)

    def close(self) -> None:
        self._waiting.put(None)
        self._thread.join(WRITE_TIMEOUT_S)

    def _loop(self) -> None:
        open_ = True
        while open_:
            first = self._waiting.get()
            if first is None:
                break
            batch = [first]
            done: list[tuple[_Work, Any]] = []
            try:
                with self._engine.connect() as connection, connection.begin():
                    open_ = self._fill(connection, batch, done)
            except BaseException as error:  # noqa: BLE001 - the thread must live; every caller is told
                self._counted()
                failed = _translated(error) if isinstance(error, DBAPIError) else error
                for work in batch:
                    if not work.answer.done():
                        work.answer.set_exception(failed)
                continue
            self._counted()
            for work, result in done:
                work.answer.set_result(result)

    def _counted(self) -> None:
        """Says that what was being stored is stored, or may be."""
        self._written.update(self._storing)
        self._storing = set()

    def _fill(self, connection: Connection, batch: list[_Work], done: list[tuple[_Work, Any]]) -> bool:
        """Runs the first piece of work and what waits behind it. Returns False when the last has come.

        From the first change on until it is stored or undone, nobody can tell what was written of its kind.
        """
        until = time.monotonic() + MAX_BATCH_S
        position = 0
        while True:
            work = batch[position]
            savepoint = connection.begin_nested()
            try:
                transaction = Transaction(connection, "sqlite")
                result = work.run(transaction)
                transaction.store_events()
                savepoint.commit()
                self._storing |= transaction.touched
                done.append((work, result))
            except DBAPIError as error:
                if not connection.connection.dbapi_connection.in_transaction:  # type: ignore[union-attr]
                    raise  # SQLite has undone everything: disk full, input or output error
                savepoint.rollback()
                work.answer.set_exception(_translated(error))
            except BaseException as error:  # noqa: BLE001 - it belongs to the caller, who raises it again
                savepoint.rollback()
                work.answer.set_exception(error)
            position += 1
            if position >= MAX_BATCH or time.monotonic() > until:
                return True
            try:
                following = self._waiting.get_nowait()
            except queue.Empty:
                return True
            if following is None:
                return False
            batch.append(following)
