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

from danlu.errors import EnvironmentFailed, ExecutorUnavailable
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


# what the engine prints


def test_a_line_without_an_end_and_lines_without_number_are_bounded(tmp_path: Path) -> None:
    endless = "head -c 50000000 /dev/zero | tr '\\0' x; yes | head -n 30000; echo; echo Error: no; exit 1"
    lines: list[str] = []
    with pytest.raises(EnvironmentFailed, match="could not be pulled: Error: no"):
        store(tmp_path, "podman", endless).pull("registry.test/a:1", 0, lines.append)
    assert len(lines) == 10_001
    assert max(map(len, lines)) <= 4096
    assert "more than 10,000 lines" in lines[-1]


def test_an_answer_that_does_not_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    asked = 'case "$*" in *inspect*) exec yes;; esac'
    with pytest.raises(ExecutorUnavailable, match="more than 8 MiB"):
        store(tmp_path, "podman", asked).pull("registry.test/a:1", 0, lambda _: None)


@pytest.mark.parametrize("said", ["[]", "{}", "[1]", "no", '[{"Id": {}, "Size": "a"}]'])
def test_an_answer_that_is_none_is_told_in_words(tmp_path: Path, said: str) -> None:
    asked = f"case \"$*\" in *inspect*) echo '{said}';; esac"
    with pytest.raises(ExecutorUnavailable, match="cannot be read"):
        store(tmp_path, "podman", asked).pull("registry.test/a:1", 0, lambda _: None)


def test_an_answer_that_nests_without_end_is_told_in_words(tmp_path: Path) -> None:
    asked = "case \"$*\" in *inspect*) head -c 1000000 /dev/zero | tr '\\0' '[';; esac"
    with pytest.raises(ExecutorUnavailable, match="cannot be read"):
        store(tmp_path, "podman", asked).pull("registry.test/a:1", 0, lambda _: None)
