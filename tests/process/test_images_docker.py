"""Container images by docker, for real: a daemon of our own, and a user of its own platform who may speak to it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from danlu.domain.sessions import SessionRequest
from danlu.errors import EnvironmentFailed
from danlu.executors.base import Phase, StoredImage
from tests.conftest import cannot_run
from tests.executors import notice
from tests.process.containers import UID, ContainerBench, bench, keeps_secrets
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


def test_secrets_reach_a_container_and_no_command_line(made: ContainerBench) -> None:
    keeps_secrets(made)


def test_a_command_that_the_image_lacks_is_named(made: ContainerBench) -> None:
    task = made.end(made.launch("train.exe")).tasks[0]
    assert task.exit_code == 127
    assert "command not found in the image: train.exe" in task.error


def test_memory_is_limited_by_docker_and_only_then_claimed(made: ContainerBench) -> None:
    ended = made.end(sh(made, "head -c 300m /dev/zero | tail", memory="64MiB"))
    if "memory-limit" not in ended.limits:
        cannot_run("this machine's docker sets no memory limit")
    assert ended.tasks[0].oom
    assert "memory-limit" not in made.end(sh(made, "true")).limits


def test_sigterm_arrives_and_a_deaf_one_is_killed(made: ContainerBench) -> None:
    attempt = sh(made, "trap 'echo TERM; exit 3' TERM; echo up; while :; do sleep 0.1; done")
    made.printed(attempt, "up")
    made.executor.stop(attempt, grace_s=20)
    assert made.end(attempt).tasks[0].exit_code == 3
    deaf = sh(made, HOLD)
    made.printed(deaf, "up")
    made.executor.stop(deaf, grace_s=0.5)
    assert made.end(deaf).stopped


def test_a_notice_reaches_the_program(made: ContainerBench) -> None:
    attempt = sh(made, "trap 'cat $DANLU_PREEMPTION_FILE; exit 3' USR1; echo up; while :; do sleep 0.1; done")
    made.printed(attempt, "up")
    made.executor.stop(attempt, grace_s=20, notice=notice(3600, "USR1"))
    ended = made.end(attempt)
    assert (ended.preempted, ended.tasks[0].exit_code) == (True, 3)
    assert '"for": "job big"' in made.log(attempt)


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


# images are docker's, of which some were brought by the platform


def push(registry: Registry, name: str) -> str:
    return registry.push(name, small(), Env=[f"NAME={name}"])


def stored(image_id: str) -> StoredImage:
    return StoredImage("docker", image_id)


def remove(lab: ContainerBench, image_id: str) -> None:
    lab.images.doom([stored(image_id)])()


def test_an_image_that_was_brought_is_removed_with_all_its_names(made: ContainerBench, registry: Registry) -> None:
    image = made.pull(push(registry, "brought:1"))
    registry.tags["brought:2"] = registry.tags["brought:1"]
    assert made.pull(registry.name("brought:2")) == image
    assert stored(image.id) in made.images.stored()
    remove(made, image.id)
    assert made.images.find(image.id, 0) is None
    assert stored(image.id) not in made.images.stored()
    assert made.pull(push(registry, "brought:1")) == image
    remove(made, image.id)


def test_an_image_that_lost_its_name_to_a_newer_one_is_removed(made: ContainerBench, registry: Registry) -> None:
    old = made.pull(push(registry, "moved:1"))
    new = made.pull(registry.push("moved:1", small(), Env=["NEW=1"]))
    remove(made, old.id)
    assert (made.images.find(old.id, 0), made.images.find(new.id, 0)) == (None, new)
    remove(made, new.id)


def test_an_image_that_was_there_is_not_the_platforms(made: ContainerBench, daemon: Daemon, registry: Registry) -> None:
    name = push(registry, "there:1")
    daemon.ask("pull", name)
    image = made.pull(name)
    assert stored(image.id) not in made.images.stored()
    daemon.ask("rmi", name)


def test_an_image_that_the_user_has_named_stays_by_that_name(
    made: ContainerBench, daemon: Daemon, registry: Registry
) -> None:
    name = push(registry, "shared:1")
    image = made.pull(name)
    daemon.ask("tag", name, "mine:1")
    remove(made, image.id)
    assert daemon.ask("image", "inspect", "--format", "{{.RepoTags}}", image.id).strip() == "[mine:1]"
    assert stored(image.id) not in made.images.stored()
    daemon.ask("rmi", "mine:1")


def test_an_image_that_a_container_of_the_users_has_stays_until_that_is_gone(
    made: ContainerBench, daemon: Daemon, registry: Registry
) -> None:
    name = push(registry, "held:1")
    image = made.pull(name)
    container = daemon.ask("create", name, "true").strip()
    remove(made, image.id)
    assert made.images.find(image.id, 0) == image
    assert stored(image.id) in made.images.stored()
    daemon.ask("rm", container)
    remove(made, image.id)
    assert made.images.find(image.id, 0) is None


def test_an_image_in_which_an_attempt_runs_stays(made: ContainerBench, registry: Registry) -> None:
    usual, made.image = made.image, made.pull(push(registry, "used:1"))
    attempt, image_id = sh(made, HOLD), made.image.id
    made.image = usual
    made.printed(attempt, "up")
    remove(made, image_id)
    assert stored(image_id) in made.images.stored()
    made.executor.stop(attempt, grace_s=0.0)
    made.end(attempt)
    remove(made, image_id)
    assert stored(image_id) not in made.images.stored()


def test_what_a_killed_server_had_begun_to_bring_is_known_to_be_its_own(
    made: ContainerBench, daemon: Daemon, registry: Registry
) -> None:
    name = push(registry, "begun:1")
    text = f"""
import os, signal
from pathlib import Path
from danlu.executors.local.docker_images import DockerImages
with DockerImages(Path({str(made.home / "images" / "docker.known")!r}), lambda *_: "").bringing({name!r}):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    daemon.ask("pull", name)  # docker goes on with it
    image = made.pull(name)
    assert stored(image.id) in made.images.stored()
    remove(made, image.id)
    assert made.images.find(image.id, 0) is None


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
