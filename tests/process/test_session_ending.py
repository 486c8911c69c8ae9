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
def running(life: Life) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", RUNNER, str(life.folder)], cwd=PACKAGE.parent) as runner:
        try:
            yield runner
        finally:
            runner.kill()


def test_a_session_says_how_it_ended_though_nothing_else_has_time(life: Life) -> None:
    life.order("/bin/sh", "-c", "until [ -e go ]; do sleep 0.05; done")
    with running(life) as runner, socket.socket(socket.AF_UNIX) as stream:
        until(lambda: life.events("started"), TIMEOUT_S, "it runs")
        stream.settimeout(TIMEOUT_S)
        stream.connect(str(life.folder / "session"))
        stream.sendall(frames.encode_json(frames.REQUEST, {"task": "main-0", "command": ["sh", "-c", DEAF]}))
        decoder, found = frames.Decoder(frames.FROM_RUNNER), []
        while data := stream.recv(65_536):
            for kind, content in decoder.feed(data):
                found.append((kind, content))
                if kind == frames.STDOUT:
                    (life.folder / "work" / "go").touch()
        assert runner.wait(TIMEOUT_S) == 0
    assert [kind for kind, _ in found] == [frames.STARTED, frames.STDOUT, frames.EXIT]
    assert json.loads(found[-1][1]) == {"exit_code": 137, "error": "the job was ending: the session ended with it"}
