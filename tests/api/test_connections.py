"""Connections at the edge: which are counted, and which is closed for another one."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn

from danlu.server.auth import LET_IN
from danlu.server.connections import Quiet, counted, origin

MOST = 4
WAIT_S = 30.0


@dataclass(eq=False)
class One:
    """A connection that is only counted."""

    quiet: Quiet
    origin: str
    closed: list[One] = field(repr=False)

    def drop(self) -> None:
        self.quiet.remove(self.origin, self)
        self.closed.append(self)


def test_whoever_has_the_most_gives_up_the_oldest() -> None:
    quiet = Quiet(MOST)
    closed: list[One] = []
    few = [One(quiet, f"few-{number}", closed) for number in range(3)]
    many = [One(quiet, "many", closed) for _ in range(MOST)]
    for one in (*few, *many):
        quiet.add(one.origin, one)
    assert closed == many[:3]
    last = One(quiet, "another", closed)
    quiet.add(last.origin, last)
    assert closed == [*many[:3], few[0]]  # of those who have one each, whoever has it for the longest
    for one in (*few[1:], many[3], last):
        quiet.remove(one.origin, one)
    assert not quiet._found


class Transport:
    def __init__(self, *peer: Any) -> None:
        self.peer = peer

    def get_extra_info(self, _name: str) -> Any:
        return self.peer or None


@pytest.mark.parametrize(
    ("peer", "told"),
    [
        (("192.0.2.7", 5), "192.0.2.7"),
        (("2001:db8:1:2:3:4:5:6", 5, 0, 0), "2001:db8:1:2::/64"),
        (("2001:db8:1:2::9", 5, 0, 0), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 5, 0, 2), "fe80::/64"),
        (("::ffff:192.0.2.7", 5, 0, 0), "192.0.2.7"),
        ((), ""),
    ],
)
def test_where_a_connection_comes_from(peer: tuple[Any, ...], told: str) -> None:
    assert origin(Transport(*peer)) == told  # type: ignore[arg-type]


class Answering:
    """Answers nobody before it is told to, and lets in whoever asks for /in."""

    def __init__(self) -> None:
        self.asked, self.answer = threading.Semaphore(0), threading.Event()
        self.lock = threading.Lock()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        import anyio

        let_in = scope["state"].pop(LET_IN) if scope["path"] == "/in" else contextlib.nullcontext
        with let_in():
            self.asked.release()
            while not self.answer.is_set():
                await anyio.sleep(0.01)
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
            await send({"type": "http.response.body", "body": b"ok"})


@dataclass
class Edge:
    app: Answering
    port: int
    opened: list[socket.socket] = field(default_factory=list)

    def ask(self, path: str) -> socket.socket:
        """Opens a connection and asks; returns once that has arrived."""
        one = socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_S)
        self.opened.append(one)
        one.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert self.app.asked.acquire(timeout=WAIT_S)
        return one


@pytest.fixture
def edge() -> Iterator[Edge]:
    app, listening = Answering(), socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, http=counted(Quiet(MOST)), lifespan="off", log_config=None, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    made = Edge(app, listening.getsockname()[1])
    yield made
    app.answer.set()
    for one in made.opened:
        one.close()
    server.should_exit = True
    thread.join()


def closed(one: socket.socket) -> bool:
    with contextlib.suppress(ConnectionError):
        return one.recv(100) == b""
    return True


def answered(one: socket.socket) -> bool:
    said = b""
    with contextlib.suppress(ConnectionError):
        while not said.endswith(b"ok") and (piece := one.recv(1000)):
            said += piece
    return said.endswith(b"ok")


def test_who_is_looked_at_gives_way_and_who_is_let_in_does_not(edge: Edge) -> None:
    """Else whoever proves nothing could have all connections, by asking on all of them or by not reading the answers."""
    people = [edge.ask("/in") for _ in range(MOST + 2)]
    strangers = [edge.ask("/out") for _ in range(MOST + 2)]
    assert all(closed(one) for one in strangers[:2])
    edge.app.answer.set()
    assert all(answered(one) for one in people)


def test_who_was_let_in_is_quiet_after_the_answer(edge: Edge) -> None:
    edge.app.answer.set()
    people = []
    for _ in range(MOST + 1):
        people.append(edge.ask("/in"))
        assert answered(people[-1])
    assert closed(people[0])
    people[1].sendall(b"GET /in HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answered(people[1])
