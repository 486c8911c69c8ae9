"""The client half of ``import danlu``: loaded when used, typed, one set of fields; frames of metrics as promised."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pandas
import pytest
from mypy import api as mypy

import danlu
from danlu import errors
from danlu.client import measured
from danlu.client.fields import JobFields
from danlu.client.jobs import completed
from danlu.client.submitting import changed, spec_of
from danlu.domain.specs import JobSpec
from danlu.domain.views import Series

PACKAGE = Path(danlu.__file__).parent
TYPES = """
import danlu
reveal_type(danlu.run)
job = danlu.run(["python", "a.py"], env="pytorch", gpu=1, roles={"worker": {"replicas": 2}}, code=None)
reveal_type(job)
reveal_type(job.wait(timeout_s=3.0, state="running"))
reveal_type([line.task for line in job.logs(follow=True, role="worker", rank=[0, 1])])
reveal_type(job.series())
reveal_type(job.stop().retry(memory="4GiB", retry={"attempts": 2}))
reveal_type(job.artifacts())
reveal_type(job.download("here"))
reveal_type(job.exit_code)
reveal_type(danlu.jobs(state="running"))
with danlu.connect("http://127.0.0.1:7070", project="a") as platform:
    reveal_type(platform.job("x").describe().attempts)
danlu.run("x", gpus=1)
danlu.run("x", gpu=[1])
danlu.rnu("x")
danlu.errors.NotFoud
"""
JOB = r"danlu\.client\.jobs\.Job"
REVEALED = [
    rf"def \(command: str \| .*Sequence\[str\], \*, code: .*\*\*fields: .*JobFields.*\) -> {JOB}",
    JOB,
    JOB,
    r"list\[str\]",
    r"dict\[str, danlu\.domain\.views\.Series\]",
    JOB,
    r"list\[danlu\.domain\.artifacts\.Artifact\]",
    r"pathlib\.Path",
    r"int \| None",
    rf"list\[{JOB}\]",
    r"tuple\[danlu\.domain\.jobs\.Attempt, \.\.\.\]",
]
REFUSED = ['Unexpected keyword argument "gpus"', 'Argument "gpu" to "run"', '"rnu"', '"NotFoud"']


def test_it_is_typed(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(TYPES)
    said, wrong, _ = mypy.run(["--strict", "--cache-dir", str(tmp_path / "cache"), "--no-pretty", str(program)])
    assert wrong == ""
    revealed = [text.replace("builtins.", "") for text in re.findall(r'note: Revealed type is "(.*)"', said)]
    assert len(revealed) == len(REVEALED), said
    for found, expected in zip(revealed, REVEALED, strict=True):
        assert re.fullmatch(expected, found), f"{found} is not {expected}"
    refused = [line for line in said.splitlines() if ": error: " in line]
    assert len(refused) == len(REFUSED), said
    for line, expected in zip(refused, REFUSED, strict=True):
        assert expected in line
    assert (PACKAGE / "py.typed").exists()


def test_its_fields_are_the_specifications() -> None:
    assert set(JobFields.__annotations__) == set(JobSpec.model_fields) - {"command", "code", "git", "interpreter"}


def test_errors_are_the_servers_own() -> None:
    assert danlu.errors is errors
    with pytest.raises(AttributeError, match="no attribute 'rnu'"):
        getattr(danlu, "rnu")  # noqa: B009 - as a program that misspells it


@pytest.mark.parametrize("name", ["run", "connect", "jobs", "Job", "errors"])
def test_inside_a_job_it_says_that_the_client_is_not_there(tmp_path: Path, name: str) -> None:
    (tmp_path / "danlu").mkdir()
    (tmp_path / "danlu" / "__init__.py").write_bytes((PACKAGE / "__init__.py").read_bytes())
    program = (
        f"import danlu\ntry:\n    danlu.{name}\nexcept ImportError as error:\n    print(error)\nfrom danlu import *\n"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", program], capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.stdout.startswith(f"danlu.{name} needs Danlu's client, which this Python does not have")


def test_a_keyword_that_is_no_field_is_named() -> None:
    with pytest.raises(errors.InvalidSpec, match="gpus is not a field") as caught:
        spec_of({"command": "x", "gpus": 1})
    assert "did you mean gpu?" in caught.value.next_step


def test_fields_are_completed(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text("six\n")
    assert completed({"requirements": tmp_path / "r.txt"}) == {"requirements": "six\n"}
    assert completed({"env": "host"}) == {"env": "host", "interpreter": sys.executable}
    old = JobSpec(command="x", roles={"worker": {"replicas": 2, "cpu": 1}})
    assert changed(old, {"roles": {"worker": {"replicas": 4}}})["roles"] == {"worker": {"replicas": 4, "cpu": 1.0}}


def series(name: str, points: list[tuple[float | None, float]], task: str = "") -> Series:
    steps, values = tuple(step for step, _ in points), tuple(value for _, value in points)
    return Series(
        name=name, task=task, count=len(points), steps=steps, times=tuple(range(len(points))), values=values,
        smallest=min(values), largest=max(values), last=values[-1],
    )  # fmt: skip


def test_a_table_has_a_column_for_each_metric_and_a_row_for_each_step() -> None:
    found = measured.by_label(
        [
            series("loss", [(1, 0.9), (2, 0.5), (3, 0.4), (2, 0.45)]),
            series("accuracy", [(2, 0.7)]),
            series("free", [(None, 5), (None, 6)], task="worker-1"),
        ]
    )
    assert list(found) == ["loss", "accuracy", "worker-1/free"]
    table = measured.table(found)
    expected = pandas.DataFrame(
        {
            "loss": [float("nan"), 0.9, 0.45, 0.4],
            "accuracy": [float("nan"), float("nan"), 0.7, float("nan")],
            "worker-1/free": [5.0, 6.0, float("nan"), float("nan")],
        },
        index=pandas.Index([0.0, 1.0, 2.0, 3.0], name="step"),
    )
    pandas.testing.assert_frame_equal(table, expected)
    assert measured.table({}).empty


def test_without_pandas_metrics_are_series(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import sys
        sys.modules["pandas"] = None
        from danlu.client.jobs import Job
        from danlu.domain.views import Metrics, Series
        class Client:
            def call(self, *_, **__):
                one = Series(name="loss", count=1, steps=(1,), times=(5,), values=(0.5,), smallest=0.5, largest=0.5, last=0.5)
                return Metrics(series=(one,))
        class Record: id = "j"
        print(Job(Client(), Record).metrics()["loss"].values)
        """
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("(0.5,)\n", "")
