"""Binds the wire contract: an endpoint for each operation, made from its line in the table. No route is written by hand."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import tempfile
import typing
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final

import anyio.to_thread
from fastapi import Body, FastAPI, Query, Request, WebSocket
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, TypeAdapter
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import Response, StreamingResponse
from starlette.routing import WebSocketRoute

from danlu import __version__
from danlu.api import MAX_PACK_BYTES, OPERATIONS, PROJECT_HEADER, Kind, Operation, Permission
from danlu.api.bodies import MAX_BLOB_BYTES
from danlu.domain.actors import Actor
from danlu.domain.projects import DEFAULT_PROJECT
from danlu.domain.records import build_models
from danlu.domain.signing import Claim
from danlu.domain.users import PLATFORM
from danlu.domain.validation import invalid_fields
from danlu.domain.views import Problem
from danlu.errors import (
    DanluError,
    InternalError,
    InvalidRequest,
    NotAllowed,
    NotAuthenticated,
    NotFound,
    TooLarge,
    storage_full_is_an_error,
)
from danlu.server.answers import Answers
from danlu.server.auth import BINARY, changes, problem, refusal
from danlu.server.limits import MAX_KNOWN, Limits, Rates, who
from danlu.server.sessions import Opener, Sessions
from danlu.server.streams import Streams
from danlu.services import access, projects
from danlu.services.context import DONE, Call, Deed, Platform

PROMETHEUS: Final = "text/plain; version=0.0.4; charset=utf-8"
SPOOL_BYTES: Final = 2**20
READ_BYTES: Final = 2**20
MAX_TOLD: Final = 200
UPLOADS_AT_ONCE: Final = 4
ELSEWHERE: Final = {"jobs.logs": "logs.read", "jobs.metrics": "metrics.read", "arrays.retry": "repeating.retry",
                    "handing.secrets": "handing.secrets_of"}  # fmt: skip
WAITS: Final = frozenset({"jobs.wait", "arrays.wait", "wishes.wait"})
SECRET: Final = frozenset({"handing.secrets", "keys.make", "tokens.make"})
"""What these answer nobody on the way may keep."""
WITH_SLASHES: Final = "{environment}"
"""The name in a path that may have slashes: an image's."""
OF_NO_PROJECT: Final = frozenset({Permission.SELF, Permission.ADMINISTER})
NO_OTHER: Final = Limits()
Endpoint = Callable[..., Awaitable[Response]]


def service(operation: Operation) -> Callable[..., Any]:
    """Returns the service of an operation: ``noun.verb`` is the verb of module ``noun``, unless it is elsewhere."""
    noun, _, verb = ELSEWHERE.get(operation.id, operation.id).partition(".")
    found = getattr(importlib.import_module(f"danlu.services.{noun}"), verb)
    return typing.cast(Callable[..., Any], found)


class Edge:
    """Makes endpoints and answers by them."""

    def __init__(self, platform: Platform, uploads: Path, opener: Opener, limits: Limits) -> None:
        self.platform = platform
        self.streams = Streams(platform.hub, limits)
        self.sessions = Sessions(opener, look_s=limits.look_s)
        self._uploads, self._look_s = uploads, limits.look_s
        self._upload_turns = asyncio.Semaphore(UPLOADS_AT_ONCE)
        self._refusals = Rates(limits.stored_refusals_per_s, limits.burst_stored_refusals)
        self._left_out: Counter[tuple[str, str]] = Counter()
        self._projects: set[str] = set()
        self._answers = Answers()

    async def call(self, request: HTTPConnection, operation: Operation) -> Call:
        """Returns the call that a request is, if its actor may make it.

        Raises:
            NotAllowed: the actor may not.
            NotFound: there is no such project, or it is another's.
            NotAuthenticated: it has lost its key, token or user while its body came.
        """
        state = request.state
        actor: Actor = state.actor
        if (
            asyncio.get_running_loop().time() - state.let_in_at > self._look_s
        ):  # its body took long: much may have changed
            actor = state.actor = await anyio.to_thread.run_sync(access.again, self.platform, actor)
            state.let_in_at = asyncio.get_running_loop().time()
        deed = _deed(request, operation)
        if operation.permission in OF_NO_PROJECT:
            call = Call(self.platform, actor, PLATFORM, deed)
        else:
            name = request.headers.get(PROJECT_HEADER) or actor.default_project(DEFAULT_PROJECT)
            if name not in self._projects and await anyio.to_thread.run_sync(projects.exists, self.platform, name):
                self._projects.add(name)  # a project is never removed
            call = Call(self.platform, actor, name, deed)
        try:
            if call.project != PLATFORM and call.project not in self._projects:
                raise access.no_project(call.project)
            access.permitted(call, operation.permission)
        except DanluError as error:
            if deed is not None and isinstance(error, NotFound):  # whose it is says where; it may be nobody's
                deed.message = f"project={call.project[:MAX_TOLD]}"
            await self._failed(call if isinstance(error, NotAllowed) else replace(call, project=PLATFORM), error)
            raise
        return call

    async def _failed(self, call: Call, error: Exception) -> None:
        """Stores that a call failed. Of many that one caller makes not each is told, but how many there were."""
        deed = call.deed
        if deed is None or deed.stored:
            return
        code = error.code() if isinstance(error, DanluError) else InternalError.code()
        one = who(call.actor), deed.operation
        told = not self._refusals.take(" ".join(one), asyncio.get_running_loop().time())
        if told:
            deed.left_out = self._left_out.pop(one, 0)
        elif one in self._left_out or len(self._left_out) < MAX_KNOWN:
            self._left_out[one] += 1
        await anyio.to_thread.run_sync(partial(call.settle, code, told=told))

    def endpoint(self, operation: Operation) -> Endpoint:
        """Returns the endpoint of an operation, with the signature that FastAPI reads."""
        path_names = [part[1:-1] for part in operation.path.split("/") if part.startswith("{")]
        answer = self._streaming if operation.kind is Kind.STREAM or operation.id in WAITS else self._answering
        respond = self.sessions.refuse if operation.kind is Kind.SOCKET else answer(operation)

        async def endpoint(request: Request, **arguments: Any) -> Response:
            call = await self.call(request, operation)
            if operation.body is None and changes(request.scope):
                await request.body()  # is not wanted, but is held against its digest
            return await respond(call, request, arguments)

        endpoint.__signature__ = self._signature(operation, path_names)  # type: ignore[attr-defined]
        return endpoint

    def socket(self, operation: Operation) -> Callable[[WebSocket], Awaitable[None]]:
        """Returns the endpoint of a web socket. What is wrong before it is accepted is answered as on any request."""

        async def endpoint(socket: WebSocket) -> None:
            call = await self.call(socket, operation)
            try:
                await self.sessions.open(call, socket)
            except DanluError as error:
                await self._failed(call, error)
                raise

        return endpoint

    @staticmethod
    def _signature(operation: Operation, path_names: list[str]) -> inspect.Signature:
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters = [inspect.Parameter("request", kind, annotation=Request)]
        parameters += [inspect.Parameter(name, kind, annotation=str) for name in path_names]
        if operation.query is not None:
            parameters.append(inspect.Parameter("query", kind, annotation=Annotated[operation.query, Query()]))
        if operation.body is not None and operation.body is not bytes and operation.kind is not Kind.SOCKET:
            parameters.append(inspect.Parameter("body", kind, annotation=Annotated[operation.body, Body()]))
        return inspect.Signature(parameters)

    def _answering(self, operation: Operation) -> Callable[[Call, Request, dict[str, Any]], Awaitable[Response]]:
        run = service(operation)
        wants_file = operation.body is bytes and typing.get_type_hints(run)["body"] is BinaryIO
        adapter = None if operation.returns is bytes else TypeAdapter(operation.returns)
        database, answers = self.platform.database, self._answers

        def work(call: Call, arguments: dict[str, Any]) -> Any:
            result = run(call, **arguments)
            call.settle(DONE)
            return result if adapter is None else adapter.dump_json(result)

        async def worked(call: Call, arguments: dict[str, Any]) -> Any:
            try:
                return await anyio.to_thread.run_sync(work, call, arguments)
            except Exception as error:
                await self._failed(call, error)
                raise

        async def respond(call: Call, request: Request, arguments: dict[str, Any]) -> Response:
            if call.deed is not None and operation.tells:
                call.deed.message = _told(arguments["body"], operation)
            if operation.body is bytes:
                whole = wants_file and "content-encoding" not in request.headers  # what is inflated is much from little
                limit = MAX_BLOB_BYTES if whole else MAX_PACK_BYTES
                # a turn is taken once the body is here: who sends slowly keeps nobody waiting
                async with _received(request, limit, self._uploads) as file, self._upload_turns:
                    call = await self.call(request, operation)  # once more, where that took long
                    body = file if wants_file else await anyio.to_thread.run_sync(file.read)
                    result = await worked(call, {**arguments, "body": body})
            elif operation.reads:
                asked, written = (operation.id, call.project, *arguments.values()), database.written(operation.reads)
                result = answers.get(asked, written)
                if result is None:
                    result = await worked(call, arguments)
                    answers.keep(asked, written, result)
            else:
                result = await worked(call, arguments)
            if operation.kind is Kind.TEXT:
                return Response(result, operation.status, media_type=PROMETHEUS)
            if adapter is None:
                return StreamingResponse(
                    _pieces(result), headers={"Content-Disposition": "attachment"}, media_type=BINARY
                )
            secret = {"Cache-Control": "no-store"} if operation.id in SECRET else None
            return Response(result, operation.status, secret, media_type="application/json")

        return respond

    def _streaming(self, operation: Operation) -> Callable[[Call, Request, dict[str, Any]], Awaitable[Response]]:
        async def respond(call: Call, request: Request, arguments: dict[str, Any]) -> Response:
            last_id = request.headers.get("last-event-id")
            if operation.id == "jobs.logs_stream":
                return await self.streams.logs(call, arguments["job"], arguments["query"], last_id)
            if operation.id == "events.stream":
                return await self.streams.events(call, arguments["query"], last_id)
            if operation.id == "wishes.wait":
                wished = await self.streams.wishes.wait(call, arguments["attempt"], arguments["query"])
                return Response(wished.model_dump_json(), media_type="application/json")
            if operation.id == "arrays.wait":
                waited: BaseModel = await self.streams.wait_for_array(call, arguments["array"], arguments["query"])
            else:
                waited = await self.streams.wait(call, arguments["job"], arguments["query"])
            return Response(waited.model_dump_json(), media_type="application/json")

        return respond

    async def known(self, request: HTTPConnection, error: Exception) -> Response:
        """Answers with an error of ours."""
        assert isinstance(error, DanluError)  # noqa: S101 - it is registered for this class alone
        told = refusal(self.platform, request.scope) if isinstance(error, NotAuthenticated) else error
        return problem(told, request.state.request_id)

    async def http(self, request: Request, error: Exception) -> Response:
        """Answers with an error of the framework's; one of ours that it met while it read the body is ours again."""
        assert isinstance(error, HTTPException)  # noqa: S101 - it is registered for this class alone
        if isinstance(error.__cause__, DanluError):
            return await self.known(request, error.__cause__)
        path = request.url.path
        if error.status_code in (404, 405):
            found: Any = NotFound(
                f"there is no {request.method} {path[:200]}", next_step="all operations: GET /v1/openapi.json"
            )
            if error.status_code == 405:
                found.status = 405
        else:
            found = InvalidRequest(str(error.detail))
        return problem(found, request.state.request_id)


def _told(body: BaseModel, operation: Operation) -> str:
    """Returns what is stored of a body: the fields that the operation tells, as far as they were given."""
    given = {name: value for name in operation.tells if (value := getattr(body, name)) not in (None, "")}
    return " ".join(f"{name}={text[:MAX_TOLD]}" for name, value in given.items() if (text := _text(value)) is not None)


def _text(value: Any) -> str | None:
    if isinstance(value, Mapping):
        return ",".join(f"{name}:{one}" for name, one in value.items()) or None
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _deed(request: HTTPConnection, operation: Operation) -> Deed | None:
    """Returns what is to be stored of a request that may change something."""
    if not changes(request.scope):
        return None
    signed: Claim | None = request.state.claim
    nonce = None if signed is None else (signed.key_id, signed.nonce, signed.forgotten_at_s)
    thing = "/".join(str(value) for value in request.path_params.values())
    source = request.client.host if request.client is not None else ""
    return Deed(operation.id, thing, source, request.state.request_id, nonce)


@contextlib.asynccontextmanager
async def _received(request: Request, limit: int, folder: Path) -> AsyncIterator[BinaryIO]:
    """A request's raw body in a temporary file, bounded, rewound; gone when left."""
    size = 0
    with tempfile.SpooledTemporaryFile(SPOOL_BYTES, dir=str(folder)) as file:
        async for chunk in _decoded(request):
            size += len(chunk)
            if size > limit:
                raise TooLarge(f"this body has at most {limit} bytes")
            with storage_full_is_an_error("an upload"):
                if size > SPOOL_BYTES:
                    await anyio.to_thread.run_sync(file.write, chunk)
                else:
                    file.write(chunk)
        file.seek(0)
        yield typing.cast(BinaryIO, file)


async def _decoded(request: Request) -> AsyncIterator[bytes]:
    """A request's body as it comes, inflated in bounded steps where it says that it is deflated."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding == "identity":
        async for chunk in request.stream():
            yield chunk
        return
    if encoding != "deflate":
        raise InvalidRequest(
            f"the content encoding {encoding[:40]!r} is not known", next_step="send it as it is, or by deflate"
        )
    inflating = zlib.decompressobj()
    try:
        async for chunk in request.stream():
            left, more = chunk, True
            while left or more:
                piece = await anyio.to_thread.run_sync(inflating.decompress, left, READ_BYTES)
                yield piece
                left, more = inflating.unconsumed_tail, len(piece) == READ_BYTES
    except zlib.error as error:
        raise InvalidRequest(f"the body is not deflated: {error}") from error
    if not inflating.eof or inflating.unused_data:
        raise InvalidRequest("the deflated body does not end where it should")


async def _pieces(file: BinaryIO) -> AsyncIterator[bytes]:
    try:
        while piece := await anyio.to_thread.run_sync(file.read, READ_BYTES):
            yield piece
    finally:
        file.close()


def build(platform: Platform, uploads: Path, opener: Opener, limits: Limits = NO_OTHER) -> tuple[FastAPI, Edge]:
    """Returns the application and its edge. It must stand behind auth.Gate, which says who calls."""
    build_models()  # FastAPI takes parameters of models that are not built for something else
    app = FastAPI(
        title="Danlu", version=__version__, openapi_url="/v1/openapi.json", docs_url=None, redoc_url=None,
        separate_input_output_schemas=False,
    )  # fmt: skip
    edge = Edge(platform, uploads, opener, limits)
    # what ends with a name that may have slashes comes last: it matches the longer ones too
    for operation in sorted(OPERATIONS, key=lambda one: one.path.endswith(WITH_SLASHES)):
        if operation.kind is Kind.SOCKET:  # beside it, the same as a request says what it is, after the same checks
            app.router.routes.append(WebSocketRoute(operation.path, edge.socket(operation), name=operation.id))
        app.add_api_route(
            operation.path.replace(WITH_SLASHES, "{environment:path}"), edge.endpoint(operation),
            methods=[operation.method], name=operation.id, operation_id=operation.id, summary=operation.summary,
            status_code=operation.status, tags=[operation.id.partition(".")[0]], **_documented(operation),
        )  # fmt: skip
    app.openapi = partial(_document, app)  # type: ignore[method-assign]
    app.add_exception_handler(DanluError, edge.known)
    app.add_exception_handler(Exception, _unknown)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, edge.http)
    return app, edge


def _document(app: FastAPI) -> dict[str, Any]:
    """Returns the OpenAPI document: every error is a problem, those of the framework's that it never answers with are not."""
    if app.openapi_schema is None:
        found = FastAPI.openapi(app)
        for operation in (one for path in found["paths"].values() for one in path.values()):
            operation["responses"].pop("422", None)
            default = operation["responses"]["default"]
            default["content"] = {"application/problem+json": default["content"].pop("application/json")}
        for name in ("HTTPValidationError", "ValidationError"):
            found["components"]["schemas"].pop(name, None)
    return typing.cast(dict[str, Any], app.openapi_schema)


def _documented(operation: Operation) -> dict[str, Any]:
    errors = {"default": {"model": Problem, "description": "an RFC 9457 problem"}}
    project = {"name": PROJECT_HEADER, "in": "header", "required": False, "schema": {"type": "string"},
               "description": "default when left out"}  # fmt: skip
    found: dict[str, Any] = {"responses": errors, "openapi_extra": {"parameters": [project]}}
    if operation.kind is Kind.JSON:
        found["response_model"] = operation.returns
    elif operation.kind is Kind.SOCKET:
        found["response_class"] = Response
        found["responses"] = {**errors, operation.status: {"description": "a web socket: see docs/reference/api.md"}}
    else:
        media = {Kind.BYTES: BINARY, Kind.TEXT: PROMETHEUS}.get(operation.kind, "text/event-stream")
        found["response_class"] = Response
        schema = {"type": "string"} | ({"format": "binary"} if operation.kind is Kind.BYTES else {})
        found["responses"] = {**errors, operation.status: {"content": {media: {"schema": schema}}}}
    if operation.body is bytes:
        content = {BINARY: {"schema": {"type": "string", "format": "binary"}}}
        found["openapi_extra"]["requestBody"] = {"required": True, "content": content}
    return found


async def _unknown(request: Request, _error: Exception) -> Response:
    """Answers for a fault of ours; it is raised on, to auth.Gate, which logs it."""
    request_id = request.state.request_id
    return problem(InternalError(f"the server failed; its log has more at request {request_id}"), request_id)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - it is registered for this class alone
    operation = next((o for o in OPERATIONS if o.id == request.scope["route"].name), None)
    problems = [dict(one) for one in error.errors()]
    place = problems[0]["loc"][0] if problems else "body"
    model = getattr(operation, "body" if place == "body" else "query", None)
    if place == "body" and problems[0]["type"] in ("json_invalid", "missing") and len(problems[0]["loc"]) <= 2:
        found: Exception = InvalidRequest(
            "the body is not JSON: " + str(problems[0].get("ctx", {}).get("error", "it is missing"))
        )
    elif model is None:
        found = InvalidRequest("; ".join(f"{one['loc'][-1]}: {one['msg']}" for one in problems[:20]))
    else:
        found = invalid_fields([{**one, "loc": one["loc"][1:]} for one in problems], model)
    return problem(typing.cast(Any, found), request.state.request_id)
