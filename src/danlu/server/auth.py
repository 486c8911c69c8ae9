"""The outermost layer: nobody gets past it without a valid signature or token, but for the health checks.

It also bounds every body, in length and time, holds it against the digest that was signed, and bounds what one caller takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from functools import partial
from typing import Any, Final

import anyio
import anyio.to_thread
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, PlainTextResponse

from danlu import __version__
from danlu.api import BY_ID, MAX_JSON_BYTES, OPEN_PATHS
from danlu.domain.actors import Actor
from danlu.domain.signing import SAFE_METHODS, BadSignature, Claim, Message, claim
from danlu.errors import DanluError, NotAllowed, NotAuthenticated, TooLarge, TooManyRequests, TooSlow
from danlu.server.limits import MAX_REQUESTS, Limits, Rates, Turns, too_fast, who
from danlu.services import access
from danlu.services.context import Platform

LOG: Final = logging.getLogger("danlu.server")
LOOKS_AT_ONCE: Final = 8
"""At how many proofs is looked in the database at the same time. Strangers may keep these threads busy, and no others."""
LET_IN: Final = "danlu.let_in"
"""In a request's state: what its connection is told by that it is let in. See connections.py."""
MAX_AUTHORITY: Final = 255
NOTHING: Final = hashlib.sha256().digest()
BINARY: Final = "application/octet-stream"
WISHES: Final = BY_ID["wishes.wait"]
"""The one operation that runners wait for."""
WISHES_PATH: Final = re.compile(re.sub(r"\{\w+\}", "[^/]+", WISHES.path))
INERT: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'; sandbox"),
)
"""On every answer: what users have written in it is shown as what it says it is, and nothing in it runs."""
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def problem(error: DanluError, request_id: str) -> JSONResponse:
    """Returns an error as an RFC 9457 answer."""
    headers: dict[str, str] = {}
    if error.status == NotAuthenticated.status:
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, TooManyRequests) or error.status == 503:
        headers["Retry-After"] = str(error.details.get("retry_after_s", 1))
    body = {**error.to_problem(), "request_id": request_id}
    return JSONResponse(body, error.status, headers, media_type="application/problem+json")


def refusal(platform: Platform, scope: Scope) -> NotAuthenticated:
    """Returns what whoever is not known is answered: the same, whatever was wrong.

    It tells the time, should it be a clock, and the host that was asked for, should a proxy have changed it.
    """
    hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
    asked = hosts[0] if len(hosts) == 1 and hosts[0].isascii() and len(hosts[0]) <= MAX_AUTHORITY else ""
    return NotAuthenticated(server_time=platform.clock.wall(), authority=asked.lower())


class Gate:
    """Lets a request through with its actor in ``scope["state"]``; answers every other one itself."""

    def __init__(
        self,
        app: App,
        platform: Platform,
        ready: Callable[[], bool],
        limits: Limits = Limits(),  # noqa: B008 - frozen
    ) -> None:
        self._app, self._platform, self._ready, self._limits = app, platform, ready, limits
        self._rates = Rates(limits.requests_per_s, limits.burst_requests)
        self._turns = Turns(limits.requests, MAX_REQUESTS, "requests are being answered")
        self._waits = Turns(limits.waits, 2 * limits.waits, "runners wait")
        self._looks = anyio.CapacityLimiter(LOOKS_AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] not in ("http", "websocket"):
            return
        if scope["type"] == "http" and scope["path"] in OPEN_PATHS:
            await self._health(scope["path"])(scope, receive, send)
            return
        request_id = f"{self._platform.random_bits(64):016x}"
        send = _stamped(send, request_id)
        async with self._errors_told(scope, receive, send, request_id):
            receive, actor = await self._let_in(scope, receive, request_id)
            let_in = scope["state"].pop(LET_IN, contextlib.nullcontext)
            waits = actor.attempt_id is not None and _is_wait(scope)
            with (
                (self._waits if waits else self._turns).one(actor),
                let_in(),
            ):  # until the answer is read, be it an error
                async with self._errors_told(scope, receive, send, request_id):
                    await self._pass_on(scope, receive, send, request_id)

    @contextlib.asynccontextmanager
    async def _errors_told(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> AsyncIterator[None]:
        try:
            yield
        except NotAuthenticated as error:
            LOG.debug("request %s is refused: %s", request_id, error.__cause__ or error)
            await problem(refusal(self._platform, scope), request_id)(scope, receive, send)
        except DanluError as error:
            await problem(error, request_id)(scope, receive, send)

    async def _let_in(self, scope: Scope, receive: Receive, request_id: str) -> tuple[Receive, Actor]:
        """Says in the scope who calls, and returns the bounded body and who that is; raises for whom it does not know."""
        headers = Headers(scope=scope)
        loop = asyncio.get_running_loop()
        actor, signed = await self._who(scope, headers)
        if wait_s := self._rates.take(who(actor), loop.time()):
            raise too_fast(self._limits, wait_s)
        if changes(scope) and (page := _other_site(headers)) is not None:
            raise NotAllowed(
                f"a page of {page[:100]!r} asks for this, and the platform is {headers.get('host', '')[:100]!r}",
                next_step="nothing is changed for pages of other sites; programs send no Origin header",
            )
        scope.setdefault("state", {}).update(actor=actor, request_id=request_id, claim=signed, let_in_at=loop.time())
        if scope["type"] == "websocket":  # its messages are bounded by who reads them
            return (receive if signed is None else _begun(receive, signed.digest)), actor
        if not _has_body(headers):
            return receive, actor
        receive = _paced(receive, self._limits, loop.time)
        if signed is not None:
            receive = _digested(receive, signed.digest)
        # what is raw is bounded by who reads it
        return (receive if headers.get("content-type") == BINARY else _bounded(receive, headers)), actor

    async def _who(self, scope: Scope, headers: Headers) -> tuple[Actor, Claim | None]:
        """Returns who calls.

        Nobody is refused before the proof was looked at, however many wrong ones came before it, from that address or from
        all: who has a key or a token gets in. Nobody can guess one of 256 random bits, so that a wrong one needs no penalty;
        it only costs a look, and those take turns.
        """
        find, signed = self._looked_at(scope, headers)
        if signed is not None and (actor := access.known(self._platform, signed)) is not None:
            return actor, signed
        return await anyio.to_thread.run_sync(find, limiter=self._looks), signed

    def _looked_at(self, scope: Scope, headers: Headers) -> tuple[Callable[[], Actor], Claim | None]:
        """Returns how to find out who calls, and what the request claims; raises where it proves nothing at all."""
        scheme, _, secret = headers.get("authorization", "").partition(" ")
        if "signature" not in headers and "signature-input" not in headers:
            if scheme.lower() != "bearer" or not secret or not secret.isascii():
                raise NotAuthenticated
            return partial(access.bearer, self._platform, secret.strip()), None
        try:
            if scheme:
                raise BadSignature("a token beside a signature")
            signed = claim(message(scope), once=changes(scope))
            if _has_body(headers) and signed.digest in (None, NOTHING):
                raise BadSignature("a body that was not signed")
            if scope["type"] == "http" and not _has_body(headers) and signed.digest not in (None, NOTHING):
                raise BadSignature("the body that was signed is not there")
        except BadSignature as error:
            raise NotAuthenticated from error
        return partial(access.signed, self._platform, signed), signed

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        try:
            await self._app(scope, receive, send)
        except Exception as error:
            LOG.error("request %s: %s %s", request_id, scope.get("method", "SOCKET"), scope["path"], exc_info=error)
            raise  # the connection is closed: half an answer must not look whole

    def _health(self, path: str) -> PlainTextResponse:
        alive = path == "/livez" or self._ready()
        found = PlainTextResponse("ok\n" if alive else "not ready\n", 200 if alive else 503)
        found.raw_headers += INERT
        return found


def _is_wait(scope: Scope) -> bool:
    return scope.get("method") == WISHES.method and WISHES_PATH.fullmatch(scope["path"]) is not None


def changes(scope: Scope) -> bool:
    """Says whether a request may change something, and so must not be done twice: a web socket may, as what is not safe."""
    return scope["type"] == "websocket" or scope["method"] not in SAFE_METHODS


def message(scope: Scope) -> Message:
    """Returns a request as it is signed."""
    headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"])
    hosts = [value for name, value in headers if name == "host"]
    if len(hosts) != 1:
        raise BadSignature(f"{len(hosts)} hosts")
    return Message(
        scope.get("method", "GET"), hosts[0], scope["raw_path"].decode("latin-1"),
        scope["query_string"].decode("latin-1"), headers,
    )  # fmt: skip


def _other_site(headers: Headers) -> str | None:
    """Returns from which other site's page a browser sends this; None: from none.

    That no page acts for its reader does not rest on this: nothing says who calls but a signature, which covers the host, or
    a token, which no browser adds by itself. There is no cookie, and no address is trusted. So a page under a name that was
    made to lead here can ask, and is answered 401 like any stranger: no list is needed of the names by which a platform may
    be asked for. This is for the page that holds somebody's token by mistake.
    """
    host = headers.get("host", "").lower()
    return next((page for page in headers.getlist("origin") if page.lower().partition("://")[2] != host), None)


def _has_body(headers: Headers) -> bool:
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


def _paced(receive: Receive, limits: Limits, time_s: Callable[[], float]) -> Receive:
    """Returns ``receive``, which waits for a body only as long as it comes."""
    began_s, total, over = time_s(), 0, False

    async def paced() -> MutableMapping[str, Any]:
        nonlocal total, over
        if over:  # what follows is that the client has gone
            return await receive()
        try:
            async with asyncio.timeout(limits.body_silence_s):
                message = await receive()
        except TimeoutError:
            raise TooSlow(f"nothing of the body came for {limits.body_silence_s:g} s") from None
        total += len(message.get("body", b""))
        over = not message.get("more_body", False)
        took_s = time_s() - began_s
        if not over and took_s > limits.body_silence_s and total < took_s * limits.body_bytes_per_s:
            raise TooSlow(f"{total} bytes of the body came in {took_s:.0f} s")
        return message

    return paced


def _digested(receive: Receive, expected: bytes | None) -> Receive:
    """Returns ``receive``, which holds the body against its digest before its end is told."""
    found, expected = hashlib.sha256(), expected or NOTHING

    async def digested() -> MutableMapping[str, Any]:
        message = await receive()
        if message["type"] == "http.request":
            found.update(message.get("body", b""))
            if not message.get("more_body", False) and not hmac.compare_digest(found.digest(), expected):
                raise NotAuthenticated("the body is not what was signed")
        return message

    return digested


def _begun(receive: Receive, expected: bytes | None) -> Receive:
    """Returns ``receive``, which holds a web socket's first message, what to do, against the digest that was signed."""
    begun = False

    async def held() -> MutableMapping[str, Any]:
        nonlocal begun
        message = await receive()
        if message["type"] == "websocket.receive" and not begun:
            begun = True
            first = message.get("bytes") or (message.get("text") or "").encode()
            if not hmac.compare_digest(hashlib.sha256(first).digest(), expected or NOTHING):
                raise NotAuthenticated("the first message is not what was signed")
        return message

    return held


def _stamped(send: Send, request_id: str) -> Send:
    """Returns ``send``, which names the request and the server's version in every answer, and keeps it from running."""
    stamps = [(b"danlu-request-id", request_id.encode()), (b"danlu-version", __version__.encode()), *INERT]

    async def stamped(message: MutableMapping[str, Any]) -> None:
        if message["type"] in ("http.response.start", "websocket.http.response.start", "websocket.accept"):
            message["headers"] = [*message.get("headers", ()), *stamps]
        await send(message)

    return stamped


def _bounded(receive: Receive, headers: Headers) -> Receive:
    length = headers.get("content-length", "0")
    too_large = f"a JSON body has at most {MAX_JSON_BYTES} bytes"
    if length.isascii() and length.isdigit() and int(length) > MAX_JSON_BYTES:
        raise TooLarge(f"{too_large}; this one has {length}")
    total = 0

    async def bounded() -> MutableMapping[str, Any]:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > MAX_JSON_BYTES:
            raise TooLarge(f"{too_large}; this one has more")
        return message

    return bounded
