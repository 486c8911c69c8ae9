"""Transactions: the same on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text

from danlu.database import queries
from danlu.database.engine import Database, Transaction
from danlu.database.records import (
    ATTEMPTS,
    JOBS,
)
from danlu.domain.jobs import Job
from danlu.domain.specs import JobSpec
from danlu.errors import (
    Conflict,
    DatabaseUnavailable,
    InvalidRequest,
    NameTaken,
    StorageFull,
    VersionConflict,
)
from tests.databases import add, ended, together
from tests.factories import (
    NOW,
    Ids,
    make_job,
)

# writing


def test_of_many_who_change_a_record_one_wins(database: Database) -> None:
    job = make_job()
    add(database, job)

    def change(number: int) -> None:
        def work(tx: Transaction) -> None:
            JOBS.put(tx, job, job.evolved(now=NOW, priority=number))

        database.write(work)

    results = together(16, change)
    assert results.count(None) == 1
    assert [type(found) for found in results if found is not None] == [VersionConflict] * 15
    stored = database.read(lambda tx: JOBS.require(tx, job.id))
    assert (stored.version, stored.priority) == (2, results.index(None))


def test_counting_by_compare_and_swap_loses_nothing(database: Database) -> None:
    job = make_job()
    add(database, job)

    def count(_number: int) -> None:
        for _ in range(5):
            while True:
                seen = database.read(lambda tx: JOBS.require(tx, job.id))
                new = seen.evolved(now=NOW, failures=seen.failures + 1)
                try:
                    database.write(lambda tx, seen=seen, new=new: JOBS.put(tx, seen, new))  # type: ignore[misc]
                    break
                except VersionConflict:
                    continue

    assert together(8, count) == [None] * 8
    assert database.read(lambda tx: JOBS.require(tx, job.id)).failures == 40


def test_an_exception_undoes_its_own_work_alone(database: Database) -> None:
    ids = Ids()
    jobs = [make_job(ids()) for _ in range(16)]

    def submit(number: int) -> None:
        def work(tx: Transaction) -> None:
            JOBS.add(tx, jobs[number])
            if number % 3 == 0:
                raise LookupError(number)

        database.write(work)

    results = together(16, submit)
    assert [isinstance(found, LookupError) for found in results] == [number % 3 == 0 for number in range(16)]
    stored = database.read(lambda tx: {job.id for job in JOBS.find(tx, limit=100)})
    assert stored == {job.id for number, job in enumerate(jobs) if number % 3}


def test_the_value_of_the_work_is_returned(database: Database) -> None:
    assert database.write(lambda _tx: 7) == 7
    assert database.read(lambda _tx: "x") == "x"


def test_versions_follow_each_other(database: Database) -> None:
    job = make_job()
    with pytest.raises(ValueError, match="does not follow"):
        database.write(lambda tx: JOBS.put(tx, job, job))


def test_a_name_is_taken_by_live_jobs_only(database: Database) -> None:
    ids = Ids()
    first, second = make_job(ids(), name="train"), make_job(ids(), name="train")
    elsewhere = make_job(ids(), name="train", project="other")
    add(database, first, elsewhere)
    with pytest.raises(NameTaken, match="train") as caught:
        add(database, second)
    assert "--name" in caught.value.next_step
    database.write(lambda tx: JOBS.put(tx, first, ended(first)))
    add(database, second)
    assert database.read(lambda tx: queries.job_by_name(tx, "default", "train")) == second
    database.write(lambda tx: JOBS.put(tx, second, ended(second)))
    newest = database.read(lambda tx: queries.job_by_name(tx, "default", "train"))
    assert newest is not None
    assert newest.id == second.id


def test_one_live_job_writes_into_a_checkpoint_folder(database: Database) -> None:
    ids = Ids()
    first = make_job(ids())
    add(database, first)
    with pytest.raises(Conflict, match="checkpoints"):
        add(database, make_job(ids(), checkpoint_owner=first.id))
    database.write(lambda tx: JOBS.put(tx, first, ended(first)))
    add(database, make_job(ids(), checkpoint_owner=first.id))


def test_an_id_is_given_once(database: Database) -> None:
    job = make_job()
    add(database, job)
    with pytest.raises(Conflict, match=job.id):
        add(database, make_job(job.id, name="another", checkpoint_owner="jx"))


def test_work_goes_on_after_a_conflict_that_it_expected(database: Database) -> None:
    ids = Ids()
    first, other = make_job(ids(), name="train"), make_job(ids())
    add(database, first)

    def work(tx: Transaction) -> None:
        with pytest.raises(NameTaken):
            JOBS.add(tx, make_job(ids(), name="train"))
        JOBS.add(tx, other)

    database.write(work)
    assert database.read(lambda tx: JOBS.count(tx)) == 2
    assert database.read(lambda tx: JOBS.get(tx, other.id)) == other


def test_a_text_that_cannot_be_stored_is_refused(database: Database) -> None:
    bad = make_job().model_copy(update={"created_by": "a\0b"})
    with pytest.raises(InvalidRequest, match="NUL"):
        add(database, bad)
    with pytest.raises(InvalidRequest, match="NUL"):
        add(database, bad.model_copy(update={"spec": bad.spec.model_copy(update={"variables": {"A": "\0"}})}))
    add(database, make_job(created_by=r"a\u0000b"))


@pytest.mark.parametrize("name", ["a\0", "\ud800", "x" * 100_000, "'; DROP TABLE jobs; --", ""])
def test_what_no_record_can_be_called_is_not_found(database: Database, name: str) -> None:
    assert database.read(lambda tx: JOBS.get(tx, name)) is None
    assert database.read(lambda tx: JOBS.find(tx, name=name, limit=1)) == []
    assert database.read(lambda tx: JOBS.find(tx, name=("a", name), limit=1)) == []
    assert database.read(lambda tx: ATTEMPTS.count(tx, number=2**70)) == 0


# opening and closing


def test_what_was_written_is_there_after_opening_again(database: Database, database_url: str) -> None:
    job = make_job()
    add(database, job)
    database.close()
    again = Database.open(database_url)
    try:
        assert again.read(lambda tx: JOBS.get(tx, job.id)) == job
    finally:
        again.close()


def test_a_closed_database_refuses_everything(database: Database) -> None:
    database.close()
    database.close()
    with pytest.raises(DatabaseUnavailable, match="closed"):
        add(database, make_job())
    with pytest.raises(DatabaseUnavailable, match="closed"):
        database.read(JOBS.count)


def test_every_write_is_answered_while_the_database_closes(database: Database, database_url: str) -> None:
    ids = Ids()
    jobs = [make_job(ids()) for _ in range(16)]

    def act(number: int) -> None:
        if number == 8:
            database.close()
        else:
            add(database, jobs[number])

    results = together(16, act)
    assert {type(found) for found in results} <= {type(None), DatabaseUnavailable}
    again = Database.open(database_url)
    try:
        stored = {job.id for job in again.read(lambda tx: JOBS.find(tx, limit=100))}
    finally:
        again.close()
    assert stored == {job.id for job, found in zip(jobs, results, strict=True) if found is None and job is not jobs[8]}


def test_two_servers_may_open_an_empty_database_at_once(empty_url: str) -> None:
    opened = together(4, lambda _number: Database.open(empty_url))
    try:
        assert [type(found) for found in opened] == [Database] * 4
        assert opened[0].read(JOBS.count) == 0
    finally:
        for found in opened:
            found.close()


def test_work_that_hides_a_failure_of_the_database_is_not_stored_in_silence(database: Database) -> None:
    """On SQLite a failed statement leaves the rest; on PostgreSQL it does not, and then the write must not return."""

    def work(tx: Transaction) -> None:
        JOBS.add(tx, make_job())
        with pytest.raises(Exception, match="nowhere"):
            tx.connection.execute(text("SELECT * FROM nowhere"))

    if database.dialect == "sqlite":
        database.write(work)
        assert database.read(JOBS.count) == 1
    else:
        with pytest.raises(RuntimeError, match="swallowed"):
            database.write(work)
        assert database.read(JOBS.count) == 0


def test_nul_in_what_a_user_gives_is_refused_at_once() -> None:
    for fields in (
        {"requirements": "a\0"},
        {"labels": {"a": "\0"}},
        {"env": "\0"},
        {"variables": {"A": "\0"}},
        {"command": "a\0"},
    ):
        with pytest.raises(ValueError, match="NUL"):
            JobSpec.model_validate({"command": "true", **fields})


# SQLite alone


def test_sqlite_is_as_durable_as_it_says(sqlite: Database) -> None:
    def settings(tx: Transaction) -> list[Any]:
        names = ("journal_mode", "synchronous", "foreign_keys")
        return [tx.connection.execute(text(f"PRAGMA {name}")).scalar_one() for name in names]

    assert sqlite.read(settings) == ["wal", 2, 1]
    assert sqlite.write(settings) == ["wal", 2, 1]


def test_a_full_disk_is_told_and_what_is_stored_stays(small_disk: Callable[[int], Any]) -> None:
    database = Database.open(f"sqlite:///{small_disk(2_000_000)}/danlu.db")
    ids = Ids()
    stored: list[Job] = []
    try:
        with pytest.raises(StorageFull):  # noqa: PT012 - which of them is the first to fail does not matter
            for _ in range(100):
                job = make_job(ids(), spec={"requirements": "x" * 100_000})
                add(database, job)
                stored.append(job)
        results = together(8, lambda _number: add(database, make_job(ids(), spec={"requirements": "x" * 900_000})))
        assert {type(found) for found in results} == {StorageFull}
        assert database.read(lambda tx: JOBS.find(tx, limit=100)) == stored
    finally:
        database.close()


def test_a_write_inside_a_write_is_a_mistake_that_is_told(sqlite: Database) -> None:
    with pytest.raises(RuntimeError, match="inside"):
        sqlite.write(lambda _tx: sqlite.write(lambda _inner: None))
