"""``python -I -S sealed.py UID COMMAND...``: becomes the command, as that user, with no network and after everybody else.

A file of its own, run as a program: a new network and another user are chosen between fork and exec, where a server with
threads must run nothing. UID is -1 where the server is not root; then the network stays, and a line says so.
"""

from __future__ import annotations

import ctypes
import os
import sys

CLONE_NEWNET = 0x40000000
NICE = 10


def main(arguments: list[str]) -> None:
    """Never returns; raises OSError where the command cannot be run."""
    uid, command = int(arguments[0]), arguments[1:]
    os.nice(NICE)
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
        reason = os.strerror(ctypes.get_errno())
        sys.stderr.write(f"the build is not cut off from the network: {reason}\n")
        sys.stderr.flush()
    if uid >= 0:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    os.execvp(command[0], command)  # noqa: S606 - the server's own command


if __name__ == "__main__":
    main(sys.argv[1:])
