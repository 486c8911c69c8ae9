"""Somebody between a pod and its server who does harm: holds bytes back, cuts connections, answers in the server's place."""

from __future__ import annotations

import contextlib
import socket
import threading
from urllib.parse import urlsplit

INGRESS = (
    b"HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\nContent-Length: 9\r\nConnection: close\r\n\r\nnot found"
)
BUSY = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Between:
    """Passes bytes on, until a test says otherwise.

    Attributes:
        held: nothing passes while this is set; who has connected waits.
        says: every request gets this answer instead.
        cuts: connections are closed after so many bytes, in either direction, each once for each number.
    """

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.server = ""
        self.held, self.says = threading.Event(), b""
        self.cuts: list[tuple[str, int]] = []
        self.cut: list[int] = []
        self._closed = threading.Event()
        self._start(self._accept)

    def close(self) -> None:
        self._closed.set()
        self._listening.close()

    @staticmethod
    def _start(work: object, *arguments: object) -> None:
        threading.Thread(target=work, args=arguments, daemon=True).start()  # type: ignore[arg-type]

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            self._start(self._serve, near)

    def _serve(self, near: socket.socket) -> None:
        with near, contextlib.suppress(OSError):
            if self.says:
                near.recv(65_536)
                near.sendall(self.says)
                return
            parts = urlsplit(self.server)
            with socket.create_connection((parts.hostname or "", parts.port or 0)) as far:
                back = threading.Thread(target=self._pass, args=(far, near, "down"), daemon=True)
                back.start()
                self._pass(near, far, "up")
                back.join()

    def _pass(self, source: socket.socket, target: socket.socket, way: str) -> None:
        passed = 0
        try:
            while data := source.recv(65_536):
                while self.held.is_set() and not self._closed.wait(0.01):
                    pass
                passed += len(data)
                limit = next((most for its_way, most in self.cuts if its_way == way and passed > most), None)
                if limit is not None:
                    self.cuts.remove((way, limit))
                    self.cut.append(limit)
                    target.sendall(data[: len(data) // 2])
                    break
                target.sendall(data)
        except OSError:
            pass
        finally:
            for one in (source, target):
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
