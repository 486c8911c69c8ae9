"""A proxy between a program and a server that fails on demand: refuses, is slow, cuts connections, answers in its place."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

CHUNK_BYTES = 64 * 1024


def answer(status: str, code: str) -> bytes:
    """Returns an S3 error as a whole HTTP answer."""
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>told by the test</Message></Error>'
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode()


class FaultyProxy:
    """Passes connections on to a server; `fault` says what happens to those that begin or are under way.

    `says` is answered instead of anything the server says; `cut_after` bytes have gone to the server the connection is cut,
    and no answer comes back; `silent`: nothing comes back, ever; `refuses`: no connection is taken.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.says: bytes | None = None
        self.cut_after: int | None = None
        self.silent = self.refuses = False
        self.faults = 0
        self.failed = threading.Event()
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def well(self) -> None:
        """Ends all faults; connections that are under way are cut."""
        self.says = self.cut_after = None
        self.silent = self.refuses = False
        self._cut_all()

    def _cut_all(self) -> None:
        for one in list(self._open):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def fail(self, how: Callable[[FaultyProxy], object]) -> None:
        """Begins a fault, for connections that are kept open too."""
        how(self)
        self._cut_all()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            if self.refuses:
                self._fault()
                client.close()
                continue
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _fault(self) -> None:
        self.faults += 1
        self.failed.set()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(self._target) as server:
            self._open |= {client, server}
            try:
                back = threading.Thread(target=self._back, args=(server, client), daemon=True)
                back.start()
                sent = 0
                while data := client.recv(CHUNK_BYTES):
                    if self.says is not None and self.cut_after is None:
                        self._fault()
                        self._drain_head(client, data)
                        client.sendall(self.says)
                        break
                    if self.cut_after is not None and sent + len(data) > self.cut_after:
                        server.sendall(data[: max(0, self.cut_after - sent)])
                        self._fault()
                        break
                    server.sendall(data)
                    sent += len(data)
            finally:
                self._open -= {client, server}
                for one in (client, server):
                    with contextlib.suppress(OSError):
                        one.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def _drain_head(client: socket.socket, data: bytes) -> None:
        """Takes the rest of a request, so that its sender hears the answer rather than a reset."""
        head, _, body = data.partition(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        left = length - len(body)
        while left > 0 and (more := client.recv(CHUNK_BYTES)):
            left -= len(more)

    def _back(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(CHUNK_BYTES):
                if self.silent:
                    self._fault()
                    continue
                client.sendall(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listening.close()
        self._cut_all()
