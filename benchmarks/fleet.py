"""Thousands of jobs at once on a thousand nodes: the order in which they are admitted, and what the server needs for it.

The nodes and their pods exist in the API server alone (kwok), so the runners are played: each reports as a real one does (its
start, a line of its log, a sign of life each 15 s, its end). Needs the test cluster (make cluster), PostgreSQL 15 and the
tests' S3 server.
"""

from __future__ import annotations

import importlib
import json
import os
import secrets
import shutil
import sys
import tempfile
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from sqlalchemy import create_engine, text

from benchmarks.platform import Figure

NODES: Final = int(os.environ.get("DANLU_FLEET_NODES", "1000"))
JOBS: Final = int(os.environ.get("DANLU_FLEET_JOBS", "5000"))
GPUS: Final = 8
RUNS_S: Final = 60.0
HEARTBEAT_S: Final = 15.0
THREADS: Final = 8
LOOK_S: Final = 1.0
TIMEOUT_S: Final = 3600.0
MOST_BYTES: Final = 500 * 10**6
ATTEMPT: Final = "danlu.io/attempt"


class Submitted(NamedTuple):
    """A job, and between which times it was submitted (monotonic, s)."""

    job_id: str
    sent: float
    answered: float


def figures() -> list[Figure]:
    """Measures one life: all jobs submitted, admitted, run and collected."""
    with _company() as company, Runners(company) as runners:
        server = company.servers[0]
        idle = _memory(server.process.pid, "VmRSS")
        began, cpu = time.monotonic(), _cpu_s(server.process.pid)
        with ThreadPoolExecutor(THREADS) as threads:
            jobs = list(threads.map(lambda _: _submit(server), range(JOBS)))
        submitted_s = time.monotonic() - began
        engine = create_engine(company.environ["DANLU_DATABASE_URL"].replace("postgresql:", "postgresql+psycopg:"))
        _until(lambda: _count(engine, "attempts") >= JOBS, lambda: f"{_count(engine, 'attempts')} admitted, {runners}")
        admitted_s = time.monotonic() - began
        early = _early(engine, jobs)
        memory = _memory(server.process.pid, "VmHWM") / 1e6
        print(f"admitted after {admitted_s:.0f} s, {early} too early, {memory:.0f} MB", file=sys.stderr)
        ended = "attempts WHERE collected"
        _until(lambda: _count(engine, ended) >= JOBS, lambda: f"{_count(engine, ended)} ended, {runners}")
        ended_s = time.monotonic() - began
        cpu = _cpu_s(server.process.pid) - cpu
        peak = _memory(server.process.pid, "VmHWM")
        good = _count(engine, "jobs WHERE state = 'succeeded'")
        engine.dispose()
        bare_s = _bare(company)
    told = f"all submitted after {submitted_s:.0f} s, admitted {admitted_s:.0f} s, run and collected {ended_s:.0f} s"
    return [
        Figure(f"{JOBS:,} jobs at once on {NODES:,} nodes: admitted before one that was submitted earlier",
               f"{early}; {good:,} succeeded", "0", early == 0 and good == JOBS, told, ""),
        Figure("the server's memory meanwhile, at most", f"{peak / 1e6:.0f} MB (idle {idle / 1e6:.0f} MB)",
               f"{MOST_BYTES / 1e6:.0f} MB", peak < MOST_BYTES, f"its CPU time {cpu:.0f} s, {1000 * cpu / JOBS:.0f} ms a job",
               f"as many bare Jobs, made by {THREADS} connections, to their last pod's start: {bare_s:.0f} s"),
    ]  # fmt: skip


def _submit(server: Any) -> Submitted:
    image = importlib.import_module("tests.kubernetes.cluster.images").PYTHON
    sent = time.monotonic()
    job = server.submit("train", image=image, cpu=1.0, gpu=1)
    return Submitted(job.id, sent, time.monotonic())


def _count(engine: Any, what: str) -> int:
    with engine.connect() as connection:
        return int(connection.execute(text(f"SELECT count(*) FROM {what}")).scalar_one())


def _early(engine: Any, jobs: list[Submitted]) -> int:
    """Returns how many jobs were admitted before another one whose submission was answered before theirs was sent."""
    with engine.connect() as connection:
        rows = connection.execute(
            text("SELECT job_id, min((body->>'created_at')::bigint) FROM attempts GROUP BY job_id")
        ).all()
    admitted: dict[str, int] = {row[0]: row[1] for row in rows}
    count, answered, group = 0, float("inf"), float("inf")
    at = None
    for job in sorted(jobs, key=lambda one: -admitted[one.job_id]):
        if admitted[job.job_id] != at:
            at, answered, group = admitted[job.job_id], min(answered, group), float("inf")
        count += answered < job.sent
        group = min(group, job.answered)
    return count


def _memory(pid: int, what: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))


def _cpu_s(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _until(condition: Callable[[], bool], state: Callable[[], str]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {TIMEOUT_S:g} s: {state()}")
        if sys.stderr.isatty():
            print(f"\r{state()}\033[K", end="", file=sys.stderr)
        time.sleep(LOOK_S)


class Runners:
    """What the runners of all fake pods would tell the server, and the kubelet the API server of their ends."""

    def __init__(self, company: Any) -> None:
        self._company, self._space = company, company.namespace.name
        self._own = threading.local()
        self._known: set[str] = set()
        self._due: dict[str, float] = {}
        self._began: dict[str, tuple[float, str, int]] = {}
        self._over = threading.Event()
        self._threads = ThreadPoolExecutor(THREADS)
        self._watch = threading.Thread(target=self._run, daemon=True)
        self.reports = self.failures = 0

    def __enter__(self) -> Runners:
        self._watch.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._watch.join()
        self._threads.shutdown(cancel_futures=True)

    def __str__(self) -> str:
        return f"{len(self._known):,} pods seen, {self.reports:,} reports, {self.failures:,} failed"

    def _api(self) -> Any:
        if not hasattr(self._own, "api"):
            self._own.api = importlib.import_module("tests.kubernetes.cluster.api").Api()
        return self._own.api

    def _run(self) -> None:
        api = importlib.import_module("tests.kubernetes.cluster.api")
        path, names = f"/api/v1/namespaces/{self._space}/pods", api.Api(api.METADATA)
        while not self._over.wait(LOOK_S):
            work = []
            for pod in names.pages(path, labelSelector=ATTEMPT, fieldSelector="status.phase=Running"):
                name, now = pod["metadata"]["name"], time.monotonic()
                if name not in self._known:
                    self._known.add(name)
                    work.append((self._begin, pod))
                elif now >= self._due.get(name, float("inf")):
                    over = now - self._began[name][0] >= RUNS_S
                    self._due[name] = float("inf") if over else now + HEARTBEAT_S
                    work.append((self._end if over else self._again, pod))
            for future in [self._threads.submit(self._do, does, pod) for does, pod in work]:
                future.result()

    def _do(self, does: Callable[[Any], None], pod: Any) -> None:
        try:
            does(pod)
        except Exception as error:  # noqa: BLE001 - it is tried again with the next sign of life
            self.failures += 1
            self._forget_connections()
            name = pod["metadata"]["name"]
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
            if name in self._began:
                self._due[name] = time.monotonic() + LOOK_S
            else:
                self._known.discard(name)

    def _forget_connections(self) -> None:
        for connection in vars(self._own).values():
            connection.close()
        vars(self._own).clear()

    def _begin(self, pod: Any) -> None:
        name, attempt = pod["metadata"]["name"], pod["metadata"]["labels"][ATTEMPT]
        secret = self._api()("GET", f"/api/v1/namespaces/{self._space}/secrets/{attempt}")
        token, at = b64decode(secret["data"]["token"]).decode(), time.time_ns()
        self._began[name] = (time.monotonic(), token, at)
        self._ask(pod, "streams/main-0/log?offset=0", f"{at} o it trains\n".encode())
        self._report(pod, {"event": "started", "task": "main-0", "at": at, "pid": 1})
        self._due[name] = time.monotonic() + HEARTBEAT_S

    def _again(self, pod: Any) -> None:
        self._report(
            pod, {"event": "started", "task": "main-0", "at": self._began[pod["metadata"]["name"]][2], "pid": 1}
        )

    def _end(self, pod: Any) -> None:
        now, name = time.time_ns(), pod["metadata"]["name"]
        began = {"event": "started", "task": "main-0", "at": self._began[name][2], "pid": 1}
        self._report(
            pod, began, {"event": "exited", "task": "main-0", "at": now, "exit_code": 0}, {"event": "ended", "at": now}
        )
        state = {"name": "main", "image": "", "imageID": "", "ready": False, "restartCount": 0,
                 "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}  # fmt: skip
        self._api()("PATCH", f"/api/v1/namespaces/{self._space}/pods/{name}/status",
                    {"status": {"phase": "Succeeded", "containerStatuses": [state]}},
                    "application/strategic-merge-patch+json")  # fmt: skip

    def _report(self, pod: Any, *events: dict[str, Any]) -> None:
        self._ask(pod, "tasks/main-0", json.dumps({"events": events}).encode(), "application/json")
        self.reports += 1

    def _ask(self, pod: Any, path: str, body: bytes, kind: str = "application/octet-stream") -> None:
        attempt, token = pod["metadata"]["labels"][ATTEMPT], self._began[pod["metadata"]["name"]][1]
        headers = {"Authorization": f"Bearer {token}", "Content-Type": kind}
        if not hasattr(self._own, "server"):
            self._own.server = HTTPConnection(urlsplit(self._company.servers[0].url).netloc, timeout=60)
        self._own.server.request("PUT", f"/v1/attempts/{attempt}/{path}", body, headers)
        answer = self._own.server.getresponse()
        said = answer.read()
        if answer.status >= 300:
            raise ValueError(f"{path}: {answer.status}: {said[:300].decode(errors='replace')}")


def _bare(company: Any) -> float:
    """Returns how long as many Jobs take without a platform, from the first one's creation to the last pod's start."""
    find = importlib.import_module
    fake, api = find("tests.kubernetes.cluster.fake_nodes"), find("tests.kubernetes.cluster.api")
    make = find("tests.kubernetes.conftest").job
    path = f"/apis/batch/v1/namespaces/{company.namespace.name}/jobs"
    own, names = threading.local(), [f"bare-{number}" for number in range(JOBS)]

    def create(name: str) -> None:
        if not hasattr(own, "api"):
            own.api = api.Api()
        job = make(name, "train", nodeSelector={fake.LABEL: "true"}, tolerations=[{"key": fake.TAINT, "operator": "Exists"}],
                   container={"resources": {"limits": {"nvidia.com/gpu": "1"}}})  # fmt: skip
        job["spec"]["template"]["metadata"] = {"labels": {"bare": "true"}}
        own.api("POST", path, job)

    began = time.monotonic()
    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(create, names))
    pods = f"/api/v1/namespaces/{company.namespace.name}/pods"
    with api.Api(api.METADATA) as asked:

        def running() -> int:
            found = asked.pages(pods, labelSelector="bare=true", fieldSelector="status.phase=Running")
            return sum(1 for _ in found)

        _until(lambda: running() >= JOBS, lambda: f"{running()} bare pods run")
    return time.monotonic() - began


@contextmanager
def _company() -> Iterator[Any]:
    """Yields a platform of one server in a namespace of its own, on fake nodes."""
    find = importlib.import_module
    running, databases = find("tests.kubernetes.cluster.running"), find("tests.conftest")
    fake = find("tests.kubernetes.cluster.fake_nodes")
    if not running.is_up():
        raise SystemExit("no Kubernetes cluster runs: make cluster")
    cluster, name, spaces = running.Cluster(), f"fleet-{secrets.token_hex(4)}", "/api/v1/namespaces"
    folder = Path(tempfile.mkdtemp(prefix="danlu-fleet-", dir="/tmp"))
    folder.chmod(0o711)
    templates = folder / "templates.yaml"
    templates.write_text(json.dumps({"default": {
        "node_selector": {fake.LABEL: "true"}, "tolerations": [{"key": fake.TAINT, "operator": "Exists"}],
    }}))  # fmt: skip
    with running.used(), running.shared(alone=True), cluster.api, find("tests.s3_server").S3Server() as store:
        fake.add(NODES, GPUS, stay=True)
        cluster.api("POST", spaces, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        for part in ("pg", "homes"):
            (folder / part).mkdir(mode=0o711)
        database = databases.Cluster(folder / "pg")
        try:
            space = find("tests.kubernetes.conftest").Namespace(cluster, name)
            made = find("tests.kubernetes.platform").Company(
                space, database, store, folder / "homes", "a", DANLU_POD_TEMPLATES=str(templates)
            )
            try:
                made.start()
                yield made
            finally:
                made.close()
        finally:
            database.stop()
            cluster.api("DELETE", f"{spaces}/{name}", {"propagationPolicy": "Background"})
            fake.remove()
            shutil.rmtree(folder, ignore_errors=True)
