"""The newest report of each task is kept, on every database, until its attempt is collected."""

from __future__ import annotations

from danlu.database import reports
from danlu.database.engine import Database
from danlu.domain.reports import SavedCheckpoint, TaskReport

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
