"""The server as a process: it starts or says why not, it never harms what it finds, it ends without ending jobs."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import sqlite3
import stat
from pathlib import Path

import pytest

from danlu.domain.jobs import JobState
from danlu.domain.trees import Entry, address_of, encode
from tests.process.platform import Server, processes_with, until


def contents(path: Path) -> bytes:
    return path.read_bytes()


def test_it_says_where_it_is_and_keeps_its_keys_to_itself(server: Server, home: Path) -> None:
    said = json.loads((home / "platform.json").read_text())
    assert said["url"] == server.url
    assert server.process is not None
    assert said["pid"] == server.process.pid
    for name in ("keys/bootstrap", "keys/attempts", "danlu.db", "platform.json", "lock"):
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600, name
    for name in ("keys", "blobs", "backups"):
        folder = home / name
        assert not folder.exists() or stat.S_IMODE(folder.stat().st_mode) == 0o700, name
    assert server.end() == 0
    assert not (home / "platform.json").exists()


def test_two_servers_never_share_a_folder(server: Server, home: Path) -> None:
    second = Server(home)
    said = second.start()
    assert said["error"]["code"] == "AlreadyRunning"
    assert server.url in said["error"]["detail"]
    assert "DANLU_HOME" in said["error"]["next_step"]
    with server.client() as client:
        assert client.call("platform.get").url == server.url


def test_a_taken_port_is_named(home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = Server(home, "--port", str(port)).start()
    assert said["error"]["code"] == "PortTaken"
    assert str(port) in said["error"]["detail"]


def test_nonsense_gpus_are_refused(home: Path) -> None:
    assert Server(home, "--gpus", "many").start()["error"]["code"] == "InvalidSpec"


@pytest.mark.parametrize("harm", ["header", "middle", "short", "empty", "missing"])
def test_a_damaged_database_is_refused_and_never_written_to(home: Path, harm: str) -> None:
    server = Server(home)
    server.start()
    for number in range(50):
        server.submit("true", name=f"job-{number}", gpu=0, cpu=0.01, retry={"attempts": 1}, priority=-1)
    server.end()
    for copy in (home / "backups").iterdir():
        os.utime(copy, (0, 0))
    server.start()  # its copy is old, so it makes another
    until(lambda: any(p.stat().st_mtime for p in (home / "backups").glob("danlu-*.db")), 60, "it is made")
    server.end()
    path = home / "danlu.db"
    data = bytearray(contents(path))
    if harm == "header":
        data[:16] = b"not a database!!"
    elif harm == "middle":
        data[8192:20_480] = os.urandom(12_288)
    else:
        data = data[: len(data) // 2]
    path.write_bytes(b"" if harm == "empty" else bytes(data))
    if harm == "missing":
        path.unlink()
    before = {p.name: contents(p) for p in home.glob("danlu.db*")}
    said = server.start()
    assert said["error"]["code"] == "DatabaseDamaged"
    backups = sorted((home / "backups").glob("danlu-*.db"))
    assert str(backups[-1]) in said["error"]["next_step"]
    assert {p.name: contents(p) for p in home.glob("danlu.db*")} == before
    path.write_bytes(contents(backups[-1]))
    assert server.start().get("ready")
    with server.client() as client:
        assert sum(client.call("platform.get").jobs.values()) == 50
    server.close()


def test_a_newer_database_is_refused(home: Path) -> None:
    server = Server(home)
    server.start()
    server.end()
    with sqlite3.connect(home / "danlu.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    before = contents(home / "danlu.db")
    said = server.start()
    assert said["error"]["code"] == "DatabaseTooNew"
    assert contents(home / "danlu.db") == before


def test_jobs_go_on_without_the_server(server: Server) -> None:
    job = server.submit(
        "sh", "-c", 'echo up; while [ ! -e "$HOME/go" ]; do sleep 0.05; done; echo done', name="goes-on"
    )
    until(lambda: server.job(job.id).state is JobState.RUNNING, 20, "it runs")
    assert server.end() == 0
    (server.home / "attempts" / f"{job.id}-1" / "work" / "go").touch()
    until(lambda: server.events(f"{job.id}-1")[-1]["event"] == "ended", 20, "it ends by itself")
    server.start()
    assert server.wait(job.id).state is JobState.SUCCEEDED
    assert server.lines(job.id, 1) == ["up", "done"]


def test_down_with_jobs_ends_them_first(server: Server) -> None:
    job = server.submit("sleep", "1000", name="sleeper", grace=5)
    until(lambda: server.job(job.id).state is JobState.RUNNING, 20, "it runs")
    from danlu.api.bodies import PlatformStop

    with server.client() as client:
        client.call("platform.stop", body=PlatformStop(jobs=True))
    assert server.process is not None
    assert server.process.wait(30) == 0
    assert not processes_with(job.id)
    server.start()
    assert server.job(job.id).state is JobState.CANCELLED


def test_a_stop_that_was_accepted_survives_kill_9(server: Server) -> None:
    job = server.submit("sleep", "1000", name="sleeper", grace=5)
    until(lambda: server.job(job.id).state is JobState.RUNNING, 20, "it runs")
    from danlu.api.bodies import StopRequest

    with server.client() as client:
        client.call("jobs.stop", {"job": job.id}, body=StopRequest())
    server.kill()
    server.start()
    assert server.wait(job.id).state is JobState.CANCELLED


def test_a_lost_runner_is_repeated_outside_the_retry_budget(server: Server) -> None:
    job = server.submit("sh", "-c", 'echo "$DANLU_ATTEMPT"; [ "$DANLU_ATTEMPT" = 2 ] || sleep 1000', name="unlucky")
    until(lambda: any(e["event"] == "started" for e in server.events(f"{job.id}-1")), 20, "it runs")
    runner = next(e["pid"] for e in server.events(f"{job.id}-1") if e["event"] == "runner")
    os.kill(runner, 9)
    ended = server.wait(job.id)
    assert (ended.state, ended.attempts, ended.losses, ended.failures) == (JobState.SUCCEEDED, 2, 1, 0)
    assert server.lines(job.id, 2) == ["2"]


def test_a_failed_job_keeps_what_it_left(server: Server) -> None:
    job = server.submit("sh", "-c", "echo half > $DANLU_OUTPUT_DIR/result.txt; exit 4", name="fails")
    ended = server.wait(job.id)
    assert (ended.state, ended.exit_code) == (JobState.FAILED, 4)
    with server.client() as client:
        (artifact,) = client.call("jobs.artifacts", {"job": job.id}).items
    assert (artifact.partial, artifact.files, artifact.size_bytes) == (True, 1, 5)


def test_declared_gpus_are_given_away_once(home: Path) -> None:
    server = Server(home, "--gpus", "3:h100")
    server.start()
    try:
        line = 'echo "$CUDA_VISIBLE_DEVICES"; while [ ! -e go ]; do sleep 0.05; done'
        jobs = [
            server.submit("sh", "-c", line if n < 3 else "true", name=f"gpu-{n}", gpu=1, gpu_kind="h100")
            for n in range(4)
        ]
        until(lambda: sum(server.job(j.id).state is JobState.RUNNING for j in jobs) == 3, 20, "three run")
        waiting = server.job(jobs[3].id)
        until(lambda: server.job(jobs[3].id).reason == "WaitingForResources", 10, "the fourth says why it waits")
        assert waiting.state is JobState.QUEUED
        for job in jobs[:3]:
            (home / "attempts" / f"{job.id}-1" / "work" / "go").touch()
        assert all(server.wait(j.id).state is JobState.SUCCEEDED for j in jobs)
        assert sorted(server.lines(j.id, 1)[0] for j in jobs[:3]) == ["0", "1", "2"]
    finally:
        server.close()


def test_a_job_whose_code_is_gone_fails_and_says_so(server: Server) -> None:
    blob = b"print(1)\n"
    node = encode([Entry("a.py", "file", address_of(blob), 0o644, len(blob))])
    with server.client() as client:
        for data in (blob, node):
            client.upload(address_of(data), io.BytesIO(data), len(data))
    waiting = server.submit("true", name="first", gpu=0, cpu=2)  # what comes next may have to wait: no matter
    digest = address_of(blob).removeprefix("sha256:")
    job = server.submit("python", "a.py", name="codeless", code=address_of(node), retry={"attempts": 1}, priority=-1)
    (server.home / "blobs" / "default" / "sha256" / digest[:2] / digest[2:]).unlink(missing_ok=True)
    ended = server.wait(job.id)
    assert ended.state in (JobState.FAILED, JobState.SUCCEEDED)  # it may have been quicker than the removal
    if ended.state is JobState.FAILED:
        assert ended.reason == "LaunchRejected"
        assert address_of(blob) in ended.message
    server.wait(waiting.id)


def test_an_output_that_cannot_be_kept_keeps_nobody_waiting(server: Server) -> None:
    program = (
        "import os\nos.chdir(os.environ['DANLU_OUTPUT_DIR'])\nopen('good','w').write('x')\n"
        "for n in range(30):\n    os.mkdir('d'*200); os.chdir('d'*200)\nopen('deep','w').write('x')\n"
    )
    job = server.submit("python", "-c", program, name="deep")
    assert server.wait(job.id).state is JobState.SUCCEEDED
    with server.client() as client:
        (artifact,) = client.call("jobs.artifacts", {"job": job.id}).items
    assert artifact.partial
    assert artifact.files == 1
    assert "path" in artifact.skipped[0]


def test_a_strangers_endless_head_is_cut_off(server: Server) -> None:
    port = int(server.url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(20)
        connection.sendall(b"GET / HTTP/1.1\r\nX: ")
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 64 * 2**20:
                connection.sendall(b"x" * 65_536)
                sent += 65_536
        assert sent < 16 * 2**20
