"""The words of the command line on a real platform: every -o of every command, colours, diff, doctor, init to apply."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from danlu.cli.main import main
from tests.process.platform import Server

BIN = Path(sys.executable).parent / "danlu"
TIMEOUT_S = 120.0
NAME = re.compile(r"[a-z]+/[A-Za-z0-9._/-]+")
PROGRAM = "print('loss: 0.5')\n"
ESCAPE = "\x1b["


class Words:
    """A platform, and a user who types at it."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.folder = folder
        self.environ = {
            "PATH": f"{BIN.parent}:{os.environ['PATH']}", "HOME": str(folder.parent), "DANLU_HOME": str(server.home),
            "LANG": "C.UTF-8", "VIRTUAL_ENV": str(BIN.parent.parent),
        }  # fmt: skip

    def run(self, *words: str, expect: int = 0, **environ: str) -> str:
        done = subprocess.run(
            [str(BIN), *words], cwd=self.folder, env={**self.environ, **environ}, capture_output=True, text=True,
            stdin=subprocess.DEVNULL, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
        assert done.returncode == expect, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        self.said = done.stderr
        return done.stdout

    def on_a_terminal(self, *words: str, **environ: str) -> str:
        """Returns what is written to stdout where that is a terminal."""
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [str(BIN), *words], cwd=self.folder, env={**self.environ, "TERM": "xterm", **environ}, stdin=subprocess.DEVNULL,
            stdout=theirs, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs)
        said = b""
        try:
            while chunk := os.read(ours, 65536):
                said += chunk
        except OSError:  # the other side is closed
            pass
        finally:
            os.close(ours)
            process.wait(TIMEOUT_S)
        return said.decode()


@pytest.fixture(scope="module")
def words() -> Iterator[Words]:
    outer = Path(tempfile.mkdtemp(prefix="danlu-words-", dir="/tmp"))  # every user may pass it, as jobs need it
    outer.chmod(0o711)
    server = Server(outer / "home")
    server.start()
    folder = outer / "code"
    folder.mkdir()
    (folder / "train.py").write_text(PROGRAM)
    made = Words(server, folder)
    try:
        made.run("run", "--name", "one", "--env", "host", "--cpu", "0.1", "--metrics", "--", "python", "train.py")
        (folder / "train.py").write_text(PROGRAM.replace("0.5", "0.25"))
        (folder / "more.txt").write_text("more\n")
        made.run("run", "--name", "two", "--env", "host", "--cpu", "0.2", "--metrics", "--", "python", "train.py")
        yield made
    finally:
        server.close()
        shutil.rmtree(outer, ignore_errors=True)


EVERY = [
    "get jobs", "get jobs one two", "get nodes", "get envs", "get events", "describe one", "why one", "wait one",
    "metrics one", "artifacts ls one", "env ls", "nodes", "status", "stop one", "diff one two", "diff one one",
    "doctor --no-index", "explain job", "explain job.memory",
]  # fmt: skip
DIFFERENT = {"diff one two": 1}


@pytest.mark.parametrize("line", EVERY)
def test_every_form_of_output(line: str, words: Words, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    for name, value in words.environ.items():
        monkeypatch.setenv(name, value)

    def printed(form: str) -> str:
        assert main([*line.split(), "-o", form]) == DIFFERENT.get(line, 0)
        said = capsys.readouterr()
        assert ESCAPE not in said.out + said.err
        return str(said.out)

    as_json, as_yaml = json.loads(printed("json")), yaml.safe_load(printed("yaml"))
    assert isinstance(as_json, dict)
    assert set(as_json) == set(as_yaml)
    assert bool(printed("wide")) == bool(printed("table"))
    names = printed("name").splitlines()
    if line.split()[0] in ("get", "describe", "why", "wait", "stop", "nodes", "env", "doctor"):
        assert names
        assert all(NAME.fullmatch(name) for name in names), names


@pytest.mark.parametrize(
    "line", ["get jobs", "describe one", "diff one two", "doctor --no-index", "explain job.memory"]
)
def test_colours_are_for_terminals_and_not_for_who_wants_none(line: str, words: Words) -> None:
    assert ESCAPE in words.on_a_terminal(*line.split())
    assert ESCAPE not in words.on_a_terminal(*line.split(), NO_COLOR="1")
    assert ESCAPE not in words.on_a_terminal(*line.split(), TERM="dumb")


def test_what_was_stopped_before_a_wrong_name_is_told(words: Words) -> None:
    assert words.run("stop", "one", "noone", "two", expect=1).startswith("job/one has ended already: succeeded")
    assert "there is no job 'noone'" in words.said


@pytest.mark.parametrize("line", ["why one", "describe one"])
def test_a_headline_goes_on_below_where_it_is_too_long(line: str, words: Words) -> None:
    first, second, *_ = words.on_a_terminal(*line.split(), COLUMNS="30", NO_COLOR="1").splitlines()
    assert re.fullmatch(r"one +succeeded, [0-9.]+s after", first)
    assert second == "   its start"


def test_diff(words: Words) -> None:
    said = words.run("diff", "one", "two", expect=1)
    for line in ("  - cpu: 0.1", "  + cpu: 0.2", "code  1 added, 1 changed", "  A more.txt  5 B", "  -print('loss: 0.5')",
                 "  +print('loss: 0.25')"):  # fmt: skip
        assert line in said.splitlines()
    assert re.search(r"metrics.loss +0.5 +0.25 +-50.0 %", said)
    assert "nothing that was asked for differs" in words.run("diff", "two", "two")
    facts = json.loads(words.run("diff", "one", "two", "-o", "json", expect=1))
    assert (facts["different"], facts["specification"]) == (True, [{"field": "cpu", "old": 0.1, "new": 0.2}])
    assert words.run("diff", "one", "two", "--brief", "-o", "name", expect=1).splitlines() == [
        "cpu", "code/more.txt", "code/train.py",
    ]  # fmt: skip
    words.run("diff", "one", expect=2)
    assert "repeats no other one" in words.said
    words.run("diff", "one", "tow", expect=2)
    assert "did you mean two?" in words.said


def test_a_job_and_its_predecessor(words: Words) -> None:
    words.run("retry", "two", "--cpu", "0.3")
    assert "  + cpu: 0.3" in words.run("diff", "two", expect=1).splitlines()


def test_init_apply_and_what_has_changed_since(words: Words, tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("print('hello')\n")
    file = tmp_path / "danlu.yaml"
    assert words.run("init", str(file)) == f"{file}\n"
    text = file.read_text()
    assert text.count("# ") > 10
    applied = json.loads(words.run("apply", "-f", str(file), "-o", "json"))
    assert (applied["spec"]["command"], applied["spec"]["env"]) == ("python main.py", "python")
    assert file.read_text() == text, "comments survive"
    words.run("diff", applied["id"], "-f", str(file))
    (tmp_path / "main.py").write_text("print('bye')\n")
    assert "  +print('bye')" in words.run("diff", applied["id"], "-f", str(file), expect=1).splitlines()
    words.run("init", str(file), expect=1)
    assert "is there already" in words.said
    words.run("init", str(tmp_path / "x.yaml"), "--env", "pyton", expect=2)
    assert "did you mean python?" in words.said
    words.run("stop", applied["id"], "--wait")


def test_doctor_sees_the_server_and_a_key_that_others_can_read(words: Words) -> None:
    keys = Path(words.environ["DANLU_HOME"]) / "keys"

    def found(expect: int) -> dict[str, Any]:
        items = json.loads(words.run("doctor", "--no-index", "-o", "json", expect=expect))["items"]
        return {item["name"]: item for item in items}

    before = found(0)
    assert {"platform", "version", "clock", "data", "disk", "keys", "limits", "gpus", "uv"} <= set(before)
    # the server looks at its own; the key that this side itself would use is refused before anything is sent
    for key, check in ((keys / "attempts", "keys"), (keys / "bootstrap", "platform")):
        key.chmod(0o644)
        try:
            after = found(1)
        finally:
            key.chmod(0o600)
        assert after[check]["verdict"] == "fail"
        assert f"chmod 600 {key}" in after[check]["next_step"]


@pytest.mark.parametrize(
    ("line", "said", "code"),
    [
        ("logs tow", "did you mean two?", 1),
        ("stop oen", "did you mean one?", 1),
        ("get jobs twoo", "did you mean two?", 1),
        ("get envs sklaern", "did you mean sklearn?", 1),
        ("get nodes nothing-like-it", "all of them: danlu get nodes", 1),
        ("run --env sklearm --no-code -- x", "did you mean sklearn?", 2),
        ("metrics one --name los", "did you mean loss?", 1),
        ("env build sklaern", "did you mean sklearn?", 2),
        ("describe jbo one", "did you mean job one?", 2),
    ],
)
def test_what_was_probably_meant(line: str, said: str, code: int, words: Words) -> None:
    assert words.run(*line.split(), expect=code) == ""
    assert said in words.said


def test_a_wide_table_runs_over_a_narrow_terminal(words: Words) -> None:
    narrow = words.on_a_terminal("get", "jobs", COLUMNS="60")
    assert all(len(line) <= 60 + len(ESCAPE) * 8 for line in narrow.splitlines())
    assert "COMMAND" in words.on_a_terminal("get", "jobs", "-o", "wide", COLUMNS="60")
