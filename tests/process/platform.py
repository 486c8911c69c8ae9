"""A real server in a process of its own, to be started, killed and asked."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from danlu.api.bodies import LogsQuery, WaitQuery
from danlu.client.connection import KEY_FILE, Connection
from danlu.client.credentials import bootstrap
from danlu.client.transport import Client
from danlu.domain.ids import make_id
from danlu.domain.jobs import Job
from danlu.domain.specs import JobSpec
from danlu.runner import formats

START_TIMEOUT_S = 60.0


def until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Looks again and again until ``condition`` holds."""
    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        pause.wait(0.02)


def processes_with(mark: str) -> set[int]:
    """Returns every living process whose environment or command line holds ``mark``."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                text = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
                dead = (entry / "stat").read_bytes().rpartition(b")")[2].split()[0] == b"Z"
            except OSError:
                continue
            if mark.encode() in text and not dead:
                found.add(int(entry.name))
    return found


class Server:
    """One data folder's server."""

    def __init__(self, home: Path, *arguments: str, environ: dict[str, str] | None = None) -> None:
        self.home = home
        self.arguments = arguments
        self.environ = {**os.environ, **(environ or {})}
        self.process: subprocess.Popen[bytes] | None = None
        self.program: tuple[str, ...] = ("-m", "danlu.server")
        self.url = ""

    def start(self) -> dict[str, Any]:
        """Starts it and returns what it said: ready, or its error."""
        reader, writer = os.pipe()
        log = self.home.with_name(self.home.name + ".log").open("ab")
        with log:
            self.process = subprocess.Popen(
                [sys.executable, *self.program, "--home", str(self.home), "--port", "0", "--ready-fd", str(writer),
                 *self.arguments],
                pass_fds=(writer,), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environ,
            )  # fmt: skip
        os.close(writer)
        with open(reader) as pipe:
            said: dict[str, Any] = json.loads(pipe.readline() or "{}")
        self.url = said.get("url", "")
        if not self.url:
            self.process.wait(START_TIMEOUT_S)
        return said

    def kill(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(START_TIMEOUT_S)

    def end(self) -> int:
        """SIGTERM; returns the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(START_TIMEOUT_S)

    def client(self) -> Client:
        return Client(Connection(self.url, bootstrap(self.home / KEY_FILE), self.home))

    def submit(self, *command: str, job_id: str | None = None, **spec: Any) -> Job:
        where = {} if "image" in spec else {"env": "host", "interpreter": sys.executable}
        fields = {"command": list(command), "cpu": 0.01, **where, **spec}
        job_id = job_id or make_id("j", time.time_ns(), secrets.randbits(82))
        with self.client() as client:
            found: Job = client.call("jobs.submit", {"job": job_id}, body=JobSpec.model_validate(fields))
        return found

    def job(self, job_id: str) -> Job:
        with self.client() as client:
            found: Job = client.call("jobs.get", {"job": job_id})
        return found

    def wait(self, job_id: str, timeout_s: float = 60.0) -> Job:
        """Waits until a job has ended and everything of it is kept."""
        deadline = time.monotonic() + timeout_s
        with self.client() as client:
            while True:
                job: Job = client.call("jobs.wait", {"job": job_id}, query=WaitQuery(timeout_s=5))
                attempts = client.call("jobs.attempts", {"job": job_id}).items
                if not job.live and all(attempt.collected for attempt in attempts):
                    return job
                assert time.monotonic() < deadline, f"job {job.name} is {job.state} ({job.reason}) after {timeout_s} s"

    def lines(self, job_id: str, attempt: int) -> list[str]:
        """Returns what an ended attempt printed, runner's notices left out."""
        data, cursor = "", None
        with self.client() as client:
            while True:
                page = client.call("jobs.logs", {"job": job_id}, query=LogsQuery(attempt=attempt, cursor=cursor))
                data += "".join(chunk.data for chunk in page.chunks)
                cursor = page.cursor
                if page.done:
                    return [line.text for line in formats.parse_lines(data) if line.stream != "r"]
                assert page.chunks, f"attempt {attempt} of {job_id} has not ended"

    def events(self, attempt_id: str) -> list[dict[str, Any]]:
        return formats.read_status(str(self.home / "attempts" / attempt_id / "status"))

    def close(self) -> None:
        """Ends the server and whatever its jobs left."""
        if self.process is not None and self.process.poll() is None:
            self.kill()
        for pid in processes_with(str(self.home)):
            os.kill(pid, signal.SIGKILL)
