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

from danlu.api.bodies import PruneRequest, StopRequest
from danlu.domain.environments import Environment
from danlu.domain.jobs import Job, JobState, Reason
from danlu.domain.views import Pruned
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


HOLD = "echo up; while :; do sleep 0.1; done"


def kept(server: Server) -> set[str]:
    """Returns the ids of all images on the disk."""
    return {path.name for path in (server.home / "images").glob("*/storage/*-images/*") if path.is_dir()}


def environment(server: Server, job: Job) -> Environment:
    with server.client() as client:
        found: Environment = client.call("environments.get", {"environment": str(job.environment_id)})
    return found


def danlu(server: Server, *words: str) -> subprocess.CompletedProcess[str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("DANLU_")}
    return subprocess.run(
        [sys.executable, "-m", "danlu.cli.main", *words], env={**plain, "DANLU_HOME": str(server.home), "NO_COLOR": "1"},
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60, check=False,
    )  # fmt: skip


def test_an_image_is_given_up_as_an_environment_is(platform: Server, registry: Registry) -> None:
    image = registry.push("given/up:1", small(), Env=["UP=1"])
    job = submit(platform, image, "sh", "-c", HOLD)
    until(lambda: platform.job(job.id).state is JobState.RUNNING, 60, "it runs")
    refused = danlu(platform, "env", "rm", image)
    assert refused.returncode == 1
    assert f"{image} is in use by {job.name}" in refused.stderr
    assert f"danlu stop {job.name}" in refused.stderr
    image_id = str(environment(platform, job).lock_digest)
    assert image_id in kept(platform)
    assert job.name in danlu(platform, "env", "show", image).stdout
    with platform.client() as client:
        client.call("jobs.stop", {"job": job.id}, body=StopRequest(grace=0.1))
    platform.wait(job.id)
    removed = danlu(platform, "env", "rm", image)
    assert (removed.returncode, removed.stdout) == (0, f"env/{image}\n"), removed.stderr
    until(lambda: image_id not in kept(platform), 60, "it leaves the disk")
    assert platform.wait(submit(platform, image, "true").id).state is JobState.SUCCEEDED
    assert image_id in kept(platform)


def test_images_that_nobody_uses_are_pruned(platform: Server, registry: Registry) -> None:
    job = platform.wait(submit(platform, registry.push("unused:1", small(), Env=["UN=1"]), "true").id)
    used = submit(platform, registry.push("used:1", small(), Env=["US=1"]), "sh", "-c", HOLD)
    until(lambda: platform.job(used.id).state is JobState.RUNNING, 60, "it runs")
    env = environment(platform, job)
    with platform.client() as client:
        would: Pruned = client.call("environments.prune", body=PruneRequest(unused_for=0.001, dry_run=True))
        names = {one.name for one in would.environments}
        assert (env.name in names, environment(platform, used).name in names) == (True, False)
        assert would.size_bytes >= (env.size_bytes or 0) > 0
        assert env.lock_digest in kept(platform)
        client.call("environments.prune", body=PruneRequest(unused_for=0.001))
        until(lambda: kept(platform) == {environment(platform, used).lock_digest}, 60, "what nobody uses is gone")
        client.call("jobs.stop", {"job": used.id}, body=StopRequest(grace=0.1))
    assert platform.wait(used.id).state is JobState.CANCELLED


def test_an_image_whose_tag_has_moved_goes_when_the_jobs_that_began_with_it_have_ended(
    platform: Server, registry: Registry
) -> None:
    image = registry.push("moving:1", small(), Env=["AGE=old"])
    job = submit(platform, image, "sh", "-c", HOLD)
    until(lambda: platform.job(job.id).state is JobState.RUNNING, 60, "it runs")
    old = environment(platform, job).lock_digest
    registry.push("moving:1", small(), Env=["AGE=new"])
    assert danlu(platform, "env", "build", "--image", image).returncode == 0
    new = environment(platform, job).lock_digest
    assert new != old
    other = platform.wait(submit(platform, registry.push("other:1", small(), Env=["O=1"]), "sh", "-c", "echo $O").id)
    assert danlu(platform, "env", "rm", environment(platform, other).name).returncode == 0
    until(lambda: environment(platform, other).lock_digest not in kept(platform), 60, "what is unused goes")
    assert {old, new} <= kept(platform)
    with platform.client() as client:
        client.call("jobs.stop", {"job": job.id}, body=StopRequest(grace=0.1))
    assert "up" in platform.lines(platform.wait(job.id).id, 1)
    assert danlu(platform, "env", "prune", "--dry-run").returncode == 0  # the platform looks now; else every 30 s
    until(lambda: old not in kept(platform), 60, "the old one goes")
    assert new in kept(platform)


def test_what_is_no_image_is_refused_at_submit(platform: Server) -> None:
    with pytest.raises(ValueError, match="is no image's name"):
        submit(platform, "No Image", "true")


def test_a_session_is_inside_of_the_container(platform: Server, registry: Registry) -> None:
    job = submit(platform, registry.push("train:1", small()), "sh", "-c", "echo up; while :; do sleep 0.1; done")
    until(lambda: platform.job(job.id).state is JobState.RUNNING, 30, "it runs")

    def inside(line: str) -> subprocess.CompletedProcess[str]:
        return danlu(platform, "exec", job.name, "--", "sh", "-c", line)

    until(lambda: inside("true").returncode == 0, 30, "the container has begun")  # the job runs a moment before it
    done = inside("echo $DANLU_ATTEMPT_ID; ls /; ps; exit 4")
    assert done.returncode == 4, done.stderr
    assert f"{job.id}-1" in done.stdout
    assert "usr" not in done.stdout.split()
    assert "/run/podman-init" in done.stdout
    with platform.client() as client:
        client.call("jobs.stop", {"job": job.id}, body=StopRequest(grace=0.1))
    assert platform.wait(job.id).state is JobState.CANCELLED
