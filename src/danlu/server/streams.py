"""What is answered over time: logs and events as server-sent events, and waiting for a job."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Final, TypeVar

import anyio.to_thread
from starlette.responses import StreamingResponse

from danlu.api import Permission
from danlu.api.bodies import EventsQuery, LogsQuery, TimeoutQuery, WaitQuery
from danlu.domain.arrays import ArrayState
from danlu.domain.jobs import Job, reached
from danlu.domain.views import LogPage
from danlu.errors import DanluError
from danlu.server.limits import MAX_STREAMS, Limits, Turns
from danlu.server.waiting import Waiter
from danlu.server.wishes import WishesBoard
from danlu.services import access, arrays, events, jobs, logs
from danlu.services.context import Call, Hub

T = TypeVar("T")
KEEP_ALIVE_S: Final = 15.0
KEEP_ALIVE: Final = b": keep-alive\n\n"
MAX_DIGITS: Final = 19
PAUSE_S: Final = 0.03
EVENTS_AT_ONCE: Final = 200


class Watch:
    """Looks now and then whether a call that goes on may still be made."""

    def __init__(self, call: Call, permission: Permission, look_s: float) -> None:
        self._call, self._permission, self._look_s = call, permission, look_s
        self._looked_at = asyncio.get_running_loop().time()

    async def call(self) -> Call:
        """Returns the call as its actor may make it now.

        Raises:
            DanluError: as a new request would be refused with.
        """
        now = asyncio.get_running_loop().time()
        if now - self._looked_at >= self._look_s:
            self._call = await anyio.to_thread.run_sync(access.renewed, self._call, self._permission)
            self._looked_at = now
        return self._call


class Streams:
    """The open streams of one server. ``end`` ends them all, so that a server can stop."""

    def __init__(self, hub: Hub, limits: Limits) -> None:
        self._hub, self._look_s = hub, limits.look_s
        self._turns = Turns(limits.streams, MAX_STREAMS, "streams are open")
        self._ending = False
        self.wishes = WishesBoard()

    def end(self) -> None:
        """Ends every stream; clients go on elsewhere from their cursor."""
        self._ending = True
        self.wishes.end()
        for topic in ("logs", "events", "jobs"):
            self._hub.notify(topic)

    def _answer(self, call: Call, pieces: AsyncIterator[bytes]) -> StreamingResponse:
        self._turns.require(call.actor)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(self._counted(call, pieces), media_type="text/event-stream", headers=headers)

    async def _counted(self, call: Call, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        try:
            with self._turns.one(call.actor):
                async for piece in pieces:
                    yield piece
        except DanluError as error:
            yield _told(error)

    async def logs(self, call: Call, job: str, query: LogsQuery, last_id: str | None) -> StreamingResponse:
        """Answers a job's log from the cursor on until the job has ended."""
        if last_id:
            query = query.model_copy(update={"cursor": last_id})
        # the first page now: an unknown job or a wrong cursor is an error, not a stream that breaks off
        page = await anyio.to_thread.run_sync(logs.read, call, job, query)
        return self._answer(call, self._logs(call, job, query, page))

    async def _logs(self, call: Call, job: str, query: LogsQuery, first: LogPage) -> AsyncIterator[bytes]:
        waiter, watch = Waiter(self._hub, frozenset({"logs", "jobs"})), Watch(call, Permission.READ, self._look_s)
        spoke_at = waiter.now()
        with waiter.listening():
            page: LogPage | None = first
            while not self._ending:
                call = await watch.call()
                if page is None:
                    page = await anyio.to_thread.run_sync(logs.read, call, job, query)
                moved = page.cursor != query.cursor
                query = query.model_copy(update={"cursor": page.cursor})
                if page.chunks or page.done:
                    spoke_at = waiter.now()
                    yield _event(page.cursor, page.model_dump_json())
                if page.done:
                    return
                if page.chunks:
                    await asyncio.sleep(PAUSE_S)  # many small hints become one answer
                elif not moved:
                    await waiter.wait(self._look_s)
                    if waiter.now() - spoke_at >= KEEP_ALIVE_S:
                        spoke_at = waiter.now()
                        yield KEEP_ALIVE
                page = None

    async def events(self, call: Call, query: EventsQuery, last_id: str | None) -> StreamingResponse:
        """Answers events after the cursor, for ever."""
        if last_id and last_id.isascii() and last_id.isdigit() and len(last_id) < MAX_DIGITS:
            query = query.model_copy(update={"after": int(last_id)})
        return self._answer(call, self._events(call, query))

    async def _events(self, call: Call, query: EventsQuery) -> AsyncIterator[bytes]:
        waiter, watch = Waiter(self._hub, frozenset({"events", "jobs"})), Watch(call, Permission.READ, self._look_s)
        query = query.model_copy(update={"limit": EVENTS_AT_ONCE})
        spoke_at = waiter.now()
        with waiter.listening():
            while not self._ending:
                page = await anyio.to_thread.run_sync(events.list, await watch.call(), query)
                for event in page.items:
                    yield _event(str(event.seq), event.model_dump_json())
                if page.items:
                    query = query.model_copy(update={"after": page.items[-1].seq})
                    spoke_at = waiter.now()
                    await asyncio.sleep(PAUSE_S)
                    continue
                await waiter.wait(self._look_s)
                if waiter.now() - spoke_at >= KEEP_ALIVE_S:
                    spoke_at = waiter.now()
                    yield KEEP_ALIVE

    async def wait(self, call: Call, job: str, query: WaitQuery) -> Job:
        """Returns the job as soon as it has ended or is in the wanted state, or as it is when the time is over."""

        def over(found: Job) -> bool:
            return not found.live or reached(found, query.state)

        return await self._wait(call, partial(jobs.get, job=job), over, query.timeout_s)

    async def wait_for_array(self, call: Call, array: str, query: TimeoutQuery) -> ArrayState:
        """Returns the array as soon as all of it has ended, or as it is when the time is over."""
        await self._wait(call, partial(arrays.ended, array=array), bool, query.timeout_s)
        return await anyio.to_thread.run_sync(partial(arrays.get, call, array))

    async def _wait(self, call: Call, look: Callable[[Call], T], over: Callable[[T], bool], timeout_s: float) -> T:
        waiter, watch = Waiter(self._hub, frozenset({"jobs"})), Watch(call, Permission.READ, self._look_s)
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        with waiter.listening():
            while True:
                found = await anyio.to_thread.run_sync(look, await watch.call())
                left = until - loop.time()
                if over(found) or left <= 0 or self._ending:
                    return found
                await waiter.wait(min(left, self._look_s))


def _told(error: DanluError) -> bytes:
    """Returns the last event of a stream that ends with an error."""
    return f"event: error\ndata: {json.dumps(error.to_problem())}\n\n".encode()


def _event(event_id: str, data: str) -> bytes:
    return f"id: {event_id}\ndata: {data}\n\n".encode()
