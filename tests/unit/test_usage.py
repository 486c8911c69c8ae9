"""Wrong words on the command line, as a person types them: what is told, what is suggested, and the exit code."""

from __future__ import annotations

import pytest

from danlu.cli import commands
from danlu.cli.main import main


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("DANLU_URL", "DANLU_TOKEN", "DANLU_TOKEN_FILE", "DANLU_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("DANLU_HOME", "/proc/nothing/danlu")


WRONG = [
    # commands
    ("rnu", 'there is no command "rnu"', "did you mean run?"),
    ("env bild", 'there is no command "env bild"', "did you mean build?   there are: "),
    ("artifacts gte two", 'there is no command "artifacts gte"', "did you mean get?"),
    ("--prject x get jobs", "--prject is not a flag of danlu", "did you mean --project?"),
    # flags
    ("run --enb python -- x", "--enb is not a flag of danlu run", "did you mean --env?"),
    ("run python --lr 1", "--lr is not a flag of danlu run", "put -- before the command"),
    ("get jobs --stat running", "--stat is not a flag of danlu get", "did you mean --state?"),
    ("env ls --outptu json", "--outptu is not a flag of danlu env ls", "did you mean --output?   danlu env ls --help"),
    ("run --cpu 1 --cpu 2 -- x", "--cpu is given twice", "danlu run --help"),
    ("logs x --tail", "--tail needs a value: only the last lines", "danlu logs --help"),
    # values
    ("run --gpu two -- x", "gpu: must be a whole number (it is 'two')", ""),
    ("run --gpu -1 -- x", "gpu: must be at least 0 (it is '-1')", ""),
    ("run --memory lots -- x", "memory: 'lots' is not an amount of memory", ""),
    ("run --var LR -- x", "--var 'LR' is not KEY=VALUE", "--var LR=0.1"),
    ("run --role worker -- x", "--role 'worker' is not NAME=REPLICAS", "--role worker=2"),
    ("run --role worker=two -- x", "roles.worker.replicas: must be a whole number (it is 'two')", ""),
    ("run --role wrker=2 --framework tensorflow -- x", "roles.wrker is no role of tensorflow", "did you mean worker?"),
    ("run --role worker=2,memry=1GiB -- x", "roles.worker.memry is not a field", "did you mean memory?"),
    ("run --framework tensorflw -- x", "framework 'tensorflw' is not known", "did you mean tensorflow?"),
    ("run --code x --no-code -- x", "--code and --no-code exclude each other", ""),
    ("get jobs -o jsn", "-o takes one of table, wide, json, yaml, name; it is 'jsn'", "did you mean json?"),
    ("get jobs --output=jsn", "--output takes one of table", "did you mean json?"),
    ("metrics x -o tabel", "-o takes one of plot", ""),
    ("get jobs --limit x", "--limit takes a whole number; it is 'x'", ""),
    ("get jobs --limit -1", "--limit -1 is less than 0", ""),
    ("get jobs --state runing", "'runing' is not a job's state", "did you mean running?   there are: queued"),
    ("init --forec", "--forec is not a flag of danlu init", "did you mean --force?"),
    ("apply --fil x", "--fil is not a flag of danlu apply", "did you mean --file?"),
    ("get jbos", 'there is no list of "jbos"', "did you mean jobs?"),
    ("completion bsh", "SHELL takes one of bash, zsh, fish; it is 'bsh'", "did you mean bash?"),
    ("up --port x", "--port takes a whole number", ""),
    ("up --port 70000", "--port 70000 is not a port", ""),
    ("explain job.memry", "job.memry is not a field", "did you mean memory?"),
    ("explain OutOfMemoy", 'there is nothing called "OutOfMemoy"', "did you mean OutOfMemory?"),
    ("init /proc/nothing/x.yaml", "/proc/nothing is not a folder", ""),
    ("init - --framework tensorflw", 'there is no framework "tensorflw"', "did you mean tensorflow?"),
    # words
    ("run", "there is no command to run", "danlu run -- python train.py"),
    ("get", "KIND is missing: jobs, nodes, envs or events", "danlu get jobs|nodes|envs|events"),
    ("apply", "--file or -f is missing", "danlu apply -f FILE"),
    ("apply -f /proc/nothing.yaml", "/proc/nothing.yaml cannot be read: No such file", "danlu init writes one"),
    ("api", "METHOD is missing: GET, POST, PUT or DELETE", "danlu api METHOD PATH"),
    ("api GET v1/jobs", "'v1/jobs' is not a path", "danlu api GET /v1/jobs"),
    ("init x y", "danlu init takes no more words: 'y'", "danlu init [FILE]"),
    ("doctor x", "danlu doctor takes no more words: 'x'", "danlu doctor"),
    ("diff a b c", "this takes one job or two", "danlu diff A B"),
]


@pytest.mark.parametrize(("line", "said", "step"), WRONG, ids=[line for line, *_ in WRONG])
def test_wrong_words(line: str, said: str, step: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    first, *rest = shown.err.splitlines()
    assert first.startswith(f"error: {said}")
    assert step in "\n".join(rest)
    assert not any(word in shown.err for word in ("Traceback", "Token", "coerc", "convert", "Input should"))


@pytest.mark.parametrize("name", [command.name for command in commands.COMMANDS])
def test_every_command_explains_a_wrong_flag(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [name, {"blobs": "prune", "db": "status"}.get(name, "ls")] if name in commands.NESTED else [name]
    assert main([*words, "--nonsense-flag"]) == 2
    assert f"--nonsense-flag is not a flag of danlu {' '.join(words)}" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["logs", "stop", "why", "describe", "retry", "wait", "metrics", "diff"])
def test_a_job_that_is_not_named(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([line]) in (2, 3)
    said = capsys.readouterr().err
    assert "no job is named" in said or "danlu is not running here" in said


@pytest.mark.parametrize("line", ["get jobs", "logs x", "status", "env ls", "nodes", "why x", "stop x", "wait x"])
def test_without_a_platform(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 3
    shown = capsys.readouterr()
    assert "danlu is not running here (/proc/nothing/danlu)" in shown.out + shown.err
    assert "start it: danlu up" in shown.err
