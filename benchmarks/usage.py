"""What it costs that running tasks are measured: jobs that sleep, and the processor time of their runners and the server."""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.platform import Figure, platform, run
from danlu.runner.handed import Handed
from danlu.runner.tasks import Task
from danlu.runner.usage import PERIOD_S, Sampler

JOBS, SETTLE_S, WATCH_S, SAMPLES = 6, 8, 40, 200


def figures() -> list[Figure]:
    """Measures."""
    with platform() as environ:
        for _ in range(JOBS):
            run(["danlu", "run", "-d", "--no-code", "--cpu", "0.1", "--", "sleep", "600"], environ)
        time.sleep(SETTLE_S)
        home = environ["DANLU_HOME"]
        server = int(json.loads((Path(home) / "platform.json").read_text())["pid"])
        runners = _runners(home)
        before = _ran(server), sum(map(_ran, runners))
        time.sleep(WATCH_S)
        used = (_ran(server) - before[0]) / WATCH_S, (sum(map(_ran, runners)) - before[1]) / WATCH_S
        top = json.loads(run(["danlu", "top", "-o", "json"], environ))
        measured = sum(task["cpu_cores"] is not None for job in top["jobs"] for task in job["tasks"])
        orders = [json.loads(order.read_text()) for order in Path(home).glob("attempts/*/order.json")]
        sample = _sample_s(orders[0]["tasks"][0])
    alone = _sample_s({**orders[0]["tasks"][0], "counters": None})
    group = "its control group" if orders[0]["tasks"][0].get("counters") else "/proc (no control groups here)"
    return [
        Figure(
            "a running task is measured every 5 s",
            f"{100 * sample / PERIOD_S:.4f} % of a core, by {group}; by /proc {100 * alone / PERIOD_S:.3f} %; "
            f"all that a sleeping job costs: runner {100 * used[1] / JOBS:.2f} %, server {100 * used[0] / JOBS:.2f} %",
            "≤ 0.1 % of a core a task", max(sample, alone) / PERIOD_S <= 0.001 and measured == JOBS, "", "0 %",
        )
    ]  # fmt: skip


def _sample_s(spec: dict[str, Any]) -> float:
    """Returns the processor time of one sample of a task, from the look to the spool, s."""
    with tempfile.TemporaryDirectory() as folder:
        spec = {**spec, "name": "main-0"}
        order = {"tasks": [spec], "log_limit_bytes": 2**30}
        task = Task(folder, order, spec, Handed())
        task.pid = os.getpid()
        sampler = Sampler(order)
        for turn in range(SAMPLES + 1):
            sampler.step([task], 1000.0 * turn)
            task.follower.step()
            if not turn:
                began = time.thread_time()
        return (time.thread_time() - began) / SAMPLES


def _runners(home: str) -> list[int]:
    """Returns the processes that hold an attempt's lock."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                opened = [str(link.readlink()) for link in (entry / "fd").iterdir()]
            except OSError:
                continue
            if any(name.startswith(f"{home}/attempts/") and name.endswith("/lock") for name in opened):
                found.append(int(entry.name))
    return found


def _ran(pid: int) -> float:
    """Returns how long a process's threads have run, s."""
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()) / 1e9
