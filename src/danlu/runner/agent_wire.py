"""What the two halves of the rank agent say to each other, and how each proves that it knows the attempt's secret.

Both read DANLU_AGENTS, a file of the attempt's user alone: ``{"secret": hex digits, "addresses": {host: address}}``.

On the wire the client says MAGIC and 32 random bytes; the server answers with 32 of its own and proves that it knows the
secret; the client proves the same. Either proof is an HMAC-SHA256 over all of that and the server's address, so that neither
can be replayed or relayed to another worker. From then on there are frames: kind (1 byte), length (4, big-endian), payload,
and an HMAC of these and the frame's number under a key of that session and direction. Nothing is encrypted.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import signal
import socket
import struct
import time
from typing import Dict, List, Tuple

MAGIC = b"danlu-agent-1\n"
NONCE_BYTES = MAC_BYTES = 32
HEADER = struct.Struct(">BI")
MAX_FRAME_BYTES = 128 * 1024  # a command's length is limited to that by the kernel
PIECE_BYTES, MAX_PENDING_BYTES = 32 * 1024, 256 * 1024
MAX_SECRETS_BYTES = 4 * 1024 * 1024
HANDSHAKE_TIMEOUT_S = 5.0
TCP_OPTIONS = (
    (socket.TCP_NODELAY, 1), (socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3),
)  # fmt: skip
GONE = 255
"""What ssh returns too when it is not the command that failed."""
COMMAND, INPUT, SIGNAL = 1, 2, 3
OUTPUT, ERROR, EXIT = 4, 5, 6
RELAYED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


class Refused(Exception):
    """The other side does not keep to the protocol, or does not know the secret."""


def secrets() -> Tuple[bytes, Dict[str, str]]:
    """Returns the attempt's secret and the agents' addresses by host; raises Refused where others could have read them."""
    path = os.environ.get("DANLU_AGENTS", "")
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            content = json.loads(file.read(MAX_SECRETS_BYTES).decode())
        secret, addresses = bytes.fromhex(content["secret"]), dict(content["addresses"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refused("DANLU_AGENTS=%s cannot be read: %s" % (path, error)) from None
    if status.st_mode & 0o077 or status.st_uid not in (0, os.geteuid()):
        raise Refused("DANLU_AGENTS=%s must be this user's own, mode 0600" % path)
    if len(secret) < MAC_BYTES:
        raise Refused("DANLU_AGENTS=%s: the secret has %d bytes, not %d" % (path, len(secret), MAC_BYTES))
    return secret, addresses


def mac(key: bytes, *parts: bytes) -> bytes:
    """Returns the HMAC-SHA256 of the parts, one after the other."""
    return hmac.new(key, b"".join(parts), hashlib.sha256).digest()


class Wire:
    """Frames over a socket that never blocks."""

    def __init__(self, sock: socket.socket, send_key: bytes, receive_key: bytes) -> None:
        self.sock, self.send_key, self.receive_key = sock, send_key, receive_key
        self.pending, self.received = bytearray(), bytearray()
        self.sent_frames = self.received_frames = 0
        sock.setblocking(False)

    @property
    def full(self) -> bool:
        """Whether the other side takes less than is put here."""
        return len(self.pending) > MAX_PENDING_BYTES

    def put(self, kind: int, payload: bytes = b"") -> None:
        """Queues a frame."""
        head = HEADER.pack(kind, len(payload))
        self.pending += head + payload
        self.pending += mac(self.send_key, self.sent_frames.to_bytes(8, "big"), head, payload)
        self.sent_frames += 1

    def flush(self) -> None:
        """Sends what the socket takes now."""
        while self.pending:
            try:
                del self.pending[: self.sock.send(self.pending)]
            except BlockingIOError:
                return

    def take(self) -> List[Tuple[int, bytes]]:
        """Returns the frames that have come; raises EOFError at the end, Refused where one is not from the other side."""
        try:
            data = self.sock.recv(PIECE_BYTES)
        except BlockingIOError:
            return []
        if not data:
            raise EOFError
        self.received += data
        frames: List[Tuple[int, bytes]] = []
        while len(self.received) >= HEADER.size:
            kind, size = HEADER.unpack_from(self.received)
            if size > MAX_FRAME_BYTES:
                raise Refused("a frame of %d bytes" % size)
            end = HEADER.size + size
            if len(self.received) < end + MAC_BYTES:
                break
            body, tag = bytes(self.received[:end]), bytes(self.received[end : end + MAC_BYTES])
            if not hmac.compare_digest(tag, mac(self.receive_key, self.received_frames.to_bytes(8, "big"), body)):
                raise Refused("a frame that was changed on its way")
            self.received_frames += 1
            del self.received[: end + MAC_BYTES]
            frames.append((kind, body[HEADER.size :]))
        return frames


def shake(sock: socket.socket, secret: bytes, address: str, serving: bool) -> Wire:
    """Returns the wire once both sides have proved that they know the secret; bounded in time.

    Raises:
        Refused: the other side does not know it.
        EOFError, OSError: it went away, or took too long.
    """
    until = time.monotonic() + HANDSHAKE_TIMEOUT_S

    def exactly(size: int) -> bytes:
        data = b""
        while len(data) < size:
            sock.settimeout(max(0.001, until - time.monotonic()))
            piece = sock.recv(size - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a machine that is gone says nothing
    for option, value in TCP_OPTIONS:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    mine = os.urandom(NONCE_BYTES)
    if serving:
        hello = exactly(len(MAGIC) + NONCE_BYTES)
        if not hello.startswith(MAGIC):
            raise Refused("it does not speak this protocol")
        said = hello + mine + address.encode()
        sock.sendall(mine + mac(secret, b"server", said))
    else:
        sock.sendall(MAGIC + mine)
        said = MAGIC + mine + exactly(NONCE_BYTES) + address.encode()
    if not hmac.compare_digest(exactly(MAC_BYTES), mac(secret, b"client" if serving else b"server", said)):
        raise Refused("it does not know this attempt's secret")
    keys = mac(secret, b"to client", said), mac(secret, b"to server", said)
    if not serving:
        sock.sendall(mac(secret, b"client", said))
    return Wire(sock, *(keys if serving else keys[::-1]))


def waking(numbers: Tuple[signal.Signals, ...]) -> int:
    """Makes these signals bytes in a pipe, and returns its end to read."""
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in numbers:
        signal.signal(number, lambda *_: None)
    return read
