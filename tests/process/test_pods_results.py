"""What programs in pods save and leave, with a real runner and a real server: it outlives the pod, whatever ends that."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from danlu.client.artifacts import fetch, left_by
from danlu.domain.jobs import Job, JobState, Reason
from danlu.runner.formats import DELIVERED, parse_status
from tests.process.between import Between
from tests.process.platform import until
from tests.process.pods import Pods
from tests.process.test_pods import HERE, TIMEOUT_S, attempts, begun, between, pods, python
from tests.process.test_preemption import preempt

__all__ = ["between", "pods", "python"]
TRAINING = (
    "import danlu, os, sys, time\n"
    "path = danlu.latest_checkpoint()\n"
    "step = int(open(path).read(20)) if path else 0\n"
    "print('from', step, flush=True)\n"
    "while step < int(sys.argv[1]):\n"
    "    step += 1\n"
    "    final = os.path.join(danlu.checkpoint_dir(), f'step-{step}')\n"
    "    with open(final + '.tmp', 'w') as file:\n"
    "        file.write(f'{step:20}' + 'x' * (step > 1) * int(sys.argv[2]))\n"
    "    os.replace(final + '.tmp', final)\n"
    "    while not os.path.exists(os.path.join(os.environ['DANLU_OUTPUT_DIR'], f'go-{step}')): time.sleep(0.02)\n"
)
"""It saves a step, and waits until it may take the next one."""


def train(pods: Pods, steps: int, size: int = 0, **spec: Any) -> Job:
    return pods.submit(sys.executable, "-S", "-c", TRAINING, str(steps), str(size), **spec)


def delivered(root: Path) -> list[str]:
    """Returns the names of the checkpoints that have left a pod."""
    path = root / "attempt" / DELIVERED
    return sorted(json.loads(path.read_text())) if path.exists() else []


def go(root: Path, step: int) -> None:
    (root / "attempt" / "outputs" / f"go-{step}").touch()


def lose(pods: Pods, root: Path, attempt_id: str) -> None:
    """The pod's node is gone, with everything on it."""
    runner = next(event["pid"] for event in parse_status((root / "attempt" / "status").read_bytes()))
    for pid in (pods.pid(attempt_id), runner):
        os.kill(pid, signal.SIGKILL)
    (root / "lost").touch()


def second(pods: Pods, job: Job) -> None:
    """Waits until the next attempt's program has begun."""
    until(lambda: len(attempts(pods, job)) > 1, TIMEOUT_S, "it is begun again")
    until(lambda: "from" in " ".join(pods.lines_so_far(job.id, 2)), TIMEOUT_S, "it goes on")


def test_training_goes_on_from_what_left_the_pod(pods: Pods) -> None:
    job = train(pods, 3)
    root = pods.root(f"{job.id}-1")
    until(lambda: delivered(root) == ["step-1"], TIMEOUT_S, "the first step is delivered")
    go(root, 1)
    until(lambda: delivered(root) == ["step-1", "step-2"], TIMEOUT_S, "the second one too")
    until(lambda: attempts(pods, job)[0].saved_as == "step-2", TIMEOUT_S, "and this is told")
    lose(pods, root, f"{job.id}-1")
    second(pods, job)
    assert pods.lines_so_far(job.id, 2)[0] == "from 2"
    until(lambda: attempts(pods, job)[1].resumed_from is not None, TIMEOUT_S, "it is told what it goes on from")
    assert Path(str(attempts(pods, job)[1].resumed_from)).name == "step-2"
    other = pods.root(f"{job.id}-2")
    until(lambda: delivered(other) == ["step-2", "step-3"], TIMEOUT_S, "it goes on saving")
    go(other, 3)
    assert pods.wait(job.id).state is JobState.SUCCEEDED


@HERE
def test_a_pod_that_is_killed_while_it_sends_leaves_the_one_before(pods: Pods, between: Between) -> None:
    job = train(pods, 3, 30_000_000)
    root = pods.root(f"{job.id}-1")
    until(lambda: delivered(root) == ["step-1"], TIMEOUT_S, "the first step is delivered")
    between.held.set()
    go(root, 1)
    sending = root / "checkpoints" / ".danlu" / "sending"
    until(lambda: (sending / "step-2").exists(), TIMEOUT_S, "the second step is being sent")
    lose(pods, root, f"{job.id}-1")
    between.held.clear()
    second(pods, job)
    assert pods.lines_so_far(job.id, 2)[0] == "from 1"


@HERE
def test_connections_that_are_cut_in_the_middle_of_a_checkpoint(pods: Pods, between: Between) -> None:
    job = train(pods, 2, 30_000_000)
    root = pods.root(f"{job.id}-1")
    until(lambda: delivered(root) == ["step-1"], TIMEOUT_S, "the first step is delivered")
    between.cuts = [("up", most) for most in (3_000_000, 9_000_000)]
    go(root, 1)
    until(lambda: delivered(root) == ["step-1", "step-2"], TIMEOUT_S, "all of it has arrived")
    assert len(between.cut) == 2
    between.cuts = [("down", most) for most in (1_000_000, 7_000_000)]
    lose(pods, root, f"{job.id}-1")
    second(pods, job)
    assert pods.lines_so_far(job.id, 2)[0] == "from 2"
    assert len(between.cut) == 4
    assert (pods.root(f"{job.id}-2") / "checkpoints" / "step-2").stat().st_size == 30_000_020


@HERE
def test_a_notice_is_over_only_when_the_checkpoint_has_left_the_pod(pods: Pods, between: Between) -> None:
    program = (
        "import danlu, os, time\n"
        "print('from', danlu.latest_checkpoint(), flush=True)\n"
        "while not danlu.preempted(): time.sleep(0.01)\n"
        "final = os.path.join(danlu.checkpoint_dir(), 'last')\n"
        "with open(final + '.tmp', 'w') as file: file.write('x' * 9_000_000)\n"
        "os.replace(final + '.tmp', final)\n"
        "print('saved', flush=True)\n"
        "time.sleep(1000)\n"
    )
    job = pods.submit(sys.executable, "-S", "-c", program, notice=60)
    root = begun(pods, job, "from None")
    preempt(pods, job)
    until(lambda: "saved" in pods.lines_so_far(job.id, 1), TIMEOUT_S, "it has saved")
    between.held.set()
    sealed = root / "checkpoints" / ".danlu" / "sealed.json"
    until(sealed.exists, TIMEOUT_S, "it is proven")
    until(lambda: (root / "checkpoints" / ".danlu" / "sending").exists(), TIMEOUT_S, "it is being sent")
    between.held.clear()
    second(pods, job)
    root = pods.root(f"{job.id}-1")
    events = parse_status((root / "attempt" / "status").read_bytes())
    (exited,) = [event for event in events if event["event"] == "exited"]
    assert (root / "attempt" / DELIVERED).stat().st_mtime_ns <= exited["at"]
    first = attempts(pods, job)[0]
    assert (first.reason, first.saved_as) == (Reason.PREEMPTED, "last")
    assert pods.lines_so_far(job.id, 2)[0].endswith("/last")


@HERE
@pytest.mark.parametrize("code", [0, 3])
def test_what_a_gang_leaves_is_one_artifact(pods: Pods, tmp_path: Path, code: int) -> None:
    lines = {
        "chief": f"echo chief > model; sleep 1; exit {code}",
        "ps": "echo ps > model; mkdir logs; echo 1 > logs/a; sleep 1000",
    }
    roles = {role: {"command": ["/bin/sh", "-c", f"cd $DANLU_OUTPUT_DIR; {line}"]} for role, line in lines.items()}
    job = pods.submit("/bin/true", framework="tensorflow", roles=roles)
    ended = pods.wait(job.id)
    assert ended.state is (JobState.FAILED if code else JobState.SUCCEEDED), ended.message
    until(lambda: attempts(pods, job)[0].collected, TIMEOUT_S, "all of it is kept")
    with pods.client() as client:
        (artifact,) = left_by(client, job.id)
        fetch(client, artifact, tmp_path / "out")
    found = {
        str(path.relative_to(tmp_path / "out")): path.read_text()
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert found == {"model": "chief\n", "model.ps-0": "ps\n", "logs/a": "1\n"}
    assert artifact.partial is bool(code)
