"""The client half of the rank agent: what mpirun calls instead of ssh."""

from __future__ import annotations

import os
import select
import socket
import time
from typing import List, Tuple

from .agent_wire import (
    COMMAND,
    ERROR,
    EXIT,
    GONE,
    HANDSHAKE_TIMEOUT_S,
    INPUT,
    PIECE_BYTES,
    RELAYED,
    SIGNAL,
    Refused,
    Wire,
    secrets,
    shake,
    waking,
)

CONNECT_TIMEOUT_S, RETRY_S = 30.0, 0.05
PARENT_TICK_S = 1.0
WITH_VALUE = "BbcDEeFIiJLlmOopQRSWw"
"""The options of ssh that take the next argument, where it is not joined to them."""


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


def run(arguments: List[str]) -> int:
    """Has a command run as ssh's command line says; returns its exit code."""
    host, command = destination(arguments)
    wire = connect(host)
    with wire.sock:
        return relay(wire, command)
