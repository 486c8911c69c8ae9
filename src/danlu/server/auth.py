"""The outermost layer: nobody gets past it without a valid signature or token, but for the health checks.

It also bounds every body, and holds it against the digest that was signed.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

import anyio.to_thread
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, PlainTextResponse

from danlu import __version__
from danlu.api import MAX_JSON_BYTES, OPEN_PATHS
from danlu.domain.actors import Actor
from danlu.domain.signing import SAFE_METHODS, BadSignature, Claim, Message, claim
from danlu.errors import DanluError, NotAuthenticated, TooLarge, TooManyRequests
from danlu.services import access
from danlu.services.context import Platform

LOG: Final = logging.getLogger("danlu.server")
MAX_REQUESTS: Final = 512
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
        headers["Retry-After"] = "1"
    body = {**error.to_problem(), "request_id": request_id}
    return JSONResponse(body, error.status, headers, media_type="application/problem+json")


class Gate:
    """Lets a request through with its actor in ``scope["state"]``; answers every other one itself."""

    def __init__(self, app: App, platform: Platform, ready: Callable[[], bool]) -> None:
        self._app, self._platform, self._ready = app, platform, ready
        self._requests = 0

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
            receive = await self._let_in(scope, receive, request_id)
        except DanluError as error:
            await problem(error, request_id)(scope, receive, send)
        else:
            await self._pass_on(scope, receive, send, request_id)
        finally:
            self._requests -= 1

    async def _let_in(self, scope: Scope, receive: Receive, request_id: str) -> Receive:
        """Says in the scope who calls, and returns the bounded body; raises for whom it does not know."""
        if self._requests > MAX_REQUESTS:
            raise TooManyRequests(f"{MAX_REQUESTS} requests are being answered already")
        headers = Headers(scope=scope)
        try:
            actor, signed = await self._who(scope, headers)
        except NotAuthenticated as error:
            error.details["server_time"] = self._platform.clock.now()
            raise
        scope.setdefault("state", {}).update(actor=actor, request_id=request_id, claim=signed)
        if signed is not None and scope["type"] == "http":
            receive = _digested(receive, signed.digest)
        if scope["type"] == "websocket" or headers.get("content-type") == BINARY:
            return receive  # bounded message by message, or by who reads it
        return _bounded(receive, headers)

    async def _who(self, scope: Scope, headers: Headers) -> tuple[Actor, Claim | None]:
        scheme, _, secret = headers.get("authorization", "").partition(" ")
        if "signature" not in headers and "signature-input" not in headers:
            if scheme.lower() != "bearer" or not secret or not secret.isascii():
                raise NotAuthenticated
            return await anyio.to_thread.run_sync(access.bearer, self._platform, secret.strip()), None
        try:
            if scheme:
                raise BadSignature("a token beside a signature")
            signed = claim(message(scope), once=changes(scope))
        except BadSignature as error:
            LOG.debug("a signature was refused: %s", error)
            raise NotAuthenticated from error
        return await anyio.to_thread.run_sync(access.signed, self._platform, signed), signed

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


def _digested(receive: Receive, digest: bytes | None) -> Receive:
    """Returns ``receive``, which holds the body against its digest before its end is told; without one there is no body."""
    found = hashlib.sha256()
    expected = hashlib.sha256().digest() if digest is None else digest

    async def digested() -> MutableMapping[str, Any]:
        message = await receive()
        if message["type"] == "http.request":
            found.update(message.get("body", b""))
            if not message.get("more_body", False) and not hmac.compare_digest(found.digest(), expected):
                raise NotAuthenticated("the body is not what was signed")
        return message

    return digested


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
