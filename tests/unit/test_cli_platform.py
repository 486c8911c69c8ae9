"""What the terminal does around the platform: its data folder, starting it, submitting to it, the user's own Python."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from danlu.cli.options import own_interpreter
from danlu.cli.platform import Kept
from danlu.cli.submitting import submit
from danlu.cli.terminal import Messages
from danlu.cli.wording import not_kept
from danlu.client.connection import Connection, data_folder
from danlu.client.credentials import Credentials
from danlu.client.starting import once_free
from danlu.config import default_home, parse
from danlu.domain.jobs import Attempt, Task
from danlu.domain.resources import Resources
from danlu.domain.specs import JobSpec
from danlu.errors import AlreadyRunning, PlatformError, Unavailable


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"DANLU_HOME": "/x/y"}, Path("/x/y")),
        ({"XDG_DATA_HOME": "/share"}, Path("/share/danlu")),
        ({"XDG_DATA_HOME": "relative"}, Path.home() / ".local" / "share" / "danlu"),
        ({}, Path.home() / ".local" / "share" / "danlu"),
    ],
)
def test_the_data_folder(environ, folder):
    assert default_home(environ, root=False) == folder
    assert data_folder(environ) == default_home(environ, root=os.geteuid() == 0)
    assert default_home({}, root=True) == Path("/var/lib/danlu")


def test_a_start_is_repeated_until_an_older_server_has_ended(tmp_path):
    wanted = Connection("http://127.0.0.1:7070", Credentials("key"), tmp_path)
    answers: list[Connection | Exception] = [AlreadyRunning(), AlreadyRunning(), wanted]

    def attempt() -> Connection:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert once_free(tmp_path, attempt, timeout_s=60, retry_s=0) == wanted
    answers = [AlreadyRunning("pid 1 has it")]
    with pytest.raises(AlreadyRunning, match="pid 1"):
        once_free(tmp_path, attempt, timeout_s=0, retry_s=0)


class Lost:
    """A client that fails to submit."""

    def __init__(self, error: BaseException) -> None:
        self.error, self.job = error, ""

    def call(self, operation: str, path: dict[str, str], *, once_sent_s: float, **_: Any) -> None:
        assert (operation, once_sent_s >= 10) == ("jobs.submit", True)
        self.job = path["job"]
        raise self.error


def test_a_submission_whose_answer_is_lost_names_the_job(capfd):
    client = Lost(Unavailable("gone", next_step="is it running?", sent=True))
    with pytest.raises(Unavailable) as raised:
        submit(client, JobSpec(command="x"), Messages())
    assert f"danlu get job {client.job}\nis it running?" in raised.value.next_step
    client = Lost(Unavailable("gone", next_step="is it running?"))
    with pytest.raises(Unavailable) as raised:
        submit(client, JobSpec(command="x"), Messages())
    assert raised.value.next_step == "is it running?"
    client = Lost(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        submit(client, JobSpec(command="x"), Messages())
    assert f"danlu get job {client.job}" in capfd.readouterr().err


@pytest.fixture
def shims(tmp_path, monkeypatch) -> Path:
    """A folder that is the whole PATH, outside of any virtual environment."""
    folder = tmp_path / "shims"
    folder.mkdir()
    for variable in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", str(folder))
    return folder


def script(file: Path, text: str) -> None:
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)


def test_a_shim_is_asked_which_python_it_starts(shims):
    script(shims / "python", "echo 'pyenv: no python here' >&2; exit 127")
    script(shims / "python3", f'exec "{sys.executable}" "$@"')
    assert own_interpreter() == sys.executable


def test_without_any_python_it_is_our_own(shims):
    script(shims / "python", "echo not-a-path")
    assert own_interpreter() == sys.executable


def test_the_python_of_an_active_environment_is_kept(shims, tmp_path, monkeypatch):
    script(shims / "python3", "exit 1")
    own = tmp_path / "venv" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.symlink_to(sys.executable)
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / "venv"))
    assert own_interpreter() == str(own)


def test_attempts_that_are_not_kept_are_told_with_the_reason():
    def attempt(number: int, **fields: Any) -> Attempt:
        job = "j" + "0" * 26
        return Attempt(
            id=f"{job}-{number}", project="p", created_at=0, updated_at=0, job_id=job, number=number, executor="local",
            tasks=(Task(node="n1", resources=Resources()),), **fields,
        )  # fmt: skip

    attempts = [attempt(1, collected=True), attempt(2, kept="no room\non the disk"), attempt(3)]
    assert not_kept(attempts) == ["attempt 2 is not kept yet: no room on the disk"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("DANLU_EXECUTOR", "kubernets"), ("DANLU_POD_UID_BASE", "abc"), ("DANLU_POD_UID_BASE", "0"),
     ("DANLU_START_TIMEOUT_S", "nan"), ("DANLU_POD_ENVIRONMENTS", "here"), ("DANLU_ENVIRONMENT_IMAGES", "tf1")],
)  # fmt: skip
def test_a_wrong_variable_is_named_with_its_value(name: str, value: str) -> None:
    environ = {"DANLU_EXECUTOR": "kubernetes", "DANLU_POD_URL": "http://danlu:7070", name: value}
    with pytest.raises(PlatformError) as caught:
        parse([], environ)
    assert name in caught.value.message
    assert repr(value) in caught.value.message
    assert "environment-variables.md" in caught.value.next_step


def test_gpus_of_this_machine_mean_nothing_to_pods() -> None:
    with pytest.raises(PlatformError, match="--gpus 8 is for jobs on this machine"):
        parse(["--gpus", "8"], {"DANLU_EXECUTOR": "kubernetes", "DANLU_POD_URL": "http://danlu:7070"})


def test_for_how_long_events_are_kept_is_given_on():
    flags = Kept(events_kept_days=30.0, max_events=5000).flags()
    found = parse(flags, {"DANLU_HOME": "/x"})
    assert (found.events_kept_days, found.max_events) == (30.0, 5000)
    assert (parse([], {}).events_kept_days, parse([], {}).max_events) == (400.0, 10_000_000)
    assert Kept().flags() == []
