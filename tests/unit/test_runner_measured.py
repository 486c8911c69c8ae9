"""What the runner measures, among a program's metrics: the program cannot write it, use it up or keep it out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from danlu.runner import formats
from danlu.runner.follow import parse_point
from danlu.runner.printed import parse
from tests.unit.test_runner_follow import Task

SAMPLE = {"system/cpu_cores": 0.5}


def points(task: Task) -> list[dict[str, float]]:
    return [json.loads(line)["m"] for line in task.spooled(formats.METRICS).splitlines()]


def test_a_measurement_is_a_point_and_wakes_nobody(tmp_path: Path) -> None:
    task = Task(tmp_path)
    task.follower.measured(SAMPLE)
    assert task.follower.step() is False
    assert points(task) == [SAMPLE]
    task.write(b"1\t1\tloss=0.5\n", "metrics")
    task.follower.measured(SAMPLE)
    assert task.follower.step() is True
    assert points(task) == [SAMPLE, {"loss": 0.5}, SAMPLE]


def test_a_measurement_outlives_the_follower(tmp_path: Path) -> None:
    task = Task(tmp_path)
    task.follower.measured(SAMPLE)
    task.follower.step()
    task.die()
    task.follower.measured(SAMPLE)
    task.follower.drain()
    assert points(task) == [SAMPLE, SAMPLE]


@pytest.mark.parametrize("line", [b"1\t1\tsystem/cpu_cores=9", b"1\t\tloss=1\tsystem/x=1", b"1\t\tsystem/=1"])
def test_a_program_cannot_write_one(tmp_path: Path, line: bytes) -> None:
    assert parse_point(line) is None
    task = Task(tmp_path)
    task.write(line + b"\n2\t2\tloss=1\n", "metrics")
    task.follower.step()
    task.follower.step()
    assert points(task) == [{"loss": 1.0}]
    assert task.notices() == ["1 metrics could not be read and were left out"]


def test_a_program_cannot_print_one() -> None:
    assert parse(b"step 3 loss: 0.5 system/cpu_cores: 9 'system/x': 1") == (3.0, {"loss": 0.5})


def test_a_program_that_has_used_up_its_room_is_still_measured(tmp_path: Path) -> None:
    task = Task(tmp_path, limit_bytes=200)
    for number in range(100):
        task.write(b"1\t%d\tloss=1.0\n" % number, "metrics")
    task.follower.step()
    task.follower.step()
    kept = len(points(task))
    assert kept < 100
    task.follower.measured(SAMPLE)
    task.follower.step()
    assert points(task)[kept:] == [SAMPLE]
