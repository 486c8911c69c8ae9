"""From submit to the first line of every task: a gang of eight beside one task, seen by a client that follows the log."""

from __future__ import annotations

import secrets
import subprocess
import time

from benchmarks.platform import Figure, Times, platform, timed
from danlu.api.bodies import LogsQuery
from danlu.client.connection import require
from danlu.client.transport import Client
from danlu.domain.ids import RANDOM_BITS, make_id
from danlu.domain.specs import JobSpec

TURNS, TASKS = 15, 8
LINE = "echo up; exec sleep 0.2"
TARGET = 1.5


def first_lines(client: Client, tasks: int) -> float:
    """Submits, and returns how long it took until each task's first line had arrived, s; the job has ended by then."""
    roles = {"worker": {"replicas": tasks}} if tasks > 1 else {}
    spec = JobSpec.model_validate({"command": LINE, "cpu": 0.2, "roles": roles, "framework": "none"})
    job_id = make_id("j", time.time_ns(), secrets.randbits(RANDOM_BITS))
    began, took = time.perf_counter(), 0.0
    client.call("jobs.submit", {"job": job_id}, body=spec)
    seen: set[str] = set()
    for page in client.stream("jobs.logs_stream", {"job": job_id}, query=LogsQuery(beginning=1)):
        seen |= {chunk.task for chunk in page.chunks}
        if len(seen) == tasks and not took:
            took = time.perf_counter() - began
    if not took:
        raise SystemExit(f"{job_id} ended, and only {sorted(seen)} have printed")
    return took


def alone() -> None:
    """Starts as many shells at once and waits for the first line of each."""
    shells = [subprocess.Popen(["/bin/sh", "-c", "echo up; exec true"], stdout=subprocess.PIPE) for _ in range(TASKS)]
    for shell in shells:
        shell.communicate()


def figures() -> list[Figure]:
    """Measures."""
    with platform() as environ, Client(require(environ=environ)) as client:
        first_lines(client, 1)  # builds the bare environment
        # in turns, and none beside another: only the way to the first lines is timed
        turns = [(first_lines(client, 1), first_lines(client, TASKS), timed(alone)) for _ in range(TURNS)]
    found = dict(zip(("one", "gang", "shells"), map(Times, zip(*turns, strict=True)), strict=True))
    ratio = found["gang"].median / found["one"].median
    return [
        Figure(
            f"a gang of {TASKS}: submit to the first line of each", f"{found['gang']}; {ratio:.2f} × one task",
            f"{TARGET} × one task", ratio <= TARGET, f"one task: {found['one']}", f"{TASKS} bare shells: {found['shells']}",
        )
    ]  # fmt: skip
