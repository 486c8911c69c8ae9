"""Connections on which nothing is being answered: they have little time, and there are few of them.

Who opens many and says nothing, or says it byte by byte, takes no place from those who ask: the oldest such connection is
closed for a new one.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    import h11

HEAD_S: Final = 10.0
"""How long a request's head may take, from the connection's beginning or from the last answer on."""
MAX_QUIET: Final = 384


class Quiet:
    """The connections of one server on which nothing is being answered, the oldest first."""

    def __init__(self, most: int = MAX_QUIET) -> None:
        self._most = most
        self._found: dict[Connection, None] = {}

    def add(self, connection: Connection) -> None:
        """Counts one; closes the oldest where that is one too many."""
        self._found[connection] = None
        if len(self._found) > self._most:
            next(iter(self._found)).drop()

    def remove(self, connection: Connection) -> None:
        """Does not count one any more."""
        self._found.pop(connection, None)


class Connection(H11Protocol):
    """One connection, as uvicorn serves it. ``quiet`` is given by a class of its own for each server: see ``counted``."""

    quiet: Quiet

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio."""
        super().connection_made(transport)
        self._settle()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        super().connection_lost(exc)
        self._count(quiet=False)

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        super().data_received(data)
        self._settle()

    def on_response_complete(self) -> None:
        """See uvicorn."""
        super().on_response_complete()
        self._settle()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """See uvicorn: from here on it is another protocol's."""
        super().handle_websocket_upgrade(event)
        self._count(quiet=False)

    def drop(self) -> None:
        """Closes it at once."""
        self._count(quiet=False)
        self.transport.abort()

    def _settle(self) -> None:
        answering = self.cycle is not None and not self.cycle.response_complete
        self._count(quiet=not answering and not self.transport.is_closing() and self.transport.get_protocol() is self)

    def _count(self, *, quiet: bool) -> None:
        if quiet and self._late is None:
            self._late = self.loop.call_later(HEAD_S, self.drop)
            self.quiet.add(self)
        elif not quiet and self._late is not None:
            self._late.cancel()
            self._late = None
            self.quiet.remove(self)


def counted(quiet: Quiet) -> type[Connection]:
    """Returns the protocol of a server's connections."""
    return type("Connection", (Connection,), {"quiet": quiet})
