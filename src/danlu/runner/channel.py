"""The way from a pod to its server: HTTP(S) with the attempt's token, repeated for as long as it takes.

A server that cannot be reached, is slow, or answers with what is not Danlu's own (an ingress that has lost it) is asked
again; the job goes on meanwhile. That the attempt is over is believed only where Danlu itself says so.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import socket
import threading
import time
from typing import Any, BinaryIO, Callable, Dict, Iterator, Mapping, NamedTuple, NoReturn, Optional, Union
from urllib.parse import quote, urlencode, urlsplit

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0
TIMEOUT_S = 60.0
TOLD_EVERY_S = 60.0
LOOK_S = 0.5
MAX_ANSWER_BYTES = 64 << 20
MAX_PROBLEM_BYTES = 64 << 10
READ_BYTES = 256 << 10
UNKNOWN_TRIALS = 3
"""So often, one after the other, a server has to say that it does not know the token: one of several may be set up wrong."""
PASSING = (408, 425, 429)
PROBLEM = "application/problem+json"
STALE, UNKNOWN, FORBIDDEN, DAMAGED = "StaleAttempt", "NotAuthenticated", "NotAllowed", "DataDamaged"
BINARY, JSON = "application/octet-stream", "application/json"
Body = Union[bytes, BinaryIO]


class ChannelError(Exception):
    """What a call ends with that has no answer."""


class Over(ChannelError):
    """The attempt is over: another one took its place, or nobody knows it any more."""


class GaveUp(ChannelError):
    """There was no time left to ask again."""


class Torn(ChannelError):
    """What was being downloaded broke off."""


class Refused(ChannelError):
    """The server does not do this, and would not if it were asked again."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__("%s (%s)" % (message, code))
        self.status, self.code = status, code


class _Passing(Exception):
    """It may go better the next time."""

    def __init__(self, why: str, after_s: float = 0.0, code: str = "") -> None:
        super().__init__(why)
        self.after_s, self.code = after_s, code


class Request(NamedTuple):
    """What is asked.

    Attributes:
        method: GET, PUT ...
        path: below the attempt's.
        body: bytes, or an open file, which is sent from where it is.
        query: what follows the path.
        size: of the file's part that is sent; left out, all the rest.
        content: the body's type.
        timeout_s: after so long of silence it is sent again; left out, the way's.
    """

    method: str
    path: str
    body: Body = b""
    query: Optional[Mapping[str, Any]] = None
    size: Optional[int] = None
    content: str = BINARY
    timeout_s: Optional[float] = None


class Answer(NamedTuple):
    """What the server said."""

    status: int
    body: bytes
    headers: Mapping[str, str]


class Way:
    """Where the server is, who calls, and until when it is tried: the same for all channels of a pod.

    Args:
        url: the server's.
        attempt_id: the attempt's, whose operations alone are called.
        token: its own.
        authority: the path of the certificates to trust, instead of the system's; empty for those.
        log: takes a line of text.
    """

    def __init__(self, url: str, attempt_id: str, token: str, authority: str, log: Callable[[str], None]) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("%r is not the address of a server" % url)
        self.secured, self.host, self.port = parts.scheme == "https", parts.hostname, parts.port
        self.prefix = "%s/v1/attempts/%s" % (parts.path.rstrip("/"), quote(attempt_id))
        self.url, self.token, self.log = url, token, log
        self.timeout_s = TIMEOUT_S
        self.until: Optional[float] = None
        self.over = threading.Event()
        self._authority = authority
        self._context: Any = None
        self._lock = threading.Lock()
        self._told_at: Optional[float] = None

    @classmethod
    def of_order(cls, folder: str, pod: Mapping[str, Any], log: Callable[[str], None]) -> "Way":
        """Returns the way that an order names: by what it says for pods, and the token and the authority beside it."""
        with open(os.path.join(folder, "token")) as file:
            token = file.read().strip()
        authority = os.path.join(folder, "ca.crt")
        return cls(pod["url"], pod["attempt_id"], token, authority if os.path.exists(authority) else "", log)

    def end_within(self, seconds: float) -> None:
        """Lets nothing be tried for longer; a second call can only shorten that."""
        until = time.monotonic() + seconds
        self.until = until if self.until is None else min(self.until, until)

    def connection(self, timeout_s: float) -> http.client.HTTPConnection:
        """Returns a connection that is not open yet."""
        if not self.secured:
            return http.client.HTTPConnection(self.host, self.port, timeout=timeout_s)
        with self._lock:
            if self._context is None:
                import ssl  # takes its time, and is not needed for a server in the same cluster

                self._context = ssl.create_default_context(cafile=self._authority or None)
        return http.client.HTTPSConnection(self.host, self.port, timeout=timeout_s, context=self._context)

    def pause(self, seconds: float) -> None:
        """Waits before it is tried again.

        Raises:
            Over, GaveUp: it is not.
        """
        until = time.monotonic() + seconds
        while True:
            self.look()
            left = until - time.monotonic()
            if left <= 0:
                return
            self.over.wait(min(left, LOOK_S))

    def look(self) -> None:
        """Raises Over or GaveUp where nothing is asked any more."""
        if self.over.is_set():
            raise Over("the attempt is over")
        if self.until is not None and time.monotonic() >= self.until:
            raise GaveUp("the server at %s was not reached in time" % self.url)

    def failed(self, what: str) -> None:
        """Says now and then what keeps it."""
        now = time.monotonic()
        if self._told_at is None or now - self._told_at >= TOLD_EVERY_S:
            self._told_at = now
            self.log("%s; it is tried again, and the job goes on" % what)

    def went_well(self) -> None:
        """Notes that the server answers."""
        if self._told_at is not None:
            self._told_at = None
            self.log("the server at %s answers again" % self.url)


class Channel:
    """One connection, kept open from call to call; of one thread."""

    def __init__(self, way: Way) -> None:
        self.way = way
        self._connection: Optional[http.client.HTTPConnection] = None
        self._unknown = 0

    def call(self, method: str, path: str, body: Body = b"", **more: Any) -> Answer:
        """Returns the answer, once there is one; what is sent may be sent more than once. See Request.

        Raises:
            Over, GaveUp, Refused: there is none.
        """
        request = Request(method, path, body, **more)
        answer: Answer = self._repeated(lambda: self._once(request))
        return answer

    def json(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        """Does as ``call`` with a JSON body; returns the answer as what it is in JSON."""
        data = b"" if body is None else json.dumps(body).encode()
        return self.json_of(self.call(method, path, data, content=JSON, **more))

    @staticmethod
    def json_of(answer: Answer) -> Any:
        """Returns an answer as what it is in JSON. It is Danlu's own: what is none is refused.

        Raises:
            Refused: it is no JSON.
        """
        try:
            return json.loads(answer.body.decode())
        except (ValueError, RecursionError) as error:
            raise Refused(answer.status, "InvalidAnswer", "the server's answer is no JSON: %s" % error) from error

    def download(self, path: str, **more: Any) -> Iterator[bytes]:
        """Yields what an answer consists of, piece by piece. The beginning is asked for until it comes.

        Raises:
            Over, GaveUp, Refused: it does not come.
            Torn: it broke off: what has come is to be forgotten.
        """
        response = self._repeated(lambda: self._opened(Request("GET", path, **more)))
        try:
            while True:
                try:
                    piece = response.read(READ_BYTES)
                except (OSError, http.client.HTTPException, ValueError) as error:
                    raise Torn("%s broke off: %s" % (path, error or type(error).__name__)) from error
                if not piece:
                    if response.length:  # http.client says nothing where a known length is not reached
                        raise Torn("%s broke off: %d bytes are missing" % (path, response.length))
                    return
                yield piece
        finally:
            if not response.isclosed():
                self.close()

    def close(self) -> None:
        """Closes the connection; the next call opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _repeated(self, once: Callable[[], Any]) -> Any:
        pause_s = FIRST_PAUSE_S
        while True:
            self.way.look()
            try:
                found = once()
            except _Passing as error:
                self.close()
                self._unknown = self._unknown + 1 if error.code == UNKNOWN else 0
                if self._unknown >= UNKNOWN_TRIALS:
                    self._is_over("the server does not know the attempt's token any more")
                self.way.failed("the server at %s does not answer as it should: %s" % (self.way.url, error))
                wait_s = min(LONGEST_PAUSE_S, max(pause_s, error.after_s))
                self.way.pause(wait_s * random.uniform(0.5, 1.0))  # noqa: S311 - so that not all come back at once
                pause_s = min(LONGEST_PAUSE_S, pause_s * 2)
            else:
                self._unknown = 0
                self.way.went_well()
                return found

    def _is_over(self, why: str) -> NoReturn:
        self.way.over.set()
        raise Over(why)

    def _once(self, request: Request) -> Answer:
        response = self._opened(request)
        try:
            data = response.read(MAX_ANSWER_BYTES + 1)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _Passing("the answer to %s broke off: %s" % (request.path, error or type(error).__name__)) from error
        if len(data) > MAX_ANSWER_BYTES or response.length:
            raise _Passing("the answer to %s was cut or is too long" % request.path)
        return Answer(response.status, data, dict(response.headers.items()))

    def _opened(self, request: Request) -> http.client.HTTPResponse:
        """Returns an answer of success, to be read."""
        at, size = 0, request.size
        if not isinstance(request.body, bytes):
            at = request.body.tell()
            size = os.fstat(request.body.fileno()).st_size - at if size is None else size
        elif request.method in ("PUT", "POST"):
            size = len(request.body)
        while True:
            used = self._connection is not None
            try:
                return self._answered(self._asked(request, at, size), request.path)
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.close()
                # a connection that was not used for a while is closed by the other side as soon as it likes
                if used and not isinstance(error, socket.timeout):
                    continue
                raise _Passing(str(error) or type(error).__name__) from error
            finally:
                if not isinstance(request.body, bytes):
                    request.body.seek(at)

    def _asked(self, request: Request, at: int, size: Optional[int]) -> http.client.HTTPResponse:
        timeout_s = request.timeout_s or self.way.timeout_s
        headers = {"Authorization": "Bearer " + self.way.token, "Accept": "*/*"}
        if size is not None:
            headers.update({"Content-Length": str(size), "Content-Type": request.content})
        if self._connection is None:
            self._connection = self.way.connection(timeout_s)
        connection = self._connection
        connection.timeout = timeout_s
        if connection.sock is not None:
            connection.sock.settimeout(timeout_s)
        sent: Any = request.body
        if not isinstance(request.body, bytes):
            request.body.seek(at)
            sent = _part(request.body, size or 0)
        target = self.way.prefix + request.path + ("?" + urlencode(request.query) if request.query else "")
        connection.request(request.method, target, body=sent or None, headers=headers)
        return connection.getresponse()

    def _answered(self, response: http.client.HTTPResponse, path: str) -> http.client.HTTPResponse:
        """Returns an answer of success; raises for any other."""
        if 200 <= response.status < 300:
            kind = str(response.headers.get("Content-Type", "")).partition(";")[0]
            if kind not in (JSON, BINARY):
                response.close()  # where the connection ends with it, it is not the connection's any more
                raise _Passing("%s: the answer is %s, not Danlu's own" % (path, kind or "of no type"))
            return response
        data = response.read(MAX_PROBLEM_BYTES)
        response.close()
        self.close()
        problem = _problem(response, data)
        code, message = str(problem.get("code", "")), str(problem.get("detail") or problem.get("title") or "")[:1000]
        if code in (STALE, FORBIDDEN):
            self._is_over(message)
        passing = not code or response.status >= 500 or response.status in PASSING or code == UNKNOWN
        if not passing or code == DAMAGED:
            raise Refused(response.status, code, message)
        raise _Passing("%s: %d %s" % (path, response.status, message or response.reason), _after_s(response), code)


def _problem(response: http.client.HTTPResponse, data: bytes) -> Dict[str, Any]:
    """Returns what Danlu says is wrong; nothing where it is somebody else who says so."""
    if not str(response.headers.get("Content-Type", "")).startswith(PROBLEM):
        return {}
    try:
        problem = json.loads(data.decode())
    except (ValueError, RecursionError):
        return {}
    return problem if isinstance(problem, dict) else {}


def _after_s(response: http.client.HTTPResponse) -> float:
    try:
        return max(0.0, float(response.headers.get("Retry-After", "0")))
    except ValueError:
        return 0.0


def _part(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Yields the next ``size`` bytes of a file. One that has become shorter is no longer what was promised."""
    while size > 0:
        piece = file.read(min(READ_BYTES, size))
        if not piece:
            raise ValueError("the file has become shorter while it was sent")
        size -= len(piece)
        yield piece
