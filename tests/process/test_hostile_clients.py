"""Clients that take, and are slow, and send what costs much: everybody else gets answers meanwhile."""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from danlu.api.bodies import KeyRequest, MemberRequest, UserRequest
from danlu.client.connection import Connection
from danlu.client.credentials import Credentials
from danlu.client.transport import Client
from danlu.domain.signing import Message, content_digest, lowered
from danlu.domain.trees import address_of
from danlu.errors import TooManyRequests
from danlu.server.limits import Limits
from danlu.server.main import MAX_CONNECTIONS
from tests.process.platform import Server, until

ANSWERED_S = 20.0
MANY = MAX_CONNECTIONS + 200
TINY = 1_000_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    made = Server(tmp_path_factory.mktemp("hostile") / "home", "--user-requests-per-s", "2000")
    made.start()
    yield made
    made.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def hostile(server: Server) -> Credentials:
    """The key of a member who means harm."""
    with server.client() as client:
        client.call("users.make", {"user": "mallory"}, body=UserRequest())
        client.call("members.set", {"user": "mallory"}, body=MemberRequest())
        made = client.call("keys.make", body=KeyRequest(user="mallory"))
    return Credentials(made.secret, made.key.id)


def connect(server: Server) -> socket.socket:
    parts = urlsplit(server.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=ANSWERED_S)


def head(
    server: Server, method: str, path: str, key: Credentials | None, headers: dict[str, str], body: bytes
) -> bytes:
    """Returns a request's head, signed for ``body``."""
    authority = urlsplit(server.url).netloc
    proof = {} if key is None else key.headers(Message(method, authority, path, "", lowered(headers)), body)
    lines = [f"{method} {path} HTTP/1.1", f"Host: {authority}", *(f"{k}: {v}" for k, v in {**headers, **proof}.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def answer(connection: socket.socket) -> tuple[int, bytes]:
    """Returns an answer's status and what else has come of it until the other side is silent or gone."""
    data = b""
    with contextlib.suppress(OSError):
        while piece := connection.recv(65_536):
            data += piece
            if b"\r\n\r\n" in data and data.endswith((b"}", b"ok\n", b"received.")):
                break
    return int(data.split(b" ", 2)[1]) if data else 0, data.partition(b"\r\n\r\n")[2]


def others_get_answers(server: Server) -> None:
    for _ in range(5):
        with server.client() as client:  # a connection of its own each time
            assert client.call("access.whoami").name == "admin"
            assert client.call("jobs.list").items == ()


@pytest.fixture
def many(server: Server) -> Iterator[Callable[[bytes, int], list[socket.socket]]]:
    opened: list[socket.socket] = []

    def open_all(first: bytes, count: int) -> list[socket.socket]:
        for _ in range(count):
            with contextlib.suppress(OSError):  # it may close them as fast
                opened.append(connect(server))
                opened[-1].sendall(first)
        return opened

    yield open_all
    for one in opened:
        one.close()


@pytest.mark.parametrize(
    "first", [b"", b"GET / HTTP/1.1\r\nX: ", b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", b"\0", b"\x16\x03\x01"]
)
def test_who_opens_many_and_asks_nothing(
    server: Server, many: Callable[[bytes, int], list[socket.socket]], first: bytes
) -> None:
    many(first, MANY)
    others_get_answers(server)


def test_who_proves_nothing_and_reads_no_answer(server: Server) -> None:
    """From the same address as those who do."""
    parts = urlsplit(server.url)
    asked = b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer danlu_wrong\r\n\r\n"
    opened = []
    try:
        for _ in range(MAX_CONNECTIONS + 50):
            one = socket.socket()
            opened.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            one.settimeout(ANSWERED_S)
            with contextlib.suppress(OSError):
                one.connect((parts.hostname, parts.port))
                one.setblocking(False)
                one.send(asked * 2000)
        others_get_answers(server)
    finally:
        for one in opened:
            one.close()


def test_one_byte_at_a_time(server: Server, many: Callable[[bytes, int], list[socket.socket]]) -> None:
    opened = many(b"GET / HTTP/1.1\r\nX: ", 300)
    done = threading.Event()

    def drip() -> None:
        while not done.wait(0.1):
            for one in opened:
                with contextlib.suppress(OSError):
                    one.sendall(b"x")

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        others_get_answers(server)
        opened[0].settimeout(60)
        with contextlib.suppress(ConnectionError):
            assert opened[0].recv(100) == b""  # it is closed in the end, though it never stopped
    finally:
        done.set()
        thread.join()


def test_one_user_does_not_take_all_requests(server: Server, hostile: Credentials) -> None:
    most = Limits().requests
    body = b'{"command": ["true"]}'
    opened: list[socket.socket] = []
    refused = 0
    try:
        for _ in range(most + 20):
            one = connect(server)
            opened.append(one)
            path = "/v1/jobs/j0000000000000000000000000"
            headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
            one.sendall(head(server, "PUT", path, hostile, headers, body) + body[:1])
        for one in opened:
            one.settimeout(0.05)
            try:
                refused += one.recv(64).startswith(b"HTTP/1.1 429")
            except ConnectionResetError:
                refused += 1  # its answer was overtaken by the end of the connection
            except TimeoutError:
                continue
        others_get_answers(server)
        assert refused == 20
        with Client(Connection(server.url, hostile), patience_s=0) as client, pytest.raises(TooManyRequests) as caught:
            client.call("jobs.list")
        assert str(most) in caught.value.message
    finally:
        for one in opened:
            one.close()
    with Client(Connection(server.url, hostile), patience_s=30) as client:  # what was left is free again
        assert client.call("jobs.list").items == ()


def test_one_user_does_not_take_all_streams(server: Server, hostile: Credentials) -> None:
    most = Limits().streams
    opened = []
    try:
        for _ in range(most):
            opened.append(connect(server))
            opened[-1].sendall(head(server, "GET", "/v1/events/stream", hostile, {}, b""))
            assert opened[-1].recv(15).startswith(b"HTTP/1.1 200")

        def full() -> bool:
            with connect(server) as one:
                one.sendall(head(server, "GET", "/v1/events/stream", hostile, {}, b""))
                return one.recv(15).startswith(b"HTTP/1.1 429")

        until(full, ANSWERED_S, "one more stream is refused")
        others_get_answers(server)
        with connect(server) as one, server.client() as client:
            one.sendall(head(server, "GET", "/v1/events/stream", client.connection.credentials, {}, b""))
            assert one.recv(15).startswith(b"HTTP/1.1 200")
    finally:
        for one in opened:
            one.close()


def test_a_million_tiny_chunks(server: Server, hostile: Credentials) -> None:
    piece = b"1\r\n \r\n" * 10_000
    body = b" " * TINY
    statuses: list[int] = []

    def send(key: Credentials | None) -> None:
        with connect(server) as one, contextlib.suppress(OSError):
            headers = {"Content-Type": "application/json", "Transfer-Encoding": "chunked"}
            one.sendall(head(server, "POST", "/v1/jobs/nothing/stop", key, headers, body))
            one.settimeout(120)
            for _ in range(TINY // 10_000):
                one.sendall(piece)
            one.sendall(b"0\r\n\r\n")
            statuses.append(answer(one)[0])

    threads = [threading.Thread(target=send, args=(key,)) for key in (hostile, None)]
    for thread in threads:
        thread.start()
    others_get_answers(server)
    for thread in threads:
        thread.join()
    assert set(statuses) <= {400, 401}


@pytest.mark.parametrize(
    "first",
    [
        b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 2**20 + b"\r\n\r\n",
        b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 100_000 + b"\r\n",
        b"GET /" + b"x" * 2**20 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", b"GET http://x/v1/jobs HTTP/1.1\r\nHost: y\r\n\r\n",
        b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\n folded: 1\r\n\r\n", b"GET /v1/jobs HTTP/9.9\r\nHost: x\r\n\r\n",
        b"\r\n" * 100_000, b"PUT /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"PUT /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"PUT /v1/jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 100_000,
        b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\nSignature-Input: " + b'danlu=("' * 5000 + b"\r\n\r\n",
    ],
)  # fmt: skip
def test_a_head_that_is_none(server: Server, first: bytes) -> None:
    with connect(server) as one:
        with contextlib.suppress(OSError):  # it may have gone while we still send
            one.sendall(first)
        status, _ = answer(one)
        assert status in (0, 400, 401)
    others_get_answers(server)


def test_a_head_without_an_end_is_not_kept(server: Server) -> None:
    most, sent = 64 * 2**20, 0
    with connect(server) as one, contextlib.suppress(ConnectionError):
        one.sendall(b"GET /v1/jobs HTTP/1.1\r\nHost: x\r\nX: ")
        while sent < most:
            one.sendall(b"x" * 2**16)
            sent += 2**16
    assert sent < most // 4  # what the kernel had taken when it was refused
    others_get_answers(server)


def test_a_bomb_stays_small(server: Server, hostile: Credentials, tmp_path: Path) -> None:
    bomb = zlib.compress(bytes(200 * 2**20), 9)
    address = address_of(b"anything")
    headers = {
        "Content-Type": "application/octet-stream",
        "Content-Encoding": "deflate",
        "Content-Length": str(len(bomb)),
    }
    for method, path in (
        ("PUT", f"/v1/blobs/{address}"),
        ("PUT", f"/v1/blobs/{address}/received"),
        ("POST", "/v1/blobs"),
    ):
        with connect(server) as one:
            one.sendall(head(server, method, path, hostile, headers, bomb) + bomb)
            status, told = answer(one)
            assert (status, json.loads(told)["code"]) == (413, "TooLarge")
    others_get_answers(server)
    assert content_digest(bomb)
