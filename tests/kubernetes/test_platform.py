"""The whole product on a real cluster: two servers, PostgreSQL, S3, jobs as pods. What is killed changes nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from danlu.domain.jobs import Job, JobState, Reason
from tests.conftest import Cluster as PostgreSQL
from tests.examples.platform import ROOT
from tests.kubernetes import platform
from tests.kubernetes.cluster.images import PYTHON
from tests.kubernetes.conftest import Namespace
from tests.kubernetes.platform import Company
from tests.process.package_index import require_index
from tests.process.platform import Server, until
from tests.s3_server import S3Server

TIMEOUT_S = 240.0


@pytest.fixture
def company(namespace: Namespace, cluster: PostgreSQL, s3_server: S3Server) -> Iterator[Company]:
    with platform.company(namespace, cluster, s3_server) as made:
        yield made


def submit(server: Server, *command: str, **spec: Any) -> Job:
    return server.submit(*command, image=PYTHON, **spec)


def printed(server: Server, job: str, task: str, pattern: str) -> re.Match[str] | None:
    """Returns what is found in what a task's newest attempt has printed."""
    with server.client() as client:
        page = client.call("jobs.logs", {"job": job})
    text = "\n".join(chunk.data for chunk in page.chunks if chunk.task == task)
    return re.search(pattern, text)


def test_a_job_of_an_image_leaves_its_output_and_its_results(company: Company) -> None:
    server = company.servers[0]
    write = "import os; open(os.environ['DANLU_OUTPUT_DIR'] + '/model', 'w').write('weights'); print('done')"
    job = submit(server, "python3", "-c", write)
    ended = server.wait(job.id, TIMEOUT_S)
    assert ended.state is JobState.SUCCEEDED, (ended.reason, ended.message)
    other = company.servers[1]  # what one server was told, all know
    assert other.lines(job.id, 1) == ["done"]
    with other.client() as client:
        (artifact,) = client.call("jobs.artifacts", {"job": job.id}).items
    assert (artifact.files, artifact.size_bytes, artifact.partial) == (1, 7, False)
    until(lambda: company.namespace.pods() == [], TIMEOUT_S, "the pod is removed")


def test_a_pod_that_is_deleted_by_hand_is_begun_again(company: Company) -> None:
    server = company.servers[1]
    job = submit(server, "sh", "-c", "echo attempt $DANLU_ATTEMPT; [ $DANLU_ATTEMPT = 2 ] || sleep 1000", grace=1)
    until(lambda: printed(server, job.id, "main-0", "attempt 1") is not None, TIMEOUT_S, "it runs")
    (pod,) = company.namespace.pods()
    company.namespace.delete("pods", pod["metadata"]["name"])
    ended = server.wait(job.id, TIMEOUT_S)
    assert (ended.state, ended.attempts, ended.failures) == (JobState.SUCCEEDED, 2, 0)
    with server.client() as client:
        _, first = client.call("jobs.attempts", {"job": job.id}).items
    assert first.reason in (Reason.POD_DELETED, Reason.EVICTED)


def test_the_demos_distributed_training_outlives_a_killed_worker_and_a_killed_server(company: Company) -> None:
    """The very file of the demo: a parameter server and two workers, resumed from the checkpoint that is in the store."""
    require_index()
    leading, other = company.servers
    environ = {
        **os.environ,
        "DANLU_HOME": str(other.home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["danlu", "apply", "-f", "job.yaml", "-o", "name"], cwd=ROOT / "examples" / "digits-ps-tf1", env=environ,
        capture_output=True, text=True, timeout=TIMEOUT_S, check=True,
    )  # fmt: skip
    name = done.stdout.strip().rpartition("/")[2]
    with other.client() as client:
        job: Job = client.call("jobs.get", {"job": name})
    until(lambda: printed(other, job.id, "worker-0", r"\nstep +1\d\d\d ") is not None, TIMEOUT_S, "it trains")
    leading.kill()
    with other.client() as client:
        until(lambda: client.call("platform.get").leader.here, TIMEOUT_S, "the other server leads")
    (worker,) = [pod for pod in company.namespace.pods() if "-worker-1-" in pod["metadata"]["name"]]
    company.namespace.delete("pods", worker["metadata"]["name"], grace_s=0)
    ended = other.wait(job.id, 2 * TIMEOUT_S)
    assert ended.state is JobState.SUCCEEDED, (ended.reason, ended.message)
    with other.client() as client:
        second, first = client.call("jobs.attempts", {"job": job.id}).items
    assert first.reason in (Reason.POD_DELETED, Reason.EVICTED)
    assert second.reason is Reason.COMPLETED
    begun = printed(other, job.id, "worker-0", r"worker 0 trains from step (\d+)")
    assert begun is not None
    assert int(begun[1]) >= 500, "the checkpoint of step 500 was in the store"
