"""The one place that sends: a client of one platform, which waits for it when it is away for a while."""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Self

from danlu import __version__
from danlu.api import PROJECT_HEADER
from danlu.api.bodies import PieceQuery
from danlu.client import certificates
from danlu.client.connection import KEY_FILE, Connection, authority, is_loopback, running
from danlu.client.credentials import compare_clocks, compare_hosts
from danlu.client.requests import VERSION_HEADER, build, failure, parse, require_path
from danlu.domain.signing import Message, lowered
from danlu.errors import (
    Conflict,
    DanluError,
    NotAuthenticated,
    PlatformError,
    TooManyRequests,
    Unavailable,
    from_problem,
)

if TYPE_CHECKING:
    import httpx2
    from pydantic import BaseModel

CONNECT_TIMEOUT_S: Final = 5.0
READ_TIMEOUT_S: Final = 60.0
STREAM_SILENCE_S: Final = 60.0
"""A stream that says nothing for so long, not even that it lives, is opened again."""
PATIENCE_S: Final = 1.0
FOLLOW_PATIENCE_S: Final = 900.0
"""How long who follows a job waits for a platform that is away; the job itself goes on meanwhile."""
FIRST_PAUSE_S: Final = 0.05
MAX_PAUSE_S: Final = 3.0
MAX_EVENT_BYTES: Final = 64 * 2**20
CHUNK_BYTES: Final = 256 * 1024
PIECE_BYTES: Final = 8 * 2**20
"""Of a large blob: what a broken upload loses at most."""
MAX_CONFLICTS: Final = 20

Notice = Callable[[str], None]
Progress = Callable[[int], None]
"""Called with the bytes that were moved since the last call."""


class _Absent(Exception):
    """The server that a connection was found by does not run: nothing was sent."""


class Client:
    """Calls the operations of ``danlu.api`` by their ids. One client may be used by several threads.

    Args:
        connection: where the platform is, and the key.
        project: whose things are meant; the key's own, or ``default``, when left out.
        patience_s: how long a call that may be repeated is repeated while the platform is away.
        relocate: says where the platform is now; asked while it is away, since it may come back elsewhere.
        notice: told that the platform is away and that it is back.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        project: str | None = None,
        patience_s: float = PATIENCE_S,
        relocate: Callable[[], Connection | None] | None = None,
        notice: Notice | None = None,
    ) -> None:
        self.connection, self.project, self.patience_s = connection, project, patience_s
        self.relocate, self.notice = relocate, notice
        self._open: tuple[Connection, httpx2.Client] | None = None
        self._left: list[tuple[Connection, httpx2.Client]] = []
        self.sent_bytes = 0
        """Of requests' bodies, those that were repeated included."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The platform's address."""
        return self.connection.url

    @contextlib.contextmanager
    def patient(self, patience_s: float) -> Iterator[Client]:
        """A client of the same platform that waits longer for one that is away; closed when left."""
        with Client(
            self.connection, project=self.project, patience_s=patience_s, relocate=self.relocate, notice=self.notice
        ) as made:
            yield made
            self.connection = made.connection

    def close(self) -> None:
        """Closes all connections."""
        for _, opened in (*self._left, *([] if self._open is None else [self._open])):
            opened.close()
        self._open, self._left = None, []

    def call(
        self,
        operation_id: str,
        path: Mapping[str, str] | None = None,
        *,
        query: BaseModel | None = None,
        body: BaseModel | bytes | None = None,
        once_sent_s: float = 0.0,
        project: str | None = None,
    ) -> Any:
        """Returns what the operation answers, as the model that ``danlu.api`` names.

        Args:
            operation_id: as in ``danlu.api``.
            path: values of the names in its path.
            query: its query.
            body: what is sent.
            once_sent_s: the patience, if it is longer, once the request was sent and its answer lost.
            project: whose things are meant, where that is not the client's project.

        Raises:
            DanluError: as the server raised it.
            Unavailable: the platform could not be reached; ``details["sent"]``: an answer was lost, it may have been done.
        """
        request = build(operation_id, path, query=query, body=body)
        headers = {**request.headers, **({PROJECT_HEADER: project} if project else {})}

        def send() -> Any:
            url, http = self._reach()
            self.sent_bytes += len(request.content or b"")
            answer = http.request(request.method, url + request.target, content=request.content, headers=headers)
            _check(answer, url, self.connection)
            return parse(request.operation, answer.content, url)

        return self._patiently(send, repeatable=request.repeatable, once_sent_s=once_sent_s)

    def stream(self, operation_id: str, path: Mapping[str, str] | None = None, *, query: BaseModel) -> Iterator[Any]:
        """Yields what happens; goes on where it was after a break, until an item says ``done``.

        Raises:
            DanluError: as the server raised it.
            Unavailable: the platform stayed away for longer than ``patience_s``.
        """
        import httpx2

        waiting = _Waiting(self, self.patience_s)
        while True:
            request = build(operation_id, path, query=query)
            try:
                url, http = self._reach()
                with http.stream(
                    "GET",
                    url + request.target,
                    headers={"Accept": "text/event-stream", "Accept-Encoding": "identity"},
                    timeout=_timeout(STREAM_SILENCE_S),
                ) as answer:
                    _check(answer, url, self.connection)
                    waiting.answered()  # it is there again, even if it has nothing to say for long
                    for event in httpx2.EventSource(answer, max_event_size=MAX_EVENT_BYTES):
                        waiting.over()
                        if event.event == "error":
                            raise _from_event(event.data, url)
                        item = parse(request.operation, event.data, url)
                        query = _resumed(query, event.id)
                        yield item
                        if getattr(item, "done", False):
                            return
                waiting.pause(Unavailable(f"{url} ended a stream"))
            except (_Absent, httpx2.TransportError, Unavailable, TooManyRequests) as error:
                waiting.pause(error)

    def upload(self, address: str, file: BinaryIO, size_bytes: int, progress: Progress | None = None) -> None:
        """Stores one blob of any size from a file, in pieces; goes on where an earlier upload of it was broken off.

        Raises:
            InvalidRequest: the bytes are not what the address says.
            Conflict: somebody else sends the same blob at the same time.
        """
        path = {"address": address}
        if size_bytes == 0:
            self.call("blobs.put", path, body=b"")
            return
        at, conflicts = 0, 0
        there = self.call("blobs.received", path).size_bytes
        while True:
            if progress is not None and there > at:
                progress(there - at)
            at = there
            if at >= size_bytes:
                return
            file.seek(at)
            piece = file.read(min(PIECE_BYTES, size_bytes - at))
            if not piece:  # it became shorter: the server will see that it is not what was promised
                piece = bytes(min(PIECE_BYTES, size_bytes - at))
            try:
                query = PieceQuery(offset=at, size_bytes=size_bytes)
                there = self.call("blobs.append", path, query=query, body=piece).size_bytes
                conflicts = 0
            except Conflict:  # an answer was lost, or somebody else sends it too
                conflicts += 1
                if conflicts > MAX_CONFLICTS:
                    raise
                time.sleep(conflicts * FIRST_PAUSE_S)
                there = self.call("blobs.received", path).size_bytes

    def download(self, address: str, target: BinaryIO, progress: Progress | None = None) -> int:
        """Writes one blob's bytes to a file that can seek, from its beginning; returns how many they are."""
        request = build("blobs.get", {"address": address})

        def receive() -> int:
            target.seek(0)
            target.truncate()
            url, http = self._reach()
            with http.stream("GET", url + request.target) as answer:
                _check(answer, url, self.connection)
                for chunk in answer.iter_bytes(CHUNK_BYTES):
                    target.write(chunk)
                    if progress is not None:
                        progress(len(chunk))
            return target.tell()

        return int(self._patiently(receive, repeatable=True))

    @contextlib.contextmanager
    def waiting(self, patience_s: float) -> Iterator[None]:
        """Waits longer itself, within, for a platform that is away."""
        before = self.patience_s
        self.patience_s = max(before, patience_s)
        try:
            yield
        finally:
            self.patience_s = before

    @contextlib.contextmanager
    def raw(self, method: str, target: str, content: bytes | None = None) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Sends any request with the key; gives the status and the answer's bytes as they come. Nothing is repeated.

        Raises:
            InvalidRequest: the target is not a path of this platform.
            Unavailable: the platform could not be reached.
        """
        import httpx2

        require_path(target)  # what does not begin with a slash would become part of the address
        headers = {} if content is None else {"Content-Type": "application/json"}
        try:
            url, http = self._reach()
            with http.stream(method, url + target, content=content, headers=headers) as answer:
                yield answer.status_code, answer.iter_bytes()
        except httpx2.InvalidURL as error:
            raise PlatformError(f"{target!r} is not a path: {error}") from error
        except (_Absent, httpx2.TransportError) as error:
            raise self._away(error) from error

    def upgrade(self, target: str, first: bytes) -> tuple[str, dict[str, str]]:
        """Returns the address to connect to now and the headers that say who calls, for a web socket.

        Args:
            target: the path and query.
            first: the message that will be sent first: it is signed with the rest.

        Raises:
            Unavailable: the platform that was found on this machine does not run any more.
        """
        try:
            url, _ = self._reach()
        except _Absent as error:
            raise self._away(error) from error
        path, _, query = target.partition("?")
        headers = {PROJECT_HEADER: self.project} if self.project else {}
        message = Message("GET", authority(url), path, query, lowered(headers))
        return url, {**headers, **self.connection.credentials.headers(message, first, once=True)}

    def _reach(self) -> tuple[str, httpx2.Client]:
        """Returns the address to send to, and what sends the key that belongs to it.

        The key of a platform on this machine goes to a living server's own address only: once that server has ended,
        any program may listen there.

        Raises:
            _Absent: it does not run there now.
        """
        connection, opened = self.connection, self._open  # another thread may change both meanwhile
        if connection.home is not None:
            server = running(connection.home)
            if server is None or server.url != connection.url:
                raise _Absent("its server does not run there now")
        if opened is None or opened[0] != connection:
            self._left += [] if opened is None else [opened]
            opened = self._open = connection, _sender(connection, self.project)
            weakref.finalize(self, opened[1].close)  # a program's jobs hold their client: nobody closes it by hand
        return connection.url, opened[1]

    def _patiently(self, send: Callable[[], Any], *, repeatable: bool, once_sent_s: float = 0.0) -> Any:
        import httpx2

        waiting = _Waiting(self, self.patience_s)
        while True:
            try:
                result = send()
                waiting.over()
                return result
            except (_Absent, httpx2.ConnectError, httpx2.ConnectTimeout) as error:  # not sent: any call may be repeated
                waiting.pause(error)
            except (httpx2.TransportError, Unavailable, TooManyRequests) as error:
                if isinstance(error, httpx2.TransportError):
                    waiting.lost(once_sent_s)
                if not repeatable:
                    raise self._away(error, sent=waiting.sent) from error
                waiting.pause(error)

    def _away(self, error: Exception, *, sent: bool = False) -> DanluError:
        if (refused := certificates.refusal(error, self.url)) is not None:
            return refused
        if not isinstance(error, DanluError):
            error = Unavailable(
                f"the platform at {self.url} cannot be reached: {str(error) or type(error).__name__}",
                next_step="is it running? danlu status" + ("     start it: danlu up" if is_loopback(self.url) else ""),
            )
        if sent:
            error.details["sent"] = True
        return error

    def _find_again(self) -> None:
        found = self.relocate() if self.relocate is not None else None
        if found is not None and found != self.connection:
            self.connection = found  # what was open to the old one stays: another thread may still be using it


class _Waiting:
    """One stretch of waiting for a platform that is away: pauses that grow, and an end."""

    def __init__(self, client: Client, patience_s: float) -> None:
        self._client, self._patience_s = client, patience_s
        self._since: float | None = None
        self._pause_s, self._told = FIRST_PAUSE_S, False
        self.sent = False

    def answered(self) -> None:
        """It is there: the next break is a new one. The pauses stay long, lest one that only breaks is asked all the time."""
        if self._told and self._client.notice is not None:
            self._client.notice("the platform is back")
        self._since, self._told = None, False

    def over(self) -> None:
        """It does what it should."""
        self.answered()
        self._pause_s = FIRST_PAUSE_S

    def lost(self, patience_s: float) -> None:
        """A request was sent and its answer lost: from now on, wait for at least so long."""
        self.sent = True
        self._patience_s = max(self._patience_s, patience_s)

    def pause(self, error: Exception) -> None:
        """Waits a little, or raises once the patience is at its end."""
        if (refused := certificates.refusal(error, self._client.url)) is not None:
            raise refused from error  # it will not become another one by waiting
        now = time.monotonic()
        if self._since is None:
            self._since = now
        elif now - self._since + self._pause_s > self._patience_s:
            raise self._client._away(error, sent=self.sent) from error
        if not self._told and now - self._since > 1.0 and self._client.notice is not None:
            self._told = True
            where = f"the platform at {self._client.url} is away; waiting for it"
            self._client.notice(where + ("   (start it again: danlu up)" if is_loopback(self._client.url) else ""))
        time.sleep(self._pause_s)
        self._pause_s = min(self._pause_s * 2, MAX_PAUSE_S)
        self._client._find_again()


def _sender(connection: Connection, project: str | None) -> httpx2.Client:
    import ssl

    import httpx2

    class Proof(httpx2.Auth):
        """Puts the proof of who calls on each request, as it is about to be sent."""

        requires_request_body = True

        def auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
            path, _, query = request.url.raw_path.decode("ascii").partition("?")
            headers = tuple((name.lower(), value) for name, value in request.headers.items())
            message = Message(request.method, request.headers["Host"], path, query, headers)
            request.headers.update(connection.credentials.headers(message, request.content))
            yield request

    plain = connection.url.startswith("http:")
    headers = {"User-Agent": f"danlu/{__version__}"}
    if project:
        headers[PROJECT_HEADER] = project
    return httpx2.Client(
        auth=Proof(),
        headers=headers,
        timeout=_timeout(READ_TIMEOUT_S),
        trust_env=not is_loopback(connection.url),  # a proxy cannot reach this machine's own address
        # loading authorities takes 20 ms
        verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if plain else certificates.context(connection.fingerprint),
    )


def _check(answer: httpx2.Response, url: str, connection: Connection) -> None:
    if answer.is_success:
        return
    answer.read()
    if answer.is_redirect:
        raise PlatformError(
            f"{url} redirects to {answer.headers.get('location', '?')[:200]}", next_step="use that address"
        )
    error = failure(answer.status_code, answer.content, url, version=answer.headers.get(VERSION_HEADER, ""))
    explain(error, connection, answer.request.headers["host"])
    raise error


def explain(error: DanluError, connection: Connection, host: str) -> None:
    """Says in a refusal by what key it was called, and what about a signature may be wrong: a clock, or the ``host``."""
    if isinstance(error, NotAuthenticated):
        error.message = f"{error.message} It was called by {connection.by}"
        if connection.home is not None:
            file = connection.home / KEY_FILE
            error.next_step = (
                f"it does not accept the key in {file}; its log says why\n"
                f"for a new one: danlu down, then rm {file}, then danlu up"
            )
        error.args = (error.message,)
    compare_clocks(error, time.time_ns())
    compare_hosts(error, host if connection.credentials.key_id else "")


def _timeout(read_s: float) -> Any:
    import httpx2

    return httpx2.Timeout(connect=CONNECT_TIMEOUT_S, read=read_s, write=READ_TIMEOUT_S, pool=CONNECT_TIMEOUT_S)


def _resumed(query: BaseModel, cursor: str) -> BaseModel:
    if not cursor:
        return query
    if "cursor" in type(query).model_fields:
        return query.model_copy(update={"cursor": cursor})
    return query.model_copy(update={"after": int(cursor)})


def _from_event(data: str, url: str) -> DanluError:
    try:
        import json

        problem = json.loads(data)
        return from_problem(problem, int(problem.get("status", 500)))
    except (ValueError, TypeError, AttributeError):
        return Unavailable(f"{url} ended a stream: {data[:300]}")
