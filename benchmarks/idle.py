"""An idle server: its memory and its processor time."""

from __future__ import annotations

import json
import time

import psutil

from benchmarks.platform import Figure, platform, run

SETTLE_S, WATCH_S = 5, 60


def figures() -> list[Figure]:
    """Measures."""
    with platform() as environ:
        run(["danlu", "run", "--", "python", "-c", "pass"], environ)
        with open(f"{environ['DANLU_HOME']}/platform.json") as file:
            server = psutil.Process(json.load(file)["pid"])
        time.sleep(SETTLE_S)
        before = server.cpu_times()
        time.sleep(WATCH_S)
        after = server.cpu_times()
        used = (after.user + after.system - before.user - before.system) / WATCH_S
        memory = server.memory_full_info()
    peer = psutil.Process().memory_info().rss
    return [
        Figure(
            "idle server: memory", f"{memory.rss / 2**20:.0f} MiB resident, {memory.uss / 2**20:.0f} MiB its own",
            "200 MB", memory.rss < 200e6, "", f"Python with psutil: {peer / 2**20:.0f} MiB",
        ),
        Figure("idle server: processor", f"{100 * used:.2f} % of a core", "0.5 %", used < 0.005, "", "0 %"),
    ]  # fmt: skip
