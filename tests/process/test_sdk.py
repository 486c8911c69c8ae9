"""A program that uses Danlu by ``import danlu``, on a real platform."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pandas
import pytest

import danlu
from danlu import errors
from danlu.api.bodies import PlatformStop
from danlu.client import starting
from tests.process.platform import Server

PROGRAM = """
import danlu, os, sys
for step in range(3):
    print("step", step, flush=True)
    danlu.log(step=step, loss=1 / (step + 1))
print("bad", file=sys.stderr)
open(os.path.join(danlu.output_dir(), "model.txt"), "w").write(sys.argv[1])
raise SystemExit(int(sys.argv[2]))
"""
LONG = "import time; print('it runs', flush=True); time.sleep(600)"


@pytest.fixture
def platform(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[danlu.Platform]:
    monkeypatch.setenv("DANLU_HOME", str(server.home))
    for name in ("DANLU_URL", "DANLU_TOKEN", "DANLU_TOKEN_FILE", "DANLU_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    with danlu.connect() as found:
        yield found


@pytest.fixture
def code(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "train.py").write_text(PROGRAM)
    return folder


def test_a_whole_life(platform: danlu.Platform, code: Path, tmp_path: Path) -> None:
    job = danlu.run([sys.executable, "train.py", "a", "3"], code=code, env="host", cpu=0.1, name="first")
    assert job.wait(60) is job
    assert (job.state, job.exit_code, job.ended, job.succeeded) == ("failed", 3, True, False)
    lines = list(job.logs(follow=True))
    assert [line for line in lines if line.stream == "stdout"] == ["step 0", "step 1", "step 2"]
    assert [(line, line.task) for line in lines if line.stream == "stderr"] == [("bad", "main-0")]
    assert next(job.logs(tail=1, task="main-0")) in ("step 2", "bad")
    table = job.metrics()
    assert isinstance(table, pandas.DataFrame)
    assert table["loss"].to_dict() == {0.0: 1.0, 1.0: 0.5, 2.0: 1 / 3}
    assert set(job.series("loss")) == {"loss"}
    again = job.retry(cpu=0.2, name="again", code=code).wait(60)
    assert (again.spec.cpu, again.record.retry_of, again.exit_code) == (0.2, job.id, 3)
    about = job.describe()
    assert about.job.id == job.id
    assert [attempt.number for attempt in about.attempts] == [1]
    folder = job.download(tmp_path / "left")
    assert (folder / "model.txt").read_text() == "a"
    assert [one.files for one in job.artifacts()] == [1]
    assert [one.name for one in danlu.jobs()] == ["again", "first"]
    assert [one.name for one in platform.jobs(state="failed", limit=1)] == ["again"]
    assert danlu.job("first").id == job.id
    assert repr(job) == "<danlu.Job first: failed, ProcessFailed>"


def test_a_gang_by_role_and_rank(platform: danlu.Platform) -> None:
    job = platform.run(
        [sys.executable, "-c", "import os; print(os.environ['DANLU_TASK'])"], code=None, env="host", cpu=0.1,
        roles={"ps": {}, "worker": {"replicas": 2}}, framework="none",
    ).wait(60)  # fmt: skip
    assert job.succeeded, job.message
    assert sorted(job.logs(follow=True)) == ["ps-0", "worker-0", "worker-1"]
    assert sorted(job.logs(role="worker")) == ["worker-0", "worker-1"]
    (line,) = job.logs(task="worker-1")
    assert (line, line.task, line.attempt) == ("worker-1", "worker-1", 1)
    with pytest.raises(errors.NotFound, match="no role 'wroker'"):
        list(job.logs(role="wroker"))


def test_waiting_and_stopping(platform: danlu.Platform) -> None:
    job = platform.run([sys.executable, "-c", LONG], code=None, env="host", cpu=0.1)
    assert job.wait(60, state="running").state == "running"
    first = next(job.logs(follow=True))
    assert first == "it runs"
    with pytest.raises(TimeoutError, match=r"has not ended: running"):
        job.wait(timeout_s=0.1)
    with pytest.raises(errors.Conflict, match="has not ended"):
        job.retry()
    with pytest.raises(errors.InvalidRequest, match="not a job's state"):
        job.wait(state="runing")
    waiting = threading.Thread(target=job.wait, args=(60,))
    waiting.start()
    platform.job(job.id).stop(grace="1s")
    waiting.join(60)
    assert job.state == "cancelled"
    with pytest.raises(errors.NotFound, match="left nothing"):
        job.download("nowhere")


def test_errors_are_the_servers(platform: danlu.Platform, code: Path) -> None:
    with pytest.raises(errors.UnknownEnvironment) as caught:
        platform.run("x", code=None, env="tensorflow1")
    assert "did you mean tensorflow-1?" in caught.value.next_step
    with pytest.raises(errors.NeverFits):
        platform.run("x", code=None, gpu=999)
    with pytest.raises(errors.InvalidSpec, match="memory: 'lots' is not an amount"):
        platform.run("x", code=None, memory="lots")
    with pytest.raises(errors.NotFound):
        danlu.job("nothing")
    with pytest.raises(errors.InvalidSpec, match="is not a folder"):
        platform.run("x", code=code / "absent")


def test_no_platform_is_an_error_until_one_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DANLU_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DANLU_URL", raising=False)
    with pytest.raises(errors.PlatformError, match="danlu is not running here"):
        danlu.run("x", code=None)
    with danlu.connect(start=True) as started:
        assert started.jobs() == []
        started._client.call("platform.stop", body=PlatformStop())
    starting._started[-1].wait(60)
