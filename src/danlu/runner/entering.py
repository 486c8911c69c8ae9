"""Through the door of a pod: what comes in by standard input goes to the runner, and what it answers comes out."""

from __future__ import annotations

import os
import select
import socket
import sys
from typing import Any, List

from .session import SOCKET

READ_BYTES = 64 << 10


def main(folder: str) -> int:
    """Carries bytes between this process's standard files and the runner of ``folder``, until it has said all."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as stream:
        try:
            os.chdir(folder)  # whatever the length of its path
            stream.connect(SOCKET)
        except OSError as error:
            print("the runner lets nobody in: %s" % error, file=sys.stderr)
            return 1
        asking = True
        while True:
            waiting: List[Any] = [stream, *([0] if asking else [])]
            readable = select.select(waiting, [], [])[0]
            if 0 in readable:
                data = os.read(0, READ_BYTES)
                asking = bool(data)
                try:
                    stream.sendall(data)
                    if not data:
                        stream.shutdown(socket.SHUT_WR)
                except OSError:
                    asking = False  # it may still be saying why
            if stream in readable:
                try:
                    data = stream.recv(READ_BYTES)
                except OSError:
                    return 1
                if not data:
                    return 0
                view = memoryview(data)
                while view:
                    view = view[os.write(1, view) :]
