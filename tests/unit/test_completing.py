"""What a shell is answered, without a platform: by the table of commands and flags that the parser gave."""

from __future__ import annotations

from pathlib import Path

import pytest

from danlu.cli.commands import COMMANDS, NESTED
from danlu.cli.completing import _split, complete, read_commands
from danlu.client.names import names
from danlu.client.profiles import Profile, Profiles, file_of, write

TABLE = read_commands()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("danlu ", [""]),
        ("danlu", [""]),
        ("danlu lo", ["lo"]),
        ("danlu logs ", ["logs", ""]),
        ("danlu run --env=te", ["run", "--env=te"]),
        ("danlu --url http://x:1 lo", ["--url", "http://x:1", "lo"]),
        ("danlu run --name 'a b' --v", ["run", "--name", "a b", "--v"]),
        ("danlu run --name 'a b", ["run", "--name", "a b"]),
        ('danlu run --name "a b ', ["run", "--name", "a b ", ""]),
    ],
)
def test_a_line_of_bash_as_words(line: str, words: list[str]) -> None:
    assert _split(line) == words


@pytest.mark.parametrize(
    ("words", "mode", "found"),
    [
        (["att"], "words", ["attach"]),
        (["--u"], "words", ["--url"]),
        (["--url", "x", "att"], "words", ["attach"]),
        (["--url", "x"], "words", []),
        (["help", "att"], "words", ["attach"]),
        (["nothing", ""], "words", []),
        (["artifacts", ""], "words", ["get", "ls"]),
        (["run", "--gpu-"], "words", ["--gpu-kind"]),
        (["run", "--detach", "--det"], "words", []),  # once is enough
        (["run", "--var", "A=1", "--va"], "words", ["--var"]),  # but this one may come again
        (["run", "--output", "j"], "words", ["json"]),
        (["run", "-o", "j"], "words", ["json"]),
        (["run", "--output=j"], "words", ["--output=json"]),
        (["run", "--requirements", ""], "files", []),
        (["run", "--code", ""], "folders", []),
        (["run", "--code="], "folders", []),
        (["run", "--name", ""], "words", []),
        (["run", "--", ""], "programs", []),
        (["run", ""], "programs", []),
        (["run", "--", "python", "-"], "files", []),
        (["apply", "-f", ""], "files", []),
        (["get", "jobs", "--state", "qu"], "words", ["queued"]),
        (["run", "--framework", "tens"], "words", ["tensorflow"]),
        (["run", "--wor"], "words", ["--worker"]),
        (["get", "n"], "words", ["nodes"]),
        (["api", "PO"], "words", ["POST"]),
        (["completion", "z"], "words", ["zsh"]),
        (["explain", "job.retry.a"], "words", ["job.retry.attempts"]),
        (["explain", "job.nothing.a"], "words", []),
        (["explain", "OutOfM"], "words", ["OutOfMemory"]),
        (["cp", "./"], "files", []),
        (["cp", "x:/a", ""], "files", []),
        (["cp", "here", ""], "beginnings", []),
        (["exec", "x", "--", ""], "programs", []),
        (["status", "--ur"], "words", ["--url"]),
        (["status", "--profile", ""], "words", ["company", "local"]),
        (["profile", "use", "co"], "words", ["company"]),
        (["quota", "g"], "words", ["get"]),
        (["quota", "set", "--we"], "words", ["--weight"]),
        (["quota", "set", "vision", ""], "words", []),
        (["member", "add", "ada", "--role", "v"], "words", ["viewer"]),
    ],
)
def test_what_is_answered(
    words: list[str], mode: str, found: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DANLU_HOME", "/proc/nothing")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    write(file_of(), Profiles({"company": Profile("https://company", "secret")}))
    answer = complete(words, TABLE)
    assert (answer.mode, [word for word, _ in sorted(answer.words)]) == (mode, found)


def test_every_command_can_be_completed() -> None:
    heads = {name.split()[0] for name in TABLE}
    assert heads == {command.name for command in COMMANDS}
    assert {name.split()[0] for name in TABLE if " " in name} == NESTED
    for name, known in TABLE.items():
        assert known["summary"], name
        assert all(flag["help"] for flag in known["flags"]), name


def test_without_a_platform_there_are_no_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DANLU_HOME", str(tmp_path))
    for kind in ("jobs", "envs", "nodes"):
        assert names(kind) == []
    monkeypatch.setenv("DANLU_HOME", "/proc/1/nothing")
    assert names("jobs") == []
    (tmp_path / "platform.json").write_text("damaged")
    monkeypatch.setenv("DANLU_HOME", str(tmp_path))
    assert names("jobs") == []
