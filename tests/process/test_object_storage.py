"""A platform whose bytes lie in a bucket: jobs run, servers are killed, the store fails, and nothing is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from danlu.client import artifacts, code
from danlu.domain.jobs import Job, JobState
from danlu.errors import StorageUnavailable
from tests.faults import FaultyProxy, answer
from tests.process.commands import Person
from tests.process.platform import Server, until
from tests.s3_server import S3Server

PROGRAM = """
import os, sys
for number in range(2000):
    print(number, flush=number % 100 == 0)
with open(os.environ["DANLU_OUTPUT_DIR"] + "/result", "wb") as file:
    file.write(b"r" * 20_000_000)
print("with", *[name for name in os.environ if name.startswith("AWS_") or name == "DANLU_BLOBS"])
"""
LINES = [*map(str, range(2000)), "with"]


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultyProxy]:
    with FaultyProxy(*s3_server.address) as between:
        yield between


@pytest.fixture
def server(home: Path, s3_server: S3Server, proxy: FaultyProxy) -> Iterator[Server]:
    """A running server that reaches its bucket through a proxy."""
    environ = {**s3_server.environment(), "AWS_ENDPOINT_URL": proxy.endpoint}
    made = Server(home, environ={**environ, "DANLU_BLOBS": f"s3://danlu/{home.parent.name}"})
    said = made.start()
    assert said.get("ready"), said
    yield made
    made.close()


def program(folder: Path, text: str = PROGRAM) -> Path:
    folder.mkdir()
    (folder / "train.py").write_text(text)
    return folder


def sent(server: Server, folder: Path) -> Job:
    with server.client() as client:
        tree = code.send(client, folder, cache=folder.with_name("cache")).tree
    return server.submit("python", "train.py", code=tree)


def result(server: Server, job: Job, folder: Path) -> bytes:
    with server.client() as client:
        (artifact,) = client.call("jobs.artifacts", {"job": job.id}).items
        artifacts.fetch(client, artifact, folder)
    return (folder / "result").read_bytes()


def test_all_of_a_job_lies_in_the_bucket_and_outlives_the_server(server: Server, tmp_path: Path) -> None:
    job = sent(server, program(tmp_path / "code"))
    assert server.wait(job.id).state is JobState.SUCCEEDED
    assert not (server.home / "blobs").exists()
    server.kill()
    server.start()
    assert server.lines(job.id, 1) == LINES, "all of it, and nothing of the server's environment"
    assert result(server, job, tmp_path / "got") == b"r" * 20_000_000


def refuses(proxy: FaultyProxy) -> None:
    proxy.refuses = True


def expired(proxy: FaultyProxy) -> None:
    proxy.says = answer("403 Forbidden", "ExpiredToken")


@pytest.mark.parametrize("fault", [refuses, expired])
def test_what_a_job_leaves_while_the_store_is_away_is_kept_once_it_is_back(
    server: Server, proxy: FaultyProxy, tmp_path: Path, fault: Callable[[FaultyProxy], object]
) -> None:
    waits = "import os, time\nwhile not os.path.exists(os.environ['DANLU_OUTPUT_DIR'] + '/go'): time.sleep(0.02)\n"
    job = sent(server, program(tmp_path / "code", waits + PROGRAM))
    until(lambda: server.job(job.id).state is JobState.RUNNING, 60, "it runs")
    proxy.fail(fault)
    (server.home / "attempts" / f"{job.id}-1" / "outputs" / "go").touch()
    until(lambda: not server.job(job.id).live, 60, "it ends though nothing can be stored")
    with server.client() as client, pytest.raises(StorageUnavailable, match="s3://danlu/"):
        code.send(client, program(tmp_path / "more", "print(1)"), cache=tmp_path / "cache")
    with server.client() as client:
        until(
            lambda: "s3://danlu/" in client.call("jobs.attempts", {"job": job.id}).items[0].kept, 120,
            "its attempt says what it waits for",
        )  # fmt: skip
    person = Person(tmp_path, {"DANLU_HOME": str(server.home)})
    assert "attempt 1 is not kept yet" in person.danlu("describe", server.job(job.id).name)
    proxy.well()
    assert server.wait(job.id, timeout_s=180).state is JobState.SUCCEEDED
    assert server.lines(job.id, 1) == LINES
    assert result(server, job, tmp_path / "got") == b"r" * 20_000_000
    log = server.home.with_name(server.home.name + ".log").read_text()
    assert server.environ["AWS_SECRET_ACCESS_KEY"] not in log


def test_a_store_that_is_killed_and_started_again_is_gone_on_with(
    server: Server, s3_server: S3Server, tmp_path: Path
) -> None:
    folder = program(tmp_path / "code")
    (folder / "large").write_bytes(b"x" * 50_000_000)
    begun = threading.Event()

    def restart() -> None:
        begun.wait(60)
        s3_server.restart()

    restarting = threading.Thread(target=restart)
    restarting.start()
    with server.client() as client:
        tree = code.send(client, folder, cache=tmp_path / "cache", progress=lambda _done, _total: begun.set()).tree
    restarting.join()
    assert server.wait(server.submit("python", "train.py", code=tree).id).state is JobState.SUCCEEDED


@pytest.mark.parametrize("blobs", ["s3://absent", "bucket", "s3://danlu"])
def test_a_wrong_place_is_refused_at_the_start(home: Path, s3_server: S3Server, blobs: str) -> None:
    environ = {**s3_server.environment(), "DANLU_BLOBS": blobs}
    if blobs == "s3://danlu":
        environ["AWS_SECRET_ACCESS_KEY"] = "not-the-secret"
    server = Server(home, environ=environ)
    said = server.start()
    assert blobs in said["error"]["detail"]
    assert said["error"]["next_step"]
    assert environ["AWS_SECRET_ACCESS_KEY"] not in home.with_name(home.name + ".log").read_text()
