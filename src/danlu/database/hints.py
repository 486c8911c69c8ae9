"""Hints between the servers of one PostgreSQL: what one has changed shortens the wait of the others.

A hint says that something of a topic may have changed, never what. One that is lost only lengthens a wait: everybody looks
now and then anyway. Each server has one connection for it, which is also what says that the server is there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
from collections.abc import Callable
from typing import Final

import psycopg
from sqlalchemy import URL

from danlu.database import postgresql
from danlu.errors import AlreadyRunning, DatabaseUnavailable

LOG: Final = logging.getLogger("danlu.database")
CHANNEL: Final = "danlu"
MAX_TOPIC_CHARACTERS: Final = 40
MAX_TOPICS: Final = 100
PAUSE_S: Final = (0.1, 0.5, 1.0, 2.0, 5.0)
"""Between two tries to connect again."""
LOOK_S: Final = 10.0
"""How often a connection on which nothing comes is asked whether it still lives."""
END_S: Final = 5.0


class Hints:
    """One server's connection to the others.

    Args:
        heard: called with the topic of another server's hint; what it sends on the same thread is not sent on.
        missed: called when hints may have been lost.
    """

    def __init__(self, url: str | URL, heard: Callable[[str], None], missed: Callable[[], None]) -> None:
        self._url, self._heard, self._missed = url, heard, missed
        self._waiting: set[str] = set()
        self._lock, self._closed = threading.Lock(), False
        self._ending = threading.Event()
        self._wake_reader, self._wake_writer = os.pipe()
        for end in (self._wake_reader, self._wake_writer):
            os.set_blocking(end, False)
        self._thread = threading.Thread(target=self._run, name="hints", daemon=True)
        self._connection: psycopg.Connection | None = None

    def start(self) -> None:
        """Connects, and says that a server is there from now on.

        Raises:
            AlreadyRunning: somebody needs the database alone.
            DatabaseUnavailable: it does not answer.
        """
        try:
            self._connection = self._connect()
        except psycopg.Error as error:
            raise postgresql.unreachable(self._url, error) from error
        self._thread.start()

    def send(self, topic: str) -> None:
        """Tells the other servers, soon; never blocks. What was heard is not told again."""
        if threading.current_thread() is self._thread or len(topic) > MAX_TOPIC_CHARACTERS:
            return
        with self._lock:
            if topic in self._waiting or len(self._waiting) >= MAX_TOPICS:
                return
            self._waiting.add(topic)
        self._wake()

    def close(self) -> None:
        """Ends the connection."""
        self._ending.set()
        self._wake()
        if self._thread.ident is not None:
            self._thread.join(END_S)
        with self._lock:
            if not self._closed and not self._thread.is_alive():
                self._closed = True
                os.close(self._wake_reader)
                os.close(self._wake_writer)

    def _wake(self) -> None:
        with self._lock, contextlib.suppress(BlockingIOError):  # it is full: who is to wake up will
            if not self._closed:
                os.write(self._wake_writer, b"\0")

    def _connect(self) -> psycopg.Connection:
        made = postgresql.connect(self._url)
        try:
            postgresql.serve(made)
            made.execute(f"LISTEN {CHANNEL}".encode())
            # what comes while a statement is answered, which is where psycopg looks for it
            made.add_notify_handler(lambda hint: self._hear(made, hint.pid, hint.payload))
        except BaseException:
            made.close()
            raise
        return made

    def _run(self) -> None:
        failures = 0
        while not self._ending.is_set():
            try:
                if self._connection is None:
                    self._connection = self._connect()
                    if failures:
                        LOG.info("the database is back: the other servers are heard again")
                    self._missed()
                failures = 0
                self._converse(self._connection)
            except (psycopg.Error, OSError, AlreadyRunning, DatabaseUnavailable) as error:
                if not failures:
                    LOG.warning(
                        "the other servers are not heard, which only makes waits longer: %s", str(error).strip()
                    )
                self._drop()
                self._ending.wait(PAUSE_S[min(failures, len(PAUSE_S) - 1)])
                failures += 1
        self._drop()

    def _drop(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(psycopg.Error):
                self._connection.close()
        self._connection = None

    def _converse(self, connection: psycopg.Connection) -> None:
        """Sends and hears until the end, or an error."""
        while not self._ending.is_set():
            ready, _, _ = select.select([connection.fileno(), self._wake_reader], [], [], LOOK_S)
            if self._wake_reader in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_reader, 4096)
            with self._lock:
                topics, self._waiting = self._waiting, set()
            if topics:
                connection.execute("SELECT pg_notify(%s, t) FROM unnest(%s::text[]) t", (CHANNEL, sorted(topics)))
            elif not ready:
                connection.execute("SELECT 1")
            connection.pgconn.consume_input()
            while (found := connection.pgconn.notifies()) is not None:
                self._hear(connection, found.be_pid, found.extra.decode(errors="replace"))

    def _hear(self, connection: psycopg.Connection, sender: int, topic: str) -> None:
        if sender != connection.info.backend_pid:
            self._heard(topic)
