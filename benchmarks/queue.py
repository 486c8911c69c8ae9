"""A long queue: what a submit costs with none and with 10,000 jobs waiting."""

from __future__ import annotations

import secrets
import sqlite3
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.platform import Figure, Times, platform, timed
from danlu.client.connection import require
from danlu.client.transport import Client
from danlu.domain.ids import make_id
from danlu.domain.specs import JobSpec

QUEUED, TIMED, WAITING_GPUS = 10_000, 300, 4


def submit(client: Client, **spec: object) -> None:
    """Submits one job that waits for GPUs which are never free."""
    fields = {"command": ["sleep", "86400"], "env": "host", "interpreter": "/usr/bin/python3", "cpu": 0.01, **spec}
    job_id = make_id("j", time.time_ns(), secrets.randbits(82))
    client.call("jobs.submit", {"job": job_id}, body=JobSpec.model_validate(fields))


def durable_commit() -> Times:
    """Times one row's durable commit in a SQLite file of its own: no submit can be quicker."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        connection = sqlite3.connect(Path(folder) / "bare.db", isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE t (a)")
        times = [timed(lambda: connection.execute("INSERT INTO t VALUES (1)")) for _ in range(TIMED)]
        connection.close()
    return Times(tuple(times))


def figures() -> list[Figure]:
    """Measures."""
    with platform("--gpus", str(WAITING_GPUS)) as environ:
        clients = [Client(require(environ=environ)) for _ in range(8)]
        submit(clients[0], gpu=WAITING_GPUS)  # it runs, and holds what the others wait for
        few = Times(tuple(timed(lambda: submit(clients[0], gpu=1)) for _ in range(TIMED)))
        began = time.perf_counter()
        with ThreadPoolExecutor(len(clients)) as pool:
            list(pool.map(lambda n: submit(clients[n % len(clients)], gpu=1), range(QUEUED - TIMED)))
        rate = (QUEUED - TIMED) / (time.perf_counter() - began)
        time.sleep(10)  # until each of them has its reason
        many = Times(tuple(timed(lambda: submit(clients[0], gpu=1)) for _ in range(TIMED)))
        for client in clients:
            client.close()
    bare = durable_commit()
    slower = many.median / few.median

    def words(times: Times) -> str:
        return f"{times.median * 1e3:.1f} ms (p99 {times.at(0.99) * 1e3:.1f})"

    return [
        Figure(
            "submit behind 10,000 queued jobs", f"{words(many)}, {slower:.2f} × an empty queue", "not slower (≤ 1.5 ×)",
            slower <= 1.5, f"empty queue: {words(few)}; filled at {rate:.0f} submits/s",
            f"one durable SQLite commit: {words(bare)}",
        )
    ]  # fmt: skip
