"""Secrets on a real platform, from the terminal to the job and back: found nowhere but where they belong."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from danlu.domain.jobs import Job, JobState, Reason
from danlu.errors import InvalidSpec
from danlu.services.vault import KEY_BYTES
from tests.process.platform import Server, processes_with, until

BIN = Path(sys.executable).parent / "danlu"
CANARY = "canary-AbCdEfGhIjKl"
KEY = "-----BEGIN KEY-----\nAAAAB3NzaC1yc2EAAAADAQABAAAB\n-----END KEY-----\n"
TIMEOUT_S = 120.0


def danlu(server: Server, *words: str, given: str | None = None, expect: int = 0) -> subprocess.CompletedProcess[str]:
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(server.home.parent),
        "DANLU_HOME": str(server.home),
        "LANG": "C.UTF-8",
    }
    done = subprocess.run(
        [str(BIN), *words], cwd=server.home.parent, env=environ, capture_output=True, text=True,
        input="" if given is None else given, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == expect, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def where(server: Server, *words: bytes) -> set[str]:
    """Returns the files of the platform, and its log, in which one of these can be read."""
    found = set()
    # os.walk passes over folders that a sweep takes away meanwhile; rglob fails at them.
    for path in (Path(folder) / name for folder, _, names in os.walk(server.home.parent) for name in names):
        if not path.is_file() or path.is_symlink():
            continue
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue
        if any(word in data for word in words):
            found.add(str(path.relative_to(server.home.parent)))
    return found


def in_command_lines(word: str) -> list[str]:
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                line = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if word.encode() in line:
                found.append(line.decode(errors="replace"))
    return found


PRINTS = (
    'echo "out $TOKEN"; echo "err $TOKEN" >&2; printf "%s" "$TOKEN"; sleep 1.2; echo; cat "$KEY"; env | grep TOKEN; '
    "echo held; while [ ! -e $DANLU_OUTPUT_DIR/go ]; do sleep 0.1; done; "
    'echo "it failed with $TOKEN" >&2; exit 7'
)


def test_a_secret_is_found_nowhere(server: Server) -> None:
    """In no file, log, command line or answer of the platform; but in what the process itself writes, until it ends."""
    told = [danlu(server, "secret", "set", "TOKEN", given=CANARY + "\n")]
    (server.home.parent / "key").write_text(KEY)
    told.append(danlu(server, "secret", "set", "deploy_key", "--file", str(server.home.parent / "key")))
    (server.home.parent / "key").unlink()
    told.append(danlu(server, "secret", "ls"))
    assert [line.split()[0] for line in told[-1].stdout.splitlines()] == ["NAME", "TOKEN", "deploy_key"]
    job = server.submit(
        "/bin/sh", "-c", PRINTS, name="prints",
        secrets={"TOKEN": "TOKEN", "KEY": {"secret": "deploy_key", "file": True}},
    )  # fmt: skip
    attempt = f"{job.id}-1"
    until(lambda: "held" in danlu(server, "logs", "prints").stdout, TIMEOUT_S, "it prints")
    hidden_words = (CANARY.encode(), *(line.encode() for line in KEY.splitlines()))
    raw = {f"home/attempts/{attempt}/main-0/{name}" for name in ("stdout", "stderr")}
    assert where(server, *hidden_words) <= raw
    assert in_command_lines(CANARY) == []
    inside = danlu(server, "exec", "prints", "--", "/bin/sh", "-c", 'echo "$TOKEN"; cat "$KEY"')
    assert inside.stdout == f"{CANARY}\n{KEY}", "who looks into a job sees what it sees"
    (server.home / "attempts" / attempt / "outputs" / "go").touch()
    ended = server.wait(job.id)
    assert (ended.state, ended.reason, ended.exit_code) == (JobState.FAILED, Reason.PROCESS_FAILED, 7)
    lines = server.lines(job.id, 1)
    hidden = "*" * len(CANARY)
    for line in (f"out {hidden}", f"err {hidden}", hidden, "*" * 28, f"TOKEN={hidden}", f"it failed with {hidden}"):
        assert line in "".join(lines) if line == hidden else line in lines
    looks = (["describe", "prints"], ["get", "events"], ["logs", "prints"], ["describe", "prints", "-o", "json"])
    told += [danlu(server, *words) for words in looks]
    assert not any(CANARY in done.stdout + done.stderr or "AAAAB3" in done.stdout for done in told)
    assert "secrets" in told[-4].stdout
    assert "KEY (of deploy_key) as a file" in told[-4].stdout
    until(lambda: not (server.home / "attempts" / attempt).exists(), TIMEOUT_S, "its folder is removed")
    assert where(server, *hidden_words) == set()
    with server.client() as client:
        document = client.raw("GET", "/v1/openapi.json", None)
        with document as (_, pieces):
            assert CANARY.encode() not in b"".join(pieces)


def test_a_killed_runner_and_another_server_keep_none(server: Server) -> None:
    danlu(server, "secret", "set", "TOKEN", given=CANARY)
    script = 'echo "$TOKEN"; while [ ! -e $DANLU_OUTPUT_DIR/go ]; do sleep 0.1; done; echo "$TOKEN $DANLU_ATTEMPT"'
    job = server.submit("/bin/sh", "-c", script, secrets=["TOKEN"])
    attempt = f"{job.id}-1"
    until(lambda: any(e["event"] == "started" for e in server.events(attempt)), TIMEOUT_S, "it starts")
    server.kill()
    assert server.start().get("ready")
    runner = next(e["pid"] for e in server.events(attempt) if e["event"] == "runner")
    os.kill(runner, 9)
    danlu(server, "secret", "set", "TOKEN", given="another value")
    second = f"{job.id}-2"
    until(lambda: any(e["event"] == "started" for e in server.events(second)), TIMEOUT_S, "it is repeated")
    (server.home / "attempts" / second / "outputs" / "go").touch()
    assert server.wait(job.id).state is JobState.SUCCEEDED
    assert "".join(server.lines(job.id, 1)) == "*" * len(CANARY)
    assert server.lines(job.id, 2)[-1] == "*" * len("another value") + " 2", "it begins with the newest value"
    until(lambda: not where(server, CANARY.encode(), b"another value"), TIMEOUT_S, "nothing is left")


def test_a_removed_secret_fails_a_job_that_waits(server: Server) -> None:
    danlu(server, "secret", "set", "TOKEN", given=CANARY)
    script = 'test -e "$DANLU_CHECKPOINT_DIR/go" && exit 1; touch "$DANLU_CHECKPOINT_DIR/up"; sleep 600'
    job: Job = server.submit("/bin/sh", "-c", script, name="waits", secrets=["TOKEN"])
    until(lambda: any(e["event"] == "started" for e in server.events(f"{job.id}-1")), TIMEOUT_S, "it starts")
    told = danlu(server, "secret", "rm", "TOKEN", "-o", "name")
    assert told.stdout == "secret/TOKEN\n"
    assert "it is needed by waits" in told.stderr
    runner = next(e["pid"] for e in server.events(f"{job.id}-1") if e["event"] == "runner")
    os.kill(runner, 9)  # it is repeated, and begins anew
    ended = server.wait(job.id)
    assert (ended.state, ended.reason) == (JobState.FAILED, Reason.SECRET_UNAVAILABLE)
    assert "secret TOKEN was removed" in ended.message
    danlu(server, "secret", "rm", "TOKEN", expect=1)
    assert "no secret 'TOKEN'" in danlu(server, "run", "--no-code", "--secret", "TOKEN", "--", "true", expect=2).stderr


def test_a_lost_master_key_is_told_and_its_secrets_are_set_again(server: Server) -> None:
    danlu(server, "secret", "set", "TOKEN", given=CANARY)
    server.end()
    (server.home / "keys" / "master").write_text("ab" * KEY_BYTES + "\n")
    said = server.start()
    assert "1 secret was sealed by another one" in said["error"]["detail"]
    server.arguments = ("--new-master-key",)
    assert server.start().get("ready")
    with pytest.raises(InvalidSpec, match="TOKEN"):  # the name means nothing until it is set again
        server.submit("true", secrets=["TOKEN"])
    danlu(server, "secret", "set", "TOKEN", given=CANARY)
    assert (
        server.wait(server.submit("/bin/sh", "-c", 'test "$TOKEN"', secrets=["TOKEN"]).id).state is JobState.SUCCEEDED
    )


def test_a_value_is_typed_without_being_shown(server: Server) -> None:
    ours, theirs = pty.openpty()
    environ = {"PATH": os.environ["PATH"], "HOME": str(server.home.parent), "DANLU_HOME": str(server.home)}
    process = subprocess.Popen(
        [str(BIN), "secret", "set", "TOKEN"], env=environ, stdin=theirs, stdout=theirs, stderr=theirs,
        preexec_fn=lambda: (os.setsid(), __import__("fcntl").ioctl(0, 0x540E, 0)),
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while b"TOKEN: " not in shown:
        shown += os.read(ours, 1024)
    os.write(ours, CANARY.encode() + b"\n")
    try:
        while chunk := os.read(ours, 1024):
            shown += chunk
    except OSError:
        pass
    assert process.wait(TIMEOUT_S) == 0
    os.close(ours)
    assert CANARY.encode() not in shown
    assert b"TOKEN is set" in shown


@pytest.mark.parametrize(
    ("given", "words", "said"),
    [
        ("", ("secret", "set", "TOKEN"), "the value is empty"),
        ("x" * 70_000, ("secret", "set", "TOKEN"), "65,536 is the most"),
        ("value", ("secret", "set", "a-b"), "a secret's name has at most 63 letters"),
        ("value", ("secret", "set", "TOKEN", "value"), "value"),
        ("value", ("secret", "set", "TOKEN", "--file", "/nowhere"), "cannot be read: No such file"),
        ("value", ("secret", "set", "TOKEN", "--file", "/dev/urandom"), "is no UTF-8 text"),
    ],
)
def test_what_is_wrong_is_told_without_the_value(shared: Server, given: str, words: tuple[str, ...], said: str) -> None:
    done = danlu(shared, *words, given=given, expect=2)
    assert said in done.stderr
    assert "xxxxxxxx" not in done.stderr
    assert json.loads(danlu(shared, "secret", "ls", "-o", "json").stdout)["items"] == []
    assert not processes_with("--file /nowhere")
