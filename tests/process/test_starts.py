"""What one start of a platform leaves to the next: copies of its database, and its port."""

from __future__ import annotations

import os
import re
import socket
import sqlite3
from contextlib import closing
from pathlib import Path

from alembic import command
from sqlalchemy import create_engine

from danlu.config import Settings
from danlu.database import migrations
from danlu.server.main import open_database
from tests.executors import free_ports
from tests.factories import NOW, SECOND
from tests.process.commands import Person
from tests.process.platform import Server, until


def copies(home: Path) -> list[str]:
    return sorted(path.name for path in (home / "backups").glob("danlu-*.db"))


def test_starts_make_a_copy_a_day_and_refused_ones_none(server: Server, tmp_path: Path) -> None:
    Person(tmp_path, {"DANLU_HOME": str(server.home)}).danlu("user", "create", "ada")
    until(lambda: bool(copies(server.home)), 20, "the first copy is made")
    server.end()
    for _ in range(2):
        assert server.start().get("ready")
        server.end()
    first = copies(server.home)
    assert len(first) == 1
    for copy in (server.home / "backups").iterdir():
        os.utime(copy, (0, 0))
    master = server.home / "keys" / "master"
    kept = master.read_bytes()
    master.unlink()
    assert "sealed by another one" in server.start()["error"]["detail"]
    assert copies(server.home) == first
    master.write_bytes(kept)
    assert server.start().get("ready")
    until(lambda: copies(server.home) != first, 20, "another one is made: the last is old")


def test_an_older_schema_is_copied_once_before_it_changes(tmp_path: Path) -> None:
    engine, config = create_engine(f"sqlite:///{tmp_path / 'danlu.db'}"), migrations._config(migrations.FOLDER)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
    engine.dispose()
    for late in range(3):
        open_database(Settings(tmp_path), NOW + late * SECOND).close()
    (copy,) = copies(tmp_path)
    assert copy == "danlu-20231114T221320Z-before-migration.db"
    with closing(sqlite3.connect(tmp_path / "backups" / copy)) as older:
        assert older.execute("SELECT version_num FROM alembic_version").fetchone() == ("0002",)


def test_a_platform_stays_at_its_port_and_says_where_it_went_instead(home: Path, tmp_path: Path) -> None:
    admin, (port,) = Person(tmp_path, {"DANLU_HOME": str(home)}), free_ports(1)
    at = f"http://127.0.0.1:{port}"
    try:
        assert admin.danlu("up", "--port", str(port)).strip() == at
        admin.danlu("down")
        assert admin.danlu("up").strip() == at, "it is not the first free one"
        assert "another program" not in admin.said
        admin.danlu("down")
        with socket.socket() as stranger:
            stranger.bind(("127.0.0.1", port))
            stranger.listen()
            moved = admin.danlu("up").strip()
            assert moved != at
            said = re.sub(r"\s+", " ", admin.said)
            assert f"port {port} of 127.0.0.1 cannot be used: Address already in use" in said
            assert f"is at port {moved.rpartition(':')[2]} from now on" in said
            assert f"danlu login {moved}" in said
            admin.danlu("down")
        again = admin.danlu("up").strip()  # at its port of now, unless another test's platform took that meanwhile
        assert (again == moved) == ("another program" not in admin.said)
    finally:
        admin.danlu("down")


def test_a_wrong_variable_is_said_without_how_a_server_is_called(home: Path, tmp_path: Path) -> None:
    admin = Person(tmp_path, {"DANLU_HOME": str(home), "DANLU_EXECUTOR": "kubernets"})
    admin.danlu("up", code=3)
    said = re.sub(r"\s+", " ", admin.said)
    assert "error: DANLU_EXECUTOR='kubernets': it is one of local, kubernetes" in said
    assert "usage" not in said
