"""Jobs that are looked into, by the command as a person types it."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

from danlu.domain.jobs import Job, JobState
from tests.process.platform import Server, processes_with, until

DANLU = [sys.executable, "-m", "danlu.cli.main"]


def running(server: Server, *command: str, **spec: Any) -> Job:
    """Submits a job and waits until it runs."""
    found = server.submit(*command, **spec)
    until(lambda: server.job(found.id).state is JobState.RUNNING, 30, "it runs")
    return found


def environ(server: Server) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DANLU_")}
    return {**kept, "DANLU_HOME": str(server.home), "NO_COLOR": "1", "TERM": "xterm"}


def danlu(
    server: Server, *words: str, data: bytes = b"", cwd: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*DANLU, *words], input=data, capture_output=True, env=environ(server), timeout=60, check=False, cwd=cwd
    )


def begun(server: Server, *words: str) -> subprocess.Popen[bytes]:
    """Starts a command that goes on, and waits for the line ``up``."""
    made = subprocess.Popen(
        [*DANLU, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ(server)
    )
    assert made.stdout is not None
    assert made.stdout.readline() == b"up\n"
    return made


def marked() -> str:
    return f"mark-{secrets.token_hex(8)}"


def gone(mark: str) -> None:
    until(lambda: not processes_with(mark), 20, "nothing of it is left")
