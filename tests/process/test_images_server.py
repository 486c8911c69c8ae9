"""A job with an image from submit to end: it waits while the image is pulled, and says why where that fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from danlu.api import StopRequest
from danlu.domain.jobs import Job, JobState, Reason
from danlu.executors.local import engines
from tests.conftest import cannot_run
from tests.process.image_registry import BUSYBOX, Registry, serving, small, trusting
from tests.process.platform import Server, until


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    with serving() as made:
        yield made


@pytest.fixture(scope="module")
def platform(registry: Registry) -> Iterator[Server]:
    if os.geteuid() != 0:
        cannot_run("only root can run jobs as other users")
    found, why = engines.detect(Path("/tmp"), engines.Machine())
    if found is None or not BUSYBOX.exists():
        cannot_run(f"podman cannot be used: {why}, or {BUSYBOX} is not installed")
    outer = Path(tempfile.mkdtemp(prefix="danlu-test-", dir="/tmp"))
    outer.chmod(0o711)
    made = Server(outer / "home", environ={"CONTAINERS_REGISTRIES_CONF": str(trusting(registry, outer))})
    said = made.start()
    assert said.get("ready"), said
    yield made
    made.close()
    shutil.rmtree(outer, ignore_errors=True)


def submit(server: Server, image: str, *command: str, **spec: Any) -> Job:
    return server.submit(*command, env="python", interpreter=None, image=image, cpu=1, **spec)


def test_it_waits_while_its_image_is_pulled_and_uses_it_again(platform: Server, registry: Registry) -> None:
    image = registry.push("train:1", small())
    registry.let_through.clear()
    job = submit(platform, image, "sh", "-c", "echo in $PWD")
    until(lambda: platform.job(job.id).reason is Reason.IMAGE_PULLING, 30, "it waits for its image")
    assert image in platform.job(job.id).message
    registry.let_through.set()
    assert platform.wait(job.id).state is JobState.SUCCEEDED
    assert platform.lines(job.id, 1) == [f"in {platform.home}/attempts/{job.id}-1/work"]
    asked = len(registry.asked)
    again = platform.wait(submit(platform, image, "true").id)
    assert (again.state, again.environment_id) == (JobState.SUCCEEDED, platform.job(job.id).environment_id)
    assert len(registry.asked) == asked


def test_one_that_is_stopped_while_its_image_is_pulled_never_runs(platform: Server, registry: Registry) -> None:
    image = registry.push("slow:1", small(), Env=["SLOW=1"])
    registry.let_through.clear()
    job = submit(platform, image, "true")
    until(lambda: platform.job(job.id).reason is Reason.IMAGE_PULLING, 30, "it waits for its image")
    with platform.client() as client:
        client.call("jobs.stop", {"job": job.id}, body=StopRequest())
    ended = platform.wait(job.id)
    registry.let_through.set()
    assert (ended.state, ended.attempts) == (JobState.CANCELLED, 0)


def test_an_image_that_does_not_exist_fails_the_job_with_its_reason(platform: Server, registry: Registry) -> None:
    ended = platform.wait(submit(platform, registry.name("none:7"), "true").id)
    assert (ended.state, ended.reason, ended.attempts) == (JobState.FAILED, Reason.ENVIRONMENT_FAILED, 0)
    assert registry.name("none:7") in ended.message
    assert "look at the name and the tag" in ended.message


def test_an_image_that_was_removed_is_pulled_again(platform: Server, registry: Registry) -> None:
    image = registry.push("gone:1", small(), Env=["GONE=1"])
    assert platform.wait(submit(platform, image, "true").id).state is JobState.SUCCEEDED
    shutil.rmtree(platform.home / "images")
    assert platform.wait(submit(platform, image, "true").id).state is JobState.SUCCEEDED


def test_what_is_no_image_is_refused_at_submit(platform: Server) -> None:
    with pytest.raises(ValueError, match="is no image's name"):
        submit(platform, "No Image", "true")


def test_a_session_is_inside_of_the_container(platform: Server, registry: Registry) -> None:
    job = submit(platform, registry.push("train:1", small()), "sh", "-c", "echo up; while :; do sleep 0.1; done")
    until(lambda: platform.job(job.id).state is JobState.RUNNING, 30, "it runs")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DANLU_")}
    words = [sys.executable, "-m", "danlu.cli.main", "exec", job.name, "--", "sh", "-c"]

    def inside(line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*words, line], env={**kept, "DANLU_HOME": str(platform.home), "NO_COLOR": "1"}, capture_output=True, text=True,
            stdin=subprocess.DEVNULL, timeout=60, check=False,
        )  # fmt: skip

    until(lambda: inside("true").returncode == 0, 30, "the container has begun")  # the job runs a moment before it
    done = inside("echo $DANLU_ATTEMPT_ID; ls /; ps; exit 4")
    assert done.returncode == 4, done.stderr
    assert f"{job.id}-1" in done.stdout
    assert "usr" not in done.stdout.split()
    assert "/run/podman-init" in done.stdout
    with platform.client() as client:
        client.call("jobs.stop", {"job": job.id}, body=StopRequest(grace=0.1))
    assert platform.wait(job.id).state is JobState.CANCELLED
