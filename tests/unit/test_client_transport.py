"""The client against a small server that speaks the wire: errors, repeating, streams that break, uploads, finding it."""

import io
import json
import os
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from danlu import __version__
from danlu.api.bodies import EventsQuery, JobsQuery, LogsQuery, StopRequest
from danlu.client import connection
from danlu.client.connection import Connection
from danlu.client.credentials import Credentials
from danlu.client.requests import build
from danlu.client.transport import Client
from danlu.domain.jobs import Job
from danlu.domain.specs import JobSpec
from danlu.domain.trees import address_of
from danlu.domain.views import LogChunk, LogPage, Page
from danlu.errors import (
    InvalidRequest,
    InvalidSpec,
    NotAuthenticated,
    NotFound,
    PlatformError,
    StorageFull,
    Unavailable,
)
from danlu.runner.formats import boot_id, start_time
from tests.wire import Wire, in_turn, problem, reply

JOB_ID = "j" + "0" * 26
JOB = Job(
    id=JOB_ID, project="default", name="a", spec=JobSpec(command="x"), created_at=0, updated_at=0, queued_at=0,
    checkpoint_owner=JOB_ID,
)  # fmt: skip

KEY = Credentials("secret", "k00000000000000000000000000")


@pytest.fixture
def wire() -> Iterator[Wire]:
    made = Wire()
    yield made
    made.close()


@pytest.fixture
def client(wire: Wire) -> Iterator[Client]:
    with Client(Connection(wire.url, Credentials("secret")), project="p", patience_s=5) as made:
        yield made


@pytest.mark.parametrize(
    ("ahead_s", "said"),
    [(3600, "is 1 h ahead"), (-3 * 86_400, "is 3 days behind"), (420, "is 7 min ahead"), (200, ""), (-200, "")],
)
def test_who_is_refused_for_the_clock_is_told(wire: Wire, ahead_s: int, said: str):
    told = problem(NotAuthenticated(server_time=time.time_ns() - ahead_s * 10**9))
    wire.answer = in_turn((401, told))
    with Client(Connection(wire.url, KEY)) as client, pytest.raises(NotAuthenticated) as caught:
        client.call("platform.get")
    assert (f"this machine's clock {said}" in caught.value.message) is bool(said)
    assert ("set the clock right" in caught.value.next_step) is bool(said)


@pytest.mark.parametrize("arrived", ["backend:7070", "", None, "SAME"])
@pytest.mark.parametrize("key", [KEY, Credentials("token")], ids=["signed", "shown"])
def test_who_is_refused_for_a_proxy_that_changes_the_host_is_told(wire: Wire, key: Credentials, arrived: str | None):
    host = wire.url.partition("//")[2]
    details = {} if arrived is None else {"authority": host if arrived == "SAME" else arrived}
    wire.answer = in_turn((401, problem(NotAuthenticated(**details))))
    with Client(Connection(wire.url, key)) as client, pytest.raises(NotAuthenticated) as caught:
        client.call("platform.get")
    said = arrived == "backend:7070" and key is KEY
    assert (f"signed for {host}, and 'backend:7070' has arrived" in caught.value.message) is said
    assert ("proxy_set_header Host $http_host" in caught.value.next_step) is said


def test_a_request_is_built_purely():
    request = build("jobs.list", query=JobsQuery(limit=5, name="a b"))
    assert (request.method, request.target, request.content) == ("GET", "/v1/jobs?limit=5&name=a+b", None)
    request = build("jobs.stop", {"job": "a/../b?"}, body=StopRequest(grace="5s"))
    assert (request.target, request.content) == ("/v1/jobs/a%2F..%2Fb%3F/stop", b'{"grace":5.0}')
    for value in ("", ".", ".."):
        with pytest.raises(InvalidRequest):
            build("jobs.get", {"job": value})


def test_an_answer_becomes_its_model_and_the_key_and_project_are_sent(wire, client):
    wire.answer = in_turn((200, JOB.model_dump_json().encode()))
    assert client.call("jobs.get", {"job": "a"}) == JOB
    _, path, headers, _ = wire.asked[0]
    assert path == "/v1/jobs/a"
    assert (headers["authorization"], headers["danlu-project"]) == ("Bearer secret", "p")


def test_fields_of_a_newer_server_are_passed_over(wire, client):
    wire.answer = in_turn((200, json.dumps({**JOB.model_dump(mode="json"), "mood": "good"}).encode()))
    assert client.call("jobs.get", {"job": "a"}) == JOB


def test_an_answer_of_something_else_is_told(wire, client):
    wire.answer = in_turn((200, b"<html>"))
    with pytest.raises(PlatformError, match=r"jobs\.get"):
        client.call("jobs.get", {"job": "a"})


def test_a_problem_is_the_same_error_again(wire, client):
    said = NotFound("there is no job 'a'", next_step="danlu get jobs", job="a")
    wire.answer = in_turn((404, problem(said, "r1")))
    with pytest.raises(NotFound) as raised:
        client.call("jobs.get", {"job": "a"})
    assert raised.value.message == "there is no job 'a'"
    assert raised.value.next_step == "danlu get jobs"
    assert raised.value.details == {"job": "a", "request_id": "r1"}
    assert len(wire.asked) == 1


def test_a_refused_key_is_named_with_the_address(wire):
    wire.answer = in_turn((401, problem(NotAuthenticated())))
    by = f"access key {KEY.key_id} of profile work"
    with (
        Client(Connection(wire.url, KEY, profile="work")) as client,
        pytest.raises(NotAuthenticated, match=f"401 from {wire.url}.* {by}"),
    ):
        client.call("jobs.get", {"job": "a"})


@pytest.mark.parametrize(("status", "error"), [(502, Unavailable), (404, NotFound), (507, Exception)])
def test_an_error_that_is_no_problem_keeps_its_text(wire, client, status, error):
    client.patience_s = 0
    wire.answer = in_turn((status, b"bad gateway of a proxy"))
    with pytest.raises(error, match=rf"{status}: bad gateway"):
        client.call("jobs.get", {"job": "a"})


def test_what_may_be_repeated_is_repeated_while_the_platform_is_unavailable(wire, client):
    away = (503, problem(Unavailable()))
    wire.answer = in_turn(away, away, (200, JOB.model_dump_json().encode()))
    assert client.call("jobs.submit", {"job": JOB_ID}, body=JOB.spec) == JOB
    assert [asked[0] for asked in wire.asked] == ["PUT"] * 3


def test_a_post_that_may_have_been_done_is_not_repeated(wire, client):
    from danlu.api.bodies import TokenRequest

    wire.answer = in_turn((503, problem(Unavailable("the database is busy"))))
    with pytest.raises(Unavailable, match="busy"):
        client.call("tokens.make", body=TokenRequest(name="a"))
    assert len(wire.asked) == 1


def test_a_broken_answer_is_asked_for_again(wire, client):
    whole = JOB.model_dump_json().encode()

    def cut_short_once(handler: BaseHTTPRequestHandler, _body: bytes) -> None:
        if len(wire.asked) > 1:
            reply(handler, 200, whole)
            return
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(whole)))
        handler.end_headers()
        handler.wfile.write(whole[:20])
        handler.close_connection = True

    wire.answer = cut_short_once
    assert client.call("jobs.get", {"job": "a"}) == JOB


def test_nobody_there_is_told_with_a_next_step():
    with Client(Connection("http://127.0.0.1:9", Credentials("s")), patience_s=0) as client:
        with pytest.raises(Unavailable, match="cannot be reached") as raised:
            client.call("jobs.list")
        assert "danlu status" in raised.value.next_step


def test_a_platform_that_comes_back_elsewhere_is_found_again(wire):
    wire.answer = in_turn((200, Page[Job](items=()).model_dump_json().encode()))
    elsewhere = Connection(wire.url, Credentials("other"))
    with Client(Connection("http://127.0.0.1:9", Credentials("s")), patience_s=5, relocate=lambda: elsewhere) as client:
        assert client.call("jobs.list").items == ()
    assert wire.asked[0][2]["authorization"] == "Bearer other"


def event(cursor: str, item: LogPage) -> bytes:
    return f"id: {cursor}\ndata: {item.model_dump_json()}\n\n".encode()


def log_page(text: str, cursor: str, *, done: bool = False) -> LogPage:
    return LogPage(chunks=(LogChunk(attempt=1, task="main-0", data=text),), cursor=cursor, done=done)


def test_a_stream_goes_on_from_its_cursor_after_a_break(wire, client):
    told: list[str] = []
    client.notice = told.append

    def answer(handler: BaseHTTPRequestHandler, _body: bytes) -> None:
        number = len(wire.asked)
        if number == 2:
            reply(handler, 503, problem(Unavailable()))
            return
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.end_headers()
        handler.close_connection = True
        if number == 1:
            handler.wfile.write(
                b": keep-alive\n\n" + event("c1", log_page("1 o. 日\u2028本\n", "c1")) + b"id: c2\ndata: {"
            )
        else:
            handler.wfile.write(event("c2", log_page("2 o. b\n", "c2")) + event("c3", log_page("", "c3", done=True)))

    wire.answer = answer
    pages = list(client.stream("jobs.logs_stream", {"job": "a"}, query=LogsQuery(tail=3)))
    assert [page.chunks[0].data for page in pages] == ["1 o. 日\u2028本\n", "2 o. b\n", ""]
    assert [asked[1] for asked in wire.asked] == [
        "/v1/jobs/a/logs/stream?tail=3",
        "/v1/jobs/a/logs/stream?tail=3&cursor=c1",
        "/v1/jobs/a/logs/stream?tail=3&cursor=c1",
    ]


def test_a_stream_that_stays_away_ends_with_an_error(wire, client):
    client.patience_s = 0
    wire.answer = in_turn((503, problem(Unavailable("not now"))))
    with pytest.raises(Unavailable, match="not now"):
        list(client.stream("events.stream", query=EventsQuery()))


def test_a_stream_of_what_is_not_there_is_not_repeated(wire, client):
    wire.answer = in_turn((404, problem(NotFound())))
    with pytest.raises(NotFound):
        list(client.stream("jobs.logs_stream", {"job": "a"}, query=LogsQuery()))
    assert len(wire.asked) == 1


def test_a_stream_that_was_there_again_has_all_the_patience_for_its_next_break(wire, client):
    client.patience_s = 0

    def answer(handler: BaseHTTPRequestHandler, _body: bytes) -> None:
        if len(wire.asked) == 1:
            reply(handler, 503, problem(Unavailable()))
            return
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.end_headers()
        handler.close_connection = True
        done = event("c1", log_page("", "c1", done=True))
        handler.wfile.write(b": keep-alive\n\n" if len(wire.asked) == 2 else done)

    wire.answer = answer
    assert len(list(client.stream("jobs.logs_stream", {"job": "a"}, query=LogsQuery()))) == 1


def cut(handler: BaseHTTPRequestHandler, _body: bytes) -> None:
    """Ends without an answer."""
    handler.close_connection = True


def test_what_was_sent_is_repeated_for_longer(wire, client):
    client.patience_s = 0
    whole = JOB.model_dump_json().encode()
    wire.answer = lambda handler, body: cut(handler, body) if len(wire.asked) < 4 else reply(handler, 200, whole)
    assert client.call("jobs.submit", {"job": JOB_ID}, body=JOB.spec, once_sent_s=60) == JOB
    wire.answer = cut
    with pytest.raises(Unavailable, match="cannot be reached") as raised:
        client.call("jobs.submit", {"job": JOB_ID}, body=JOB.spec)
    assert raised.value.details == {"sent": True}


@pytest.mark.skipif(start_time(os.getpid()) is None, reason="processes are identified by /proc")
def test_the_key_of_a_server_that_has_ended_goes_to_nobody(wire, tmp_path):
    home = home_with(tmp_path, url=wire.url, start_time=1)  # another program has its port now
    wire.answer = in_turn((200, Page[Job](items=()).model_dump_json().encode()))
    with Client(Connection(wire.url, KEY, home), patience_s=0) as client:
        with pytest.raises(Unavailable, match="does not run there"):
            client.call("jobs.list")
        with pytest.raises(Unavailable, match="does not run there"):
            list(client.stream("events.stream", query=EventsQuery()))
        with pytest.raises(Unavailable, match="does not run there"), client.raw("GET", "/v1/jobs"):
            pass
        assert wire.asked == []
        client.patience_s = 60
        client.relocate = lambda: connection.find(None, {"DANLU_HOME": str(home_with(tmp_path, url=wire.url))})
        assert client.call("jobs.list").items == ()  # it is waited for, and found again


def test_a_full_disk_is_told(wire, client):
    wire.answer = in_turn((507, problem(StorageFull())))
    with pytest.raises(StorageFull):
        client.upload(address_of(b"x"), io.BytesIO(b"x"), 1)


def test_a_raw_request_gives_status_and_bytes(wire, client):
    wire.answer = in_turn((404, b"{}"))
    with client.raw("GET", "/v1/nope") as (status, pieces):
        assert (status, b"".join(pieces)) == (404, b"{}")


@pytest.mark.parametrize("target", ["@evil:1/v1/jobs", "//evil/v1", "v1/jobs", "", "/v1\n"])
def test_a_raw_request_stays_at_its_platform(wire, client, target):
    with pytest.raises(InvalidRequest, match="is not a path"), client.raw("GET", target):
        pass
    assert wire.asked == []


def test_an_error_of_another_version_says_so(wire, client):
    def answer(handler: BaseHTTPRequestHandler, _body: bytes) -> None:
        handler.send_response(422)
        handler.send_header("Danlu-Version", "0.0.9")
        content = problem(InvalidSpec("beginning is not a field", next_step="look"))
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    wire.answer = answer
    with pytest.raises(InvalidSpec) as raised:
        client.call("jobs.get", {"job": "a"})
    assert raised.value.next_step == f"look\nthe versions differ: this client {__version__}, the server 0.0.9"


def home_with(tmp_path: Path, **changes: object) -> Path:
    facts = {
        "url": "http://127.0.0.1:7071",
        "pid": os.getpid(),
        "start_time": start_time(os.getpid()),
        "boot_id": boot_id(),
    }
    (tmp_path / "keys").mkdir(exist_ok=True)
    key = tmp_path / "keys" / "bootstrap"
    key.touch(mode=0o600)
    key.write_text(json.dumps({"access_key_id": KEY.key_id, "secret": KEY.secret}))
    (tmp_path / "platform.json").write_text(json.dumps({**facts, "version": "0", "home": str(tmp_path), **changes}))
    return tmp_path


def test_the_platform_is_found_in_order(tmp_path):
    home = home_with(tmp_path)
    here = {"DANLU_HOME": str(home)}
    assert connection.find(None, here) == Connection("http://127.0.0.1:7071", KEY, home)
    named = {**here, "DANLU_URL": "http://h:1/", "DANLU_TOKEN": "t"}
    assert connection.find(None, named) == Connection("http://h:1", Credentials("t"), variable="DANLU_TOKEN")
    assert connection.find("http://127.0.0.1:7071", named) == Connection("http://127.0.0.1:7071", KEY, home)
    with pytest.raises(NotAuthenticated):  # the key of one platform is never sent to another
        connection.find("http://evil:1", named)
    with pytest.raises(InvalidRequest, match="address"):
        connection.find("h:1", named)


def test_a_token_is_read_from_its_file(tmp_path):
    (tmp_path / "token").write_text("t\n")
    environ = {"DANLU_HOME": str(tmp_path), "DANLU_URL": "http://h", "DANLU_TOKEN_FILE": str(tmp_path / "token")}
    assert connection.find(None, environ) == Connection("http://h", Credentials("t"), variable="DANLU_TOKEN_FILE")
    (tmp_path / "token").write_text("a\nb")
    with pytest.raises(NotAuthenticated, match="one printable word"):
        connection.find(None, environ)


@pytest.mark.skipif(start_time(os.getpid()) is None, reason="processes are identified by /proc")
@pytest.mark.parametrize("stale", [{"pid": 2**22 + 1}, {"start_time": 1}, {"boot_id": "another"}])
def test_a_server_that_has_gone_is_not_found(tmp_path, stale):
    environ = {"DANLU_HOME": str(home_with(tmp_path, **stale))}
    assert connection.find(None, environ) is None
    with pytest.raises(PlatformError, match="not running here"):
        connection.require(None, environ)


def test_a_damaged_platform_file_is_told(tmp_path):
    (tmp_path / "platform.json").write_text("{")
    with pytest.raises(PlatformError, match="damaged"):
        connection.find(None, {"DANLU_HOME": str(tmp_path)})
