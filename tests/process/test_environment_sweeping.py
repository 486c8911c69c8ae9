"""What nobody wants is removed, what a job uses is not; killed in the middle, nothing half is left that anybody would use."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from danlu.api.bodies import EnvironmentRequest, PruneRequest, StopRequest
from danlu.domain.environments import Environment
from danlu.domain.views import Pruned
from danlu.environments import sweeping
from danlu.environments.sources import source_for
from danlu.environments.uv_command import Uv
from danlu.errors import Conflict, NotFound
from tests.process.platform import Server, processes_with, until
from tests.process.test_environment_builder import entries, made
from tests.process.test_environment_safety import make_wheel

BUILD_TIMEOUT_S = 90.0


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """A folder that is all of the package index, with the wheel ``thing``."""
    folder = tmp_path / "wheels"
    make_wheel(folder, {"thing.py": "x = 1\n" + "# large\n" * 20_000})
    return folder


@pytest.fixture
def server(home: Path, index: Path) -> Any:
    """A running server whose package index is that folder."""
    running = Server(home, environ={"UV_FIND_LINKS": str(index), "UV_NO_INDEX": "1"})
    assert running.start().get("ready")
    yield running
    running.close()


def build(server: Server, **asked: str) -> Environment:
    """Asks for an environment and waits until its build has ended."""
    with server.client() as client:
        env: Environment = client.call("environments.build", body=EnvironmentRequest.model_validate(asked))

        def ended() -> bool:
            nonlocal env
            env = client.call("environments.get", {"environment": env.id})
            return env.state not in ("wanted", "building")

        until(ended, BUILD_TIMEOUT_S, "the build ends")
    return env


def folder_of(home: Path, env: Environment) -> Path:
    assert env.lock_digest is not None
    return home / "environments" / env.lock_digest


def test_a_used_environment_stays_and_a_removed_one_goes_and_comes_again(home: Path, server: Server) -> None:
    env = build(server, requirements="thing")
    assert env.state == "ready"
    folder = folder_of(home, env)
    script = "import thing, time; print('begun', flush=True); time.sleep(600)"
    fields: dict[str, Any] = {"env": "python", "requirements": "thing", "interpreter": None}
    job = server.submit("python", "-c", script, **fields)
    until(lambda: server.job(job.id).state == "running", BUILD_TIMEOUT_S, "the job runs")
    with server.client() as client:
        with pytest.raises(Conflict, match=f"in use by {job.name}") as caught:
            client.call("environments.remove", {"environment": env.name})
        assert "danlu stop" in caught.value.next_step
        pruned: Pruned = client.call("environments.prune", body=PruneRequest(unused_for=0.001))
        assert pruned.environments == ()
        assert client.call("environments.show", {"environment": env.name}).used_by == (job.name,)
        client.call("jobs.stop", {"job": job.id}, body=StopRequest(grace=0.1))
        server.wait(job.id)
        assert (folder / "bin" / "python").exists()

        would: Pruned = client.call("environments.prune", body=PruneRequest(unused_for=0.001, dry_run=True))
        assert [(one.id, one.state) for one in would.environments] == [(env.id, "ready")]
        assert would.size_bytes == env.size_bytes
        assert client.call("environments.get", {"environment": env.id}).state == "ready"
        assert not client.call("environments.prune", body=PruneRequest(dry_run=True)).environments  # 30 days

        assert client.call("environments.remove", {"environment": env.name}).state == "removed"
        assert client.call("environments.remove", {"environment": env.id}).state == "removed"
    until(lambda: entries(home) == [], BUILD_TIMEOUT_S, "its folder is removed")
    until(lambda: not list((home / "environments").glob(".shared/*")), BUILD_TIMEOUT_S, "what only it had is removed")

    again = server.submit("python", "-c", "import thing; print('again')", **fields)
    assert server.wait(again.id).state == "succeeded"
    assert folder.is_dir()


def test_folders_that_no_record_knows_go_when_the_server_starts(home: Path, server: Server) -> None:
    env = build(server, requirements="thing")
    server.end()
    stray = home / "environments" / ("0" * 64)
    (stray / "lib").mkdir(parents=True)
    other = home / "environments" / "not-an-environment"
    other.mkdir()
    assert server.start().get("ready")
    until(lambda: not stray.exists(), BUILD_TIMEOUT_S, "the stray folder is removed")
    assert folder_of(home, env).is_dir()
    assert other.is_dir()


def test_a_folder_that_is_linked_in_is_never_swept(home: Path, index: Path, tmp_path: Path) -> None:
    stray = tmp_path / "shared" / ("0" * 64)
    stray.mkdir(parents=True)
    home.mkdir(mode=0o711)
    (home / "environments").symlink_to(tmp_path / "shared")
    assert sweeping.folders(home / "environments") == frozenset()
    assert sweeping.folders(tmp_path / "shared") == {"0" * 64}


def test_killed_while_it_removes_leaves_nothing_that_the_next_build_does_not_clear(home: Path, index: Path) -> None:
    home.mkdir(mode=0o711)
    program = f"""
import os, signal
from pathlib import Path
from danlu.environments.builder import Builder
from danlu.environments.sources import source_for
builder = Builder(Path({str(home / "environments")!r}), Path({str(home / "uv")!r}))
digest = builder.build(source_for("python", "thing", None), lambda _: None).lock_digest
builder.doom([digest])
os.kill(os.getpid(), signal.SIGKILL)
"""
    environ = {**os.environ, "UV_FIND_LINKS": str(index), "UV_NO_INDEX": "1"}
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environ)
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    assert [name[:5] for name in entries(home)] == [".new-"]
    built = made(home).build(source_for("python", None, None), lambda _: None)
    assert entries(home) == [built.lock_digest]


def test_what_is_being_built_is_not_taken(home: Path) -> None:
    home.mkdir(mode=0o711)
    root = home / "environments"
    digest = made(home).build(source_for("python", None, None), lambda _: None).lock_digest
    first = sweeping.doom(root, [digest])
    assert len(first) == 1
    assert sweeping.doom(root, [digest]) == []  # its lock is held
    sweeping.discard(root, first, [])
    assert entries(home) == []
    assert list((root / ".locks").iterdir()) == []


def test_the_cache_of_uv_is_bounded(tmp_path: Path) -> None:
    cache = tmp_path / "uv"
    uv = Uv(cache, tmp_path / "pythons")
    assert uv.answer(["cache", "prune"], timeout_s=60) is not None  # uv marks the folder as its own
    (cache / "archive-v0").mkdir(parents=True, exist_ok=True)
    (cache / "archive-v0" / "large").write_bytes(os.urandom(1_000_000))
    assert sweeping.cache_bytes(cache) >= 1_000_000
    assert not sweeping.bound_cache(cache, uv, 2_000_000)
    assert (cache / "archive-v0" / "large").exists()
    os.link(cache / "archive-v0" / "large", tmp_path / "environment")  # what an environment has costs nothing more
    assert sweeping.cache_bytes(cache) < 1_000_000
    (tmp_path / "environment").unlink()
    assert sweeping.bound_cache(cache, uv, 500_000)
    assert sweeping.cache_bytes(cache) <= 500_000
    linked = tmp_path / "linked"
    linked.symlink_to(tmp_path)
    assert not sweeping.bound_cache(linked, uv, 0)


@pytest.mark.parametrize(
    ("requirements", "said", "step"),
    [
        ("thing==9\n", "there is no version of thing==9", "mend the requirements"),
        ("oldthing\n", "no wheels|Python ABI tag|CPython 3.6", "a wheel"),
        ("sdistthing\n", "wheels only", "for which the package has a wheel"),
    ],
    ids=["no such version", "no wheel for this Python", "no wheel at all"],
)
def test_requirements_that_cannot_be_had_fail_the_job_and_leave_nothing(
    home: Path, server: Server, index: Path, requirements: str, said: str, step: str
) -> None:
    (index / "oldthing-1.0-cp36-cp36m-manylinux1_x86_64.whl").write_bytes(
        (index / "thing-1.0-py3-none-any.whl").read_bytes()
    )
    (index / "sdistthing-1.0.tar.gz").write_bytes(b"")  # it is never opened: nothing is built from sources
    job = server.submit("python", "-c", "", env="python", requirements=requirements, interpreter=None)
    ended = server.wait(job.id)
    assert (ended.state, ended.reason) == ("failed", "EnvironmentFailed")

    assert re.search(said, ended.message), ended.message
    assert step in ended.message
    assert str(home) not in ended.message
    assert ended.attempts == 0
    assert entries(home) == []
    assert list((home / "environments" / ".locks").iterdir()) == []
    assert len(processes_with(str(home))) == 1  # the server
    with server.client() as client, pytest.raises(NotFound):
        client.call("environments.get", {"environment": "thing"})
