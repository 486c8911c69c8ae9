"""The database's file: refused when damaged or too new without a byte changed, backed up while in use."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import URL

from danlu.database import schema, sqlite_file
from danlu.database.engine import Database
from danlu.database.records import JOBS
from danlu.errors import DatabaseDamaged, DatabaseTooNew
from tests.factories import NOW, SECOND, Ids, make_job

JOB_COUNT = 300


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A closed database with jobs in it, in a folder whose name means something in an address."""
    folder = tmp_path / "50% of it?#x"
    folder.mkdir()
    path = folder / "danlu.db"
    database = Database.open(URL.create("sqlite", database=str(path)))
    ids = Ids()
    database.write(lambda tx: [JOBS.add(tx, make_job(ids())) for _ in range(JOB_COUNT)])
    database.close()
    return path


def check(path: Path) -> None:
    sqlite_file.check(path)


def test_a_sound_file_is_not_touched(stored: Path) -> None:
    before = digests(stored.parent)
    check(stored)
    assert digests(stored.parent) == before
    assert list(before) == ["danlu.db"], "a closed database is one file"


def test_no_file_and_an_empty_one_are_new(tmp_path: Path) -> None:
    check(tmp_path / "none")
    (tmp_path / "empty").touch()
    check(tmp_path / "empty")


@pytest.mark.parametrize("damage", ["text", "zeros", "cut", "page", "first page"])
def test_a_damaged_file_is_refused_and_not_touched(stored: Path, damage: str) -> None:
    data = bytearray(stored.read_bytes())
    middle = len(data) // 2 // 4096 * 4096
    if damage == "text":
        data[:] = b"not a database" * 1000
    elif damage == "zeros":
        data[:] = bytes(len(data))
    elif damage == "cut":
        del data[middle + 100 :]
    elif damage == "page":
        data[middle : middle + 4096] = b"\xff" * 4096
    else:
        data[100:4096] = os.urandom(3996)
    stored.write_bytes(data)
    backups = stored.parent / "backups"
    backups.mkdir()
    for name in ("danlu-20260101T000000Z.db", "danlu-20260201T000000Z.db"):
        (backups / name).touch()
    before = digests(stored.parent)
    with pytest.raises(DatabaseDamaged, match="not written to") as caught:
        check(stored)
    assert "danlu-20260201T000000Z.db" in caught.value.next_step
    assert "away with its -wal and -shm" in caught.value.next_step, (
        "a log of the damaged one would be read into the other"
    )
    assert digests(stored.parent) == before


def test_without_a_backup_that_is_said(tmp_path: Path) -> None:
    path = tmp_path / "danlu.db"
    path.write_bytes(b"x" * 100)
    with pytest.raises(DatabaseDamaged) as caught:
        Database.open(f"sqlite:///{path}")
    assert "no backup" in caught.value.next_step
    assert path.read_bytes() == b"x" * 100


def test_a_newer_file_is_refused_and_not_touched(stored: Path) -> None:
    with closing(sqlite3.connect(stored)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'future'")
        connection.commit()
    before = digests(stored.parent)
    with pytest.raises(DatabaseTooNew, match="future"):
        check(stored)
    assert digests(stored.parent) == before


def test_what_a_killed_server_left_is_sound(tmp_path: Path) -> None:
    """A write-ahead log beside the file is normal, and what it holds is there."""
    path, killed = tmp_path / "danlu.db", tmp_path / "killed"
    killed.mkdir()
    database = Database.open(f"sqlite:///{path}")
    job = make_job()
    database.write(lambda tx: JOBS.add(tx, job))
    for suffix in ("", "-wal"):
        (killed / f"danlu.db{suffix}").write_bytes((tmp_path / f"danlu.db{suffix}").read_bytes())
    database.close()
    check(killed / "danlu.db")
    again = Database.open(f"sqlite:///{killed / 'danlu.db'}")
    try:
        assert again.read(lambda tx: JOBS.get(tx, job.id)) == job
    finally:
        again.close()


def test_what_is_still_in_the_log_counts_as_the_databases_size(tmp_path: Path) -> None:
    path = tmp_path / "danlu.db"
    with closing(Database.open(f"sqlite:///{path}")):
        written_last = path.with_name("danlu.db-wal").stat().st_size
        assert written_last > 0
        assert schema.look_at_file(path).size_bytes == path.stat().st_size + written_last


def test_a_backup_is_made_while_the_database_is_in_use(tmp_path: Path) -> None:
    path, folder = tmp_path / "danlu.db", tmp_path / "backups"
    assert sqlite_file.backup(path, folder, now=NOW) is None
    database = Database.open(f"sqlite:///{path}")
    try:
        ids = Ids()
        jobs = [make_job(ids()) for _ in range(5)]
        for number, job in enumerate(jobs):
            database.write(lambda tx, job=job: JOBS.add(tx, job))  # type: ignore[misc]
            day = 0 if number < 1 else 86_400
            made = sqlite_file.backup(path, folder, now=NOW + (day + number) * SECOND)
            assert made is not None
    finally:
        database.close()
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["danlu-20231114T221320Z.db", "danlu-20231115T221324Z.db"], "one a day, nothing unfinished"
    assert folder.stat().st_mode & 0o077 == 0
    check(folder / names[0])
    restored = Database.open(f"sqlite:///{folder / names[0]}")
    try:
        assert restored.read(lambda tx: JOBS.find(tx, limit=9)) == jobs[:1]
    finally:
        restored.close()


def test_copies_stay_for_days_and_the_newest_before_a_migration_for_longer(stored: Path) -> None:
    folder, day = stored.parent / "backups", 86_400 * SECOND
    for at, migration in (
        (NOW, True), (NOW + SECOND, False), (NOW + day, True), (NOW + day + SECOND, False),
        *((NOW + n * day + late * SECOND, False) for n in range(2, 12) for late in (0, 1, 2)),
    ):  # fmt: skip
        made = sqlite_file.backup(stored, folder, now=at, migration=migration)
        assert made is not None
        assert made.exists()
    days = [f"danlu-202311{n}T221322Z.db" for n in range(19, 26)]
    assert sorted(path.name for path in folder.iterdir()) == ["danlu-20231115T221320Z-before-migration.db", *days]
