"""Container images by podman, for real: same limits, output, ends and deaths as without; nothing is ever left behind."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from danlu.domain.images import Image
from danlu.domain.isolation import Layer
from danlu.errors import EnvironmentFailed
from danlu.executors.base import Phase
from danlu.runner import formats, processes
from tests.conftest import cannot_run
from tests.executors import notice
from tests.process import image_registry
from tests.process.containers import UID, ContainerBench, bench, keeps_secrets
from tests.process.image_registry import BUSYBOX, Registry, serving, small, with_python
from tests.process.platform import processes_with
from tests.process.test_local_group_escape import links

MIB = 2**20
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
        yield made


@pytest.fixture(scope="module")
def shell(lab: ContainerBench, registry: Registry) -> Image:
    """An image without Python, whose own entry point, user and folder are of no use."""
    config = {
        "Entrypoint": ["/bin/false"],
        "Cmd": ["nothing"],
        "User": "12345",
        "WorkingDir": "/etc",
        "Env": ["OWN=yes"],
    }
    return lab.pull(registry.push("small:1", small(), **config))


@pytest.fixture
def made(lab: ContainerBench, shell: Image) -> Iterator[ContainerBench]:
    lab.image = shell
    yield lab
    for one in lab.executor.observe():
        lab.executor.stop(one.attempt_id, grace_s=0.0)
        lab.end(one.attempt_id)
        lab.forget(one.attempt_id)


def sh(lab: ContainerBench, text: str, **fields: object) -> str:
    return lab.launch("sh", "-c", text, **fields)


# what a job sees and may do


def test_a_job_runs_as_its_projects_user_and_can_become_nobody_else(made: ContainerBench) -> None:
    attempt = sh(
        made, "touch made; grep -E 'CapEff|CapBnd|NoNewPrivs|Seccomp:' /proc/self/status; cat /proc/self/uid_map"
    )
    made.printed(attempt, "NoNewPrivs")
    assert made.end(attempt).tasks[0].exit_code == 0
    said = made.log(attempt)
    assert "CapEff:\t0000000000000000" in said
    assert "CapBnd:\t0000000000000000" in said
    assert "NoNewPrivs:\t1" in said
    assert "Seccomp:\t2" in said
    assert said.splitlines()[-1].split() == ["0", str(UID), "1"]
    assert (made.home / "attempts" / attempt / "work" / "made").stat().st_uid == UID


def test_a_job_sees_its_own_files_and_nothing_else_of_the_machine(made: ContainerBench) -> None:
    other = sh(made, HOLD)
    made.printed(other, "up")
    attempt = sh(made, f"pwd; ls {made.home}/attempts; ls {made.home}/attempts/*; ls /home /usr /lib 2>&1; ps")
    made.end(attempt)
    said = made.log(attempt)
    assert f"{made.home}/attempts/{attempt}/work" in said
    assert other not in said
    assert "order.json" not in said
    assert said.count("No such file") == 3
    assert "sleep" not in said


def test_the_images_variables_hold_and_its_entry_point_does_not(made: ContainerBench) -> None:
    attempt = made.launch("env", variables={"MINE": "two\nlines", "HOME": "/else"})
    made.end(attempt)
    lines = made.log(attempt).splitlines()
    assert {"OWN=yes", "MINE=two", "lines", f"DANLU_ATTEMPT_ID={attempt}", "HOME=/else", "CUDA_VISIBLE_DEVICES="} <= {
        *lines
    }
    assert "XDG_RUNTIME_DIR" not in made.log(attempt)


def test_what_the_image_keeps_to_itself_is_the_jobs(made: ContainerBench) -> None:
    attempt = sh(made, "touch /root/a /bin/b && ls /root && echo > /dev/stderr && echo wrote")
    assert made.end(attempt).tasks[0].exit_code == 0
    assert "wrote" in made.log(attempt)


@pytest.mark.parametrize("code", [0, 1, 42, 125, 126, 127, 255])
def test_exit_codes(made: ContainerBench, code: int) -> None:
    ended = made.end(sh(made, f"exit {code}"))
    assert (ended.phase, ended.tasks[0].exit_code, ended.tasks[0].error) == (Phase.ENDED, code, "")


def test_a_command_that_the_image_lacks_is_named(made: ContainerBench) -> None:
    task = made.end(made.launch("train.exe")).tasks[0]
    assert task.exit_code == 127
    assert task.error == "command not found in the image: train.exe (No such file or directory)"


def test_output_is_complete(made: ContainerBench) -> None:
    attempt = sh(made, "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; echo last >&2")
    made.end(attempt)
    lines = made.log(attempt).splitlines()
    assert [line for line in lines if line != "last"] == [f"line {i}" for i in range(20_000)]
    assert "last" in lines


# limits


def test_memory_is_limited_and_its_end_is_told_from_a_kill(made: ContainerBench) -> None:
    attempt = sh(made, "head -c 300m /dev/zero | tail", memory="64MiB")
    ended = made.end(attempt)
    if "memory-limit" not in ended.limits:
        cannot_run("this machine lets no memory limit be set")
    assert ended.tasks[0].oom
    assert "64.0 MiB" in ended.tasks[0].error
    assert any(limit.startswith("container (podman") for limit in ended.limits)
    killed = made.end(sh(made, "kill -9 $$", memory="64MiB")).tasks[0]
    assert (killed.exit_code, killed.oom) == (137, False)


def test_shared_memory_is_as_large_as_the_jobs_memory(made: ContainerBench) -> None:
    attempt = sh(made, "grep /dev/shm /proc/mounts", memory="96MiB")
    made.end(attempt)
    assert f"size={96 * 1024}k" in made.log(attempt)


# ends


def test_each_process_gets_sigterm_once(made: ContainerBench) -> None:
    one = "trap 'echo TERM$1' TERM; echo up$1; sleep 1; sleep 1"
    attempt = sh(made, f'sh -c "{one.replace("$1", "B")}" & {one.replace("$1", "A")}; wait; exit 3')
    made.until(lambda: {"upA", "upB"} <= {*made.log(attempt).splitlines()})
    made.executor.stop(attempt, grace_s=20)
    ended = made.end(attempt)
    assert (ended.stopped, ended.tasks[0].exit_code) == (True, 3)
    lines = made.log(attempt).splitlines()
    assert (lines.count("TERMA"), lines.count("TERMB")) == (1, 1)


@pytest.mark.parametrize("number", ["TERM", "USR1"])
def test_a_notice_reaches_the_program_in_its_container(made: ContainerBench, number: str) -> None:
    """It goes to the topmost program that handles it, not to podman's own, and the file is there to be read."""
    save = f"trap 'cat $DANLU_PREEMPTION_FILE; echo heard; exit 3' {number}"
    attempt = sh(made, f"echo up; (sleep 1000 & {save}; echo ready; while :; do sleep 0.1; done); exit $?")
    made.printed(attempt, "ready")
    made.executor.stop(attempt, grace_s=20, notice=notice(3600, number))
    ended = made.end(attempt)
    assert (ended.preempted, ended.stopped, ended.tasks[0].exit_code) == (True, False, 3)
    assert made.log(attempt).count("heard") == 1
    assert '"for": "job big"' in made.log(attempt)


def test_who_hears_no_notice_in_a_container_is_ended_at_the_deadline(made: ContainerBench) -> None:
    attempt = sh(made, HOLD)
    made.printed(attempt, "up")
    made.executor.stop(attempt, grace_s=20, notice=notice(0.5))
    ended = made.end(attempt)
    assert (ended.preempted, ended.tasks[0].signal) == (True, signal.SIGKILL)
    made.forget(attempt)


def test_a_program_without_a_handler_ends_at_sigterm(made: ContainerBench) -> None:
    attempt = made.launch("sleep", "1000")
    made.until(lambda: any(words.startswith("sleep") for words in made.processes(attempt).values()))
    made.executor.stop(attempt, grace_s=25)
    assert made.end(attempt).tasks[0].exit_code == 128 + signal.SIGTERM


def test_a_deaf_one_is_killed_after_the_grace(made: ContainerBench) -> None:
    attempt = sh(made, HOLD)
    made.printed(attempt, "up")
    made.executor.stop(attempt, grace_s=0.5)
    ended = made.end(attempt)
    assert (ended.stopped, ended.tasks[0].signal) == (True, signal.SIGKILL)
    made.forget(attempt)


def test_one_that_is_stopped_before_its_container_begins_never_begins(made: ContainerBench) -> None:
    order = made.order("sh", "-c", HOLD)
    made.executor.launch(order)
    made.executor.stop(order.attempt.id, grace_s=20)
    ended = made.end(order.attempt.id)
    assert ended.stopped
    assert not made.processes(order.attempt.id)


def test_what_a_program_leaves_in_the_background_ends_with_it(made: ContainerBench) -> None:
    attempt = sh(made, "sleep 1000 & (sleep 1000 &) ; exit 0")
    assert made.end(attempt).tasks[0].exit_code == 0
    assert not made.processes(attempt)
    made.forget(attempt)


# deaths


@pytest.mark.parametrize("victim", ["runner", "guard", "podman", "conmon", "init", "program"])
def test_whatever_is_killed_nothing_is_left(made: ContainerBench, victim: str) -> None:
    attempt = sh(made, HOLD)
    made.printed(attempt, "up")
    os.kill(made.process(attempt, victim), signal.SIGKILL)
    if victim == "runner":  # even before anybody looks
        made.until(lambda: not made.processes(attempt))
    ended = made.end(attempt)
    assert ended.phase is (Phase.LOST if victim == "runner" else Phase.ENDED)
    assert ended.tasks[0].exit_code != 0
    assert "up" in made.log(attempt)
    made.forget(attempt)


def test_runner_and_guard_killed_at_once_while_no_server_looks(made: ContainerBench) -> None:
    attempt = sh(made, HOLD)
    made.printed(attempt, "up")
    guard, runner = made.process(attempt, "guard"), made.process(attempt, "runner")
    os.kill(runner, signal.SIGSTOP)
    os.kill(guard, signal.SIGKILL)
    os.kill(runner, signal.SIGKILL)
    made.again()
    assert made.end(attempt).phase is Phase.LOST
    made.forget(attempt)


def test_a_container_outlives_its_server(made: ContainerBench) -> None:
    attempt = sh(made, "echo up; while [ ! -e go ]; do sleep 0.1; done; echo went")
    made.printed(attempt, "up")
    made.again()
    (made.home / "attempts" / attempt / "work" / "go").touch()
    assert made.end(attempt).tasks[0].exit_code == 0
    assert "went" in made.log(attempt)


# gangs


def test_all_of_a_container_is_in_its_tasks_group_and_has_no_way_into_another(made: ContainerBench) -> None:
    if Layer.MEMORY_LIMIT not in made.executor.capabilities.layers:
        cannot_run("this machine lets no memory limit be set")
    roles = {"worker": {"replicas": 2, "command": ["sh", "-c", "sleep 1000; true"]}}
    order = made.order("unused", roles=roles, framework="none", grace="1s")
    made.executor.launch(order)
    attempt = order.attempt.id
    made.until(lambda: sum(words.startswith("sleep ") for words in made.processes(attempt).values()) == 2)
    guards = {event["task"]: int(event["pid"]) for event in made.events(attempt) if event["event"] == "started"}
    for name, guard in guards.items():
        groups = Path(f"/proc/{guard}/cgroup").read_text()
        assert f"{attempt}/task-{name}\n" in groups
        for pid in (guard, *processes.descendants(guard)):
            assert Path(f"/proc/{pid}/cgroup").read_text() == groups
            assert not [link for link in links(pid) if "cgroup.procs" in link]
    made.executor.stop(attempt, grace_s=0.0)
    made.end(attempt)
    made.forget(attempt)


def test_the_tasks_of_a_gang_find_each_other_and_one_is_killed_alone_by_its_limit(made: ContainerBench) -> None:
    if Layer.MEMORY_LIMIT not in made.executor.capabilities.layers:
        cannot_run("this machine lets no memory limit be set")
    roles = {
        "worker": {"replicas": 2, "command": ["sh", "-c", "echo rank $DANLU_RANK of $DANLU_WORLD_SIZE; sleep 60"]},
        "eater": {"memory": "48MiB", "command": ["sh", "-c", "sleep 1; head -c 300m /dev/zero | tail"]},
    }
    order = made.order("unused", roles=roles, framework="none", grace="1s")
    made.executor.launch(order)
    ended = made.end(order.attempt.id)
    by_name = {task.name: task for task in ended.tasks}
    assert (by_name["eater-0"].oom, by_name["eater-0"].stopped) == (True, False)
    assert by_name["worker-1"].stopped
    assert "rank 1 of 3" in made.log(order.attempt.id) or "rank 2 of 3" in made.log(order.attempt.id)
    made.forget(order.attempt.id)


@pytest.mark.parametrize("victim", ["guard", "program"])
def test_a_task_whose_container_was_killed_is_started_again(made: ContainerBench, victim: str) -> None:
    command = ["sh", "-c", "echo start $DANLU_RESTART; [ $DANLU_RESTART = 0 ] || exit 0; while :; do sleep 0.1; done"]
    order = made.order("unused", roles={"worker": {"restarts": 1, "command": command}}, framework="none")
    made.executor.launch(order)
    attempt = order.attempt.id
    made.printed(attempt, "start 0")
    os.kill(made.process(attempt, victim), signal.SIGKILL)
    ended = made.end(attempt)
    assert (ended.tasks[0].exit_code, ended.tasks[0].restarts) == (0, 1), made.log(attempt)
    assert made.log(attempt).splitlines().count("start 1") == 1
    made.forget(attempt)


# Python in an image


def test_a_python_of_the_image_logs_metrics_and_leaves_outputs(made: ContainerBench, registry: Registry) -> None:
    made.image = made.pull(registry.push("python:1", with_python(), Env=["PYTHONPATH=/own"]))
    program = (
        "import danlu, os, sys, ssl, ctypes; danlu.log(step=1, loss=0.5); print(sys.path[1:3]);"
        "open(os.environ['DANLU_OUTPUT_DIR'] + '/model', 'w').write('m');"
        "open(os.environ['DANLU_CHECKPOINT_DIR'] + '/c', 'w').write('c')"
    )
    order = made.order("python", "-c", program)
    made.executor.launch(order)
    attempt = order.attempt.id
    assert made.end(attempt).tasks[0].exit_code == 0, made.log(attempt)
    metrics = [p.data for p in made.executor.pending(attempt, max_bytes=MIB) if p.stream == formats.METRICS]
    assert b"loss" in b"".join(metrics)
    outputs = made.executor.outputs(attempt)
    assert outputs is not None
    assert (outputs / "model").read_text() == "m"
    assert (made.home / "checkpoints" / order.job.id / "c").stat().st_uid == UID
    assert "/own" in made.log(attempt)


# images


def test_an_image_that_does_not_exist_is_refused_and_leaves_nothing(lab: ContainerBench, registry: Registry) -> None:
    with pytest.raises(EnvironmentFailed, match="could not be pulled: Error") as caught:
        lab.pull(registry.name("none:1"))
    assert caught.value.next_step == "look at the name and the tag after the colon"
    assert caught.value.details["stage"] == "pull"
    lab.until(lambda: not processes_with(str(lab.home)))


def test_a_registry_that_cannot_be_reached_says_what_else_to_do(lab: ContainerBench) -> None:
    with pytest.raises(EnvironmentFailed, match="could not be pulled") as caught:
        lab.pull("127.0.0.1:9/none:1")
    assert "as localhost/NAME:TAG" in caught.value.next_step


def test_a_tag_that_has_moved_is_followed_and_the_old_image_stays(lab: ContainerBench, registry: Registry) -> None:
    first = lab.pull(registry.push("moved:1", small(), Env=["A=1"]))
    second = lab.pull(registry.push("moved:1", small(), Env=["A=2"]))
    assert first.id != second.id
    assert lab.images.find(first.id, 0) is not None
    assert lab.images.find(second.id, 0) == second


def test_a_projects_images_are_its_own(lab: ContainerBench, shell: Image) -> None:
    assert lab.images.find(shell.id, 1) is None
    folder = lab.images.folder(0)
    assert (folder.stat().st_uid, folder.stat().st_mode & 0o777) == (UID, 0o700)
    assert all(path.stat().st_uid == UID for path in folder.rglob("*") if not path.is_symlink())


def test_an_image_of_this_machines_own_podman_is_copied(lab: ContainerBench, tmp_path: Path) -> None:
    name = f"localhost/danlu-test-{os.getpid()}:1"
    with pytest.raises(EnvironmentFailed, match=f"there is no image {name}"):
        lab.pull(name)
    layer = tmp_path / "layer.tar"
    layer.write_bytes(small())
    subprocess.run(["podman", "import", "--quiet", str(layer), name], check=True, capture_output=True, timeout=60)
    try:
        lab.image = lab.pull(name)
    finally:
        subprocess.run(["podman", "rmi", "--force", name], check=True, capture_output=True, timeout=60)
    assert lab.end(sh(lab, "exit 5")).tasks[0].exit_code == 5


def test_a_container_that_podman_cannot_start_says_so(made: ContainerBench) -> None:
    made.image = Image(id="0" * 64)
    task = made.end(sh(made, "true")).tasks[0]
    assert task.exit_code == 125
    assert "podman could not start the container: Error:" in task.error


def test_the_registry_helper_counts_as_one(registry: Registry) -> None:
    assert image_registry.digest(b"") == "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert registry.asked


# secrets


def test_secrets_reach_a_container_and_no_command_line(made: ContainerBench) -> None:
    keeps_secrets(made)
