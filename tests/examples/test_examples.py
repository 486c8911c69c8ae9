"""Each example is submitted as its job.yaml says, and what it leaves is looked at."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.examples.platform import ROOT, Platform
from tests.process.platform import until

EXAMPLES = sorted(folder.name for folder in (ROOT / "examples").iterdir() if folder.is_dir())
SHOWN_TIMEOUT_S = 120.0
pytestmark = pytest.mark.slow


def applied(platform: Platform, folder: Path) -> str:
    """Submits a folder's job.yaml and returns the job's id."""
    return str(platform.json("apply", "-f", "job.yaml", cwd=folder)["id"])


def metrics(platform: Platform, job: str) -> dict[str, Any]:
    return {series["name"]: series for series in platform.json("metrics", job)["series"]}


def outputs(platform: Platform, job: str, to: Path) -> Path:
    platform.danlu("artifacts", "get", job, "--to", str(to))
    return to


def kill_after(platform: Platform, job: str, line: str) -> None:
    """Kills a job's process as soon as the job has printed ``line``; the process says its own id first."""
    until(lambda: line in platform.danlu("logs", job), SHOWN_TIMEOUT_S, f"{job} prints {line!r}")
    found = re.search(r"^process (\d+) ", platform.danlu("logs", job), re.MULTILINE)
    assert found is not None
    os.kill(int(found.group(1)), signal.SIGKILL)


def test_every_example_is_tested() -> None:
    alone = {"digits-checkpoints", "hello", "learning-rates", "linear-regression-tf1", "printed-metrics"}
    gangs = {
        "digits-ps-tf1",
        "equal-tasks",
        "estimator-tf1",
        "horovod-keras",
        "jax-processes",
        "mpi-allreduce",
        "multiworker-tf2",
        "mxnet-kvstore",
        "torchrun",
    }
    assert set(EXAMPLES) == alone | gangs | {"signing"}  # here, in test_distributed.py and in test_signing.py


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_a_program_its_job_and_a_few_words(name: str) -> None:
    folder = ROOT / "examples" / name
    assert (folder / "job.yaml").is_file()
    assert (folder / "README.md").read_text().startswith(f"# {name}\n")


def test_hello(platform: Platform, tmp_path: Path) -> None:
    job = applied(platform, ROOT / "examples" / "hello")
    platform.danlu("wait", job)
    assert platform.danlu("logs", job) == "hello from a job\n"
    loss = metrics(platform, job)["loss"]
    assert (loss["steps"], loss["values"]) == ([1, 2, 3], [1, 0.5, 1 / 3])
    assert (outputs(platform, job, tmp_path / "outputs") / "greeting.txt").read_text() == "hello\n"


def test_printed_metrics(platform: Platform) -> None:
    job = applied(platform, ROOT / "examples" / "printed-metrics")
    platform.danlu("wait", job)
    found = metrics(platform, job)
    assert set(found) == {"loss", "accuracy"}
    assert found["loss"]["steps"] == [*range(10, 101, 10)]
    assert found["loss"]["last"] < found["loss"]["largest"]
    assert found["accuracy"]["last"] > 0.9


def test_learning_rates(platform: Platform) -> None:
    folder = ROOT / "examples" / "learning-rates"
    done = subprocess.run(
        [sys.executable, "sweep.py"], cwd=folder, env=platform.environ, capture_output=True, text=True, check=False,
        timeout=SHOWN_TIMEOUT_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["lr 0.3: w = 2.000, b = 1.000, loss 0.000000", "best: 0.3"]
    job = applied(platform, folder)
    platform.danlu("wait", job)
    assert metrics(platform, job)["loss"]["count"] == 50


def test_linear_regression_of_tensorflow_1(platform: Platform, index: None) -> None:
    job = applied(platform, ROOT / "examples" / "linear-regression-tf1")
    platform.danlu("wait", job)
    found = re.findall(r"^epoch +(\d+) +w = (\S+) +b = (\S+)$", platform.danlu("logs", job), re.MULTILINE)
    assert [int(epoch) for epoch, _, _ in found] == [*range(1, 21)]
    w, b = map(float, found[-1][1:])
    assert w == pytest.approx(2, abs=0.1)
    assert b == pytest.approx(10, abs=0.1)


def test_digits_killed_in_the_middle(platform: Platform, index: None, tmp_path: Path) -> None:
    job = applied(platform, ROOT / "examples" / "digits-checkpoints")
    kill_after(platform, job, "epoch  4")
    platform.danlu("wait", job)

    first, second = platform.api(f"/v1/jobs/{job}/attempts")["items"][::-1]
    assert (first["reason"], second["reason"]) == ("KilledBySignal", "Completed")
    resumed = re.search(r"epoch-(\d+)\.npz$", second["resumed_from"])
    assert resumed is not None
    assert int(resumed.group(1)) >= 3, "epoch 3 was saved before epoch 4 was printed"
    assert f"goes on from epoch-{resumed.group(1)}.npz" in platform.danlu("logs", job)
    assert "epoch  1 " in platform.danlu("logs", job, "--previous")

    found = metrics(platform, job)
    assert set(found["loss"]["steps"]) == set(found["accuracy"]["steps"]) == set(range(1, 41))
    folder = outputs(platform, job, tmp_path / "outputs")
    report = json.loads((folder / "report.json").read_text())
    assert (report["epochs"], report["test_images"]) == (40, 360)
    assert report["accuracy"] > 0.95
    assert {file.name for file in folder.iterdir()} == {"model.npz", "report.json"}


def test_digits_resumed_gives_the_very_same_model(platform: Platform, index: None, tmp_path: Path) -> None:
    folder = ROOT / "examples" / "digits-checkpoints"
    train = ["python", "train.py", "--epochs"]
    whole = platform.json("run", "--env", "sklearn", "--cpu", "1", "--", *train, "3", cwd=folder)["id"]
    begun = platform.json("run", "--env", "sklearn", "--cpu", "1", "--", *train, "1", cwd=folder)["id"]
    resumed = platform.json("retry", begun, "--set", f"command={json.dumps([*train, '3'])}")["id"]
    assert "goes on from epoch-001.npz" in platform.danlu("logs", resumed)
    models = [(outputs(platform, job, tmp_path / job) / "model.npz").read_bytes() for job in (whole, resumed)]
    assert models[0] == models[1]


def test_digits_stopped_ends_after_its_epoch(platform: Platform, index: None) -> None:
    job = applied(platform, ROOT / "examples" / "digits-checkpoints")
    until(lambda: "epoch  1" in platform.danlu("logs", job), SHOWN_TIMEOUT_S, "the first epoch is printed")
    platform.danlu("stop", job, "--wait")
    assert platform.json("get", "job", job)["state"] == "cancelled"
    assert re.search(r"asked to stop; the checkpoint of epoch \d+ is kept$", platform.danlu("logs", job).strip())


def test_examples_need_no_platform(platform: Platform, tmp_path: Path) -> None:
    """A program that uses danlu runs alone too."""
    script = ROOT / "examples" / "hello" / "hello.py"
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=platform.environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[:2] == ["hello from a job", "step=1 loss=1"]
    assert (tmp_path / "outputs" / "greeting.txt").exists()
