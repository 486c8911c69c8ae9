"""A host name of one's own: Open MPI 5 takes hosts of one name for one host.

Root may have it; others in a user namespace, in which they are who they were.
"""

from __future__ import annotations

import ctypes
import os
import socket

CLONE_NEWUTS, CLONE_NEWUSER = 0x04000000, 0x10000000
PR_SET_DUMPABLE = 4
MAX_NAME = 63


def take(name: str) -> str:
    """Gives this process and what it starts a host name of their own, if they have it not; returns why that is impossible."""
    if socket.gethostname() == name[:MAX_NAME]:
        return ""
    trial = os.fork()  # where it is allowed by half, what it leaves is not fit to run anything
    if trial == 0:
        try:
            rename(name)
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or 1)
    number = os.WEXITSTATUS(os.waitpid(trial, 0)[1])
    if number == 0:
        rename(name)
        return ""
    return os.strerror(number)


def rename(name: str) -> None:
    """Moves this process to a host name of its own; raises OSError where that is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.geteuid(), os.getegid()
    if libc.unshare(CLONE_NEWUTS) != 0:
        libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # else its files in /proc are root's
        if libc.unshare(CLONE_NEWUSER | CLONE_NEWUTS) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        same = "%d %d 1"
        for file, line in (("setgroups", "deny"), ("uid_map", same % (uid, uid)), ("gid_map", same % (gid, gid))):
            with open("/proc/self/" + file, "w") as opened:
                opened.write(line)
    socket.sethostname(name[:MAX_NAME])
