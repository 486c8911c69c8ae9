"""How long a job takes to its first line of output as a pod, and what it writes to the cluster, beside a bare Job.

Needs the test cluster (make cluster), PostgreSQL 15 and the tests' S3 server.
"""

from __future__ import annotations

import importlib
import json
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from benchmarks.platform import Figure, Times

REPEATS: Final = 8
LOOK_S: Final = 0.02
TIMEOUT_S: Final = 60.0
RATIO: Final = 1.5
MORE_WRITES: Final = 2
COMMAND: Final = ("sh", "-c", "echo line")


def figures() -> list[Figure]:
    """Measures, a bare Job and a job of Danlu's in turns."""
    with _company() as (company, cluster):
        bare, ours, bare_writes, our_writes = [], [], [], []
        for number in range(REPEATS + 1):  # the first finds the image, and the runner's ConfigMap, not there yet
            one = _counted(cluster, lambda: _bare(company, cluster))
            two = _counted(cluster, lambda: _job(company))
            if number:
                bare.append(one[0])
                bare_writes.append(one[1])
                ours.append(two[0])
                our_writes.append(two[1])
    peer, own = Times(tuple(bare)), Times(tuple(ours))
    most, plain = max(our_writes), max(bare_writes)
    return [
        Figure("a job as a pod: submit to the first line", f"{own}; {own.median / peer.median:.2f} × a bare Job",
               f"{RATIO:g} × a bare Job", own.median <= RATIO * peer.median,
               f"`kubectl apply` of a Job of the same image to the first line of its log: {peer}",
               "the kubelet's start of a container"),
        Figure("writes to the cluster's API for one job, its removal too", str(most),
               f"{plain + MORE_WRITES}: a Job and its Service, made and removed, and {MORE_WRITES} more",
               most <= plain + MORE_WRITES, f"kubectl: {plain}", ""),
    ]  # fmt: skip


def _counted(cluster: Any, work: Callable[[], float]) -> tuple[float, int]:
    """Returns what ``work`` does, and how many writes it made by the administrator's certificate, ours and kubectl's."""
    since = cluster.written_bytes
    took = work()
    time.sleep(2.0)  # what is removed afterwards
    ours = [one for one in cluster.writes(since) if not one["user"]["username"].startswith("system:")]
    return took, len(ours)


def _bare(company: Any, cluster: Any) -> float:
    """Returns how long a Job takes that kubectl applies, with a Service, to the first line of its log."""
    make = importlib.import_module("tests.kubernetes.conftest").job
    name, space = f"bare-{secrets.token_hex(4)}", company.namespace.name
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
               "spec": {"clusterIP": "None", "selector": {"job-name": name}}}  # fmt: skip
    listed = {"apiVersion": "v1", "kind": "List", "items": [make(name, *COMMAND), service]}
    begun = time.monotonic()
    cluster.kubectl("-n", space, "apply", "-f", "-", send=json.dumps(listed))
    _until(lambda: any("line" in _log(company, pod) for pod in company.namespace.pods(name)))
    took = time.monotonic() - begun
    cluster.kubectl("-n", space, "delete", "--wait=false", f"job/{name}", f"service/{name}")
    return took


def _log(company: Any, pod: Any) -> str:
    with suppress(Exception):  # it has none yet
        return str(company.namespace.log(pod))
    return ""


def _job(company: Any) -> float:
    """Returns how long a job takes from submit to its first line."""
    server = company.servers[0]
    begun = time.monotonic()
    image = importlib.import_module("tests.kubernetes.cluster.images").PYTHON
    job = server.submit(*COMMAND, image=image, cpu=1.0)
    with server.client() as client:
        _until(lambda: any("line" in chunk.data for chunk in client.call("jobs.logs", {"job": job.id}).chunks))
        took = time.monotonic() - begun
    server.wait(job.id)
    return took


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"no line of output within {TIMEOUT_S:g} s")
        time.sleep(LOOK_S)


@contextmanager
def _company() -> Iterator[tuple[Any, Any]]:
    """Yields a platform of two servers in a namespace of its own, and the cluster."""
    find = importlib.import_module
    running, databases = find("tests.kubernetes.cluster.running"), find("tests.conftest")
    if not running.is_up():
        raise SystemExit("no Kubernetes cluster runs: make cluster")
    cluster = running.Cluster()
    name = f"benchmark-{secrets.token_hex(4)}"
    spaces = "/api/v1/namespaces"
    folder = Path(tempfile.mkdtemp(prefix="danlu-pg-", dir="/tmp"))
    with running.used(), cluster.api, find("tests.s3_server").S3Server() as store:
        cluster.api("POST", spaces, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        database = databases.Cluster(folder)
        try:
            space = find("tests.kubernetes.conftest").Namespace(cluster, name)
            with find("tests.kubernetes.platform").company(space, database, store) as made:
                yield made, cluster
        finally:
            database.stop()
            cluster.api("DELETE", f"{spaces}/{name}", {"propagationPolicy": "Background"})
            shutil.rmtree(folder, ignore_errors=True)
