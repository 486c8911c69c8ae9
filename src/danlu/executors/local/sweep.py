"""Finds what an attempt left running where there are no control groups to tell."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from danlu.executors.local import beneath
from danlu.executors.local.observing import TAMPERED, passing
from danlu.runner import formats

ROUNDS: Final = 200


def recorded(folder: Path) -> frozenset[tuple[int, int]]:
    """Returns (process, start time) of what the runner saw below itself last, in this boot; the job may have forged it."""
    try:
        said = json.loads(beneath.read(folder, formats.PROCESSES, max_bytes=formats.MAX_STATUS_BYTES))
        if said["boot_id"] != formats.boot_id():
            return frozenset()
        return frozenset((int(pid), int(born)) for pid, born in said["processes"])
    except TAMPERED as error:
        if passing(error):
            raise
        return frozenset()


def left(attempt_id: str, known: frozenset[tuple[int, int]] = frozenset(), uid: int | None = None) -> set[int]:
    """Returns the processes of an attempt, as far as this user may see.

    They carry its id in their environment, or are ``known`` and the user's, or were started by such a one.
    """
    mark = f"DANLU_ATTEMPT_ID={attempt_id}".encode()
    found: set[int] = set()
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - the quickest way, over thousands
        if not name.isdigit() or int(name) == os.getpid():
            continue
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            fields = _read(f"/proc/{name}/stat").rpartition(b")")[2].split()
            if fields[0] in (b"Z", b"X"):
                continue
            children.setdefault(int(fields[1]), []).append(int(name))
            is_known = (int(name), int(fields[19])) in known and _user(int(name)) == uid
            if is_known or mark in _read(f"/proc/{name}/environ").split(b"\0"):
                found.add(int(name))
    waiting = list(found)
    while waiting:
        below = set(children.get(waiting.pop(), [])) - found
        found |= below
        waiting.extend(below)
    return found


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def kill(attempt_id: str, known: frozenset[tuple[int, int]] = frozenset(), uid: int | None = None) -> bool:
    """Kills them until none is left; returns whether none is."""
    for _ in range(ROUNDS):
        found = left(attempt_id, known, uid)
        if not found:
            return True
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return False


def wake(runner: Mapping[str, Any], uid: int) -> None:
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
