"""The kernel's list of processes, whole: what ``/proc`` shows to a job may leave out those that it may not look into.

A program that forbids others to look into it would then be hidden from its own runner too, which has to end it.
"""

from __future__ import annotations

import os
from typing import List, Optional

_whole: Optional[int] = None


def keep() -> None:
    """Keeps ``/proc`` as it is now, whatever is mounted over it later."""
    global _whole
    _whole = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def kept() -> List[int]:
    """Returns the descriptors that this needs."""
    return [] if _whole is None else [_whole]


def pids() -> List[int]:
    """Returns every process."""
    if _whole is None:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    # opened anew: where one reads in a descriptor is shared with whoever was forked, and two would each get a part
    own = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=_whole)
    try:
        return [int(name) for name in os.listdir(own) if name.isdigit()]
    finally:
        os.close(own)


def read(pid: int, name: str, most: int = -1) -> bytes:
    """Returns a file of a process; raises OSError where it has ended, or the file is not for this user."""
    flags = os.O_RDONLY | os.O_CLOEXEC
    if _whole is None:
        descriptor = os.open("/proc/%d/%s" % (pid, name), flags)
    else:
        descriptor = os.open("%d/%s" % (pid, name), flags, dir_fd=_whole)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        return file.read(most) or b""
