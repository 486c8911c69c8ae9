"""A session's last word, when its job ends by itself: it comes however long that takes on a loaded machine."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from danlu.runner import frames
from tests.process.platform import until
from tests.unit.test_runner_main import TIMEOUT_S, Life
from tests.unit.test_sdk import PACKAGE

DEAF = "trap '' TERM HUP INT; echo up; while :; do sleep 0.1; done"
RUNNER = "import sys; from danlu.runner import main; main.LEFTOVER_GRACE_S = 0.0; sys.exit(main.run(sys.argv[1]))"
"""It leaves no time to what a task has left behind: as if the machine were too busy for anybody to use it."""


@pytest.fixture
def life(tmp_path: Path) -> Life:
    return Life(tmp_path / "attempt", sys.executable)


@contextlib.contextmanager
def running(life: Life, command: str) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """Runs a job that ends once there is a file ``go``, and beside it a command in a session."""
    life.order("/bin/sh", "-c", "until [ -e go ]; do sleep 0.05; done")
    with subprocess.Popen([sys.executable, "-c", RUNNER, str(life.folder)], cwd=PACKAGE.parent) as runner:
        try:
            until(lambda: life.events("started"), TIMEOUT_S, "it runs")
            with socket.socket(socket.AF_UNIX) as stream:
                stream.settimeout(TIMEOUT_S)
                stream.connect(str(life.folder / "session"))
                stream.sendall(frames.encode_json(frames.REQUEST, {"task": "main-0", "command": ["sh", "-c", command]}))
                yield runner, stream
        finally:
            runner.kill()


def test_a_session_says_how_it_ended_though_nothing_else_has_time(life: Life) -> None:
    with running(life, DEAF) as (runner, stream):
        decoder, found = frames.Decoder(frames.FROM_RUNNER), []
        while data := stream.recv(65_536):
            for kind, content in decoder.feed(data):
                found.append((kind, content))
                if kind == frames.STDOUT:
                    (life.folder / "work" / "go").touch()
        stream.close()
        assert runner.wait(TIMEOUT_S) == 0
    assert [kind for kind, _ in found] == [frames.STARTED, frames.STDOUT, frames.EXIT]
    assert json.loads(found[-1][1]) == {"exit_code": 137, "error": "the job was ending: the session ended with it"}


def test_who_writes_on_after_its_last_word_can_still_read_it(life: Life) -> None:
    with running(life, "exit 7") as (_, stream):
        said = b""
        while data := stream.recv(65_536):
            said += data
        stream.sendall(frames.encode(frames.STDIN, b"more"))  # it would fail, and what was not read yet be thrown away
        kind, content = list(frames.Decoder(frames.FROM_RUNNER).feed(said))[-1]
        assert (kind, json.loads(content)["exit_code"]) == (frames.EXIT, 7)
