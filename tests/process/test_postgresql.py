"""A platform on PostgreSQL: it is moved there while a job runs, and goes on after the database was away."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest

from danlu.api.bodies import TokenRequest
from danlu.database import moving
from danlu.domain.jobs import JobState
from tests.conftest import Cluster
from tests.process.commands import Person
from tests.process.platform import Server, until

LINES = 'i=0; while [ ! -e "$HOME/go" ]; do echo $i; i=$((i + 1)); sleep 0.02; done; echo done $i'


@pytest.fixture
def person(home: Path, tmp_path: Path) -> Person:
    return Person(tmp_path, {"DANLU_HOME": str(home)})


def end(server: Server, attempt: str) -> None:
    (server.home / "attempts" / attempt / "work" / "go").touch()


def whole(lines: list[str]) -> bool:
    """Says whether every line is there, once and in order."""
    return lines == [*(str(number) for number in range(len(lines) - 1)), f"done {len(lines) - 1}"]


def written(server: Server, job: str) -> int:
    with server.client() as client:
        return len(client.call("jobs.logs", {"job": job}).chunks)


def test_a_database_moves_while_a_job_runs(home: Path, own_cluster: Cluster, person: Person, tmp_path: Path) -> None:
    own_cluster.execute("CREATE DATABASE danlu")
    url = own_cluster.url("danlu").replace("+psycopg", "")
    server = Server(home)
    assert server.start().get("ready")
    before = server.submit("true", name="before")
    server.wait(before.id)
    job = server.submit("sh", "-c", LINES, name="goes-on")
    until(lambda: server.job(job.id).state is JobState.RUNNING, 30, "it runs")
    person.danlu("db", "move", "--to", url, code=3)
    assert "runs already" in person.said
    assert "danlu down" in person.said
    assert server.end() == 0
    person.danlu("db", "move", "--to", url.replace("danlu@", "danlu:hunter2@"), code=2)
    assert "PGPASSWORD" in person.said
    assert "hunter2" not in person.said

    moved = person.json("db", "move", "--to", url)
    assert moved["rows"] > 10
    assert moved["message"] == "every value of every row was read back and is the same"
    said = server.start()
    assert said["error"]["code"] == "DatabaseMoved"
    assert "postgresql://danlu@/danlu?host=" in said["error"]["next_step"]
    person.danlu("up", code=3)
    assert "DANLU_DATABASE_URL" in person.said

    file = tmp_path / "url"
    file.write_text(url + "\n")
    on_postgresql = Server(home, environ={"DANLU_DATABASE_URL_FILE": str(file)})
    try:
        assert on_postgresql.start().get("ready")
        with on_postgresql.client() as client:
            assert client.call("platform.get").database == "postgresql"
        assert on_postgresql.job(before.id).state is JobState.SUCCEEDED
        assert on_postgresql.job(job.id).state is JobState.RUNNING
        end(on_postgresql, f"{job.id}-1")
        assert on_postgresql.wait(job.id).state is JobState.SUCCEEDED
        assert whole(on_postgresql.lines(job.id, 1))
        after = on_postgresql.submit("true", name="after")
        assert on_postgresql.wait(after.id).state is JobState.SUCCEEDED

        person.variables["DANLU_DATABASE_URL_FILE"] = str(file)
        status = person.json("db", "status")
        assert (status["kind"], status["servers"], status["pending"]) == ("postgresql", 1, [])
        person.danlu("db", "move", "--undo", code=3)
        assert on_postgresql.end() == 0
        copy = tmp_path / "copy.db"
        assert person.json("db", "backup", str(copy))["rows"] > moved["rows"]
    finally:
        on_postgresql.close()
    # the way back: the copy takes the file's place
    del person.variables["DANLU_DATABASE_URL_FILE"]
    person.danlu("db", "move", "--undo")
    person.danlu("db", "restore", str(copy), code=1)
    assert "already" in person.said
    (home / "danlu.db").rename(tmp_path / "aside.db")
    person.danlu("db", "restore", str(copy))
    try:
        assert server.start().get("ready")
        assert server.job(after.id).state is JobState.SUCCEEDED
        assert whole(server.lines(job.id, 1))
    finally:
        server.close()


def test_a_killed_move_leaves_nothing(home: Path, own_cluster: Cluster, person: Person) -> None:
    own_cluster.execute("CREATE DATABASE danlu")
    url = own_cluster.url("danlu")
    server = Server(home)
    assert server.start().get("ready")
    assert server.end() == 0
    with closing(sqlite3.connect(home / "danlu.db")) as connection, connection:
        row = ("default", "j", json.dumps({"at": 1, "text": "x" * 1000}))
        connection.executemany(
            "INSERT INTO events (project, object_id, body) VALUES (?, ?, ?)", (row for _ in range(50_000))
        )
    command = [sys.executable, "-m", "danlu.cli.main", "db", "move", "--to", url.replace("+psycopg", "")]
    moving_now = subprocess.Popen(command, env={**os.environ, **person.variables}, stderr=subprocess.DEVNULL)
    copying = "SELECT count(*) FROM pg_stat_progress_copy"
    until(lambda: own_cluster.count("danlu", copying) > 0, 60, "it copies")
    moving_now.kill()
    moving_now.wait()
    held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
    until(lambda: own_cluster.count("danlu", held) == 0, 60, "nobody is at it any more")
    assert own_cluster.count("danlu", "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0
    moving.require_here(home / "danlu.db")
    assert person.json("db", "move", "--to", url.replace("+psycopg", ""))["rows"] > 50_000


def test_the_database_restarts_under_a_running_server(home: Path, own_cluster: Cluster) -> None:
    own_cluster.execute("CREATE DATABASE danlu")
    server = Server(home, environ={"DANLU_DATABASE_URL": own_cluster.url("danlu")})
    try:
        assert server.start().get("ready")
        with server.client() as client:
            token = client.call("tokens.make", body=TokenRequest(name="test")).secret
        job = server.submit("sh", "-c", LINES, name="goes-on")
        until(lambda: server.job(job.id).state is JobState.RUNNING, 30, "it runs")
        for _ in range(2):
            own_cluster.stop()
            for path in ("/v1/jobs", "/v1/events"):
                refused = asked(server, path, token)
                assert refused is not None
                assert refused.status == 503
                assert refused.headers["Content-Type"] == "application/problem+json"
                assert int(refused.headers["Retry-After"]) >= 1
                problem = json.loads(refused.read())
                assert problem["code"] == "DatabaseUnavailable"
                assert problem["next_step"]
            own_cluster.start()
            until(lambda: asked(server, "/v1/jobs", token) is None, 30, "it answers again")
        end(server, f"{job.id}-1")
        assert server.wait(job.id).state is JobState.SUCCEEDED
        assert whole(server.lines(job.id, 1))
        again = server.submit("true", name="again")
        assert server.wait(again.id).state is JobState.SUCCEEDED
    finally:
        server.close()


def asked(server: Server, path: str, token: str) -> urllib.error.HTTPError | None:
    """Returns the error that a request is answered with; None: it is not."""
    request = urllib.request.Request(server.url + path, headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=30):
            return None
    except urllib.error.HTTPError as error:
        return error
