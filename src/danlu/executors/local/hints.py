"""The socket through which runners say that there is something to see. Only a hint: anyone may send, nothing is believed."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path

from danlu.executors.base import Hint

MESSAGE_BYTES = 256
GATHERED_S = 0.003
MAX_GATHERED = 1000


class HintSocket:
    """Calls ``hint`` for each datagram that arrives."""

    def __init__(self, path: Path, hint: Hint) -> None:
        self.path = path
        self._hint = hint
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._ending = threading.Event()

    def start(self) -> None:
        """Listens, in a thread of its own."""
        self.path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        self._ending.clear()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self.path.chmod(0o666)  # every project's user may send; the folder keeps it from being replaced
        self._thread = threading.Thread(target=self._listen, args=(self._socket,), name="hints", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops listening."""
        if self._socket is not None and self._thread is not None:
            self._ending.set()
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._thread.join(5)
            self._socket.close()
            self.path.unlink(missing_ok=True)

    def _listen(self, listening: socket.socket) -> None:
        while not self._ending.is_set():
            try:
                listening.recv(MESSAGE_BYTES)
            except OSError:
                return
            if self._ending.is_set():
                return
            # those that come in the next moment are one hint: a job that sends without end costs no more than that
            self._ending.wait(GATHERED_S)
            with contextlib.suppress(OSError):
                for _ in range(MAX_GATHERED):
                    listening.recv(MESSAGE_BYTES, socket.MSG_DONTWAIT)
            self._hint()
