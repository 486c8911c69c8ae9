"""Finds what an attempt left running where there are no control groups to tell."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Any, Final

from danlu.runner import formats

ROUNDS: Final = 200


def marked(attempt_id: str) -> set[int]:
    """Returns the processes that carry the attempt's id in their environment, as far as this user may see."""
    mark = f"DANLU_ATTEMPT_ID={attempt_id}".encode()
    found: set[int] = set()
    for name in os.listdir("/proc"):  # noqa: PTH208 - the quickest way, over thousands
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb") as file:
                if mark in file.read().split(b"\0"):
                    found.add(int(name))
    return found


def kill_marked(attempt_id: str) -> bool:
    """Kills them until none is left; returns whether none is."""
    for _ in range(ROUNDS):
        left = marked(attempt_id)
        if not left:
            return True
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return False


def wake(runner: dict[str, Any], uid: int) -> None:
    """Sends SIGUSR1 to the runner that a status names, if it is there and is this user's.

    The status was written by the job's user: the process that it names may be any, the server included.
    """
    pid = runner.get("pid")
    if type(pid) is not int or pid <= 1:
        return
    with contextlib.suppress(OSError):
        descriptor = os.pidfd_open(pid)
        try:
            if formats.start_time(pid) == runner.get("start_time") and _user(pid) == uid:
                signal.pidfd_send_signal(descriptor, signal.SIGUSR1)
        finally:
            os.close(descriptor)


def _user(pid: int) -> int:
    with open(f"/proc/{pid}/status", "rb") as file:  # the owner of /proc/PID is root's for what has changed its user
        return next(int(line.split()[1]) for line in file if line.startswith(b"Uid:"))
