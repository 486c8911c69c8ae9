"""Who gets in, and by what: no side door, no trusted address, nothing unsigned, nothing that is hidden only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount, Route, WebSocketRoute

from danlu.api import OPEN_PATHS, OPERATIONS, Kind
from danlu.domain.signing import HEADERS, PLATFORM_HEADERS, Message, lowered
from danlu.server.auth import App
from tests.api.attacks.sending import Document, Got, Sent, ask, nothing_there, prepared, weakened
from tests.api.edge import Api, bodies

SERVER = Path(__file__).parents[3] / "src" / "danlu" / "server"
MOST_OPEN = 3


def doors(routes: Any, before: str = "") -> Iterator[tuple[str, str]]:
    """Yields method and path of each route, also of what is mounted; what it does not know is asked as a folder."""
    for route in routes:
        path = before + getattr(route, "path", "")
        if isinstance(route, WebSocketRoute):
            yield "SOCKET", path
        elif isinstance(route, Mount) or not hasattr(route, "methods"):
            yield from doors(getattr(route, "routes", None) or (), path)
            yield "GET", path + "/"
        else:
            yield from ((method, path) for method in route.methods or ("GET",))


def open_to_strangers(app: App, found: Iterator[tuple[str, str]]) -> set[str]:
    """Returns the paths that answer one who proves nothing."""
    asked = [Sent(method, path) for method, path in found if method != "SOCKET"]
    return {sent.path for sent, got in zip(asked, ask(app, None, asked), strict=True) if got.status != 401}


def test_a_stranger_meets_few_open_doors(api: Api) -> None:
    prepared(api)
    found = [*doors(api.app.routes), *(("GET", path) for path in sorted(OPEN_PATHS))]
    assert len(found) > len(OPERATIONS)
    assert open_to_strangers(api.gate, iter(found)) == OPEN_PATHS
    assert len(OPEN_PATHS) <= MOST_OPEN


def test_a_door_beside_the_gate_would_be_found(api: Api) -> None:
    """What is mounted behind the gate is closed with the rest; what answers before it is seen."""

    async def shown(_request: Any) -> Any:
        raise AssertionError

    prepared(api)
    api.app.router.routes.append(Mount("/side", app=Starlette(routes=[Route("/door", shown)])))
    found = list(doors(api.app.routes))
    assert ("GET", "/side/door") in found
    assert not open_to_strangers(api.gate, iter(found))
    ahead = weakened(lambda sent: b"metrics" if sent.path.startswith("/side/") else None, api.gate)
    assert open_to_strangers(ahead, iter(found)) == {"/side/door", "/side/"}


# proxies

FORWARDED = ["X-Forwarded-For", "X-Real-IP", "Forwarded", "X-Client-IP", "True-Client-IP", "CF-Connecting-IP",
             "X-Forwarded-User", "X-Remote-User", "Remote-User", "X-Forwarded-Host", "X-Original-URL", "X-Rewrite-URL",
             "X-HTTP-Method-Override", "X-Danlu-User", "User-Agent"]  # fmt: skip
VALUES = ["127.0.0.1", "::1", "admin", "localhost", "for=127.0.0.1", "/livez"]


def check_no_header_opens(app: App, viewer: str) -> None:
    for header in FORWARDED:
        for value in VALUES:
            asked = [Sent("GET", "/v1/jobs", headers=((header, value),))]
            assert ask(app, None, asked)[0].status == 401, (header, value)
            asked = [Sent("PUT", "/v1/users/eve", b"{}", headers=((header, value),))]
            assert ask(app, viewer, asked)[0].status == 403, (header, value)


def test_no_header_of_a_proxy_says_who_calls(api: Api) -> None:
    prepared(api)
    api.limit(requests_per_s=1e9, burst_requests=10**9)
    check_no_header_opens(api.gate, api.tokens["viewer"])


def test_a_trusted_header_would_be_found(api: Api) -> None:
    def trusts(sent: Sent) -> bytes | None:
        return b"welcome" if dict(sent.headers).get("x-real-ip") == "127.0.0.1" else None

    with pytest.raises(AssertionError):
        check_no_header_opens(weakened(trusts, api.gate), api.tokens["viewer"])


# what is signed is what is acted on

PROOFS = {"authorization", "signature", "signature-input", "host", "content-length", "transfer-encoding"}
"""What proves, or says how long the body is, which its digest proves."""
REFUSING = {"origin"}
"""For what it says a request may be refused, and nothing else."""


def headers_read(text: str) -> set[str]:
    """Returns the headers that a source reads; a name that is no literal stands as it is written."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            of = ast.unparse(node.func.value)
            if node.func.attr in ("get", "getlist") and of.rpartition(".")[2] == "headers" and "message" not in of:
                found.add(ast.unparse(node.args[0]))
        elif isinstance(node, ast.Compare) and ast.unparse(node.comparators[0]).rpartition(".")[2] == "headers":
            found.add(ast.unparse(node.left))
        elif (
            isinstance(node, ast.Subscript)
            and isinstance(node.ctx, ast.Load)
            and ast.unparse(node.value).rpartition(".")[2] == "headers"
        ):
            found.add(ast.unparse(node.slice))
    return {ast.literal_eval(one).lower() if one[0] in "'\"" else one for one in found}


def unsigned(read: set[str]) -> set[str]:
    return {
        name
        for name in read - PROOFS - REFUSING - HEADERS - {"PROJECT_HEADER"}
        if not name.startswith(PLATFORM_HEADERS)
    }


def test_every_header_that_is_read_must_be_signed() -> None:
    texts = [path.read_text() for path in SERVER.glob("*.py")]
    read = set().union(*(headers_read(text) for text in texts))
    assert read >= {"authorization", "last-event-id", "content-encoding", "content-type", "PROJECT_HEADER"}
    assert not unsigned(read - {"'headers'"})


@pytest.mark.parametrize(
    "text", ["request.headers.get('x-amz-copy-source')", "'x-method' in request.headers", "request.headers[name]"]
)
def test_a_header_that_need_not_be_signed_would_be_seen(text: str) -> None:
    assert unsigned(headers_read(text))


def added(api: Api, document: Document) -> Iterator[tuple[Sent, str]]:
    """Yields signed requests to which, on their way, a header or a parameter was added; and what it was."""
    for operation in OPERATIONS:
        if operation.kind is Kind.SOCKET or operation.method != "GET":
            continue
        path = api.path(operation)
        proof = tuple(
            api.keys["admin"].headers(Message("GET", "danlu", path, "", lowered({"content-type": "x"})), b"").items()
        )
        for header in sorted({*HEADERS, "danlu-project", "danlu-anything"} - {"content-digest", "content-type"}):
            yield Sent("GET", path, kind="x", headers=(*proof, (header, "1"))), f"{operation.id} {header}"
        described = document.found["paths"][operation.path]["get"].get("parameters", ())
        for name in (one["name"] for one in described if one["in"] == "query"):
            yield Sent("GET", f"{path}?{name}=1", kind="x", headers=proof), f"{operation.id} ?{name}"


def check_nothing_is_added(app: App, asked: list[tuple[Sent, str]]) -> None:
    answers: list[Got] = ask(app, None, [sent for sent, _ in asked])
    for (_, what), got in zip(asked, answers, strict=True):
        assert got.status == 401, what


def test_nothing_is_added_to_a_signed_request(api: Api) -> None:
    document = prepared(api)
    asked = list(added(api, document))
    assert len(asked) > 100
    api.limit(requests_per_s=1e9, burst_requests=10**9)
    check_nothing_is_added(api.gate, asked)


def test_a_server_that_drops_what_is_not_signed_before_it_looks_would_be_found(api: Api) -> None:
    asked = list(added(api, prepared(api)))
    with pytest.raises(AssertionError):
        check_nothing_is_added(weakened(lambda sent: b"[]" if "danlu-project" in dict(sent.headers) else None), asked)


# what is switched off, and what is for others


def check_off(app: App, api: Api) -> None:
    job = f"/v1/jobs/{api.new_id('j')}"
    asked = [Sent("POST", "/v1/environments", b'{"image": "python:3.12"}'),
             Sent("PUT", job, b'{"command": ["true"], "image": "python:3.12"}')]  # fmt: skip
    for got in ask(app, api.tokens["admin"], asked):
        assert got.status == 422, got.body


def test_what_is_switched_off_is_off_for_every_client(api: Api) -> None:
    assert not api.platform.facts.images
    check_off(api.gate, api)


def test_what_is_off_for_our_own_client_only_would_be_found(api: Api) -> None:
    with pytest.raises(AssertionError):
        check_off(weakened(lambda sent: b"{}" if "image" in sent.body.decode() else None), api)


# what is shown


def check_inert(app: App, api: Api) -> None:
    """Holds each operation's answer, and each refusal, against what a browser would do with it."""
    asked = []
    for operation in OPERATIONS:
        if operation.kind is not Kind.SOCKET and operation.id not in ("platform.stop", "keys.revoke", "tokens.revoke"):
            content = bodies(api).get(operation.id)
            ids = {"job": api.new_id("j")} if operation.id == "jobs.submit" else {}
            asked.append(
                Sent(operation.method, api.path(operation, **ids), content if isinstance(content, bytes) else b"{}")
            )
    asked.append(Sent("GET", "/v1/<script>alert(1)</script>"))
    asked += [Sent("GET", path) for path in OPEN_PATHS]
    for token in (api.tokens["admin"], None):
        for sent, got in zip(asked, ask(app, token, asked), strict=True):
            assert got.values("x-content-type-options") == ["nosniff"], sent
            assert "sandbox" in got.values("content-security-policy")[0], sent
            assert "default-src 'none'" in got.values("content-security-policy")[0], sent
            assert not got.values("set-cookie"), sent
            assert not got.values("access-control-allow-origin"), sent
            kind = got.values("content-type")[0].partition(";")[0]
            assert kind in (
                "application/json",
                "application/problem+json",
                "application/octet-stream",
                "text/event-stream",
                "text/plain",
            )
            assert kind != "text/plain" or sent.path in {*OPEN_PATHS, "/metrics"}
            if kind == "application/octet-stream":
                assert got.values("content-disposition") == ["attachment"]


def test_no_answer_runs_in_a_browser(api: Api) -> None:
    prepared(api)
    blob = api.send("GET", f"/v1/blobs/{api.ids['address']}")
    assert (blob.status, blob.headers["content-disposition"]) == (200, "attachment")
    check_inert(api.gate, api)


def test_an_answer_that_runs_would_be_found(api: Api) -> None:
    with pytest.raises((AssertionError, IndexError)):
        check_inert(nothing_there, api)


# what costs much

GZIP = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\xff"


@pytest.mark.parametrize(
    "kind", ["multipart/form-data; boundary=" + "a" * 2**20, "multipart/form-data; boundary=" + "=" * 60_000]
)
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_no_body_is_taken_apart_as_a_form(api: Api, kind: str, method: str) -> None:
    path = "/v1/environments" if method == "POST" else f"/v1/jobs/{api.new_id('j')}"
    got = ask(api.gate, api.tokens["admin"], [Sent(method, path, b"--" + b"a" * 2**20, kind)])[0]
    assert got.status in (400, 422)
    assert len(got.body) < 20_000


def test_json_is_not_inflated(api: Api) -> None:
    for encoding in ("gzip", "deflate", "br", "zstd"):
        sent = Sent("POST", "/v1/environments", GZIP, headers=(("Content-Encoding", encoding),))
        assert ask(api.gate, api.tokens["admin"], [sent])[0].status in (400, 422)
