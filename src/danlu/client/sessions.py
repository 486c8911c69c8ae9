"""Sessions inside running jobs: a web socket, and what is read from and written to here."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from danlu import __version__
from danlu.api.bodies import SessionQuery
from danlu.client import certificates
from danlu.client.connection import authority, is_loopback
from danlu.client.requests import VERSION_HEADER, build, failure
from danlu.client.transport import Client, explain
from danlu.domain.sessions import SessionEnd, SessionRequest
from danlu.errors import PlatformError, Unavailable, from_problem
from danlu.runner import frames

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

CONNECT_TIMEOUT_S: Final = 10.0
CLOSE_TIMEOUT_S: Final = 2.0
PING_S: Final = 20.0
MAX_MESSAGE_BYTES: Final = frames.DATA_BYTES + 1


@contextlib.contextmanager
def opened(client: Client, job: str, request: SessionRequest, *, task: str | None = None) -> Iterator[Session]:
    """Opens a session, and closes it: what runs there ends with it.

    Args:
        client: of the job's platform and project.
        job: the job's id or name.
        request: what to do.
        task: inside which task; the job's first one when left out.

    Raises:
        DanluError: as the server raised it.
        Unavailable: the platform cannot be reached.
    """
    with contextlib.ExitStack() as stack:
        first = frames.REQUEST + request.model_dump_json(exclude_defaults=True).encode()
        session = Session(_connect(client, job, task, first, stack), first)
        try:
            yield session
        finally:
            session.finish()


class Session:
    """An open session. One thread takes its output; another may give its input."""

    def __init__(self, socket: ClientConnection, first: bytes) -> None:
        self._socket = socket
        self._room = threading.Condition()
        self._window, self._taken = frames.Window(), frames.Taken()
        self._started = self._over = False
        self._send(first)  # what to do

    def run(
        self, write: Callable[[bytes, bytes], None], started: Callable[[dict[str, Any]], None] = lambda _facts: None
    ) -> SessionEnd:
        """Returns how it ended.

        Args:
            write: takes each piece of output, with its kind (``frames.STDOUT`` or ``STDERR``).
            started: told once that it runs: ``task``, the name of the task, and of how many (``tasks``).

        Raises:
            DanluError: it could not be done, or was cut off.
        """
        for kind, data in self._frames():
            if kind in (frames.STDOUT, frames.STDERR):
                write(kind, data)
                for due in self._taken.take(len(data)):
                    self._send(frames.CREDIT, due)
            elif kind == frames.CREDIT:
                with self._room:
                    self._window.give(data)
                    self._room.notify_all()
            elif kind == frames.STARTED:
                started(frames.parse_json(data))
                with self._room:
                    self._started = True
                    self._room.notify_all()
            elif kind == frames.EXIT:
                return SessionEnd.model_validate_json(data, extra="ignore")
            elif kind == frames.PROBLEM:
                problem = frames.parse_json(data)
                raise from_problem(problem, int(problem.get("status", 500)))
        raise Unavailable("the connection to the platform broke: what ran in the session was ended with it")

    def give(self, data: bytes) -> bool:
        """Sends input once it runs, as fast as it is taken; returns whether the session still goes on."""
        view = memoryview(data)
        while view:
            with self._room:
                self._room.wait_for(lambda: (self._started and self._window.left) or self._over)
                if self._over:
                    return False
                piece = bytes(view[: min(frames.DATA_BYTES, self._window.left)])
                self._window.use(len(piece))
            view = view[len(piece) :]
            if not self._send(frames.STDIN, piece):
                return False
        return not self._over

    def end_input(self) -> None:
        """Says that no more input comes."""
        if self._runs():
            self._send(frames.EOF)

    def resize(self, rows: int, columns: int) -> None:
        """Says that the terminal has another size."""
        if self._runs():
            self._send(frames.RESIZE, frames.pack_size(rows, columns))

    def finish(self) -> None:
        """Lets go who waits to give input."""
        with self._room:
            self._over = True
            self._room.notify_all()

    def _runs(self) -> bool:
        with self._room:
            self._room.wait_for(lambda: self._started or self._over)
            return not self._over

    def _frames(self) -> Iterator[frames.Frame]:
        from websockets.exceptions import ConnectionClosed

        try:
            while True:
                message = self._socket.recv()
                if isinstance(message, bytes):
                    yield frames.checked(message, frames.FROM_RUNNER)
        except ConnectionClosed:
            return
        except frames.FrameError as error:
            raise PlatformError(
                f"the platform sends something else than this version of danlu expects: {error}",
                next_step="are both of the same version? danlu status",
            ) from error
        finally:
            self.finish()

    def _send(self, kind: bytes, data: bytes = b"") -> bool:
        """Sends a frame; returns False where the connection is gone, which its reader will tell."""
        from websockets.exceptions import ConnectionClosed

        try:
            self._socket.send(kind + data)
        except ConnectionClosed:
            self.finish()
            return False
        return True


def _connect(client: Client, job: str, task: str | None, first: bytes, stack: contextlib.ExitStack) -> ClientConnection:
    """Returns an open web socket; its handshake signs the first message, which is still to be sent."""
    from websockets.exceptions import InvalidHandshake, InvalidStatus
    from websockets.sync.client import connect

    request = build("sessions.open", {"job": job}, query=SessionQuery(task=task))
    url, headers = client.upgrade(request.target, first)
    scheme = "wss" if urlsplit(url).scheme == "https" else "ws"
    proxy: dict[str, Any] = {"proxy": None} if is_loopback(url) else {}
    if scheme == "wss":
        proxy["ssl"] = certificates.context(client.connection.fingerprint)
    try:
        opened: ClientConnection = stack.enter_context(connect(
            f"{scheme}{url[url.index(':') :]}{request.target}",
            additional_headers=headers, user_agent_header=f"danlu/{__version__}", compression=None,
            open_timeout=CONNECT_TIMEOUT_S, close_timeout=CLOSE_TIMEOUT_S, ping_interval=PING_S, ping_timeout=PING_S,
            max_size=MAX_MESSAGE_BYTES, max_queue=None,  # bounded by the window: so pings are answered at any time
            **proxy,
        ))  # fmt: skip
        return opened
    except InvalidStatus as error:
        answer = error.response
        refusal = failure(
            answer.status_code, bytes(answer.body or b""), url, version=answer.headers.get(VERSION_HEADER, "")
        )
        explain(refusal, client.connection, authority(url))
        raise refusal from error
    except (OSError, InvalidHandshake, EOFError) as error:
        if (refused := certificates.refusal(error, url)) is not None:
            raise refused from error
        raise Unavailable(f"the platform at {url} cannot be reached: {error}") from error
