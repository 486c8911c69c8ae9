"""Container images by docker, for real: a daemon of our own, and a user of its own platform who may speak to it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from danlu.domain.sessions import SessionRequest
from danlu.errors import EnvironmentFailed
from danlu.executors.base import Phase
from tests.conftest import cannot_run
from tests.process.containers import UID, ContainerBench, bench
from tests.process.image_registry import BUSYBOX, Registry, missing, serving, small
from tests.process.platform import processes_with, until

HOLD = "trap '' TERM; echo up; while :; do sleep 0.1; done"
START_TIMEOUT_S = 60


class Daemon:
    """docker's daemon in a folder of its own, without a network."""

    def __init__(self, folder: Path) -> None:
        self.host = f"unix://{folder}/d.sock"
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["dockerd", "--host", self.host, "--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec",
                 "--pidfile", f"{folder}/pid", "--iptables=false", "--ip6tables=false", "--bridge=none",
                 "--exec-opt", "native.cgroupdriver=cgroupfs"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            until(lambda: self.process.poll() is not None or self.answers(), START_TIMEOUT_S, "dockerd answers")
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            (folder / "d.sock").chmod(0o666)
        except BaseException:
            self.close()
            raise

    def answers(self) -> bool:
        return self.ask("version", "--format", "{{.Server.Version}}").strip() != ""

    def ask(self, *words: str) -> str:
        command = ["docker", "--host", self.host, *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout

    def held(self, attempt_id: str) -> str:
        """Returns the containers that it holds of an attempt, running or not."""
        return self.ask("ps", "--all", "--quiet", f"--filter=label=danlu.attempt={attempt_id}")

    def close(self) -> None:
        for container in self.ask("ps", "--all", "--quiet").split():
            self.ask("rm", "--force", container)
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    with serving() as made:
        yield made


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    if os.geteuid() != 0:
        cannot_run("only root can start docker's daemon")
    lacking = missing("dockerd", "docker")
    if lacking or not BUSYBOX.exists():
        cannot_run(f"{lacking or BUSYBOX} is not installed")
    folder = Path(tempfile.mkdtemp(prefix="dd-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        made = Daemon(folder)
        try:
            yield made
        finally:
            made.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def lab(registry: Registry, daemon: Daemon) -> Iterator[ContainerBench]:
    """A bench that sees the machine as its jobs' user does, who has docker alone."""
    programs = Path(tempfile.mkdtemp(prefix="dp-", dir="/tmp"))
    programs.chmod(0o755)
    (programs / "docker").symlink_to(str(shutil.which("docker")))
    environ = {"DOCKER_HOST": daemon.host, "HOME": "/nonexistent"}
    with bench(registry, path=str(programs), uid=UID, gid=UID, environ=environ) as made:
        made.image = made.pull(registry.push("small:1", small(), Entrypoint=["/bin/false"]))
        yield made
    shutil.rmtree(programs)


@pytest.fixture
def made(lab: ContainerBench, daemon: Daemon) -> Iterator[ContainerBench]:
    yield lab
    for one in lab.executor.observe():
        lab.executor.stop(one.attempt_id, grace_s=0.0)
        lab.end(one.attempt_id)
        lab.forget(one.attempt_id)
        assert daemon.held(one.attempt_id) == ""


def sh(lab: ContainerBench, text: str, **fields: object) -> str:
    return lab.launch("sh", "-c", text, **fields)


def test_docker_is_what_this_platform_has(lab: ContainerBench) -> None:
    assert lab.executor.capabilities.images.startswith("docker ")


def test_a_job_is_its_user_and_nothing_more(made: ContainerBench) -> None:
    attempt = sh(made, "id -u; touch made; grep -E 'CapBnd|NoNewPrivs' /proc/self/status; ls ..; exit 7")
    ended = made.end(attempt)
    assert ended.tasks[0].exit_code == 7
    lines = made.log(attempt).splitlines()
    assert {str(UID), "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "work"} <= {*lines}
    assert "order.json" not in lines
    assert any(limit.startswith("container (docker") for limit in ended.limits)


def test_no_variable_of_a_user_is_in_a_command_line(made: ContainerBench) -> None:
    attempt = sh(made, f"env; {HOLD}", variables={"DOCKER_PASSWORD": "s3cret '#\" "})
    made.printed(attempt, "up")
    assert "DOCKER_PASSWORD=s3cret '#\" " in made.log(attempt).splitlines()
    assert not [words for words in made.processes(attempt).values() if "s3cret" in words]


def test_a_command_that_the_image_lacks_is_named(made: ContainerBench) -> None:
    task = made.end(made.launch("train.exe")).tasks[0]
    assert task.exit_code == 127
    assert "command not found in the image: train.exe" in task.error


def test_memory_is_limited_by_docker_and_only_then_claimed(made: ContainerBench) -> None:
    ended = made.end(sh(made, "head -c 300m /dev/zero | tail", memory="64MiB"))
    if "memory" not in ended.limits:
        cannot_run("this machine's docker sets no memory limit")
    assert ended.tasks[0].oom
    assert "memory" not in made.end(sh(made, "true")).limits


def test_sigterm_arrives_and_a_deaf_one_is_killed(made: ContainerBench) -> None:
    attempt = sh(made, "trap 'echo TERM; exit 3' TERM; echo up; while :; do sleep 0.1; done")
    made.printed(attempt, "up")
    made.executor.stop(attempt, grace_s=20)
    assert made.end(attempt).tasks[0].exit_code == 3
    deaf = sh(made, HOLD)
    made.printed(deaf, "up")
    made.executor.stop(deaf, grace_s=0.5)
    assert made.end(deaf).stopped


@pytest.mark.parametrize("victims", [("runner",), ("guard",), ("guard", "runner")])
def test_whatever_is_killed_nothing_is_left(made: ContainerBench, daemon: Daemon, victims: tuple[str, ...]) -> None:
    attempt = sh(made, HOLD)
    made.printed(attempt, "up")
    pids = [made.process(attempt, victim) for victim in victims]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert made.end(attempt).phase in (Phase.LOST, Phase.ENDED)
    assert daemon.held(attempt) == ""


def test_an_image_that_does_not_exist_is_refused(lab: ContainerBench, registry: Registry) -> None:
    with pytest.raises(EnvironmentFailed, match="could not be pulled"):
        lab.pull(registry.name("none:1"))
    with pytest.raises(EnvironmentFailed, match="there is no image localhost/none:1 on this machine"):
        lab.pull("localhost/none:1")


@pytest.mark.parametrize("command", ["exec sleep 98765", "trap '' HUP TERM; sleep 98765 & wait; sleep 98765"])
def test_what_a_session_runs_ends_with_it(made: ContainerBench, command: str) -> None:
    attempt = sh(made, HOLD)
    made.printed(attempt, "up")
    folder = made.home / "attempts" / attempt / "work"
    request = SessionRequest(command=("sh", "-c", f"touch {folder}/in; {command}"))
    with made.executor.open_session(attempt, "main-0", request):
        made.until(lambda: (folder / "in").exists() and bool(sleeping()))
    made.until(lambda: not sleeping())
    made.executor.stop(attempt, grace_s=0.0)
    assert made.end(attempt).stopped


def sleeping() -> set[int]:
    return processes_with("sleep\0" + "98765")
