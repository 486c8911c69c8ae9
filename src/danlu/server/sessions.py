"""Web sockets of sessions: checked frames pass between a client and a runner, and nothing is kept on the way.

Neither side is believed. A runner's end belongs to the job's user: what it sends is taken apart and made anew, and a client
never gets more than it has said that it can take. Whoever reads slowly slows down the other side, not the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final, Protocol

import anyio
import anyio.to_thread
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect

from danlu.api import Permission
from danlu.api.bodies import SessionQuery
from danlu.domain.sessions import SessionEnd, SessionRequest
from danlu.domain.validation import invalid_spec
from danlu.errors import (
    Conflict,
    DanluError,
    InternalError,
    InvalidRequest,
    NotRunning,
    TooManyRequests,
    Unavailable,
    UpgradeRequired,
)
from danlu.runner import frames
from danlu.server.streams import Watch
from danlu.services import sessions
from danlu.services.context import Call

LOG: Final = logging.getLogger("danlu.server")
MAX_SESSIONS: Final = 128
MAX_OF_A_PROJECT: Final = 32
MAX_OF_A_JOB: Final = 8
MAX_OPENING: Final = 8
"""Sessions that wait for a runner's door at the same time. A job may keep such a thread waiting; requests have others."""
MAX_MESSAGE_BYTES: Final = frames.REQUEST_BYTES + 1
REQUEST_TIMEOUT_S: Final = 10.0
IDLE_S: Final = 4 * 3600.0
"""A session through which nothing has passed for so long is ended."""
GONE: Final = (OSError, WebSocketDisconnect)
"""What sending to a client raises that has gone."""


class Opener(Protocol):
    """Opens sessions: an executor, as far as it is known here."""

    def open_session(self, attempt_id: str, task: str, request: SessionRequest) -> socket.socket:
        """Returns a connected stream of frames."""


class Sessions:
    """The open sessions of one server."""

    def __init__(self, opener: Opener, *, idle_s: float = IDLE_S, look_s: float = 2.0) -> None:
        self._opener, self._idle_s, self._look_s = opener, idle_s, look_s
        self._open: Counter[tuple[str, str]] = Counter()
        self._opening = anyio.CapacityLimiter(MAX_OPENING)

    async def refuse(self, call: Call, _request: Request, arguments: dict[str, Any]) -> Response:
        """Answers who asks without a web socket; like any other request where there is no such job."""
        await anyio.to_thread.run_sync(sessions.open, call, arguments["job"], arguments["query"])
        raise UpgradeRequired

    async def open(self, call: Call, client: WebSocket) -> None:
        """Lets a client in, and stays until it has gone or what it wanted is done."""
        try:
            query = SessionQuery.model_validate(dict(client.query_params))
        except ValidationError as error:
            raise invalid_spec(error, SessionQuery) from error
        job = str(client.path_params["job"])
        place = await anyio.to_thread.run_sync(sessions.open, call, job, query)
        with self._turn(place.job.project, place.attempt_id):
            # before it is let in: who goes away without a word has used the handshake up too
            await anyio.to_thread.run_sync(call.begin)
            await client.accept()
            try:
                await self._serve(call, place, client)
            except DanluError as error:
                await _tell(client, error)
            except GONE:
                return
            except Exception as error:
                LOG.error("request %s: a session", client.state.request_id, exc_info=error)
                await _tell(client, InternalError(f"the server's log has more at request {client.state.request_id}"))

    @contextlib.contextmanager
    def _turn(self, project: str, attempt_id: str) -> Iterator[None]:
        if self._open.total() >= MAX_SESSIONS:
            raise TooManyRequests(f"{MAX_SESSIONS} sessions are open already")
        if sum(count for (other, _), count in self._open.items() if other == project) >= MAX_OF_A_PROJECT:
            raise TooManyRequests(
                f"{MAX_OF_A_PROJECT} sessions are open in project {project} already",
                next_step="end one of them, then repeat",
            )
        one = project, attempt_id
        if self._open[one] >= MAX_OF_A_JOB:
            raise TooManyRequests(
                f"{MAX_OF_A_JOB} sessions are open in this job already", next_step="end one of them, then repeat"
            )
        self._open[one] += 1
        try:
            yield
        finally:
            self._open[one] -= 1
            self._open += Counter()  # drops what is zero

    async def _serve(self, call: Call, place: sessions.Place, client: WebSocket) -> None:
        request = await _requested(client)
        await anyio.to_thread.run_sync(sessions.record, call, place, request)
        stream = await self._connected(place, request)
        try:
            stream.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=stream)
        except BaseException:
            stream.close()
            raise
        try:
            await self._relay(_Bridge(client, reader, writer, place), Watch(call, Permission.WRITE, self._look_s))
        finally:
            writer.transport.abort()  # which ends what runs; what it has not read yet must not be waited for
        with contextlib.suppress(RuntimeError, *GONE):  # it may have closed it itself
            await client.close()

    async def _connected(self, place: sessions.Place, request: SessionRequest) -> socket.socket:
        return await anyio.to_thread.run_sync(
            self._opener.open_session, place.attempt_id, place.task, request, limiter=self._opening
        )

    async def _relay(self, bridge: _Bridge, watch: Watch) -> None:
        """Lets bytes pass until one side has ended, or who opened it may not any more."""
        ways = [asyncio.create_task(bridge.down()), asyncio.create_task(bridge.up())]
        try:
            while True:
                done, _ = await asyncio.wait(
                    ways, timeout=min(self._look_s, self._idle_s), return_when=asyncio.FIRST_COMPLETED
                )
                if done:
                    done.pop().result()
                    return
                await watch.call()
                if bridge.quiet_s() > self._idle_s:
                    raise Conflict(f"nothing has passed for {self._idle_s / 3600:g} h: the session was ended")
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)


class _Bridge:
    """One session's two ways."""

    def __init__(
        self, client: WebSocket, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, place: sessions.Place
    ) -> None:
        self._client, self._reader, self._writer, self._place = client, reader, writer, place
        self._output, self._input = frames.Window(), frames.Window()
        self._loop = asyncio.get_running_loop()
        self._moved_at = self._loop.time()

    def quiet_s(self) -> float:
        """Returns for how long nothing has passed."""
        return self._loop.time() - self._moved_at

    async def up(self) -> None:
        """Carries what the client sends; returns when it has gone."""
        while True:
            message = await self._client.receive()
            if message["type"] == "websocket.disconnect":
                return
            try:
                kind, data = frames.checked(message.get("bytes") or b"", frames.FROM_CLIENT)
                if kind == frames.REQUEST:
                    raise frames.FrameError("a session has one request")
                if kind == frames.STDIN:
                    self._input.use(len(data))
                elif kind == frames.CREDIT:
                    self._output.give(data)
            except frames.FrameError as error:
                raise InvalidRequest(str(error)) from error
            self._moved_at = self._loop.time()
            try:
                self._writer.write(frames.encode(kind, data))
                await self._writer.drain()
            except OSError:
                await asyncio.Event().wait()  # for ever: what the runner has said before comes the other way

    async def down(self) -> None:
        """Carries what the runner sends; returns after its last word."""
        decoder = frames.Decoder(frames.FROM_RUNNER)
        while True:
            try:
                data = await self._reader.read(frames.DATA_BYTES)
            except OSError:
                data = b""
            if not data:
                raise Unavailable(
                    f"the session broke off: its process in {self._place.task} was killed, or its job has ended",
                    next_step=f"danlu describe {self._place.job.name}",
                )
            self._moved_at = self._loop.time()
            try:
                for kind, content in decoder.feed(data):
                    await self._client.send_bytes(kind + self._checked(kind, content))
                    if kind == frames.EXIT:
                        return
            except (frames.FrameError, ValidationError) as error:
                raise Unavailable(
                    f"what answers in {self._place.task} is not its runner: {error}",
                    next_step=f"stop the job, if it was not meant to: danlu stop {self._place.job.name}",
                ) from error

    def _checked(self, kind: bytes, content: bytes) -> bytes:
        """Returns what a frame of the runner's holds, made anew where it is more than bytes."""
        if kind in (frames.STDOUT, frames.STDERR):
            self._output.use(len(content))
        elif kind == frames.CREDIT:
            self._input.give(content)
        elif kind == frames.STARTED:
            return json.dumps({"task": self._place.task, "tasks": self._place.tasks}).encode()
        elif kind == frames.EXIT:
            return SessionEnd.model_validate_json(content).model_dump_json().encode()
        elif kind == frames.PROBLEM:
            raise NotRunning(str(frames.parse_json(content).get("detail", ""))[:1000])
        return content


async def _requested(client: WebSocket) -> SessionRequest:
    """Returns the first frame's request; raises InvalidRequest where it is none, or does not come."""
    try:
        message = await asyncio.wait_for(client.receive(), REQUEST_TIMEOUT_S)
    except TimeoutError:
        raise InvalidRequest(f"no request came within {REQUEST_TIMEOUT_S:g} s") from None
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect
    try:
        kind, data = frames.checked(message.get("bytes") or b"", frames.FROM_CLIENT)
        if kind != frames.REQUEST:
            raise frames.FrameError("the first frame is the request")
        return SessionRequest.model_validate_json(data)
    except frames.FrameError as error:
        raise InvalidRequest(str(error)) from error
    except ValidationError as error:
        raise invalid_spec(error, SessionRequest) from error


async def _tell(client: WebSocket, error: DanluError) -> None:
    """Says what was wrong, as the last frame."""
    problem = {**error.to_problem(), "request_id": client.state.request_id}
    with contextlib.suppress(RuntimeError, *GONE):
        await client.send_bytes(frames.PROBLEM + json.dumps(problem).encode())
        await client.close()
