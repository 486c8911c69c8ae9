"""Starts and stops the platform of this machine: a server of its own, which outlives the command that started it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from danlu.client.connection import Connection, Running, find, require
from danlu.errors import AlreadyRunning, PlatformError, from_problem

READY_TIMEOUT_S = 60.0
LOG_FILE = "server.log"
ENDING_TIMEOUT_S = 30.0
"""How long an older server of the same data folder may take to end."""
RETRY_S = 1.0
MAX_LOG_BYTES = 16 * 2**20
MAX_READY_BYTES = 65_536
TAIL_LINES = 15
_started: list[subprocess.Popen[bytes]] = []  # kept, so that a server is not reported as a forgotten child


def server_command(home: Path, flags: Sequence[str] = ()) -> list[str]:
    """Returns the words that run the server. ``-P``: what lies in the present folder is never imported."""
    return [sys.executable, "-P", "-m", "danlu.server", "--home", str(home), *flags]


def start(home: Path, flags: Sequence[str] = ()) -> Connection:
    """Starts the platform of a data folder, detached, and returns once it answers.

    Of several that start it at the same time one does, and the others use that one. An older one that is just ending is
    waited for.

    Raises:
        PlatformError: it did not start; the message holds the end of its log.
    """
    return once_free(home, lambda: _start_once(home, flags))


def once_free(
    home: Path, attempt: Callable[[], Connection], *, timeout_s: float = ENDING_TIMEOUT_S, retry_s: float = RETRY_S
) -> Connection:
    """Returns what ``attempt`` does, repeated while the data folder is another server's; or that one, once it answers.

    Raises:
        AlreadyRunning: another server had the folder all the time and never answered.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return attempt()
        except AlreadyRunning:  # it starts, and will answer; or it ends, and its lock goes with it
            if (other := _await_other(home, retry_s)) is not None:
                return other
            if time.monotonic() >= deadline:
                raise


def _start_once(home: Path, flags: Sequence[str]) -> Connection:
    if not hasattr(os, "fork"):
        raise PlatformError(
            "the platform runs on Linux only", next_step="use one elsewhere: set DANLU_URL and DANLU_TOKEN"
        )
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        log = home / LOG_FILE
        if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise PlatformError(
            f"the data folder {home} cannot be used: {error.strerror}",
            next_step="set DANLU_HOME to a folder of your own",
        ) from error
    begin = os.lseek(output, 0, os.SEEK_END)
    ready, report = os.pipe()
    try:
        process = subprocess.Popen(
            [*server_command(home, flags), "--ready-fd", str(report)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(report,),
            start_new_session=True,
            cwd=home,
        )
    except OSError as error:
        os.close(ready)
        raise PlatformError(f"{sys.executable} cannot be started: {error.strerror}") from error
    finally:
        os.close(report)
        os.close(output)
    _started.append(process)
    try:
        said = _read_report(ready)
    finally:
        os.close(ready)
    return _connection(home, process, said, log, begin)


def _connection(home: Path, process: subprocess.Popen[bytes], said: Any, log: Path, begin: int) -> Connection:
    if isinstance(said, dict) and said.get("ready"):
        return require(None, {"DANLU_HOME": str(home)})
    if isinstance(said, dict) and isinstance(said.get("error"), dict):
        problem = said["error"]
        raise from_problem(problem, int(problem.get("status", 503)))
    if said is None:
        process.terminate()
        what = f"the platform was not ready after {READY_TIMEOUT_S:.0f} s"
    else:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
        what = f"the platform ended while it started (exit code {process.returncode})"
    tail = _tail(log, begin)
    raise PlatformError(what + (f":\n{tail}" if tail else ""), next_step=f"its log: {log}")


def _read_report(ready: int) -> Any:
    """Returns what the server says in its first line; "" when it ended without a word, None when the time is over."""
    deadline, said = time.monotonic() + READY_TIMEOUT_S, b""
    while b"\n" not in said and len(said) < MAX_READY_BYTES:
        if not select.select([ready], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return None
        chunk = os.read(ready, 4096)
        if not chunk:
            break
        said += chunk
    try:
        return json.loads(said.splitlines()[0])
    except (ValueError, IndexError):
        return ""


def _await_other(home: Path, timeout_s: float) -> Connection | None:
    deadline = time.monotonic() + timeout_s
    while (other := find(None, {"DANLU_HOME": str(home)})) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return other


def _tail(log: Path, begin: int) -> str:
    with contextlib.suppress(OSError), log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(begin, size - 16_384))
        lines = file.read().decode(errors="replace").splitlines()
        return "\n".join(f"  {line[:300]}" for line in lines[-TAIL_LINES:])
    return ""


def await_end(server: Running, timeout_s: float) -> bool:
    """Waits until a server's process has ended; says whether it has."""
    deadline = time.monotonic() + timeout_s
    while server.alive():  # its platform.json goes earlier than its lock
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True
