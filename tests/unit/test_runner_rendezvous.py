"""Horovod's rendezvous: what Gloo's client asks, answered; what others send, bounded. Also on Python 3.8."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import danlu
from danlu.runner import rendezvous
from danlu.runner.rendezvous import Store
from tests.unit.test_sdk import python38

DEADLINE_S = 20.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(params=[sys.executable, "3.8"])
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    """The port of a rendezvous that runs as Danlu starts it: as a process of its own."""
    python = python38() if request.param == "3.8" else request.param
    chosen = free_port()
    source = str(Path(danlu.__file__).parent.parent)
    child = subprocess.Popen(
        [python, "-m", "danlu.runner.rendezvous"],
        env={**os.environ, "PYTHONPATH": source, "DANLU_ADDRESS": f"127.0.0.1:{chosen}"},
    )
    try:
        end = time.monotonic() + DEADLINE_S
        while True:
            with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", chosen)):
                break
            assert child.poll() is None
            assert time.monotonic() < end
        yield chosen
    finally:
        child.terminate()
        child.wait(DEADLINE_S)


def ask(port: int, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    """Asks as Gloo's client does: a connection for each request, a length even without a body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
    connection.request(method, path, body, {"Content-Length": str(len(body))})
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def said(port: int, sent: bytes) -> bytes:
    """Returns all that is answered to raw bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as connection:
        connection.sendall(sent)
        answer = b""
        while more := connection.recv(65536):
            answer += more
    return answer


def test_what_a_rank_puts_its_peers_get_until_it_is_deleted(port: int) -> None:
    addresses = bytes(range(256)) * 40
    assert ask(port, "GET", "/global/0") == (404, b"")
    assert ask(port, "PUT", "/global/0", addresses) == (200, b"")
    assert ask(port, "GET", "/global/0") == (200, addresses)
    assert ask(port, "GET", "/local_node-1/0") == (404, b"")
    assert ask(port, "PUT", "/global/0", b"other") == (200, b"")
    assert ask(port, "GET", "/global/0") == (200, b"other")
    assert ask(port, "DELETE", "/global/0") == (200, b"")
    assert ask(port, "DELETE", "/global/0") == (200, b"")
    assert ask(port, "GET", "/global/0") == (404, b"")
    # byte for byte: Gloo's client looks for this spelling, and reads no further than the length
    assert said(port, b"GET /a/b HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n") == (
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"hello\r\n\r\n", 400),
        (b"GET /only-one HTTP/1.1\r\n\r\n", 400),
        (b"GET /a/b/c HTTP/1.1\r\n\r\n", 400),
        (b"GET a/b/c HTTP/1.1\r\n\r\n", 400),
        (b"GET /a/" + b"b" * 600 + b" HTTP/1.1\r\n\r\n", 400),
        (b"GET /a/b HTTP/1.1\r\nX: " + b"y" * 20_000 + b"\r\n\r\n", 400),
        (b"POST /a/b HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 405),
        (b"PUT /a/b HTTP/1.1\r\nContent-Length: many\r\n\r\n", 411),
        (b"PUT /a/b HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 411),
        (b"PUT /a/b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        (b"PUT /a/b HTTP/1.1\r\nContent-Length: 1048577\r\n\r\n", 413),
    ],
)
def test_what_is_no_request_is_refused_and_the_next_one_answered(port: int, sent: bytes, status: int) -> None:
    with contextlib.suppress(ConnectionResetError):  # it was not read to its end
        assert said(port, sent).startswith(f"HTTP/1.1 {status} ".encode())
    assert ask(port, "PUT", "/a/b", b"x") == (200, b"")


def test_silent_clients_keep_nobody_waiting(port: int) -> None:
    with contextlib.ExitStack() as silent:
        for _ in range(rendezvous.MAX_AT_ONCE // 2):
            connection = silent.enter_context(socket.create_connection(("127.0.0.1", port)))
            connection.sendall(b"PUT /a/b HTTP/1.1\r\nContent-Length: 10\r\n\r\nhalf")
        assert ask(port, "PUT", "/a/b", b"whole") == (200, b"")
    assert ask(port, "GET", "/a/b") == (200, b"whole")


def test_many_ranks_at_once(port: int) -> None:
    failed: list[int] = []

    def rank(number: int) -> None:
        mine = f"address of {number}".encode()
        assert ask(port, "PUT", f"/global/{number}", mine) == (200, b"")
        for peer in range(16):
            end = time.monotonic() + DEADLINE_S
            while (found := ask(port, "GET", f"/global/{peer}"))[0] == 404 and time.monotonic() < end:
                pass
            if found != (200, f"address of {peer}".encode()):
                failed.append(peer)

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_the_store_stays_within_its_bounds() -> None:
    store = Store()
    assert store.answer("PUT", "/a/0", b"x" * (rendezvous.MAX_VALUE_BYTES + 1)) == (413, b"")
    whole = b"x" * rendezvous.MAX_VALUE_BYTES
    count = next(n for n in range(1000) if store.answer("PUT", f"/a/{n}", whole)[0] != 200)
    assert count == rendezvous.MAX_STORED_BYTES // rendezvous.MAX_VALUE_BYTES - 1  # the keys count too
    assert store.answer("PUT", f"/a/{count}", whole) == (507, b"")
    assert store.answer("PUT", "/a/0", whole) == (200, b"")  # in place of itself it has room
    assert store.answer("DELETE", "/a/1", b"") == (200, b"")
    assert store.answer("PUT", f"/a/{count}", whole) == (200, b"")
    for number in range(count + 1):
        store.answer("DELETE", f"/a/{number}", b"")
    assert store._stored_bytes == 0
    many = Store()
    assert all(many.answer("PUT", f"/a/{n}", b"")[0] == 200 for n in range(rendezvous.MAX_KEYS))
    assert many.answer("PUT", "/b/0", b"") == (507, b"")
    assert many.answer("PUT", "/a/0", b"new") == (200, b"")


@pytest.mark.parametrize(
    ("host", "port", "what"),
    [("0.0.0.0", 1, "not on all"), ("", 1, "empty"), ("::", 1, "::"), ("localhost", 1, "localhost"), ("127.0.0.1", 0, "0: ")],
)  # fmt: skip
def test_it_listens_at_one_address_and_port_only(host: str, port: int, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        rendezvous.listen(host, port)


def test_a_taken_port_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with rendezvous.listen("127.0.0.1", free_port()) as taken:
        number = taken.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            rendezvous.listen("127.0.0.1", number)
        assert rendezvous.main(f"127.0.0.1:{number}") == 1
    assert f"127.0.0.1:{number}" in capsys.readouterr().err
    assert rendezvous.main("") == 1
    assert "DANLU_ADDRESS" in capsys.readouterr().err


def test_a_rank_is_not_refused_before_anybody_answers() -> None:
    with rendezvous.listen("127.0.0.1", free_port()) as listener:
        early = socket.create_connection(listener.getsockname(), timeout=DEADLINE_S)
        early.sendall(b"GET /a/b HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
        inherited = f"socket.socket(fileno={listener.fileno()})"
        program = f"import socket; from danlu.runner import rendezvous; rendezvous.answer({inherited})"
        child = subprocess.Popen([sys.executable, "-c", program], pass_fds=[listener.fileno()])
        try:
            assert early.recv(100).startswith(b"HTTP/1.1 404 ")
        finally:
            early.close()
            child.kill()
            child.wait()
