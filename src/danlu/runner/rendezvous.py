"""Where Horovod's ranks find each other: a small store of keys and values, served over HTTP while an attempt runs.

Each rank puts the addresses that it listens on, reads its peers', and deletes its own once all are connected. The client is
Gloo's ``HTTPStore``: GET, PUT and DELETE of ``/SCOPE/KEY``, and 404 for a key that is not there yet, which it asks for again
every 10 ms. After that no byte of the training passes here. It knows IPv4 only, opens a connection per request and gives up
after three that were refused within 1.5 s: the socket must listen before the first rank starts.

The client cannot send a password. So it listens on one address, never on all of a machine's, and whatever is sent to it stays
within bounds; the values are addresses of one attempt, and are gone with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import sys
from typing import Dict, List, Tuple

MAX_VALUE_BYTES = 1_048_576
"""A rank's addresses take about 140 bytes for each of its peers."""
MAX_STORED_BYTES = 67_108_864
MAX_KEYS = 100_000
MAX_PATH_BYTES = 512
MAX_HEAD_BYTES = 8192
MAX_CONNECTIONS = 1024
MAX_AT_ONCE = 64
"""Requests that are read at the same time; the others wait."""
REQUEST_TIMEOUT_S = 10.0

_REASONS = {
    200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 408: "Request Timeout",
    411: "Length Required", 413: "Content Too Large", 507: "Insufficient Storage",
}  # fmt: skip

Answer = Tuple[int, bytes]
"""A status and a body."""


class Store:
    """The keys and their values, within bounds."""

    def __init__(self) -> None:
        self._values: Dict[str, bytes] = {}
        self._stored_bytes = 0

    def answer(self, method: str, path: str, body: bytes) -> Answer:
        """Returns the answer to a whole request; a PUT replaces, a DELETE of what is not there succeeds."""
        if len(path) > MAX_PATH_BYTES or len(path.split("/")) != 3 or not path.startswith("/"):
            return 400, b""
        if method == "GET":
            value = self._values.get(path)
            return (404, b"") if value is None else (200, value)
        if method == "PUT":
            return self._put(path, body), b""
        if method == "DELETE":
            self._drop(path)
            return 200, b""
        return 405, b""

    def _put(self, path: str, value: bytes) -> int:
        if len(value) > MAX_VALUE_BYTES:
            return 413
        left = self._stored_bytes - _size(path, self._values.get(path))
        if left + _size(path, value) > MAX_STORED_BYTES or len(self._values) - (path in self._values) >= MAX_KEYS:
            return 507
        self._drop(path)
        self._values[path] = value
        self._stored_bytes += _size(path, value)
        return 200

    def _drop(self, path: str) -> None:
        self._stored_bytes -= _size(path, self._values.pop(path, None))


def _size(path: str, value: "bytes | None") -> int:
    return 0 if value is None else len(path) + len(value)


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens: from here on no rank is refused, even before ``answer`` runs.

    Args:
        host: one IPv4 address of this machine, as its ranks and their peers reach it.
        port: a port that is leased to the attempt.

    Raises:
        ValueError: that is not one address, or no port.
        OSError: the port is taken (EADDRINUSE), or the address is not this machine's.
    """
    address = ipaddress.IPv4Address(host)
    if address.is_unspecified or address.is_multicast:
        raise ValueError(f"{host}: the rendezvous listens on one address of this machine, not on all of them")
    if not 0 < port < 65536:
        raise ValueError(f"{port}: not a port")
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(MAX_CONNECTIONS)
    except OSError:
        listener.close()
        raise
    return listener


def answer(listener: socket.socket) -> None:
    """Answers until the process is ended."""
    asyncio.run(_answer(listener))


def serve(host: str, port: int) -> None:
    """Listens and answers until the process is ended; raises as ``listen`` does."""
    answer(listen(host, port))


async def _answer(listener: socket.socket) -> None:
    store, turns, connected = Store(), asyncio.Semaphore(MAX_AT_ONCE), [0]

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected[0] += 1
        try:
            if connected[0] <= MAX_CONNECTIONS:
                async with turns:
                    await asyncio.wait_for(_exchange(store, reader, writer), REQUEST_TIMEOUT_S)
        except (OSError, EOFError, asyncio.TimeoutError):
            pass  # that client is gone, or never said what it wants; Horovod's asks again
        finally:
            connected[0] -= 1
            writer.close()

    server = await asyncio.start_server(accept, sock=listener, limit=MAX_HEAD_BYTES)
    async with server:
        await server.serve_forever()


async def _exchange(store: Store, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reads one request and writes its answer; the connection is closed after it."""
    status, body = await _answer_to(store, reader)
    head = f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()


async def _answer_to(store: Store, reader: asyncio.StreamReader) -> Answer:
    try:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    except asyncio.LimitOverrunError:
        return 400, b""
    words = lines[0].split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        return 400, b""
    length = _length(lines[1:])
    if length is None:
        return 411, b""
    if length > MAX_VALUE_BYTES:
        return 413, b""
    return store.answer(words[0], words[1], await reader.readexactly(length))


def _length(headers: List[str]) -> "int | None":
    """Returns the length of the body, 0 where none is said; None where it is said in a way that this does not read."""
    length = 0
    for header in headers:
        name, _, value = header.partition(":")
        name, value = name.strip().lower(), value.strip()
        if name == "transfer-encoding" or (name == "content-length" and not (value.isdecimal() and len(value) < 16)):
            return None
        if name == "content-length":
            length = int(value)
    return length


def main(address: str) -> int:
    """Serves at ``HOST:PORT``; returns 1, with the reason on standard error, where it cannot listen there."""
    host, _, port = address.rpartition(":")
    try:
        with contextlib.suppress(KeyboardInterrupt):
            serve(host, int(port))
    except (OSError, ValueError) as error:
        sys.stderr.write(f"danlu: no rendezvous for Horovod at DANLU_ADDRESS={address}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(os.environ.get("DANLU_ADDRESS", "")))
