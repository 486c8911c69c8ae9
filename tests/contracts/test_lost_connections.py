"""PostgreSQL goes away at the worst moment: what was to be stored is stored once, or it is said that nobody knows."""

from __future__ import annotations

import contextlib
import select
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from danlu.database import queries
from danlu.database.engine import Database, Transaction
from danlu.database.records import JOBS, add_event
from danlu.domain.events import Event
from danlu.errors import DatabaseUnavailable
from tests.conftest import Cluster
from tests.databases import add
from tests.factories import NOW, Ids, make_job

SOCKET = ".s.PGSQL.5432"


class Wire:
    """Stands between a server and PostgreSQL, and cuts the connection at a commit: before it arrives, or behind it."""

    def __init__(self, folder: Path, behind: Path) -> None:
        self.folder = folder
        self.cut = ""
        self.cuts = 0
        self.closed = False
        self._behind = behind
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(folder / SOCKET))
        self._listening.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                if self.closed:
                    near.close()
                    continue
                far = socket.socket(socket.AF_UNIX)
                far.connect(str(self._behind / SOCKET))
                threading.Thread(target=self._carry, args=(near, far), daemon=True).start()

    def _carry(self, near: socket.socket, far: socket.socket) -> None:
        with near, far, contextlib.suppress(OSError):
            while True:
                ready, _, _ = select.select([near, far], [], [])
                for one in ready:
                    data = one.recv(65_536)
                    if not data:
                        return
                    if one is near and self.cut and b"COMMIT\0" in data:
                        how, self.cut = self.cut, ""
                        self.cuts += 1
                        if how == "before":
                            return
                        far.sendall(data)
                        far.recv(65_536)  # it is stored
                        return
                    (far if one is near else near).sendall(data)

    def close(self) -> None:
        self._listening.close()


@pytest.fixture
def wire(cluster: Cluster) -> Iterator[Wire]:
    with tempfile.TemporaryDirectory(prefix="danlu-wire-", dir="/tmp") as folder:
        made = Wire(Path(folder), cluster.folder)
        yield made
        made.close()


@pytest.fixture
def database(cluster: Cluster, wire: Wire) -> Iterator[Database]:
    name = cluster.create("migrated")
    opened = Database.open(f"postgresql+psycopg://danlu@/{name}?host={wire.folder}")
    yield opened
    opened.close()
    cluster.drop(name)


def numbered(database: Database, runs: list[int], *, event: bool) -> int:
    def work(tx: Transaction) -> int:
        runs.append(1)
        if event:
            add_event(tx, Event(at=NOW, project="default", kind="job", object_id="j", state="made", message="x"))
        return queries.next_number(tx, "default", "count")

    return database.write(work)


def count(database: Database) -> int:
    return database.read(
        lambda tx: tx.connection.execute(text("SELECT coalesce(sum(value), 0) FROM counters")).scalar_one()
    )


@pytest.mark.parametrize(("cut", "runs"), [("behind", 1), ("before", 2)])
def test_a_commit_whose_answer_was_lost_is_done_once(database: Database, wire: Wire, cut: str, runs: int) -> None:
    before, told = count(database), []
    wire.cut = cut
    assert numbered(database, told, event=True) == 1
    assert wire.cuts == 1
    assert len(told) == runs
    assert count(database) == before + 1


def test_what_nobody_can_tell_is_not_done_again_and_it_is_said(database: Database, wire: Wire) -> None:
    before, told = count(database), []
    wire.cut = "behind"
    with pytest.raises(DatabaseUnavailable, match="may be stored or not") as caught:
        numbered(database, told, event=False)
    assert "before you repeat it" in caught.value.next_step
    assert (len(told), count(database)) == (1, before + 1)


def test_a_session_that_is_ended_in_the_midst_of_the_work_is_replaced(database: Database) -> None:
    job, told = make_job(Ids()()), []

    def work(tx: Transaction) -> None:
        told.append(1)
        JOBS.add(tx, job)
        if len(told) == 1:
            tx.connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    database.write(work)
    assert len(told) == 2
    assert database.read(JOBS.count) == 1


def test_kept_connections_that_have_died_are_not_used(database: Database, cluster: Cluster) -> None:
    add(database, make_job(Ids()()))
    cluster.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname LIKE 'test_%' AND pid <> pg_backend_pid()"
    )
    assert database.read(JOBS.count) == 1
    add(database, make_job(Ids(1)()))


def test_while_it_is_away_everything_is_refused_and_then_goes_on(
    database: Database, wire: Wire, cluster: Cluster
) -> None:
    wire.closed = True
    cluster.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname LIKE 'test_%' AND pid <> pg_backend_pid()"
    )
    with pytest.raises(DatabaseUnavailable):
        database.read(JOBS.count)
    with pytest.raises(DatabaseUnavailable):
        add(database, make_job(Ids()()))
    wire.closed = False
    add(database, make_job(Ids()()))
    assert database.read(JOBS.count) == 1


def test_a_session_is_bounded(database: Database) -> None:
    def settings(tx: Transaction) -> list[str]:
        names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
        return [tx.connection.execute(text(f"SHOW {name}")).scalar_one() for name in names]

    assert database.read(settings) == ["1min", "20s", "1min"]
    assert database.write(settings) == ["1min", "20s", "4s"], "less than a lease"
