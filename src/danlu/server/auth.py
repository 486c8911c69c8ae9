"""The outermost layer: nobody gets past it without a valid signature or token, but for the health checks.

It also bounds every body, in length and time, holds it against the digest that was signed, and bounds what one caller takes.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import math
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from typing import Any, Final

import anyio.to_thread
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, PlainTextResponse

from danlu import __version__
from danlu.api import MAX_JSON_BYTES, OPEN_PATHS
from danlu.domain.actors import Actor
from danlu.domain.signing import SAFE_METHODS, BadSignature, Claim, Message, claim
from danlu.errors import DanluError, NotAuthenticated, TooLarge, TooManyRequests, TooSlow
from danlu.server.limits import Limits, Rates, Turns, too_fast, who
from danlu.services import access
from danlu.services.context import Platform

LOG: Final = logging.getLogger("danlu.server")
MAX_REQUESTS: Final = 512
SUSPECTS_AT_ONCE: Final = 1
MAX_SUSPECTS: Final = 64
NOTHING: Final = hashlib.sha256().digest()
BINARY: Final = "application/octet-stream"
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


def refusal(platform: Platform) -> NotAuthenticated:
    """Returns what whoever is not known is answered: the same, whatever was wrong; and the time, should it be a clock."""
    return NotAuthenticated(server_time=platform.clock.wall())


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
        self._requests = 0
        self._rates = Rates(limits.requests_per_s, limits.burst_requests)
        self._failures = Rates(limits.failures_per_s, math.ceil(10 * limits.failures_per_s))
        self._turns = Turns(limits.requests, "requests of yours are being answered")
        self._suspects, self._suspected = asyncio.Semaphore(SUSPECTS_AT_ONCE), 0

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
        self._requests += 1
        send = _stamped(send, request_id)
        try:
            receive, actor = await self._let_in(scope, receive, request_id)
            with self._turns.one(who(actor)):
                await self._pass_on(scope, receive, send, request_id)
        except NotAuthenticated as error:
            LOG.debug("request %s is refused: %s", request_id, error.__cause__ or error)
            await problem(refusal(self._platform), request_id)(scope, receive, send)
        except DanluError as error:
            await problem(error, request_id)(scope, receive, send)
        finally:
            self._requests -= 1

    async def _let_in(self, scope: Scope, receive: Receive, request_id: str) -> tuple[Receive, Actor]:
        """Says in the scope who calls, and returns the bounded body and who that is; raises for whom it does not know."""
        if self._requests > MAX_REQUESTS:
            raise TooManyRequests(f"{MAX_REQUESTS} requests are being answered already")
        headers = Headers(scope=scope)
        loop = asyncio.get_running_loop()
        actor, signed = await self._who(scope, headers, loop.time)
        if wait_s := self._rates.take(who(actor), loop.time()):
            raise too_fast(self._limits, wait_s)
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

    async def _who(self, scope: Scope, headers: Headers, time_s: Callable[[], float]) -> tuple[Actor, Claim | None]:
        """Returns who calls. Where an address has given wrong proofs, looking at one more waits for its turn."""
        look = self._looked_at(scope, headers)
        if look[1] is not None and (actor := access.known(self._platform, look[1])) is not None:
            return actor, look[1]
        address = str((scope.get("client") or ("",))[0])
        try:
            if not self._failures.empty(address, time_s()):
                return await anyio.to_thread.run_sync(look[0]), look[1]
            if self._suspected >= MAX_SUSPECTS:
                raise TooManyRequests("too many wrong proofs came from this address")
            self._suspected += 1
            try:
                async with self._suspects:
                    return await anyio.to_thread.run_sync(look[0]), look[1]
            finally:
                self._suspected -= 1
        except NotAuthenticated:
            self._failures.take(address, time_s())
            raise

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
        return PlainTextResponse("ok\n" if alive else "not ready\n", 200 if alive else 503)


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
    """Returns ``send``, which names the request and the server's version in every answer."""
    stamps = [(b"danlu-request-id", request_id.encode()), (b"danlu-version", __version__.encode())]

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
