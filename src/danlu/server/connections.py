"""Connections on which nobody who is let in is being answered: they have little time, and there are few of them.

They are counted from the moment on that they are accepted. Who opens many and says nothing, or says it byte by byte, never
ends the handshake of TLS, proves nothing, or does not read what it is answered, takes no place from those who ask: for a new
connection an old one is closed, of the address that has the most of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from danlu.server.auth import LET_IN

if TYPE_CHECKING:
    import socket
    import ssl

HANDSHAKE_S: Final = 5.0
"""How long the handshake of TLS may take."""
HEAD_S: Final = 10.0
"""How long a request may take to be let in, from the connection's beginning or from the last answer on."""
MAX_QUIET: Final = 384
IPV6_NETWORK_BITS: Final = 64
"""Of an address by which one customer is known: the others it chooses itself."""


class Droppable(Protocol):
    """What is counted here."""

    def drop(self) -> None:
        """Closes it at once, and does not count it any more."""


class Quiet:
    """The connections of one server on which nobody who is let in is being answered, by address, the oldest first."""

    def __init__(self, most: int = MAX_QUIET) -> None:
        self._most, self._count = most, 0
        self._found: dict[str, dict[Droppable, None]] = {}

    def add(self, origin: str, one: Droppable) -> None:
        """Counts one; where that is one too many, closes the oldest of the address that has the most."""
        self._found.setdefault(origin, {})[one] = None
        self._count += 1
        if self._count > self._most:
            busiest = max(self._found, key=lambda other: len(self._found[other]))
            next(iter(self._found[busiest])).drop()

    def remove(self, origin: str, one: Droppable) -> None:
        """Does not count one any more."""
        del self._found[origin][one]
        self._count -= 1
        if not self._found[origin]:
            del self._found[origin]


def origin(transport: asyncio.BaseTransport) -> str:
    """Returns where a connection comes from: an address, of IPv6 the network of one customer."""
    host = str((transport.get_extra_info("peername") or ("",))[0])
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, IPV6_NETWORK_BITS), strict=False))
    return host


class Connection(H11Protocol):
    """One connection, as uvicorn serves it. ``quiet`` is given by a class of its own for each server: see ``counted``."""

    quiet: Quiet

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.app_state = {**self.app_state, LET_IN: self._let_in}  # a copy of it is each request's state
        self._late: asyncio.TimerHandle | None = None
        self._origin, self._answering, self._lost = "", 0, False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio."""
        super().connection_made(transport)
        self._origin = origin(transport)
        self._settle()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        super().connection_lost(exc)
        self._lost = True
        self._settle()

    def on_response_complete(self) -> None:
        """See uvicorn. Who was not let in has been answered, and may ask again."""
        self._count(quiet=False)
        self._settle()
        super().on_response_complete()

    def drop(self) -> None:
        """See Droppable."""
        self._count(quiet=False)
        self.transport.abort()

    @contextlib.contextmanager
    def _let_in(self) -> Iterator[None]:
        """Is entered while a request, or the web socket that this has become, is being answered after it was let in.

        Afterwards it is quiet, even where it is closed: what it was sent may still have to be read.
        """
        self._answering += 1
        self._settle()
        try:
            yield
        finally:
            self._answering -= 1
            self._settle()

    def _settle(self) -> None:
        self._count(quiet=not self._answering and not self._lost)

    def _count(self, *, quiet: bool) -> None:
        if quiet and self._late is None:
            self._late = self.loop.call_later(HEAD_S, self.drop)
            self.quiet.add(self._origin, self)
        elif not quiet and self._late is not None:
            self._late.cancel()
            self._late = None
            self.quiet.remove(self._origin, self)


def counted(quiet: Quiet) -> type[Connection]:
    """Returns the protocol of a server's connections."""
    return type("Connection", (Connection,), {"quiet": quiet})


class Handshake(asyncio.Protocol):
    """A connection that is to become one of TLS. asyncio's own way says nothing of it before its handshake is over."""

    def __init__(self, quiet: Quiet, context: ssl.SSLContext, make: Callable[[], asyncio.Protocol]) -> None:
        self._quiet, self._context, self._make = quiet, context, make
        self._origin, self._counted, self._lost = "", False, False
        self._early = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - of a listening socket there is no other
        transport.pause_reading()  # what comes is the handshake's
        self._transport, self._origin, self._counted = transport, origin(transport), True
        self._quiet.add(self._origin, self)
        self._task = asyncio.get_running_loop().create_task(self._secure())

    def data_received(self, data: bytes) -> None:
        """See asyncio: a request that came with the handshake's end."""
        self._early += data

    def connection_lost(self, _exc: Exception | None) -> None:
        """See asyncio."""
        self._lost = True

    def drop(self) -> None:
        """See Droppable."""
        self._done()
        self._transport.abort()

    async def _secure(self) -> None:
        loop, secured = asyncio.get_running_loop(), None
        try:
            if self._transport.is_closing():
                return
            with contextlib.suppress(OSError):  # it has gone, took too long, or speaks something else
                secured = await loop.start_tls(
                    self._transport, self, self._context, server_side=True, ssl_handshake_timeout=HANDSHAKE_S
                )
        finally:
            self._done()
        if secured is None or self._lost or self._transport.is_closing():
            self._transport.abort()
            return
        protocol = self._make()
        secured.set_protocol(protocol)
        protocol.connection_made(secured)
        if self._early:
            protocol.data_received(self._early)

    def _done(self) -> None:
        if self._counted:
            self._counted = False
            self._quiet.remove(self._origin, self)


class Server(uvicorn.Server):
    """uvicorn, which says when it listens and ends streams before it ends. TLS is our own."""

    def __init__(
        self,
        config: uvicorn.Config,
        quiet: Quiet,
        secured: tuple[socket.socket, ssl.SSLContext] | None,
        *,
        ready: Callable[[], None],
        ending: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._quiet, self._secured, self._ready, self._ending = quiet, secured, ready, ending

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn. This machine's own commands and jobs need no TLS: what they send does not leave it."""
        await super().startup(sockets)
        if self._secured is not None:
            listening, context = self._secured
            make = partial(Handshake, self._quiet, context, self._protocol)
            loop = asyncio.get_running_loop()
            self.servers.append(await loop.create_server(make, sock=listening, backlog=self.config.backlog))
        self._ready()

    def _protocol(self) -> asyncio.Protocol:
        make: Any = self.config.http_protocol_class
        made: asyncio.Protocol = make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        return made

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn."""
        self._ending()
        await super().shutdown(sockets)
