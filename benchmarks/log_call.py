"""One ``danlu.log`` call in a training loop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.platform import Figure

CALLS = 200_000
PROGRAM = """
import json, os, sys, time
import danlu
calls, path = int(sys.argv[1]), os.environ["DANLU_METRICS_FILE"]
def best(work):
    found = []
    for _ in range(7):
        began = time.perf_counter()
        work()
        found.append((time.perf_counter() - began) / calls)
    return min(found)
def ours():
    for step in range(calls):
        danlu.log(step=step, loss=0.125)
descriptor = os.open(path + ".bare", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
line = b"1700000000000000000\\t100000\\tloss=0.125\\n"
def bare():
    for _ in range(calls):
        os.write(descriptor, line)
def as_json():
    with open(path + ".json", "a", buffering=1) as file:
        for step in range(calls):
            file.write(json.dumps({"t": time.time_ns(), "step": step, "loss": 0.125}) + "\\n")
print(json.dumps({"ours": best(ours), "bare": best(bare), "json": best(as_json)}))
"""


def figures() -> list[Figure]:
    """Measures."""
    with tempfile.TemporaryDirectory() as folder:
        environ = {**os.environ, "DANLU_METRICS_FILE": str(Path(folder) / "metrics")}
        said = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(CALLS)], env=environ, check=True, capture_output=True, text=True
        ).stdout
    found = json.loads(said)
    return [
        Figure(
            "`danlu.log(step=…, loss=…)`", f"{found['ours'] * 1e6:.2f} µs", "3 µs", found["ours"] <= 3e-6,
            f"a JSON line by line-buffered `open`: {found['json'] * 1e6:.2f} µs",
            f"`os.write` of the line alone: {found['bare'] * 1e6:.2f} µs",
        )
    ]  # fmt: skip
