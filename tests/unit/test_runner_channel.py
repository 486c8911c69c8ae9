"""The way from a pod to its server: what is believed, what is asked again, and when it is given up."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from danlu.runner import channel as channels
from danlu.runner.channel import Channel, GaveUp, Over, Refused, Torn, Way

Said = tuple[int, str, bytes]
JSON = "application/json"


def problem(status: int, code: str) -> Said:
    return status, channels.PROBLEM, json.dumps({"code": code, "detail": f"it is {code}"}).encode()


FINE: Said = 200, JSON, b'{"offset": 3}'


class Server(ThreadingHTTPServer):
    """Answers what it is told to, one after the other, the last one for ever."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[Said | Callable[[Any], None]] = []
        self.heard: list[tuple[str, str, bytes, str]] = []
        self.channels: list[Channel] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def channel(self, **more: Any) -> Channel:
        self.channels.append(Channel(more.pop("way", None) or self.way(**more)))
        return self.channels[-1]

    def way(self, **more: Any) -> Way:
        told: list[str] = more.pop("told", [])
        return Way(f"http://127.0.0.1:{self.server_port}/under", "j1-1", "secret", "", told.append)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.heard.append((self.command, self.path, body, self.headers["Authorization"]))
        answer = self.server.answers[0] if len(self.server.answers) == 1 else self.server.answers.pop(0)
        if callable(answer):
            answer(self)
            self.close_connection = True
            return
        status, kind, data = answer
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_PUT  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    for channel in made.channels:
        channel.close()
    made.shutdown()
    made.server_close()


def cut(status: int, promised: int, data: bytes) -> Callable[[Any], None]:
    """Returns what answers with less than it promises."""

    def answer(handler: Any) -> None:
        handler.send_response(status)
        handler.send_header("Content-Type", channels.BINARY)
        handler.send_header("Content-Length", str(promised))
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def hangs_up(handler: Any) -> None:
    handler.connection.close()


@pytest.mark.parametrize(
    "trouble",
    [
        (503, "text/html", b"busy"), (404, "text/html", b"an ingress"), (401, "text/plain", b"a proxy"),
        (200, "text/html", b"log in first"), (302, "text/html", b""), problem(500, "InternalError"),
        problem(503, "DatabaseUnavailable"), problem(429, "TooManyRequests"), problem(507, "StorageFull"),
        problem(401, "NotAuthenticated"), (409, "application/json", b'{"code": "StaleAttempt"}'), hangs_up,
        cut(200, 100, b"short"),
    ],
)  # fmt: skip
def test_what_may_pass_is_asked_again(server: Server, trouble: Any) -> None:
    told: list[str] = []
    server.answers = [trouble, FINE]
    found = server.channel(told=told).json("PUT", "/tasks/main-0", {"events": []})
    assert found == {"offset": 3}
    assert server.heard == 2 * [("PUT", "/under/v1/attempts/j1-1/tasks/main-0", b'{"events": []}', "Bearer secret")]
    assert "the job goes on" in told[0]
    assert "answers again" in told[-1]


@pytest.mark.parametrize("code", ["StaleAttempt", "NotAllowed"])
def test_an_attempt_that_is_over_is_so_for_every_channel(server: Server, code: str) -> None:
    server.answers = [problem(409, code), FINE]
    way = server.way()
    with pytest.raises(Over, match=f"it is {code}"):
        server.channel(way=way).call("GET", "/wishes")
    with pytest.raises(Over):
        server.channel(way=way).call("GET", "/wishes")
    assert len(server.heard) == 1


def test_a_token_that_nobody_knows_is_no_accident(server: Server) -> None:
    server.answers = [problem(401, "NotAuthenticated")]
    with pytest.raises(Over, match="does not know the attempt's token"):
        server.channel().call("GET", "/wishes")
    assert len(server.heard) == channels.UNKNOWN_TRIALS


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, "InvalidRequest"), (404, "NotFound"), (409, "Conflict"), (413, "TooLarge"), (500, "DataDamaged")],
)
def test_what_is_refused_is_not_asked_again(server: Server, status: int, code: str) -> None:
    server.answers = [problem(status, code), FINE]
    channel = server.channel()
    with pytest.raises(Refused) as refused:
        channel.call("GET", "/code")
    assert (refused.value.status, refused.value.code) == (status, code)
    assert channel.json("GET", "/code") == {"offset": 3}


def test_it_is_given_up_when_there_is_no_time_left(server: Server) -> None:
    server.answers = [(503, "text/html", b"")]
    way = server.way()
    way.end_within(0.3)
    way.end_within(100.0)
    with pytest.raises(GaveUp):
        server.channel(way=way).call("GET", "/wishes")
    assert len(server.heard) > 1


def test_no_answer_in_time_is_asked_for_again(server: Server) -> None:
    gone = threading.Event()
    server.answers = [lambda _: gone.wait(20) and None, FINE]
    assert server.channel().json("GET", "/wishes", timeout_s=0.2) == {"offset": 3}
    gone.set()


def test_a_connection_is_used_again_and_may_be_closed_meanwhile(server: Server) -> None:
    """What was closed while nothing was sent is no trouble: nothing is said, and nobody waits."""
    told: list[str] = []
    server.answers = [FINE, hangs_up, FINE]
    channel = server.channel(told=told)
    began = time.monotonic()
    assert [channel.json("GET", "/wishes")["offset"] for _ in range(2)] == [3, 3]
    assert (len(server.heard), told) == (3, [])
    assert time.monotonic() - began < 5 * channels.LONGEST_PAUSE_S


def test_a_file_is_sent_again_from_where_it_was(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    server.answers = [(503, "text/html", b""), FINE]
    with (tmp_path / "file").open("rb") as file:
        file.seek(2)
        server.channel().call("PUT", "/blobs/x", file, size=5)
    assert [body for _, _, body, _ in server.heard] == [b"23456", b"23456"]


def test_a_download_that_breaks_off_is_not_taken_for_a_whole_one(server: Server) -> None:
    server.answers = [cut(200, 100, b"x" * 99)]
    with pytest.raises(Torn, match="1 bytes are missing"):
        b"".join(server.channel().download("/code"))


def test_an_address_that_is_none() -> None:
    with pytest.raises(ValueError, match="not the address of a server"):
        Way("nowhere", "j1-1", "secret", "", print)
