"""What tasks use: from recorded control groups, from real processes, from a driver that answers, fails or hangs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from danlu.runner import nvml, usage
from danlu.runner.counters import Counters
from danlu.runner.usage import Sampler, in_trees
from tests.factories import write_files
from tests.unit.test_runner_main import until

MIB = 2**20
V1 = {
    "g/memory.usage_in_bytes": f"{100 * MIB}\n",
    "g/memory.stat": f"inactive_file {MIB}\ntotal_inactive_file {40 * MIB}\n",
    "g/cpuacct.usage": "1000000000\n",
}
V2 = {
    "g/memory.current": f"{100 * MIB}\n",
    "g/memory.stat": f"anon 1\ninactive_file {40 * MIB}\n",
    "g/cpu.stat": "usage_usec 1000000\n",
}


class Follower:
    def __init__(self) -> None:
        self.samples: list[dict[str, float]] = []

    def measured(self, values: dict[str, float]) -> None:
        self.samples.append(values)


class Task:
    def __init__(self, name: str = "main-0", pid: int | None = 1, **spec: Any) -> None:
        self.name, self.pid, self.done = name, pid, False
        self.spec = {"name": name, **spec}
        self.follower, self.counters = Follower(), Counters(spec.get("counters"))


def order(*tasks: Task) -> dict[str, Any]:
    return {"tasks": [task.spec for task in tasks]}


def group(version: int, folder: str) -> dict[str, Any]:
    return {"version": version, "memory": folder, "cpu": folder}


@pytest.mark.parametrize(
    ("version", "files", "after"),
    [(1, V1, ("cpuacct.usage", "4000000000")), (2, V2, ("cpu.stat", "usage_usec 4000000"))],
)
def test_a_control_group_is_sampled_when_it_is_time(
    tmp_path: Path, version: int, files: dict[str, str], after: tuple[str, str]
) -> None:
    folder = str(write_files(tmp_path, dict(files)) / "g")
    task = Task(counters=group(version, folder))
    sampler = Sampler(order(task))
    sampler.step([task], 100.0)
    assert task.follower.samples == []  # it is only what the next one is compared with
    Path(folder, after[0]).write_text(after[1])
    sampler.step([task], 101.9)
    assert task.follower.samples == []
    sampler.step([task], 102.0)
    assert task.follower.samples == [{"system/cpu_cores": 1.5, "system/memory_bytes": 60 * MIB}]
    sampler.step([task], 106.9)
    assert len(task.follower.samples) == 1
    sampler.step([task], 107.0)
    assert task.follower.samples[1]["system/cpu_cores"] == 0.0


def test_each_task_of_a_gang_has_its_own_group(tmp_path: Path) -> None:
    tasks = []
    for number in range(2):
        folder = str(write_files(tmp_path / str(number), dict(V2)) / "g")
        tasks.append(Task(f"worker-{number}", counters=group(2, folder)))
    sampler = Sampler(order(*tasks))
    sampler.step(tasks, 0.0)
    (tmp_path / "1" / "g" / "cpu.stat").write_text("usage_usec 3000000")
    tasks[0].done = True
    sampler.step(tasks, 2.0)
    assert tasks[0].follower.samples == []  # it has ended
    assert tasks[1].follower.samples[0]["system/cpu_cores"] == 1.0


def test_a_job_of_many_days_is_sampled_less_often(tmp_path: Path) -> None:
    folder = str(write_files(tmp_path, dict(V2)) / "g")
    task = Task(counters=group(2, folder))
    sampler = Sampler(order(task))
    at = 0.0
    for at in (0.0, 2.0, 30 * 86400.0):
        sampler.step([task], at)
    assert len(task.follower.samples) == 2
    sampler.step([task], at + 59.0)
    assert len(task.follower.samples) == 2
    sampler.step([task], at + 60.0)
    assert len(task.follower.samples) == 3


def test_looking_never_costs_more_than_its_part(tmp_path: Path) -> None:
    class Slow(Sampler):
        def _values(self, task: Any, trees: Any, now: float) -> dict[str, float]:
            begun = time.thread_time()
            while time.thread_time() - begun < 0.02:
                pass
            return {"system/cpu_cores": 1.0}

    task = Task(counters=group(2, str(tmp_path)))
    sampler = Slow(order(task))
    sampler.step([task], 0.0)
    sampler.step([task], 0.02 * usage.COST_PART - 1)
    assert len(task.follower.samples) == 1
    sampler.step([task], 0.1 * usage.COST_PART)
    assert len(task.follower.samples) == 2


BUSY = "x = bytearray(40_000_000)\nwhile True: pass"


def test_a_tree_without_a_control_group(tmp_path: Path) -> None:
    daemon = (
        "import os, sys, time\n"
        "if os.fork() == 0:\n"
        "    if os.fork() == 0:\n"
        f"        {BUSY.splitlines()[0]}\n"
        "        open(sys.argv[1], 'w').close()\n"
        "        while True: pass\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "time.sleep(600)\n"
    )
    ready = tmp_path / "ready"
    with (
        subprocess.Popen([sys.executable, "-c", daemon, str(ready)], start_new_session=True) as one,
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True) as other,
    ):
        try:
            until(ready.exists)
            tasks = [Task("worker-0", one.pid), Task("worker-1", other.pid)]
            sampler = Sampler(order(*tasks))
            begun = time.monotonic()
            sampler.step(tasks, begun)
            until(lambda: in_trees([one.pid])[one.pid].cpu_ns > 1e9)  # type: ignore[operator]
            sampler.step(tasks, max(sampler._due, time.monotonic()))
            busy, idle = (task.follower.samples[0] for task in tasks)
            assert busy["system/cpu_cores"] > 0.05
            assert busy["system/memory_bytes"] > 40_000_000
            assert idle["system/cpu_cores"] < 0.05
            assert 0 < idle["system/memory_bytes"] < busy["system/memory_bytes"]
        finally:
            os.killpg(one.pid, 9)
            other.kill()


def test_of_one_task_what_lies_below_the_runner_is_its_own() -> None:
    """A daemon that made a session of its own has lost its parent and its session: it is the runner's child."""
    with subprocess.Popen([sys.executable, "-c", BUSY], start_new_session=True) as lost:
        try:
            task = subprocess.Popen(["sleep", "600"], start_new_session=True)
            until(lambda: in_trees([lost.pid])[lost.pid].memory_bytes > 40_000_000)  # type: ignore[operator]
            alone = in_trees([task.pid])[task.pid]
            whole = in_trees([task.pid], os.getpid())[task.pid]
            assert (whole.memory_bytes or 0) > 40_000_000 + (alone.memory_bytes or 0)
            task.kill()
            task.wait()
        finally:
            lost.kill()


class Driver:
    """Answers as the driver's library does; GPU 1 is lost."""

    def nvmlInit_v2(self) -> int:  # noqa: N802 - the library's names
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, device: Any) -> int:  # noqa: N802
        device._obj.value = index.value + 1
        return 0

    def nvmlDeviceGetUtilizationRates(self, device: Any, rates: Any) -> int:  # noqa: N802
        if device.value == 2:
            return 15
        rates._obj.gpu = 87
        return 0

    def nvmlDeviceGetMemoryInfo(self, _device: Any, memory: Any) -> int:  # noqa: N802
        memory._obj.used = 12 * 2**30
        return 0


def test_the_driver_is_asked_for_each_gpu() -> None:
    assert nvml.ask(Driver(), [0, 1, 2]) == {0: nvml.Gpu(87.0, 12 * 2**30), 2: nvml.Gpu(87.0, 12 * 2**30)}


def test_the_gpus_of_a_task_are_in_its_sample(tmp_path: Path) -> None:
    folder = str(write_files(tmp_path, dict(V2)) / "g")
    task = Task(devices=[2], counters=group(2, folder))
    sampler = Sampler(order(task))
    sampler._gpus = nvml.Gpus([0, 2], Driver())
    until(lambda: sampler._gpus.newest(time.monotonic()))
    sampler.step([task], time.monotonic())
    sampler.step([task], time.monotonic() + 3)
    names = {name: value for name, value in task.follower.samples[0].items() if "gpu" in name}
    assert names == {"system/gpu2_percent": 87.0, "system/gpu2_memory_bytes": 12 * 2**30}
    assert sampler._gpus.newest(time.monotonic() + nvml.TOO_OLD_S) == {}


def test_a_driver_that_hangs_or_is_missing_holds_nobody_up() -> None:
    class Hanging(Driver):
        asked, go = threading.Event(), threading.Event()

        def nvmlInit_v2(self) -> int:  # noqa: N802
            self.asked.set()
            self.go.wait(60)
            return 1

    gpus = nvml.Gpus([0], Hanging())
    assert gpus.newest(time.monotonic()) == {}
    assert Hanging.asked.wait(60)
    assert gpus.newest(time.monotonic()) == {}
    Hanging.go.set()
    missing = nvml.Gpus([0], "libno-such-driver.so.1")
    assert missing.newest(time.monotonic()) == {}
    before = threading.active_count()
    assert nvml.Gpus([]).newest(time.monotonic()) == {}
    assert threading.active_count() <= before
