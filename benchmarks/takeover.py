"""How long it takes until another server leads when the leader is killed, stands still, or is ended: two on one PostgreSQL.

While that is measured clients submit jobs to both; each accepted one has to run to its end, once. Needs PostgreSQL 15.
"""

from __future__ import annotations

import importlib
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks.platform import Figure, Times

REPEATS: Final = 3
TARGET_S, ENDED_TARGET_S = 7.0, 1.0


def figures() -> list[Figure]:
    """Measures, with the servers of tests/process: there jobs are scripts in a folder that both see, as a cluster's."""
    with _postgresql() as cluster:
        killed, lost = _measured(cluster, lambda server: server.kill())
        stopped, more = _measured(cluster, lambda server: server.process.send_signal(signal.SIGSTOP))
        ended, others = _measured(cluster, lambda server: server.process.send_signal(signal.SIGTERM))
    once = (
        "each accepted job ran once"
        if lost == more == others == 0
        else f"{lost + more + others} jobs lost or run twice"
    )
    limit = "the lease: 5 s after its last renewal, every 1.5 s"
    done = lost == more == others == 0
    return [
        Figure(f"another server leads, the leader {name}", f"{times}; {once}", f"{target:g} s, nothing lost or done twice",
               max(times.all) <= target and done, "", limit if target == TARGET_S else "")
        for name, times, target in (
            ("killed", killed, TARGET_S), ("stopped (SIGSTOP)", stopped, TARGET_S), ("ended", ended, ENDED_TARGET_S),
        )
    ]  # fmt: skip


def _measured(cluster: Any, what: Callable[[Any], object]) -> tuple[Times, int]:
    """Returns how long each takeover took, and how many accepted jobs did not run to their end exactly once."""
    found, wrong = [], 0
    for _ in range(REPEATS):
        with _pair(cluster) as pair:
            pair.submit()
            pair.wait_for_more(5)
            found.append(pair.takeover_s(lambda one=pair.a: what(one)))
            pair.wait_for_more(5)
            pair.enough()
            wrong += len(pair.wrong(pair.b))
    return Times(tuple(found)), wrong


@contextmanager
def _pair(cluster: Any) -> Iterator[Any]:
    folder, name = Path(tempfile.mkdtemp(prefix="danlu-benchmark-", dir="/tmp")), cluster.create()
    pair = importlib.import_module("tests.process.two_servers").Pair(folder, cluster.url(name))
    try:
        pair.start()
        yield pair
    finally:
        pair.close()
        cluster.drop(name)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _postgresql() -> Iterator[Any]:
    folder = Path(tempfile.mkdtemp(prefix="danlu-pg-", dir="/tmp"))
    cluster = importlib.import_module("tests.conftest").Cluster(folder)
    try:
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
