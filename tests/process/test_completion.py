"""Completion in the real shells: commands, flags, values, files, and the names of what the platform has."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import cannot_run
from tests.process.platform import Server

BIN = Path(sys.executable).parent
DEADLINE_S = 30.0
COLOUR = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
MOST_S = 0.3
BEGIN = {
    "bash": (
        ["bash", "--noprofile", "--norc", "-i"],
        "PS1='$ '; bind 'set bell-style none'; source <(danlu completion bash)",
    ),
    "zsh": (
        ["zsh", "-f", "-i"],
        "PS1='$ '; autoload -Uz compinit; compinit -u -d $HOME/dump; source <(danlu completion zsh)",
    ),
}


class Terminal:
    """A shell that somebody types into."""

    def __init__(self, shell: str, environ: dict[str, str], folder: Path) -> None:
        words, begin = BEGIN[shell]
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.execvpe(words[0], words, environ)
        self.said = ""
        self.type(f"{begin}; echo rea''dy\n")
        self.until("ready")

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())

    def until(self, text: str) -> str:
        """Reads until the text has appeared; returns all that appeared since the last time."""
        deadline = time.monotonic() + DEADLINE_S
        while text not in self.said:
            left = deadline - time.monotonic()
            ready = left > 0 and select.select([self.descriptor], [], [], left)[0]
            assert ready, f"{text!r} did not appear: {self.said!r}"
            self.said += os.read(self.descriptor, 65536).decode(errors="replace")
            self.said = COLOUR.sub("", self.said)
        said, self.said = self.said, ""
        return said

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.descriptor)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    outer = Path(tempfile.mkdtemp(prefix="danlu-completion-", dir="/tmp"))  # every user may pass it, as jobs need it
    outer.chmod(0o711)
    started = Server(outer / "home")
    started.start()
    try:
        started.wait(started.submit("true", name="linear-7").id)
        started.submit("sleep", "600", name="bert-large-3")
        yield started
    finally:
        started.close()
        shutil.rmtree(outer, ignore_errors=True)


def environ_of(home: Path, folder: Path) -> dict[str, str]:
    """Returns the variables of a user who has danlu on the path and a platform with this data folder."""
    return {
        "PATH": f"{BIN}:{os.defpath}:/usr/local/bin", "HOME": str(folder), "TERM": "xterm", "LANG": "C.UTF-8",
        "DANLU_HOME": str(home), "XDG_CACHE_HOME": str(folder / "cache"),
    }  # fmt: skip


def have(shell: str) -> None:
    if shutil.which(shell) is None:
        cannot_run(f"{shell} is not installed")


def asked(environ: dict[str, str], *words: str) -> list[str]:
    done = subprocess.run(
        ["danlu", "__complete", "fish", *words],
        env=environ,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=True,
    )
    assert done.stderr == ""
    return [line.partition("\t")[0] for line in done.stdout.splitlines()]


def fastest(environ: dict[str, str], words: list[str], expected: str) -> float:
    """Returns the shortest time of some: what a machine is capable of that does other things beside."""
    least, deadline = DEADLINE_S, time.monotonic() + DEADLINE_S
    while least >= MOST_S and time.monotonic() < deadline:
        begun = time.perf_counter()
        assert expected in asked(environ, *words)
        least = min(least, time.perf_counter() - begun)
    return least


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_keys_typed_into_a_shell_are_completed(shell: str, server: Server, tmp_path: Path) -> None:
    have(shell)
    (tmp_path / "folder with spaces").mkdir()
    (tmp_path / "job.yaml").touch()
    terminal = Terminal(shell, environ_of(server.home, tmp_path), tmp_path)
    try:
        for typed, becomes in (
            ("danlu descr\t", "danlu describe "),
            ("danlu logs lin\t", "danlu logs linear-7 "),
            ("danlu stop \t", "danlu stop bert-large-3 "),  # linear-7 has ended
            ("danlu run --env tensorflow-\t", "danlu run --env tensorflow-1 "),
            ("danlu run --env=tensorflow-\t", "danlu run --env=tensorflow-1 "),
            ("danlu run --gpu-k\t", "danlu run --gpu-kind "),
            ("danlu status -o ya\t", "danlu status -o yaml "),
            ("danlu get jobs --state succ\t", "danlu get jobs --state succeeded "),
            ("danlu apply -f jo\t", "danlu apply -f job.yaml "),
            ("danlu run --code fold\t", "danlu run --code folder\\ with\\ spaces"),
            ("danlu explain job.mem\t", "danlu explain job.memory "),
            ("danlu --url http://127.0.0.1:1 descr\t", "http://127.0.0.1:1 describe "),
            ("danlu cp bert\t", "danlu cp bert-large-3:"),
            ("danlu run -- python jo\t", "danlu run -- python job.yaml "),
        ):
            terminal.type(typed)
            terminal.until(becomes)
            terminal.type("\x15echo o''k\n")  # clears the line
            terminal.until("ok")
    finally:
        terminal.close()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("danlu descr", {"describe"}),
        ("danlu logs lin", {"linear-7"}),
        ("danlu stop ", {"bert-large-3"}),
        ("danlu run --env tensorflow-", {"tensorflow-1"}),
        ("danlu run --env=tensorflow-", {"--env=tensorflow-1"}),
        ("danlu run --gpu-k", {"--gpu-kind"}),
        ("danlu status -o ", {"table", "wide", "json", "yaml", "name"}),
        ("danlu apply -f jo", {"job.yaml"}),
        ("danlu explain job.mem", {"job.memory"}),
        ("danlu run -- python jo", {"job.yaml"}),
        ("danlu env ", {"build", "ls"}),
    ],
)
def test_fish(line: str, found: set[str], server: Server, tmp_path: Path) -> None:
    have("fish")
    (tmp_path / "job.yaml").touch()
    done = subprocess.run(
        ["fish", "-N", "-c", "danlu completion fish | source; complete -C $argv[1]", line],
        env=environ_of(server.home, tmp_path), cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE_S, check=True,
    )  # fmt: skip
    assert {said.partition("\t")[0] for said in done.stdout.splitlines()} >= found
    assert done.stderr == ""


def test_it_is_fast_and_silent_without_a_platform(tmp_path: Path) -> None:
    environ = environ_of(tmp_path / "nothing", tmp_path)
    assert asked(environ, "logs", "") == ["words"]
    assert asked({**environ, "DANLU_URL": "http://127.0.0.1:1", "DANLU_TOKEN": "x"}, "logs", "") == ["words"]
    assert asked({**environ, "DANLU_URL": "nonsense"}, "logs", "") == ["words"]
    assert fastest(environ, [""], "describe") < MOST_S


def test_a_platform_that_hangs_is_not_waited_for(tmp_path: Path) -> None:
    import socket

    environ = environ_of(tmp_path / "nothing", tmp_path)
    asked(environ, "")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        begun = time.perf_counter()
        assert asked({**environ, "DANLU_URL": url, "DANLU_TOKEN": "x"}, "logs", "") == ["words"]
        assert time.perf_counter() - begun < DEADLINE_S


def test_names_come_fast(server: Server, tmp_path: Path) -> None:
    environ = environ_of(server.home, tmp_path)
    asked(environ, "")
    assert asked(environ, "logs", "") == ["words", "bert-large-3", "linear-7"]
    assert fastest(environ, ["logs", ""], "linear-7") < MOST_S
