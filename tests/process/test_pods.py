"""A runner in a pod and a real server: what it fetches, what it delivers, how it ends. Processes play the pods."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from danlu.domain.jobs import JobState, Reason
from tests.process.pods import Pods

TIMEOUT_S = 60.0


@pytest.fixture
def pods() -> Iterator[Pods]:
    outer = Path(tempfile.mkdtemp(prefix="danlu-pods-", dir="/tmp"))
    made = Pods(outer / "home")
    assert made.start().get("ready")
    yield made
    made.close()
    shutil.rmtree(outer, ignore_errors=True)


def test_a_job_in_a_pod_from_beginning_to_end(pods: Pods) -> None:
    program = (
        "import danlu, os\n"
        "print('devices', os.environ['CUDA_VISIBLE_DEVICES'], os.getcwd())\n"
        "[danlu.log(step=n, loss=1.0 / n) for n in range(1, 501)]\n"
        "print('\\n'.join(str(n) for n in range(2000)))\n"
    )
    job = pods.submit(sys.executable, "-S", "-c", program)
    ended = pods.wait(job.id)
    assert (ended.state, ended.reason) == (JobState.SUCCEEDED, Reason.COMPLETED), pods.container_log(f"{job.id}-1")
    work = pods.root(f"{job.id}-1") / "attempt" / "work"
    assert pods.lines(job.id, 1) == [
        f"devices GPU-of-the-plugin {work}".replace("over-", ""),
        *[str(n) for n in range(2000)],
    ]
