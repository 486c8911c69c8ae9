"""A project's own podman, and its jobs, against the server: what they print, leave behind and look like."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from danlu.domain.isolation import Layer
from danlu.errors import EnvironmentFailed, ExecutorUnavailable
from danlu.executors.base import Phase
from danlu.executors.local import cgroups
from danlu.executors.local.cgroups import Group
from danlu.executors.local.engines import Engine
from danlu.executors.local.images import ImageStore
from danlu.runner import contained
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


def store(
    folder: Path, engine: str, text: str, *, uid_base: int | None = None, group: Group | None = None, **server: str
) -> ImageStore:
    """Returns a store whose engine is a shell script."""
    made = Engine(engine, program(folder / engine, text), "5.0.0")
    return ImageStore(folder, folder / "c", made, uid_base=uid_base, server=server, group=group)


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
    if Layer.MEMORY_LIMIT not in lab.executor.capabilities.layers:
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


# what a pull may see, use and leave behind


FOUND = f"""case "$*" in *inspect*) echo '[{{"Id": "{"0" * 64}", "Size": 1}}]'; exit 0;; esac\n"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may pass."""
    if os.geteuid() != 0:
        cannot_run("only root can run podman as other users")
    made = Path(tempfile.mkdtemp(prefix="dh-", dir="/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def test_a_pull_is_told_none_of_the_servers_secrets(open_folder: Path) -> None:
    secret = {"HTTPS_PROXY": "http://user:p@ss@proxy.test:1", "http_proxy": "user:pass@proxy.test:2"}
    server = {**secret, "REGISTRY_AUTH_FILE": "/root/auth.json", "NO_PROXY": "inner.test"}
    images = store(open_folder, "podman", FOUND + "env", uid_base=UID, **server)
    lines: list[str] = []
    images.pull("registry.test/a:1", 0, lines.append)
    assert {"HTTPS_PROXY=http://proxy.test:1", "http_proxy=proxy.test:2", "NO_PROXY=inner.test"} <= {*lines}
    assert not [line for line in lines if "ss@" in line or "REGISTRY_AUTH_FILE" in line]
    assert "the proxy is asked without its user and password: this project's jobs could read them" in lines


def test_what_a_pull_starts_is_limited_and_ends_with_it(open_folder: Path) -> None:
    tree = cgroups.detect(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup").read_text())
    if tree is None or "pids" not in tree.bases:
        cannot_run("this machine lets no control groups be made")
    group = tree.group(f"test-{os.getpid()}")
    left = "setsid sh -c 'echo $$; exec sleep 1000' < /dev/null > $HOME/pid 2>&1 &\n"
    waits = "while [ ! -s $HOME/pid ]; do sleep 0.01; done; cat $HOME/pid"
    images = store(open_folder, "podman", FOUND + left + waits, uid_base=UID, group=group)
    pids: list[int] = []
    limits: list[str] = []

    def report(line: str) -> None:
        pids.append(int(line))
        limits.append((group.child(str(UID)).folders["pids"] / "pids.max").read_text().strip())
        assert int(line) in group.child(str(UID)).processes()

    try:
        images.pull("registry.test/a:1", 0, report)
        assert limits == ["1024"]
        assert not group.child(str(UID)).folders["pids"].exists()
        until(lambda: not Path(f"/proc/{pids[0]}").exists(), 20, "what it has left behind is gone")
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        group.remove()


def test_a_folder_that_a_killed_server_has_made_but_not_given_is_given(open_folder: Path) -> None:
    images = store(open_folder, "podman", FOUND + "touch $HOME/own", uid_base=UID)
    images.folder(0).mkdir(parents=True, mode=0o700)
    images.pull("registry.test/a:1", 0, lambda _: None)
    assert {images.folder(0).stat().st_uid, (images.folder(0) / "own").stat().st_uid} == {UID}


# what other users may read


SECRETS = {
    "DOCKER_PASSWORD": "s3cret = 'x' #\"y ",
    "PODMAN_TOKEN": "s3cret",
    "CONTAINER_KEY": "s3cret",
    "PLAIN": "s3cret",
}


def test_no_variable_of_a_user_is_in_a_command_line(lab: ContainerBench) -> None:
    attempt = lab.launch("sh", "-c", f"env; {HOLD}", variables=SECRETS)
    lab.printed(attempt, "up")
    folder = lab.home / "attempts" / attempt
    running = lab.processes(attempt)
    container = json.loads((folder / "order.json").read_text())["tasks"][0]["container"]
    entering, environ = contained.entering(container, ["true"], {**SECRETS, "PWD": "/"}, terminal=False)
    file = folder / "main-0" / "engine.env"
    assert (file.stat().st_mode & 0o777, "DOCKER_PASSWORD" in file.read_text()) == (0o600, True)
    assert {f"{name}={value}" for name, value in SECRETS.items()} <= {*lab.log(attempt).splitlines()}
    lab.executor.stop(attempt, grace_s=0.0)
    lab.end(attempt)
    lab.forget(attempt)
    assert not [words for words in [*running.values(), *entering] if "s3cret" in words]
    assert not {"DOCKER_PASSWORD", "PODMAN_TOKEN", "CONTAINER_KEY"} & {*environ}


def test_a_variable_that_can_only_be_said_aloud_is_refused(lab: ContainerBench) -> None:
    attempt = lab.launch("true", variables={"DOCKER_KEY": "two\nlines"})
    task = lab.end(attempt).tasks[0]
    assert task.exit_code == 126
    assert "variable DOCKER_KEY has a line break" in task.error
    assert "give it another name" in task.error
    lab.forget(attempt)
