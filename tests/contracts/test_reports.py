"""The newest report of each task is kept, on every database, until its attempt is collected."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, text

from danlu.database import reports
from danlu.database.engine import Database, Transaction
from danlu.database.records import ATTEMPTS, CHECKPOINTS
from danlu.domain.actors import Actor
from danlu.domain.checkpoints import CheckpointReport
from danlu.domain.jobs import AttemptState, Reason
from danlu.domain.reports import SavedCheckpoint, TaskReport
from danlu.domain.trees import address_of
from danlu.services import checkpoints
from danlu.services import reports as services
from danlu.services.context import Call
from tests.api.edge import Api
from tests.factories import NOW

FIRST = TaskReport(events=({"event": "started", "at": 1, "error": "ü"},), saved=SavedCheckpoint(name="a", at=2))
SECOND = TaskReport(events=({"event": "exited", "at": 3, "cpu_ns": 2**62},))


def test_the_newest_report_of_each_task(database: Database) -> None:
    database.write(lambda tx: reports.put(tx, "j1-1", "worker-0", FIRST, 10))
    database.write(lambda tx: reports.put(tx, "j1-1", "worker-1", FIRST, 11))
    database.write(lambda tx: reports.put(tx, "j1-1", "worker-0", SECOND, 12))
    database.write(lambda tx: reports.put(tx, "j2-1", "main-0", SECOND, 13))
    found = database.read(lambda tx: reports.of(tx, ["j1-1", "j3-1"]))
    assert found == {
        "j1-1": {
            "worker-0": SECOND.model_copy(update={"seen_at": 12}),
            "worker-1": FIRST.model_copy(update={"seen_at": 11}),
        }
    }


def test_many_attempts_are_asked_for_in_parts(database: Database) -> None:
    ids = [f"j{n}-1" for n in range(reports.AT_ONCE + 10)]
    database.write(lambda tx: [reports.put(tx, one, "main-0", FIRST, 1) for one in ids])
    assert set(database.read(lambda tx: reports.of(tx, ids))) == set(ids)


def test_they_go_with_their_attempt(database: Database) -> None:
    for attempt in ("j1-1", "j2-1"):
        database.write(lambda tx, attempt=attempt: reports.put(tx, attempt, "main-0", FIRST, 1))
    for _ in range(2):
        database.write(lambda tx: reports.remove(tx, "j1-1"))
    assert set(database.read(lambda tx: reports.of(tx, ["j1-1", "j2-1"]))) == {"j2-1"}


# what others store at the same time

ENDED = TaskReport(events=({"event": "ended", "at": 4},))
WAITS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@pytest.fixture
def api(postgresql: Database, tmp_path: Path) -> Iterator[Api]:
    made = Api(postgresql, tmp_path)
    yield made
    made.opener.close()


def call_of(api: Api) -> Call:
    """Returns the call of a runner."""
    own = api.ids["attempt"]
    return Call(api.platform, Actor(id=own, name=own, project="default", attempt_id=own), "default")


@contextmanager
def meanwhile(api: Api, statement: str, other: Callable[[], object]) -> Iterator[None]:
    """Has another one done what it can, once the block is about to do a statement: until its end, or until it has to wait."""
    done, own = threading.Event(), threading.current_thread()
    threads: list[threading.Thread] = []

    def run() -> None:
        try:
            other()
        finally:
            done.set()

    def heard(_connection: Any, _cursor: Any, said: str, *_: Any) -> None:
        if not said.startswith(statement) or threads or threading.current_thread() is not own:
            return
        threads.append(threading.Thread(target=run))
        threads[0].start()
        while not done.wait(0.01):
            if api.database.read(lambda tx: tx.connection.execute(text(WAITS)).scalar_one()):
                return

    event.listen(Engine, "before_cursor_execute", heard)
    try:
        yield
    finally:
        event.remove(Engine, "before_cursor_execute", heard)
    threads[0].join()


@pytest.mark.parametrize("first", [True, False])
def test_the_last_report_stays_though_an_older_one_is_stored_at_the_same_time(api: Api, first: bool) -> None:
    if not first:
        services.put(call_of(api), api.ids["attempt"], "main-0", FIRST)
    statement = "INSERT INTO reports" if first else "UPDATE reports"
    with meanwhile(api, statement, lambda: services.put(call_of(api), api.ids["attempt"], "main-0", ENDED)):
        services.put(call_of(api), api.ids["attempt"], "main-0", SECOND)
    assert services.seen(api.database)()[api.ids["attempt"]]["main-0"].events == ENDED.events


def collect(api: Api) -> None:
    """The attempt ends, and all that is left of it is removed."""

    def work(tx: Transaction) -> None:
        attempt = ATTEMPTS.require(tx, api.ids["attempt"])
        ended = attempt.moved(AttemptState.ENDED, now=NOW, reason=Reason.COMPLETED, ended_at=NOW, collected=True)
        ATTEMPTS.put(tx, attempt, ended)
        reports.remove(tx, attempt.id)
        for one in CHECKPOINTS.find(tx, attempt_id=attempt.id, limit=10):
            CHECKPOINTS.remove(tx, one)

    api.database.write(work)


def test_nothing_is_stored_of_an_attempt_that_ends_at_the_same_time(api: Api) -> None:
    """It would stay for ever."""
    own = api.ids["attempt"]
    with meanwhile(api, "INSERT INTO reports", lambda: collect(api)):
        services.put(call_of(api), own, "main-0", FIRST)
    assert services.seen(api.database)() == {}


def test_no_checkpoint_is_stored_of_an_attempt_that_ends_at_the_same_time(api: Api) -> None:
    said = CheckpointReport(task="main-0", tree=address_of(api.node), at=1)
    with meanwhile(api, "INSERT INTO checkpoints", lambda: collect(api)):
        checkpoints.register(call_of(api), api.ids["attempt"], "step-1", said)
    assert api.database.read(lambda tx: CHECKPOINTS.find(tx, limit=10)) == []


def test_a_report_reads_those_of_its_attempt_once(api: Api) -> None:
    asked: list[str] = []

    def heard(_connection: Any, _cursor: Any, said: str, *_: Any) -> None:
        if said.startswith("SELECT") and "FROM reports" in said and "FOR UPDATE" not in said:
            asked.append(said)

    event.listen(Engine, "before_cursor_execute", heard)
    try:
        services.put(call_of(api), api.ids["attempt"], "main-0", FIRST)
    finally:
        event.remove(Engine, "before_cursor_execute", heard)
    assert len(asked) == 1
