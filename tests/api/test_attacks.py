"""Attacks that peers have fallen to: paths that lead out, objects that run when they are read, proofs by an address."""

from __future__ import annotations

import ast
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import anyio
import pytest

from danlu.api import OPERATIONS, Kind
from tests.api.edge import Api, bodies

SOURCES = Path(__file__).parents[2] / "src" / "danlu"
CANARY = b"canary-7c1e"
UPS = ["../", "..\\", "..%2f", "%2e%2e/", "%2e%2e%2f", "..%252f", "%252e%252e%252f", "..%c0%af", "%c0%ae%c0%ae/",
       "..%ef%bc%8f", "..;/", "....//", ".%00./", "..%00/", "%uff0e%uff0e/", "\u2024\u2024/", "..%5c", "..%255c",
       "/../..", "//../"]  # fmt: skip
ENDS = ["", "%00", "%00.log", "?", "#", ";x=1", "%20", "/.", "%0a", "."]


def corpus(canary: Path) -> list[str]:
    """Returns ways of writing a file's path, as they stand in an address."""
    place = str(canary).lstrip("/")
    found = [up * 8 + place + end for up, end in product(UPS, ENDS)]
    found += [str(canary), "/" + str(canary), "%2f" + place, "%252f" + place, f"file://{canary}", f"file:{canary}",
              f"FILE:///{place}", f"\\\\localhost\\{place}", quote(str(canary), safe=""), f"{canary}-evil/../{canary.name}",
              f"~/{place}", "%7e/" + place, f"http://127.0.0.1/{place}", f"sha256:{'../' * 8}{place}"]  # fmt: skip
    return [text.replace(" ", "%20") for text in found]


def ask(api: Api, targets: list[tuple[str, str, Any]]) -> list[bytes]:
    """Sends requests with paths as they are written, past the client's own tidying; returns the answers."""
    answers: list[bytes] = []

    async def one(method: str, path: str, body: bytes, kind: str) -> None:
        raw, _, query = "".join(c if c.isascii() else quote(c) for c in path).partition("?")
        scope = {
            "type": "http", "method": method, "path": unquote(raw), "raw_path": raw.encode(),
            "query_string": query.encode(), "root_path": "", "scheme": "http", "http_version": "1.1", "server": ("danlu", 80),
            "client": ("test", 1), "asgi": {"version": "3.0", "spec_version": "2.3"},
            "headers": [(b"host", b"danlu"), (b"authorization", f"Bearer {api.tokens['admin']}".encode()),
                        (b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())],
        }  # fmt: skip
        said = b""

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            nonlocal said
            assert message.get("status", 200) < 500, path
            said += message.get("body", b"")

        await api.gate(scope, receive, send)
        answers.append(said)

    async def go() -> None:
        for method, path, content in targets:
            raw = isinstance(content, bytes)
            body = content if raw else b"{}"
            await one(method, path, body, "application/octet-stream" if raw else "application/json")

    anyio.run(go)
    return answers


@pytest.mark.parametrize(
    "operation",
    [o for o in OPERATIONS if "{" in o.path and o.kind is not Kind.SOCKET],
    ids=lambda operation: operation.id,
)
def test_no_path_leads_out(api: Api, tmp_path_factory: pytest.TempPathFactory, operation: Any) -> None:
    api.limit(requests_per_s=1e9, burst_requests=10**9)
    api.edge.streams.end()
    outside = tmp_path_factory.mktemp("outside")
    canary = outside / "canary"
    canary.write_bytes(CANARY)
    ways = corpus(canary)
    assert len(ways) >= 200
    name = operation.path.split("{")[1].split("}")[0]
    others = {k: v for k, v in api.ids.items() if k != name}
    body = bodies(api).get(operation.id)
    targets = [(operation.method, operation.path.replace("{" + name + "}", way).format(**others), body) for way in ways]
    for said in ask(api, targets):
        assert CANARY not in said
    assert canary.read_bytes() == CANARY
    assert [entry.name for entry in outside.iterdir()] == ["canary"]


def test_the_corpus_gets_out_where_nobody_looks(tmp_path: Path) -> None:
    """A folder that is joined with what was asked: some ways of writing it lead to the canary, so the test above can fail."""
    root = tmp_path / "a" / "b"
    root.mkdir(parents=True)
    canary = tmp_path / "canary"
    canary.write_bytes(CANARY)
    weak: list[Callable[[str], Path]] = [
        lambda way: root / way,
        lambda way: root / unquote(way),
    ]
    for opened in weak:
        read = 0
        for way in corpus(canary):
            try:
                read += opened(way).read_bytes() == CANARY
            except (OSError, ValueError):
                continue
        assert read


RUNS = {
    "pickle",
    "cPickle",
    "cloudpickle",
    "dill",
    "marshal",
    "shelve",
    "joblib",
    "torch",
    "jsonpickle",
    "jinja2",
    "mako",
}
OF_A_JOB = {"runner", "environments/smoke"}
"""These run beside the user's own code, never in the server."""


def unsafe(text: str) -> list[str]:
    """Returns what a source uses that runs, or may run, what it reads."""
    found = []
    for node in ast.walk(ast.parse(text)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
        found += [name for name in names if name.partition(".")[0] in RUNS]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("eval", "exec", "compile", "__import__", "yaml.load", "yaml.unsafe_load", "yaml.full_load"):
                found.append(called)
    return found


def test_nothing_that_is_read_runs() -> None:
    for path in SOURCES.rglob("*.py"):
        if not path.relative_to(SOURCES).as_posix().startswith(tuple(OF_A_JOB)):
            assert not unsafe(path.read_text()), path


@pytest.mark.parametrize("text", ["import pickle", "from torch import load", "import yaml; yaml.load(x)", "eval(x)"])
def test_what_runs_is_seen(text: str) -> None:
    assert unsafe(text)


FORWARDED = ["X-Forwarded-For", "X-Real-IP", "Forwarded", "X-Client-IP", "True-Client-IP", "CF-Connecting-IP",
             "X-Forwarded-User", "X-Remote-User", "Remote-User", "X-Forwarded-Host", "X-Original-URL", "X-Rewrite-URL",
             "X-HTTP-Method-Override", "X-Danlu-User"]  # fmt: skip


@pytest.mark.parametrize("header", FORWARDED)
@pytest.mark.parametrize("value", ["127.0.0.1", "::1", "admin", "localhost", "for=127.0.0.1", "/livez"])
def test_no_header_of_a_proxy_says_who_calls(api: Api, header: str, value: str) -> None:
    assert api.send("GET", "/v1/jobs", actor=None, headers={header: value}).status == 401
    assert api.send("PUT", "/v1/users/eve", actor="viewer", data={}, headers={header: value}).status == 403
