"""A runner in a pod and a real server: what it fetches, what it delivers, how it ends. Processes play the pods."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from danlu.api.bodies import MetricsQuery, StopRequest
from danlu.client.code import send
from danlu.domain.jobs import Attempt, Job, JobState, Reason
from danlu.domain.secrets import SecretRequest
from danlu.domain.trees import address_of
from danlu.runner import frames
from danlu.runner.living import OVER
from tests.process.between import BUSY, INGRESS, Between
from tests.process.platform import processes_with, until
from tests.process.pods import PYTHON, URL, Pods, alive, start
from tests.process.test_preemption import preempt
from tests.unit.test_sdk import python38

TIMEOUT_S = 60.0
COUNTING = (
    "import danlu, sys, time\n"
    "for n in range(int(sys.argv[1])):\n"
    "    print(n, flush=True)\n"
    "    danlu.log(step=n, loss=n)\n"
    "    time.sleep(float(sys.argv[2]))\n"
)


@pytest.fixture
def between() -> Iterator[Between]:
    made = Between()
    yield made
    made.close()


@pytest.fixture(params=["here", "3.8"])
def python(request: pytest.FixtureRequest) -> str:
    return python38() if request.param == "3.8" else sys.executable


@pytest.fixture
def pods(between: Between, python: str) -> Iterator[Pods]:
    outer = Path(tempfile.mkdtemp(prefix="danlu-pods-", dir="/tmp"))
    made = Pods(outer / "home", environ={URL: between.url, PYTHON: python})
    begin(made, between)
    yield made
    made.close()
    shutil.rmtree(outer, ignore_errors=True)


HERE = pytest.mark.parametrize("python", ["here"], indirect=True)
"""For what is no matter of the Python that the runner runs on."""


def begin(pods: Pods, between: Between) -> None:
    assert pods.start().get("ready")
    between.server = pods.url


def count(pods: Pods, lines: int, pause_s: float, **spec: Any) -> Job:
    return pods.submit(sys.executable, "-S", "-c", COUNTING, str(lines), str(pause_s), **spec)


def numbers(lines: int) -> list[str]:
    return [str(n) for n in range(lines)]


def losses(pods: Pods, job: Job) -> list[float]:
    with pods.client() as client:
        found = client.call("jobs.metrics", {"job": job.id}, query=MetricsQuery(name="loss", points=100_000))
    return [value for series in found.series for value in series.values]


def attempts(pods: Pods, job: Job) -> list[Attempt]:
    with pods.client() as client:
        return list(reversed(client.call("jobs.attempts", {"job": job.id}).items))


def begun(pods: Pods, job: Job, line: str = "0", attempt: int = 1) -> Path:
    """Waits until the first pod's program has printed a line; returns the pod's folder."""
    stdout = pods.root(f"{job.id}-{attempt}") / "attempt" / "main-0" / "stdout"
    until(lambda: stdout.exists() and line in stdout.read_text().splitlines(), TIMEOUT_S, f"it prints {line}")
    return pods.root(f"{job.id}-{attempt}")


def test_a_job_from_beginning_to_end(pods: Pods, tmp_path: Path) -> None:
    code = tmp_path / "code"
    (code / "deep" / "er").mkdir(parents=True)
    for n in range(300):
        (code / "deep" / f"{n}.txt").write_text(f"{n % 100}\n" * 1000)
    (code / "deep" / "er" / "same.txt").write_text("7\n" * 1000)
    (code / "deep" / "er" / "link").symlink_to("../7.txt")
    (code / "run.sh").write_text("#!/bin/sh\necho executed\n")
    (code / "run.sh").chmod(0o755)
    (code / "train.py").write_text(
        "import danlu, os, pathlib, subprocess\n"
        "print('devices', os.environ['CUDA_VISIBLE_DEVICES'])\n"
        "found = sorted(p for p in pathlib.Path().rglob('*.txt'))\n"
        "print(len(found), sum(int(p.read_text().split()[0]) for p in found))\n"
        "print(os.path.realpath('deep/er/link') == os.path.realpath('deep/7.txt'))\n"
        "subprocess.run(['./run.sh'])\n"
        "[danlu.log(step=n, loss=n) for n in range(500)]\n"
    )
    with pods.client() as client:
        sent = send(client, code, cache=tmp_path / "cache").fields()
    job = pods.submit(sys.executable, "-S", "train.py", **sent)
    ended = pods.wait(job.id)
    assert (ended.state, ended.reason) == (JobState.SUCCEEDED, Reason.COMPLETED), pods.container_log(f"{job.id}-1")
    expected = ["devices GPU-of-the-plugin", f"301 {3 * sum(range(100)) + 7}", "True", "executed"]
    assert sorted(pods.lines(job.id, 1)) == sorted(expected)
    assert losses(pods, job) == [float(n) for n in range(500)]
    assert pods.container_log(f"{job.id}-1") == ""
    assert not alive(pods.root(f"{job.id}-1"))
    with closing(sqlite3.connect(pods.home / "danlu.db", timeout=20)) as database:
        assert database.execute("SELECT count(*) FROM reports").fetchone() == (0,)  # nothing is left of them


@HERE
def test_a_server_that_is_killed_loses_nothing_and_has_nothing_twice(pods: Pods, between: Between) -> None:
    job = count(pods, 400, 0.01)
    for line in ("20", "150"):
        begun(pods, job, line)
        pods.kill()
        begun(pods, job, str(int(line) + 100))
        begin(pods, between)
    ended = pods.wait(job.id)
    assert ended.state is JobState.SUCCEEDED, pods.container_log(f"{job.id}-1")
    assert pods.lines(job.id, 1) == numbers(400)
    assert losses(pods, job) == [float(n) for n in range(400)]


@HERE
def test_a_job_that_ends_while_no_server_is_there(pods: Pods, between: Between) -> None:
    job = count(pods, 50, 0.01)
    root = begun(pods, job)
    pods.kill()
    until(lambda: any(e["event"] == "ended" for e in pods.status(f"{job.id}-1")), TIMEOUT_S, "it ends")
    assert alive(root)
    begin(pods, between)
    assert pods.wait(job.id).state is JobState.SUCCEEDED
    assert pods.lines(job.id, 1) == numbers(50)
    until(lambda: not alive(pods.root(f"{job.id}-1")), TIMEOUT_S, "its pod ends")


def test_connections_that_are_cut_anywhere(pods: Pods, between: Between, tmp_path: Path) -> None:
    """In mid-piece of a log, in the middle of an answer, while code is fetched."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "large.bin").write_bytes(os.urandom(2 << 20))
    with pods.client() as client:
        sent = send(client, code, cache=tmp_path / "cache").fields()
    between.cuts = [
        ("down", 1 << 20),
        ("down", 1 << 19),
        ("up", 300_000),
        ("up", 100_000),
        ("up", 50_000),
        ("down", 900),
    ]
    wordy = "import os\nprint(os.path.getsize('large.bin'))\nfor n in range(60000): print(f'{n:020d}')\n"
    job = pods.submit(sys.executable, "-S", "-c", wordy, **sent)
    assert pods.wait(job.id).state is JobState.SUCCEEDED, pods.container_log(f"{job.id}-1")
    assert pods.lines(job.id, 1) == [str(2 << 20), *(f"{n:020d}" for n in range(60_000))]
    assert len(between.cut) >= 5


@HERE
def test_who_answers_in_the_servers_place_ends_nothing(pods: Pods, between: Between) -> None:
    job = count(pods, 300, 0.02)
    begun(pods, job, "10")
    for answer, line in ((INGRESS, "60"), (BUSY, "120")):
        between.says = answer
        begun(pods, job, line)
    between.says = b""
    assert pods.wait(job.id).state is JobState.SUCCEEDED
    assert pods.lines(job.id, 1) == numbers(300)


@HERE
def test_a_server_that_does_not_answer(pods: Pods, between: Between) -> None:
    """What is sent again after its time is over is there once."""
    job = count(pods, 500, 0.02)
    begun(pods, job, "10")
    between.held.set()
    until(lambda: "timed out" in pods.container_log(f"{job.id}-1"), TIMEOUT_S, "its time is over")
    between.held.clear()
    assert pods.wait(job.id).state is JobState.SUCCEEDED
    assert pods.lines(job.id, 1) == numbers(500)


def test_a_user_stops_it(pods: Pods) -> None:
    program = (
        "import signal, sys, time\n"
        "def told(*_):\n"
        "    print('told', flush=True)\n"
        "    sys.exit(1)\n"
        "signal.signal(signal.SIGTERM, told)\n"
        "print(0, flush=True)\n"
        "time.sleep(1000)\n"
    )
    job = pods.submit(sys.executable, "-S", "-c", program)
    begun(pods, job)
    with pods.client() as client:
        client.call("jobs.stop", {"job": job.id}, body=StopRequest())
    ended = pods.wait(job.id)
    assert (ended.state, ended.attempts) == (JobState.CANCELLED, 1)
    assert pods.lines(job.id, 1) == ["0", "told"]


@HERE
def test_it_is_stopped_before_it_has_begun(pods: Pods, between: Between) -> None:
    between.says = BUSY
    job = pods.submit(sys.executable, "-c", "print('never')")
    until(lambda: pods.root(f"{job.id}-1").exists() and alive(pods.root(f"{job.id}-1")), TIMEOUT_S, "its pod begins")
    with pods.client() as client:
        client.call("jobs.stop", {"job": job.id}, body=StopRequest())
    between.says = b""
    assert pods.wait(job.id).state is JobState.CANCELLED
    assert "never" not in pods.lines(job.id, 1)


@HERE
@pytest.mark.parametrize(("lost", "why"), [("tree", "blob"), ("file", "broke off")])
def test_code_that_is_gone_is_the_platforms_fault(
    pods: Pods, between: Between, tmp_path: Path, lost: str, why: str
) -> None:
    """It is said, and the job is tried again without a loss of its own attempts."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "train.py").write_text("print('never')\n")
    with pods.client() as client:
        sent = send(client, code, cache=tmp_path / "cache").fields()
    between.says = BUSY
    job = pods.submit(sys.executable, "train.py", **sent)
    until(lambda: pods.root(f"{job.id}-1").exists() and alive(pods.root(f"{job.id}-1")), TIMEOUT_S, "its pod begins")
    digest = {"tree": sent["code"], "file": address_of((code / "train.py").read_bytes())}[lost].partition(":")[2]
    gone = [path for path in (pods.home / "blobs").rglob("*") if path.is_file() and digest[2:] in path.name]
    assert gone
    for path in gone:
        path.unlink()
    between.says = b""
    until(lambda: len(attempts(pods, job)) > 1, TIMEOUT_S, "it is begun again")
    first = attempts(pods, job)[0]
    assert first.reason is Reason.RUNNER_LOST
    assert why in first.message


@HERE
def test_a_pod_that_is_told_to_end_before_it_has_begun(pods: Pods, between: Between) -> None:
    between.says = BUSY
    job = pods.submit(sys.executable, "-c", "print('never')")
    root = pods.root(f"{job.id}-1")
    until(
        lambda: "does not answer" in (root / "container.log").read_text() if root.exists() else False,
        TIMEOUT_S,
        "it asks",
    )
    os.kill(pods.pid(f"{job.id}-1"), signal.SIGTERM)
    until(lambda: any(e["event"] == "ended" for e in pods.status(f"{job.id}-1")), TIMEOUT_S, "it ends")
    assert not any(event["event"] == "started" for event in pods.status(f"{job.id}-1"))
    between.says = b""
    until(lambda: len(attempts(pods, job)) > 1, TIMEOUT_S, "it is begun again")


@HERE
def test_a_notice_is_heard(pods: Pods) -> None:
    program = (
        "import danlu, sys, time\n"
        "print(0, flush=True)\n"
        "while not danlu.preempted(): time.sleep(0.01)\n"
        "print('makes way', flush=True)\n"
    )
    job = pods.submit(sys.executable, "-S", "-c", program, notice=30)
    begun(pods, job)
    preempt(pods, job)
    until(lambda: "makes way" in pods.lines_so_far(job.id, 1), TIMEOUT_S, "it makes way")
    until(lambda: len(attempts(pods, job)) > 1, TIMEOUT_S, "it is begun again")
    assert attempts(pods, job)[0].reason is Reason.PREEMPTED


@HERE
def test_an_attempt_whose_place_was_taken_ends_at_once(pods: Pods, between: Between) -> None:
    """Its node was cut off, and is there again: it must not go on beside the attempt that took its place."""
    mark = f"mark-{time.time_ns()}"
    job = pods.submit(sys.executable, "-S", "-c", "import time; print(0, flush=True); time.sleep(1000)", mark)
    root = begun(pods, job)
    between.held.set()
    (root / "lost").touch()
    until(lambda: len(attempts(pods, job)) > 1, TIMEOUT_S, "another takes its place")
    assert alive(root)
    pid = pods.pid(f"{job.id}-1")
    between.held.clear()
    until(lambda: not alive(pods.root(f"{job.id}-1")), TIMEOUT_S, "its pod ends")
    begun(pods, job, attempt=2)
    own = {found for found in processes_with(mark) if f"{job.id}-1" in Path(f"/proc/{found}/environ").read_text()}
    assert not own, f"pod {pid} has left {own}"


@HERE
def test_nobody_is_told_anything_by_a_wrong_token(pods: Pods) -> None:
    job = count(pods, 100_000, 0.05)
    root = begun(pods, job)
    other = pods.home / "pods" / "x" / "main-0"
    shutil.copytree(root / "order", other / "order")
    (other / "order" / "token").write_text((root / "order" / "token").read_text()[:-1] + "?")
    order = json.loads((root / "order" / "order.json").read_text())
    order["checkpoint_dir"] = str(other / "checkpoints")
    (other / "order" / "order.json").write_text(json.dumps(order))
    assert start(other).wait(TIMEOUT_S) == OVER
    assert "does not know the attempt's token" in (other / "container.log").read_text()
    assert not (other / "attempt" / "main-0").exists() or not (other / "attempt" / "main-0" / "stdout").exists()


def test_a_pod_that_is_told_to_end_delivers_what_there_is(pods: Pods) -> None:
    job = count(pods, 100_000, 0.01)
    begun(pods, job, "50")
    os.kill(pods.pid(f"{job.id}-1"), signal.SIGTERM)
    until(lambda: len(attempts(pods, job)) > 1, TIMEOUT_S, "it is begun again")
    first = attempts(pods, job)[0]
    assert "its pod was told to end" in first.message
    until(lambda: attempts(pods, job)[0].collected, TIMEOUT_S, "all of it is kept")
    lines = pods.lines(job.id, 1)
    assert len(lines) > 50
    assert lines == numbers(len(lines))


def test_a_runner_that_is_killed_in_its_pod(pods: Pods) -> None:
    job = count(pods, 100_000, 0.01, variables={"MARK": "x"})
    begun(pods, job, "50")
    runner = next(event["pid"] for event in pods.status(f"{job.id}-1") if event["event"] == "runner")
    os.kill(runner, signal.SIGKILL)
    until(lambda: len(attempts(pods, job)) > 1, TIMEOUT_S, "it is begun again")
    until(lambda: attempts(pods, job)[0].collected, TIMEOUT_S, "all of it is kept")
    assert attempts(pods, job)[0].reason is Reason.RUNNER_LOST
    lines = pods.lines(job.id, 1)
    assert len(lines) > 50
    assert lines == numbers(len(lines))


@HERE
def test_secrets_go_through_memory_and_are_hidden(pods: Pods) -> None:
    value = "hf_" + "a1b2c3d4" * 4
    with pods.client() as client:
        client.call("secrets.set", {"secret": "TOKEN"}, body=SecretRequest(value=value))
    program = (
        "import os\n"
        "print('token', os.environ['TOKEN'])\n"
        "print('file', open(os.environ['TOKEN_FILE']).read() == os.environ['TOKEN'])\n"
    )
    job = pods.submit(
        sys.executable, "-S", "-c", program, secrets={"TOKEN": "TOKEN", "TOKEN_FILE": {"secret": "TOKEN", "file": True}}
    )
    assert pods.wait(job.id).state is JobState.SUCCEEDED, pods.container_log(f"{job.id}-1")
    assert pods.lines(job.id, 1) == ["token " + "*" * len(value), "file True"]
    root = pods.root(f"{job.id}-1")
    files = [path for path in root.rglob("*") if path.is_file() and path.name != "stdout"]
    assert files
    assert not [path for path in files if value.encode() in path.read_bytes()]


def test_a_session_goes_through_the_pods_door(pods: Pods, python: str) -> None:
    """What Kubernetes executes in the pod carries a session's frames between its standard files and the runner."""
    job = count(pods, 100_000, 0.05)
    root = begun(pods, job)
    request = {"command": ["/bin/sh", "-c", "echo heard $DANLU_TASK; exit 5"], "task": "main-0"}
    command = [python, "-I", "-S", str(pods.home / "pods" / "runner.pyz"), "enter", "main-0"]
    environ = {"DANLU_POD_ROOT": str(root)}
    with subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as session:
        assert session.stdin is not None
        assert session.stdout is not None
        session.stdin.write(frames.encode_json(frames.REQUEST, request))
        session.stdin.flush()  # and it stays open: who closes it is gone
        said = session.stdout.read()
        assert session.wait(TIMEOUT_S) == 0
    assert b"heard main-0" in said
    assert b'"exit_code": 5' in said


@HERE
@pytest.mark.parametrize(("chief", "state"), [("0", JobState.SUCCEEDED), ("3", JobState.FAILED)])
def test_a_gang_of_pods_ends_as_one(pods: Pods, chief: str, state: JobState) -> None:
    lines = {"chief": f"sleep 1; exit {chief}", "ps": "sleep 1000"}
    roles = {role: {"command": ["/bin/sh", "-c", line]} for role, line in lines.items()}
    job = pods.submit("/bin/true", framework="tensorflow", roles=roles)
    ended = pods.wait(job.id)
    assert ended.state is state, ended.message
    told = {task.role: task for task in attempts(pods, job)[0].tasks}
    assert told["chief"].exit_code == int(chief)
    assert told["ps"].stopped
