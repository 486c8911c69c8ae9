"""The rank agent: runs what an MPI launcher asks for inside a worker's own task, in the place of sshd, without root.

``agent.py --serve`` is the command of a worker's task. It listens on DANLU_ADDRESS alone, and runs what a launcher sends as
its child: in the task's control group, environment and working folder, with its GPUs. ``agent.py HOST COMMAND...`` is what
mpirun calls instead of ``ssh``: it relays standard input, output and error, signals and the exit code. When it goes away,
however it dies, everything that it had started is ended.

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
import select
import signal
import socket
import struct
import sys
import time
from typing import Callable, Dict, List, Tuple

MAGIC = b"danlu-agent-1\n"
NONCE_BYTES = MAC_BYTES = 32
HEADER = struct.Struct(">BI")
MAX_FRAME_BYTES = 128 * 1024  # a command's length is limited to that by the kernel
PIECE_BYTES, MAX_PENDING_BYTES = 32 * 1024, 256 * 1024
MAX_SECRETS_BYTES = 4 * 1024 * 1024
HANDSHAKE_TIMEOUT_S, CONNECT_TIMEOUT_S, RETRY_S = 5.0, 30.0, 0.05
PARENT_TICK_S = 1.0
TCP_OPTIONS = (
    (socket.TCP_NODELAY, 1), (socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3),
)  # fmt: skip
GONE = 255
"""What ssh returns too when it is not the command that failed."""
COMMAND, INPUT, SIGNAL = 1, 2, 3
OUTPUT, ERROR, EXIT = 4, 5, 6
RELAYED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
WITH_VALUE = "BbcDEeFIiJLlmOopQRSWw"
"""The options of ssh that take the next argument, where it is not joined to them."""


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


# the client


def write_all(descriptor: int, data: bytes) -> None:
    """Writes everything, also where mpirun has made the other end one that does not block."""
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:
            select.select([], [descriptor], [])


def connect(host: str) -> Wire:
    """Returns the wire to a host's agent; waits for one that is not there yet."""
    secret, addresses = secrets()
    address = addresses.get(host)
    if address is None:
        raise Refused("there is no worker %s; there are: %s" % (host, ", ".join(sorted(addresses)[:20])))
    where, _, port = address.rpartition(":")
    until = time.monotonic() + CONNECT_TIMEOUT_S
    while True:
        sock = socket.socket()
        try:
            sock.settimeout(HANDSHAKE_TIMEOUT_S)
            sock.connect((where, int(port)))
            return shake(sock, secret, address, serving=False)
        except (OSError, EOFError) as error:
            sock.close()
            if time.monotonic() > until:
                raise Refused("no agent answers at %s: %s" % (address, str(error) or "it hung up")) from None
            time.sleep(RETRY_S)
        except Refused:
            sock.close()
            raise


def relay(wire: Wire, command: str) -> int:
    """Has a command run at the other end; returns its exit code, or 255 where the other end or the parent is lost."""
    wake, parent = waking(RELAYED), os.getppid()
    wire.put(COMMAND, os.fsencode(command))
    reading = True
    while os.getppid() == parent:  # an mpirun that was killed ends nothing itself
        poll = select.poll()
        poll.register(wire.sock, select.POLLIN | (select.POLLOUT if wire.pending else 0))
        poll.register(wake, select.POLLIN)
        if reading and not wire.full:
            poll.register(0, select.POLLIN)
        for descriptor, _ in poll.poll(PARENT_TICK_S * 1000):
            if descriptor == wake:
                for number in os.read(wake, 64):
                    wire.put(SIGNAL, bytes([number]))
            elif descriptor == 0:
                try:
                    data = os.read(0, PIECE_BYTES)
                except OSError:
                    data = b""
                wire.put(INPUT, data)
                reading = bool(data)
            else:
                for kind, payload in wire.take():
                    if kind == EXIT:
                        return payload[0]
                    write_all(2 if kind == ERROR else 1, payload)
        wire.flush()
    return GONE


def destination(arguments: List[str]) -> Tuple[str, str]:
    """Returns the host and the command of ssh's command line, whose options are left out."""
    rest = list(arguments)
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        if len(option) == 2 and option[1] in WITH_VALUE and rest:
            rest.pop(0)
    if len(rest) < 2:
        raise Refused("usage: agent HOST COMMAND..., or agent --serve")
    return rest[0].rpartition("@")[2], " ".join(rest[1:])


def main(arguments: List[str]) -> int:
    """``--serve`` or ``HOST COMMAND...``; returns the exit code."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # else the socket would be taken for it
    what: Callable[[], int]
    try:
        if arguments == ["--serve"]:
            from danlu.runner.agent_server import serve

            what = serve
        else:
            host, command = destination(arguments)

            def what() -> int:
                wire = connect(host)
                with wire.sock:
                    return relay(wire, command)

        return what()
    except (Refused, EOFError, ConnectionError) as error:
        print("agent: %s" % (str(error) or "the worker's agent is gone"), file=sys.stderr)
        return GONE


if __name__ == "__main__":
    if not __package__:
        sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    from danlu.runner.agent import main

    sys.exit(main(sys.argv[1:]))
