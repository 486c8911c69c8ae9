"""Runs the launcher, and leaves nothing of it behind where it does not answer."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from danlu.errors import ExecutorUnavailable
from danlu.runner import formats

START_TIMEOUT_S: Final = 20.0
LAUNCHER: Final = Path(__file__).with_name("launcher.py")


def ask(config: dict[str, Any], name: str, *, timeout_s: float = START_TIMEOUT_S) -> dict[str, Any]:
    """Runs the launcher with this configuration for the attempt ``name``; returns its answer.

    Raises:
        ExecutorUnavailable: it could not be run, or did not answer. Nothing of it is left.
    """
    try:
        started = subprocess.Popen(
            [sys.executable, "-I", "-S", str(LAUNCHER)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/", env={"PATH": os.defpath},
        )  # fmt: skip
    except OSError as error:
        raise ExecutorUnavailable(f"the launcher of {name} cannot be started: {error}") from error
    try:
        out, err = started.communicate(json.dumps(config).encode(), timeout=timeout_s)
    except subprocess.TimeoutExpired:
        # it is not reaped yet: its number, which its session has too, is nobody else's
        for _ in range(2):  # twice: it may have made its session between the two
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
            os.kill(started.pid, signal.SIGKILL)
        started.communicate()
        raise ExecutorUnavailable(f"the launcher of {name} did not answer within {timeout_s:.0f} s") from None
    try:
        answer: dict[str, Any] = json.loads(out.splitlines()[0])
    except (IndexError, ValueError):
        raise ExecutorUnavailable(f"the launcher of {name} failed: {err.decode(errors='replace')[-2000:]}") from None
    return answer


def until(pid: int, condition: Callable[[], bool], *, timeout_s: float = START_TIMEOUT_S) -> bool:
    """Waits for something that a process does; returns whether it came true before the process ended or time was over.

    A process that has not done it by then is killed, with its whole session.
    """
    born = formats.start_time(pid)
    deadline = time.monotonic() + timeout_s
    while not condition():
        if formats.start_time(pid) is None or time.monotonic() > deadline:
            if condition():
                return True
            _end(pid, born)
            return False
        time.sleep(0.002)
    return True


def _end(pid: int, born: int | None) -> None:
    if born is None or formats.start_time(pid) != born:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        session = os.getsid(pid)
        if session != os.getsid(0):
            os.killpg(session, signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
