"""Each framework trains as one task and as several: real programs, in their ready-made environments, wired by Danlu alone."""

from __future__ import annotations

import os
import re
import signal
from typing import Any

import pytest

from tests.examples.platform import ROOT, Platform
from tests.process.platform import processes_with

EXAMPLES = ROOT / "examples"
BUILD_TIMEOUT_S = 1500
RUN_TIMEOUT_S = 300.0
pytestmark = pytest.mark.slow


def ready(platform: Platform, env: str) -> None:
    """Builds an environment first, which may take longer than a command has."""
    platform.danlu("env", "build", env, timeout_s=BUILD_TIMEOUT_S)


def run(platform: Platform, name: str, *words: str) -> dict[str, Any]:
    """Runs an example to its end, which must be good, and returns the job."""
    found: dict[str, Any] = platform.json("run", *words, cwd=EXAMPLES / name, timeout_s=RUN_TIMEOUT_S)
    assert found["state"] == "succeeded", found
    return found


def applied(platform: Platform, name: str) -> str:
    return str(platform.json("apply", "-f", "job.yaml", cwd=EXAMPLES / name)["id"])


def attempts(platform: Platform, job: str) -> list[dict[str, Any]]:
    """Returns a job's attempts, oldest first."""
    found: list[dict[str, Any]] = platform.api(f"/v1/jobs/{job}/attempts")["items"]
    return found[::-1]


def said(platform: Platform, job: str, task: str) -> str:
    return platform.danlu("logs", job, "--task", task)


def line_of(text: str) -> tuple[float, float]:
    """Returns the slope and the offset that a program says it has found."""
    found = re.search(r"found (\S+) x \+ (\S+)$", text, re.MULTILINE)
    assert found is not None, text
    return float(found.group(1)), float(found.group(2))


def test_equal_tasks_find_each_other(platform: Platform) -> None:
    job = applied(platform, "equal-tasks")
    platform.danlu("wait", job)
    for rank in range(4):
        wanted = f"rank {rank} of 4: mine is {(rank + 1) ** 2}, the mean is 7.5\n"
        assert said(platform, job, f"worker-{rank}") == wanted


# TensorFlow


def test_a_killed_worker_of_tensorflow_1_is_resumed_from_the_checkpoint(platform: Platform, index: None) -> None:
    ready(platform, "tensorflow-1")
    job = applied(platform, "digits-ps-tf1")
    follow = ["logs", "-f", job, "--task"]
    process = platform.line(r"worker 1 is process (\d+)", *follow, "worker-1", timeout_s=RUN_TIMEOUT_S)
    platform.line(r"^step +1\d\d\d ", *follow, "worker-0", timeout_s=RUN_TIMEOUT_S)
    os.kill(int(process[1]), signal.SIGKILL)
    platform.danlu("wait", job, timeout_s=RUN_TIMEOUT_S)
    first, second = attempts(platform, job)
    assert first["reason"] == "KilledBySignal"
    assert first["message"].startswith("worker-1 (rank 1): killed by SIGKILL")
    assert second["reason"] == "Completed"
    begun = re.search(r"worker 0 trains from step (\d+)", said(platform, job, "worker-0"))
    assert begun is not None
    assert int(begun.group(1)) >= 500, "the checkpoint of step 500 was there"
    ends = {f"{task['role']}-{task['index']}": task for task in second["tasks"]}
    assert (ends["worker-0"]["exit_code"], ends["worker-0"]["stopped"]) == (0, False)
    assert (ends["ps-0"]["signal"], ends["ps-0"]["stopped"]) == (15, True)
    found = {series["name"]: series for series in platform.json("metrics", job)["series"]}
    assert found["accuracy"]["last"] > 0.9
    assert processes_with(job) == set()


def test_an_estimator_with_all_its_roles_ends_by_itself(platform: Platform, index: None) -> None:
    ready(platform, "tensorflow-1")
    job = applied(platform, "estimator-tf1")
    platform.danlu("wait", job, timeout_s=RUN_TIMEOUT_S)
    (attempt,) = attempts(platform, job)
    ends = {task["role"]: task for task in attempt["tasks"]}
    assert (attempt["reason"], ends["chief"]["exit_code"]) == ("Completed", 0)
    assert ends["ps"]["stopped"]
    assert "weight" in said(platform, job, "chief-0")
    assert "Saving dict for global step" in said_all(platform, job, "evaluator-0")
    alone = run(platform, "estimator-tf1", "--env", "tensorflow-1", "--", "python", "train.py")
    assert [task["role"] for task in attempts(platform, alone["id"])[0]["tasks"]] == ["main"]


def said_all(platform: Platform, job: str, task: str) -> str:
    """Returns both outputs of a task."""
    pages = platform.api(f"/v1/jobs/{job}/logs?task={task}")["chunks"]
    return "".join(chunk["data"] for chunk in pages)


@pytest.mark.parametrize("workers", [1, 2])
def test_todays_tensorflow_over_workers(platform: Platform, index: None, workers: int) -> None:
    ready(platform, "tensorflow")
    job = run(platform, "multiworker-tf2", "--env", "tensorflow", "--worker", str(workers), "--cpu", "0.5", "--",
              "python", "train.py")  # fmt: skip
    found = [line_of(said(platform, job["id"], f"worker-{index_}")) for index_ in range(workers)]
    assert found[0] == pytest.approx((3, -2), abs=0.05)
    assert len(set(found)) == 1, "all workers have the same weights"
    assert f"of {workers} replicas" in said(platform, job["id"], "worker-0")


# PyTorch


def test_torchrun_goes_on_when_a_rank_is_killed(platform: Platform, index: None) -> None:
    ready(platform, "pytorch")
    job = applied(platform, "torchrun")
    follow = ["logs", "-f", job, "--task"]
    process = platform.line(r"process (\d+) is rank \d of 2", *follow, "node-1", timeout_s=RUN_TIMEOUT_S)
    platform.line(r"^epoch +5 ", *follow, "node-0", timeout_s=RUN_TIMEOUT_S)
    os.kill(int(process[1]), signal.SIGKILL)
    platform.danlu("wait", job, timeout_s=RUN_TIMEOUT_S)
    (attempt,) = attempts(platform, job)  # within the attempt: torchrun itself has started the ranks again
    assert attempt["reason"] == "Completed"
    begins = [int(epoch) for epoch in re.findall(r"begins with epoch (\d+)", said(platform, job, "node-0"))]
    assert begins[0] == 1
    assert begins[-1] >= 5
    assert "epoch 60 " in said(platform, job, "node-0")


@pytest.mark.parametrize("workers", [0, 2])
def test_pytorch_as_one_process_a_task_and_alone(platform: Platform, index: None, workers: int) -> None:
    ready(platform, "pytorch")
    gang = ["--worker", str(workers)] if workers else []
    job = run(
        platform, "torchrun", "--env", "pytorch", *gang, "--cpu", "0.5", "--", "python", "train.py", "--epochs", "8"
    )
    name = "worker" if workers else "main"
    for rank in range(max(1, workers)):
        assert f"is rank {rank} of {max(1, workers)}" in said(platform, job["id"], f"{name}-{rank}")
    losses = [float(loss) for loss in re.findall(r"loss (\S+)", said(platform, job["id"], f"{name}-0"))]
    assert len(losses) == 8
    assert losses[-1] < losses[0] / 5


# JAX, MXNet


@pytest.mark.parametrize("workers", [1, 2])
def test_jax_over_processes(platform: Platform, index: None, workers: int) -> None:
    ready(platform, "jax")
    job = run(
        platform, "jax-processes", "--env", "jax", "--worker", str(workers), "--cpu", "0.5", "--", "python", "train.py"
    )
    found = [line_of(said(platform, job["id"], f"worker-{rank}")) for rank in range(workers)]
    assert found[0] == pytest.approx((3, -2), abs=0.05)
    assert len(set(found)) == 1
    assert f"process 0 of {workers}" in said(platform, job["id"], "worker-0")


@pytest.mark.parametrize("workers", [1, 2])
def test_horovod_over_ranks(platform: Platform, index: None, workers: int) -> None:
    ready(platform, "horovod")
    job = run(platform, "horovod-keras", "--env", "horovod", "--worker", str(workers), "--cpu", "0.5", "--",
              "python", "train.py")  # fmt: skip
    found = [line_of(said(platform, job["id"], f"worker-{rank}")) for rank in range(workers)]
    assert found[0] == pytest.approx((3, -2), abs=0.05)
    assert len(set(found)) == 1, "all ranks have the same weights"
    assert f"rank 0 of {workers}" in said(platform, job["id"], "worker-0")
    (attempt,) = attempts(platform, job["id"])
    ends = {task["role"]: task for task in attempt["tasks"]}
    assert ends["rendezvous"]["stopped"], "it ends when the ranks have"
    assert processes_with(job["id"]) == set()


@pytest.mark.parametrize("workers", [1, 2])
def test_mxnet_by_its_parameter_server(platform: Platform, index: None, workers: int) -> None:
    ready(platform, "mxnet")
    job = run(platform, "mxnet-kvstore", "--env", "mxnet", "--role", "server=1", "--worker",
              str(workers), "--cpu", "0.25", "--grace", "5s", "--", "python", "train.py")  # fmt: skip
    for rank in range(workers):
        assert line_of(said(platform, job["id"], f"worker-{rank}")) == pytest.approx((3, -2), abs=0.1)
    assert processes_with(job["id"]) == set()


# MPI


@pytest.mark.parametrize("workers", [1, 3])
def test_a_bare_mpirun(platform: Platform, index: None, workers: int) -> None:
    job = run(platform, "mpi-allreduce", "--requirements", "requirements.txt", "--framework", "mpi", "--worker", str(workers),
              "--cpu", "0.25", "--grace", "5s", "--", "mpirun", "python", "train.py")  # fmt: skip
    printed = said(platform, job["id"], "launcher-0")
    for rank in range(workers):
        assert f"rank {rank} of {workers} found [2.0, -1.0, 0.5, 3.0]" in printed
    (attempt,) = attempts(platform, job["id"])
    assert [task["role"] for task in attempt["tasks"]] == ["launcher"] + ["worker"] * workers
    assert processes_with(job["id"]) == set()
