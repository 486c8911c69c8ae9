"""An attempt's folder: who has its lock, and when something of the attempt last wrote into it."""

from __future__ import annotations

import fcntl
import os
import time

LOCK_TRIALS, LOCK_WAIT_S = 50, 0.01


def last_sign(folder: str) -> int:
    """Returns when something of an attempt last wrote into its folder, ns UTC: its runner, which measures, or a task."""
    newest = 0
    paths = [os.path.join(folder, "status")]
    for task in os.listdir(folder):
        spool = os.path.join(folder, task, "spool")
        if os.path.isdir(spool):
            paths += [os.path.join(folder, task, name) for name in ("stdout", "stderr", "metrics")]
            paths += [os.path.join(spool, name) for name in os.listdir(spool)]
    for path in paths:
        try:
            newest = max(newest, os.lstat(path).st_mtime_ns)
        except FileNotFoundError:
            continue
    return newest


def locked(lock: int) -> bool:
    """Takes the lock; a server that looks whether it is free holds it for a moment."""
    for _ in range(LOCK_TRIALS):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOCK_WAIT_S)
        else:
            return True
    return False
