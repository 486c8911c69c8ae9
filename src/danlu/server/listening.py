"""Where the server listens: on this machine's own address always, and on another one where that was asked for."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from danlu.errors import PlatformError, PortTaken
from danlu.runner import formats

BACKLOG = 512
LOOPBACK = "127.0.0.1"
PORTS_BESIDE = 100
PORT_FILE = "port"
"""Of the data folder: the port that the platform was last reached at."""


@dataclass(frozen=True, slots=True)
class Address:
    """An address of this machine, as a socket takes it."""

    host: str
    family: socket.AddressFamily
    text: str

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return ipaddress.ip_address(self.text.partition("%")[0]).is_loopback


@dataclass(frozen=True, slots=True)
class Listening:
    """Sockets that listen.

    Attributes:
        outer: of the address that was asked for.
        inner: of this machine alone, for its own commands and its jobs; None: the outer one is.
    """

    outer: socket.socket
    inner: socket.socket | None = None

    @property
    def port(self) -> int:
        """The port that was asked for, or found."""
        number: int = self.outer.getsockname()[1]
        return number

    @property
    def url(self) -> str:
        """The address for this machine's own commands and jobs."""
        host, port = (self.inner or self.outer).getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def public_url(self, host: str, scheme: str) -> str:
        """Returns the address for other machines; "" where they cannot reach it."""
        if self.inner is None:
            return ""
        bound, port = self.outer.getsockname()[:2]
        name = socket.gethostname() if ipaddress.ip_address(bound.partition("%")[0]).is_unspecified else host
        return f"{scheme}://{f'[{name}]' if ':' in name else name}:{port}"


def last_port(home: Path) -> int | None:
    """Returns the port that a data folder's platform was last reached at; None: it has had none, or nobody knows."""
    try:
        port = int((home / PORT_FILE).read_text()[:8])
    except (OSError, ValueError):
        return None
    return port if 0 < port < 65_536 else None


def remember_port(home: Path, port: int) -> None:
    """Stores it for the next start."""
    if last_port(home) != port:
        formats.write_atomically(str(home / PORT_FILE), f"{port}\n".encode())


def resolve(host: str) -> Address:
    """Returns the address that a name means on this machine.

    Raises:
        PlatformError: it means none.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise PlatformError(
            f"{host!r} is no address: {error}", next_step="--host takes an address of this machine, or 0.0.0.0 for all"
        ) from error
    family, _, _, _, (text, *_) = found[0]
    return Address(host, family, str(text))


def listen(address: Address, ports: Iterable[int], *, asked: bool, tls: bool) -> Listening:
    """Returns sockets that listen.

    Args:
        address: where.
        ports: the first free one of them is taken.
        asked: it is the one port that was asked for.
        tls: connections to the address are encrypted: this machine's own then go to a socket of their own.

    Raises:
        PortTaken: none is free.
        PlatformError: the address is none of this machine's.
    """
    outer = _first_free(address.family, address.text, ports, asked=asked)
    if address.loopback and not tls:
        return Listening(outer)
    port = outer.getsockname()[1]
    beside = [at for at in range(port, port + PORTS_BESIDE) if at < 65_536]
    try:
        return Listening(outer, _first_free(socket.AF_INET, LOOPBACK, beside, asked=False))
    except PortTaken:
        outer.close()
        raise


def _first_free(family: int, host: str, ports: Iterable[int], *, asked: bool) -> socket.socket:
    tried = list(ports)
    for port in tried:
        # named as TCP: only then does asyncio turn off Nagle's delay, which costs 40 ms an answer
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
            listening.listen(BACKLOG)
        except OSError as error:
            listening.close()
            if error.errno == errno.EADDRNOTAVAIL:
                raise PlatformError(
                    f"{host} is no address of this machine", next_step="danlu up --host ADDRESS; 0.0.0.0 is all of them"
                ) from error
            if asked:
                raise PortTaken(
                    f"port {port} of {host} cannot be used: {error.strerror}",
                    next_step="name another one: danlu up --port N, or none for the first free one",
                ) from error
            continue
        return listening
    raise PortTaken(f"no port from {tried[0]} to {tried[-1]} is free", next_step="name one: danlu up --port N")
