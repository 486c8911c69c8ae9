"""A database moves from its file to PostgreSQL, and from a copy to either kind, with every value as it was."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from danlu.database import leadership, migrations, moving, postgresql, queries, schema, sqlite_file
from danlu.database.engine import Database, Transaction
from danlu.database.records import ATTEMPTS, JOBS, add_event
from danlu.database.tables import METADATA
from danlu.domain.events import Event
from danlu.errors import (
    AlreadyRunning,
    Conflict,
    DatabaseDamaged,
    DatabaseMoved,
    DatabaseTooNew,
    DatabaseUnavailable,
    NotFound,
)
from tests.conftest import Cluster
from tests.databases import add, set_back
from tests.factories import NOW, Ids, make_attempt, make_job

EVENTS = 450
"""More than are read from PostgreSQL at once."""
ODD_NUMBERS = {
    "large": 1e23,
    "small": 5e-324,
    "whole": 1.0,
    "long": 10**22 + 1,
    "none": None,
    "no": False,
    "minus": -0.0,
}
ODD_TEXTS = {"A": "丹炉 \\ \t\n'\"", "b": "\u2028", "B": "", "Z": "\\N", "_": "\\."}


def quiet(_label: str, _done: int, _total: int) -> None:
    pass


@pytest.fixture
def url(cluster: Cluster) -> Iterator[str]:
    """An empty PostgreSQL database."""
    name = cluster.create()
    yield cluster.url(name)
    cluster.drop(name)


def fill(database: Database) -> None:
    """Stores what is hard to bring over, and names that languages sort otherwise than bytes."""
    ids = Ids()
    jobs = [make_job(ids(), name=name, spec={"variables": ODD_TEXTS}) for name in ("ab", "a-b", "ab1")]
    add(database, *jobs)
    database.write(lambda tx: JOBS.put(tx, jobs[1], jobs[1].evolved(now=NOW, held=True)))
    database.write(lambda tx: ATTEMPTS.add(tx, make_attempt(jobs[0])))

    def rest(tx: Transaction) -> None:
        for project in ("", "Zebra", "_", "aether", "élan", "Aether"):
            queries.next_number(tx, project, "a name")
        for number in range(EVENTS):
            add_event(tx, Event(at=NOW + number, project="default", kind="call", object_id=f"j{number}", state="done"))

    database.write(rest)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A stopped platform's file with something in it; the newest of its events are forgotten."""
    folder = tmp_path / "50% of it?#x"
    folder.mkdir()
    made = folder / "danlu.db"
    made.touch()
    with closing(sqlite3.connect(made)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    database = Database.open("sqlite:///" + str(made).replace("%", "%25").replace("?", "%3F").replace("#", "%23"))
    fill(database)
    database.close()
    with closing(sqlite3.connect(made)) as connection, connection:
        connection.execute("DELETE FROM events WHERE seq > (SELECT max(seq) - 5 FROM events)")
        connection.execute("UPDATE events SET body = json_patch(body, ?) WHERE seq = 9", (json.dumps(ODD_NUMBERS),))
    return made


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def rows_of(url: str) -> dict[str, list[dict[str, Any]]]:
    """Returns everything in a database."""

    def all_rows(tx: Transaction) -> dict[str, list[dict[str, Any]]]:
        return {
            table.name: [
                dict(row) for row in tx.connection.execute(table.select().order_by(*table.primary_key)).mappings()
            ]
            for table in METADATA.sorted_tables
        }

    database = Database.open(url)
    try:
        return database.read(all_rows)
    finally:
        database.close()


def tables_of(cluster: Cluster, url: str) -> int:
    with closing(postgresql.connect(url)) as connection:
        row = connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone()
    assert row is not None
    return int(row[0])


def change(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)


def test_every_value_arrives_and_the_file_stays_as_it_is(path: Path, url: str) -> None:
    before, told = digest(path), []
    done = moving.move(path, url, now=NOW, progress=lambda *so_far: told.append(so_far))
    assert digest(path) == before
    assert done.rows["jobs"] == 3
    assert done.rows["events"] == done.last_event - 5
    assert done.total == sum(done.rows.values())
    assert {label for label, _, _ in told} <= {"copying", "comparing"}
    database = Database.open(url)
    try:
        jobs = {job.name: job for job in database.read(lambda tx: JOBS.find(tx, limit=9))}
        assert jobs["ab"].spec.variables == ODD_TEXTS
        assert [jobs["a-b"].held, jobs["ab"].held] == [True, False]
        body = database.read(
            lambda tx: tx.connection.execute(text("SELECT body FROM events WHERE seq = 9")).scalar_one()
        )
        body["large"] = float(body["large"])  # PostgreSQL writes it as a whole number
        assert {name: body.get(name) for name in ODD_NUMBERS} == ODD_NUMBERS
        database.write(lambda tx: JOBS.put(tx, jobs["ab"], jobs["ab"].evolved(now=NOW + 1, held=True)))
        database.write(lambda tx: add_event(tx, Event(at=NOW, project="default", kind="job", object_id="j", state="x")))
        last = database.read(lambda tx: tx.connection.execute(text("SELECT max(seq) FROM events")).scalar_one())
        assert last == done.last_event + 1, "a reader's cursor is not passed by, though what it stood at is forgotten"
    finally:
        database.close()


def test_who_led_does_not_lead_there(path: Path, url: str, cluster: Cluster, tmp_path: Path) -> None:
    """The lease of a file's server does not end by itself: nobody else could ever take it."""
    file = Database.open(f"sqlite:///{path}".replace("%", "%25").replace("?", "%3F").replace("#", "%23"))
    file.write(lambda tx: leadership.take(tx, leadership.Candidate("a", "the file's server"), 5.0))
    file.close()
    moving.move(path, url, now=NOW, progress=quiet)
    assert rows_of(url)["leadership"] == []
    database = Database.open(url)
    try:
        other = leadership.Candidate("b", "a server of another machine")
        assert database.write(lambda tx: leadership.take(tx, other, 5.0)) is not None
    finally:
        database.close()
    moving.back_up(url, tmp_path / "copy.db", quiet)
    empty = cluster.create()
    moving.restore(tmp_path / "copy.db", cluster.url(empty), tmp_path / "cache", quiet)
    assert rows_of(cluster.url(empty))["leadership"] == []
    cluster.drop(empty)


def test_no_server_starts_on_a_file_that_was_left_until_that_is_undone(path: Path, url: str) -> None:
    moving.require_here(path)
    with pytest.raises(NotFound, match="not moved"):
        moving.undo(path)
    moving.move(path, url, now=NOW, progress=quiet)
    with pytest.raises(DatabaseMoved, match="postgresql://danlu@/test_") as caught:
        moving.require_here(path)
    assert "--undo" in caught.value.next_step
    with pytest.raises(DatabaseMoved):
        moving.move(path, url, now=NOW, progress=quiet)
    with pytest.raises(DatabaseMoved):
        schema.migrate_file(path, now=NOW)
    moving.undo(path)
    moving.require_here(path)


def test_a_password_is_never_kept_or_shown(path: Path, url: str) -> None:
    secret = url.replace("danlu@", "danlu:hunter2@") + "&password=hunter2"
    moving.move(path, secret, now=NOW, progress=quiet)
    with pytest.raises(DatabaseMoved) as caught:
        moving.require_here(path)
    assert "hunter2" not in str(caught.value.to_problem()) + path.with_name("danlu.db.moved").read_text()
    with pytest.raises(DatabaseUnavailable) as away, postgresql.alone("postgresql://danlu:hunter2@/x?host=/nowhere"):
        pass
    assert "hunter2" not in str(away.value.to_problem())


def test_what_is_broken_off_leaves_nothing_and_can_be_repeated(path: Path, url: str, cluster: Cluster) -> None:
    told = []

    def broken_off(label: str, done: int, total: int) -> None:
        told.append((label, done, total))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        moving.move(path, url, now=NOW, progress=broken_off)
    assert told
    assert tables_of(cluster, url) == 0
    moving.require_here(path)
    moving.move(path, url, now=NOW, progress=quiet)


def test_broken_off_at_the_very_end_it_is_compared_and_finished(path: Path, url: str) -> None:
    moving.move(path, url, now=NOW, progress=quiet)
    mark = path.with_name("danlu.db.moved")
    mark.write_text(mark.read_text().replace("true", "false"))  # killed between the commit and the mark
    with pytest.raises(DatabaseMoved, match="broken off"):
        moving.require_here(path)
    moving.move(path, url, now=NOW, progress=quiet)
    with pytest.raises(DatabaseMoved, match="was moved"):
        moving.require_here(path)


@pytest.mark.parametrize(
    "statement", ["CREATE TABLE theirs (a int)", "CREATE TABLE alembic_version (version_num varchar(32))"]
)
def test_a_target_that_has_something_is_refused(path: Path, url: str, statement: str) -> None:
    with closing(postgresql.connect(url)) as connection:
        connection.execute(statement.encode())
    with pytest.raises(Conflict, match="not empty"):
        moving.move(path, url, now=NOW, progress=quiet)
    moving.require_here(path)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE jobs SET body = jsonb_set(body, '{spec,variables,B}', '\"x\"') WHERE name = 'ab'",
        "UPDATE jobs SET held = true WHERE name = 'ab'",
        "DELETE FROM events WHERE seq = 7",
        "INSERT INTO counters VALUES ('zz', 'more', 1)",
        "UPDATE counters SET value = value + 1 WHERE project = 'Zebra'",
        "SELECT setval(pg_get_serial_sequence('events', 'seq'), 3)",
    ],
)
def test_another_platforms_database_or_one_that_went_on_is_refused(path: Path, url: str, statement: str) -> None:
    """As also what arrives damaged would be: this comparison is the one that a move ends with."""
    moving.move(path, url, now=NOW, progress=quiet)
    moving.undo(path)
    with closing(postgresql.connect(url)) as connection:
        connection.execute(statement.encode())
    with pytest.raises(Conflict, match="is not a copy of this platform: "):
        moving.move(path, url, now=NOW, progress=quiet)
    moving.require_here(path)


def test_a_servers_database_is_not_moved_to(path: Path, url: str) -> None:
    with closing(postgresql.connect(url)) as server:
        postgresql.serve(server)
        with pytest.raises(AlreadyRunning, match="a server at this machine"):
            moving.move(path, url, now=NOW, progress=quiet)
    with postgresql.alone(url), closing(postgresql.connect(url)) as server:
        with pytest.raises(AlreadyRunning, match="danlu db command"):
            postgresql.serve(server)
        with pytest.raises(AlreadyRunning, match="danlu db command"):
            moving.move(path, url, now=NOW, progress=quiet)


def test_an_older_file_is_migrated_first_and_a_newer_one_refused(path: Path, url: str) -> None:
    change(path, "UPDATE alembic_version SET version_num = '0007'")
    with pytest.raises(Conflict, match="0007") as caught:
        moving.move(path, url, now=NOW, progress=quiet)
    assert "danlu db migrate" in caught.value.next_step
    change(path, "UPDATE alembic_version SET version_num = '9999'")
    change(path, "UPDATE counters SET value = 12003 WHERE project = '' AND name = 'danlu version'")
    with pytest.raises(DatabaseTooNew, match=r"Danlu 0\.12\.3.* 9999") as newer:
        moving.move(path, url, now=NOW, progress=quiet)
    assert "danlu>=0.12.3" in newer.value.next_step
    with pytest.raises(NotFound):
        moving.move(path.with_name("none.db"), url, now=NOW, progress=quiet)


# copies


def test_a_copy_of_postgresql_is_put_back_in_either_place(
    path: Path, url: str, cluster: Cluster, tmp_path: Path
) -> None:
    moving.move(path, url, now=NOW, progress=quiet)
    copy, here = tmp_path / "copy.db", tmp_path / "home" / "danlu.db"
    done = moving.back_up(url, copy, quiet)
    assert copy.stat().st_mode & 0o777 == 0o600
    other = cluster.create()
    assert moving.restore(copy, cluster.url(other), tmp_path / "cache", quiet) == done
    assert rows_of(cluster.url(other)) == rows_of(url)
    here.parent.mkdir()
    assert moving.restore_file(copy, here, quiet) == done
    assert rows_of(f"sqlite:///{here}")["events"] == rows_of(url)["events"]
    with pytest.raises(Conflict, match="not empty"):
        moving.restore(copy, cluster.url(other), tmp_path / "cache", quiet)
    with pytest.raises(Conflict, match="already"):
        moving.restore_file(copy, here, quiet)
    cluster.drop(other)


def test_a_copy_is_of_one_moment_though_others_write(path: Path, url: str, tmp_path: Path) -> None:
    before = moving.move(path, url, now=NOW, progress=quiet).rows["events"]
    database = Database.open(url)

    def write(_label: str, done: int, _total: int) -> None:
        event = Event(at=NOW + done, project="default", kind="job", object_id="j", state="x")
        database.write(lambda tx: add_event(tx, event))

    try:
        assert moving.back_up(url, tmp_path / "copy.db", write).rows["events"] == before
    finally:
        database.close()
    assert len(rows_of(url)["events"]) > before


def test_an_older_copy_is_changed_on_its_way_and_stays_as_it_is(cluster: Cluster, url: str, tmp_path: Path) -> None:
    copy = tmp_path / "old.db"
    copy.touch()
    Database.open(f"sqlite:///{copy}").close()
    with closing(sqlite3.connect(copy)) as connection, connection:
        set_back(connection.execute, "0007")
    before = digest(copy)
    moving.restore(copy, url, tmp_path / "cache", quiet)
    assert schema.look_at(url).revision == migrations.head()
    assert digest(copy) == before
    assert list((tmp_path / "cache").iterdir()) == []
    assert moving.restore_file(copy, tmp_path / "danlu.db", quiet) is None
    assert sqlite_file.check(tmp_path / "danlu.db") == "0007"


def test_a_damaged_copy_is_not_put_back(path: Path, url: str, tmp_path: Path, cluster: Cluster) -> None:
    data = bytearray(path.read_bytes())
    data[4096:8192] = b"\xff" * 4096
    (tmp_path / "copy.db").write_bytes(data)
    with pytest.raises(DatabaseDamaged):
        moving.restore(tmp_path / "copy.db", url, tmp_path / "cache", quiet)
    with pytest.raises(DatabaseDamaged):
        moving.restore_file(tmp_path / "copy.db", tmp_path / "danlu.db", quiet)
    assert not (tmp_path / "danlu.db").exists()
    assert tables_of(cluster, url) == 0


def test_a_copy_that_fails_leaves_no_file(path: Path, url: str, tmp_path: Path) -> None:
    moving.move(path, url, now=NOW, progress=quiet)

    def broken_off(_label: str, _done: int, _total: int) -> None:
        raise KeyboardInterrupt

    folder = tmp_path / "copies"
    folder.mkdir()
    with pytest.raises(KeyboardInterrupt):
        moving.back_up(url, folder / "copy.db", broken_off)
    assert list(folder.iterdir()) == []
