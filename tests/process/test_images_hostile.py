"""A project's own podman, and its jobs, against the server: what they print, leave behind and look like."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from danlu.executors.base import Phase
from danlu.executors.local.engines import Engine
from danlu.executors.local.images import ImageStore
from tests.conftest import cannot_run
from tests.process.containers import UID, ContainerBench, bench
from tests.process.image_registry import BUSYBOX, Registry, serving, small
from tests.process.platform import until

HOLD = "trap '' TERM; echo up; while :; do sleep 0.1; done"


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    with serving() as made:
        yield made


@pytest.fixture(scope="module")
def lab(registry: Registry) -> Iterator[ContainerBench]:
    if os.geteuid() != 0:
        cannot_run("only root can run jobs as other users")
    if not BUSYBOX.exists():
        cannot_run(f"{BUSYBOX} is not installed")
    with bench(registry) as made:
        if not made.executor.capabilities.images.startswith("podman"):
            cannot_run(f"podman cannot be used: {made.executor.capabilities.no_images}")
        made.image = made.pull(registry.push("small:1", small()))
        yield made


def program(path: Path, text: str) -> str:
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return str(path)


def store(folder: Path, engine: str, text: str, **server: str) -> ImageStore:
    """Returns a store, all of one user, whose engine is a shell script."""
    made = Engine(engine, program(folder / engine, text), "5.0.0")
    return ImageStore(folder / "images", folder / "c", made, uid_base=None, server=server)


# what is left of an attempt


@contextmanager
def false_monitor(folder: Path, attempt: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Runs what looks like podman's monitor of an attempt, but is another one's."""
    words = [program(folder / "conmon", "echo up; read line"), f"{attempt}/"]
    streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(words, user=UID, group=UID, extra_groups=[], cwd="/", **streams) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        try:
            yield process
        finally:
            process.kill()


def test_where_groups_tell_what_is_left_nothing_else_is_taken_for_it(lab: ContainerBench) -> None:
    if not lab.executor.capabilities.memory_limit:
        cannot_run("this machine lets no control groups be made")
    attempt = lab.launch("sh", "-c", HOLD)
    lab.printed(attempt, "up")
    folder = lab.home / "attempts" / attempt
    with false_monitor(lab.home.parent, folder) as other:
        lab.executor.stop(attempt, grace_s=0.0)
        assert lab.end(attempt).phase is Phase.ENDED
        lab.executor.forget(attempt)
        assert not folder.exists()
        assert other.poll() is None


def test_dockers_daemon_is_waited_for_beside_the_loop(tmp_path: Path) -> None:
    go = tmp_path / "go"
    os.mkfifo(go)
    images = store(tmp_path, "docker", f'echo "$1" >> {tmp_path}/asked\n[ "$1" = rm ] || {{ cat {go}; echo c1; }}')
    attempt = tmp_path / "attempt"
    attempt.mkdir()
    (attempt / "order.json").write_text('{"tasks": [{"container": {}}]}')
    asking = time.monotonic()
    assert not images.swept(attempt, grouped=True)
    assert not images.swept(attempt, grouped=True)
    assert time.monotonic() - asking < 5
    go.write_text("")
    until(lambda: images.swept(attempt, grouped=True), 20, "docker has removed it")
    assert (tmp_path / "asked").read_text().split() == ["ps", "rm"]


def test_what_docker_said_of_earlier_containers_counts_no_more_once_others_may_begin(tmp_path: Path) -> None:
    images = store(tmp_path, "docker", f"echo asked >> {tmp_path}/asked")
    attempt = tmp_path / "attempt"
    attempt.mkdir()
    (attempt / "order.json").write_text('{"tasks": [{"container": {}}]}')
    assert not images.swept(attempt, grouped=True)
    until(lambda: (tmp_path / "asked").exists(), 20, "it was asked")
    images.begins(attempt.name)
    assert not images.swept(attempt, grouped=True)
    until(lambda: images.swept(attempt, grouped=True), 20, "it has answered")
