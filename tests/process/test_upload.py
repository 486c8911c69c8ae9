"""Uploads that are broken off: what has arrived is not sent again, whoever was killed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from danlu.api import MAX_PACK_BYTES
from danlu.client import code
from danlu.client.connection import KEY_FILE, Connection
from danlu.client.credentials import bootstrap
from danlu.client.transport import PIECE_BYTES
from danlu.domain.jobs import JobState
from tests.process.platform import Server
from tests.s3_server import S3Server

MIB = 2**20
DANLU = str(Path(sys.executable).with_name("danlu"))
LARGE_BYTES, SMALL_FILES = 5 * PIECE_BYTES, 40
TOTAL_BYTES = LARGE_BYTES + SMALL_FILES * MIB
LITTLE_BYTES = 20_000
"""Questions, folders, heads."""
SENDER = """
import os, signal, sys
from pathlib import Path
from danlu.client import code
from danlu.client.connection import KEY_FILE, Connection
from danlu.client.credentials import bootstrap
from danlu.client.transport import Client
url, home, folder, cache, least = sys.argv[1:]
def progress(done, total):
    if done >= int(least):
        os.kill(os.getpid(), signal.SIGKILL)
with Client(Connection(url, bootstrap(Path(home) / KEY_FILE))) as client:
    code.send(client, Path(folder), cache=Path(cache), progress=progress)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One large file and many small ones."""
    made, random = tmp_path / "code", Random(3)
    (made / "small").mkdir(parents=True)
    (made / "large.bin").write_bytes(random.randbytes(LARGE_BYTES))
    for number in range(SMALL_FILES):
        (made / "small" / f"{number:02}.bin").write_bytes(random.randbytes(MIB))
    return made


@pytest.fixture(params=["local", "s3"])
def server(request: pytest.FixtureRequest, home: Path) -> Iterator[Server]:
    """A running server on each kind of store."""
    made = Server(home)
    if request.param == "s3":
        found: S3Server = request.getfixturevalue("s3_server")
        made.environ |= {**found.environment(), "DANLU_BLOBS": f"s3://danlu/{home.parent.name}"}
    said = made.start()
    assert said.get("ready"), said
    yield made
    made.close()


# in the middle of the large file, and in the middle of the small ones
@pytest.mark.parametrize("at", [2 * PIECE_BYTES, LARGE_BYTES + MAX_PACK_BYTES])
def test_a_client_that_is_killed_goes_on_where_it_was(server: Server, folder: Path, tmp_path: Path, at: int) -> None:
    cache = tmp_path / "cache"
    words = [server.url, str(server.home), str(folder), str(cache), str(at)]
    done = subprocess.run([sys.executable, "-c", SENDER, *words], check=False, timeout=120)
    assert done.returncode == -9
    with server.client() as client:
        sent = code.send(client, folder, cache=cache)
    assert sent.sent_bytes <= TOTAL_BYTES - at + LITTLE_BYTES + 40 * SMALL_FILES
    assert sent.sent_bytes >= TOTAL_BYTES - at - MAX_PACK_BYTES
    job = server.submit("sh", "-c", "cat large.bin small/* | wc -c", code=sent.tree)
    assert server.wait(job.id).state is JobState.SUCCEEDED
    assert server.lines(job.id, 1) == [str(TOTAL_BYTES)]


@pytest.mark.parametrize("at", [2 * PIECE_BYTES, LARGE_BYTES + MAX_PACK_BYTES])
def test_a_server_that_is_killed_is_waited_for(server: Server, folder: Path, tmp_path: Path, at: int) -> None:
    killed, started = threading.Event(), threading.Event()

    def again() -> None:
        killed.wait(60)
        server.start()  # on another port
        started.set()

    def progress(done: int, _total: int) -> None:
        if done >= at and not killed.is_set():
            server.kill()
            killed.set()

    restarting = threading.Thread(target=again)
    restarting.start()
    with server.client() as client:
        here = client.connection
        client.relocate = lambda: (
            Connection(server.url, bootstrap(server.home / KEY_FILE), server.home) if started.is_set() else here
        )
        sent = code.send(client, folder, cache=tmp_path / "cache", progress=progress)
        # what was on its way was lost, and that alone was sent twice
        assert sent.sent_bytes <= TOTAL_BYTES + max(PIECE_BYTES, MAX_PACK_BYTES) + LITTLE_BYTES + 40 * SMALL_FILES
        assert code.send(client, folder, cache=tmp_path / "cache").sent_files == 0
    restarting.join()
    assert server.job(server.submit("true", code=sent.tree).id).live


def test_the_second_submit_of_much_code_sends_little(server: Server, tmp_path: Path) -> None:
    """5,000 files, one of them changed: the command sends less than 100 KB, and the job sees the change, and its own copy."""
    folder, random = tmp_path / "code", Random(4)
    for number in range(100):
        (folder / f"part-{number}").mkdir(parents=True)
        for file in range(50):
            (folder / f"part-{number}" / f"{file}.bin").write_bytes(random.randbytes(400))
    environ = {**os.environ, "DANLU_HOME": str(server.home), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    line = "cat changed; find . -name '*.bin' | wc -l; echo more >> changed; rm -r part-7"
    said = []
    for content in ("first", "second"):
        (folder / "changed").write_text((content * 64 * 1024)[: 64 * 1024 - 1] + "\n")
        words = ["run", "--env", "host", "--", "sh", "-c", line]
        done = subprocess.run(
            [DANLU, *words], cwd=folder, env=environ, capture_output=True, text=True,
            timeout=180, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [(folder / "changed").read_text().strip(), "5000"]
        said.append(re.search(r"5,001 files, ([\d.]+ \w+) sent, ([\d,]+) reused", done.stderr))
    assert said[1] is not None, done.stderr
    assert said[1].group(2) == "5,000"
    size, unit = said[1].group(1).split()
    assert float(size) * {"B": 1, "KiB": 1024}[unit] < 100_000


def test_a_job_knows_the_commit_that_its_code_stands_on(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "code"
    folder.mkdir()
    environ = {
        **os.environ, "DANLU_HOME": str(server.home), "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1",
    }  # fmt: skip

    def command(*words: str) -> str:
        done = subprocess.run(words, cwd=folder, env=environ, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    command("git", "init", "-q", "-b", "main")
    (folder / "a.py").write_text("print(1)\n")
    command("git", "add", "a.py")
    command("git", "-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-qm", "x")
    (folder / "a.py").write_text("print(2)\n")
    name = command(DANLU, "run", "--detach", "--env", "host", "--", "python", "a.py").strip()
    git = json.loads(command(DANLU, "get", "job", name, "-o", "json"))["spec"]["git"]
    assert (git["commit"], git["branch"], git["dirty"]) == (command("git", "rev-parse", "HEAD").strip(), "main", True)
    diff = command(DANLU, "api", "GET", f"/v1/blobs/{git['diff']}")
    assert "-print(1)\n+print(2)\n" in diff
    assert f"main  {git['commit'][:12]}" in command(DANLU, "describe", name)
    assert "uncommitted changes" in command(DANLU, "describe", name)
