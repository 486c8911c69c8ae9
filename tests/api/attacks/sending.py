"""What attacks are made of: requests as they are written, every text that a client may send, and a look at what is done."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

import anyio

from danlu.api import OPERATIONS, Kind, Operation, Permission
from danlu.server.auth import App
from tests.api.edge import Api, bodies

JSON = "application/json"
RAW = "application/octet-stream"
MAX_DEPTH = 7
"""Of objects in objects, when texts are looked for in a body's schema."""


@dataclass(frozen=True)
class Sent:
    """A request past any client's own tidying; its path and query are written as they are to be on the wire."""

    method: str
    path: str
    body: bytes = b""
    kind: str = JSON
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Got:
    """Its answer."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]


def ask(app: App, token: str | None, asked: list[Sent]) -> list[Got]:
    """Sends requests to an application, one after the other; none may be a fault of ours. A request's own headers win."""
    answers: list[Got] = []

    async def one(sent: Sent) -> None:
        raw, _, query = "".join(c if c.isascii() else quote(c) for c in sent.path).partition("?")
        given = [
            (b"host", b"danlu"),
            (b"content-type", sent.kind.encode()),
            (b"content-length", str(len(sent.body)).encode()),
        ]
        given += [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in sent.headers]
        if token is not None and not any(name == "Authorization" for name, _ in sent.headers):
            given.append((b"authorization", f"Bearer {token}".encode()))
        scope = {
            "type": "http", "method": sent.method, "path": unquote(raw), "raw_path": raw.encode(),
            "query_string": query.encode(), "root_path": "", "scheme": "http", "http_version": "1.1",
            "server": ("danlu", 80), "client": ("test", 1), "asgi": {"version": "3.0", "spec_version": "2.3"},
            "headers": given,
        }  # fmt: skip
        status, told, said = 0, (), b""

        left = [sent.body]

        async def receive() -> dict[str, Any]:
            while not left:  # the client stays, and says nothing more
                await anyio.Event().wait()
            return {"type": "http.request", "body": left.pop(), "more_body": False}

        async def send(message: Any) -> None:
            nonlocal status, told, said
            if "status" in message:
                status = message["status"]
                told = tuple((k.decode("latin-1").lower(), v.decode("latin-1")) for k, v in message["headers"])
            said += message.get("body", b"")

        await app(scope, receive, send)
        assert 0 < status < 500, (sent, said)
        answers.append(Got(status, told, said))

    async def go() -> None:
        for sent in asked:
            await one(sent)

    anyio.run(go)
    return answers


@dataclass(frozen=True)
class Text:
    """A place where a client may send a text: of an operation's path, query, headers or body."""

    operation: Operation
    place: str
    way: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.operation.id}:{self.place}:{'.'.join(self.way)}"


@dataclass
class Document:
    """The OpenAPI document, as what attacks are made from."""

    api: Api
    schemas: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.found = self.api.app.openapi()
        self.schemas = self.found["components"]["schemas"]

    def texts(self) -> list[Text]:
        """Returns every place of a text, in every operation that is asked by a request."""
        found = []
        for operation in OPERATIONS:
            if operation.kind is Kind.SOCKET:
                continue
            described = self.found["paths"][operation.path][operation.method.lower()]
            found += [
                Text(operation, parameter["in"], (parameter["name"],))
                for parameter in described.get("parameters", ())
                if parameter["in"] == "path" or any(True for _ in self._ways(parameter["schema"]))
            ]
            found.append(Text(operation, "header", ("Last-Event-ID",)))
            content = described.get("requestBody", {}).get("content", {})
            if RAW in content:
                found.append(Text(operation, "body", ()))
            elif content:
                found += [Text(operation, "body", way) for way in dict.fromkeys(self._ways(content[JSON]["schema"]))]
        return found

    def _ways(self, schema: dict[str, Any], depth: int = 0) -> Iterator[tuple[str, ...]]:
        """Yields the ways to a schema's texts: fields, ``*`` for an item, ``*k`` for a mapping's value, ``?`` for its key."""
        if depth > MAX_DEPTH:
            return
        if "$ref" in schema:
            yield from self._ways(self.schemas[schema["$ref"].rpartition("/")[2]], depth + 1)
            return
        for other in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())):
            yield from self._ways(other, depth + 1)
        if schema.get("type") == "string" or not schema:  # without a type it may be anything, a text too
            yield ()
        for name, inner in schema.get("properties", {}).items():
            yield from ((name, *way) for way in self._ways(inner, depth + 1))
        items, values = schema.get("items"), schema.get("additionalProperties")
        for inner in [items] if isinstance(items, dict) else []:
            yield from (("*", *way) for way in self._ways(inner, depth + 1))
        if values is True or isinstance(values, dict):
            yield ("?",)
            yield from (("*k", *way) for way in self._ways(values if isinstance(values, dict) else {}, depth + 1))

    def request(self, text: Text, value: str, method: str | None = None) -> Sent:
        """Returns a request that is right but for one text. In a path and a query the value is written as it is given."""
        operation, api = text.operation, self.api
        ids = dict(api.ids)
        if operation.id == "jobs.submit":
            ids["job"] = api.new_id("j")  # a job of its own each time: an id that is there means the one that is there
        elif operation.id == "jobs.retry":
            ids["job"] = api.ids["ended"]
        content: Any = bodies(api).get(operation.id)
        path, headers = operation.path, []
        if text.place == "path":
            path = path.replace("{" + text.way[0] + "}", value)
            path = "".join(_filled(path, value, ids))
        else:
            path = path.format(**ids)
        if text.place == "query":
            path += f"?{text.way[0]}={value}"
        elif text.place == "header":
            headers.append((text.way[0], value))
        elif text.place == "body" and not text.way:
            content = value.encode()
        elif text.place == "body":
            content = set_at(copy.deepcopy(content) if isinstance(content, dict) else {}, text.way, value)
        if operation.permission is Permission.ATTEMPT:
            headers.append(("Authorization", f"Bearer {api.tokens['attempt']}"))
        raw = isinstance(content, bytes)
        body = content if raw else b"" if content is None else json.dumps(content).encode()
        return Sent(method or operation.method, path, body, RAW if raw else JSON, tuple(headers))


def _filled(path: str, value: str, ids: dict[str, str]) -> Iterator[str]:
    """Yields a path with its other names filled in; the value may have braces of its own."""
    before, there, after = path.partition(value)
    for part, is_value in ((before, False), (there, True), (after, False)):
        yield part if is_value else part.format(**ids)


def set_at(content: Any, way: tuple[str, ...], value: str) -> Any:
    """Returns a body with a text at a place; what the way there needs is made."""
    if not way:
        return value
    name, *rest = way
    if name == "*":
        return [set_at(None, tuple(rest), value)]
    if name == "?":
        return {value: "1"}
    whole = dict(content) if isinstance(content, dict) else {}
    name = "key" if name == "*k" else name
    whole[name] = set_at(whole.get(name), tuple(rest), value)
    return whole


@dataclass
class Seen:
    """What this process has done while it was watched: audit events with what they were about, as text."""

    events: list[tuple[str, str]] = field(default_factory=list)

    def about(self, word: str, *kinds: str) -> list[tuple[str, str]]:
        """Returns the events, of these kinds where some are named, that have a word in them."""
        return [(kind, said) for kind, said in self.events if word in said and (not kinds or kind.startswith(kinds))]

    def of(self, *kinds: str) -> list[tuple[str, str]]:
        """Returns the events whose names begin so."""
        return [event for event in self.events if event[0].startswith(kinds)]


STARTS = ("subprocess.", "os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "pty.")
CALLS_OUT = ("socket.connect", "socket.getaddrinfo", "socket.gethostby", "socket.sendto", "socket.sendmsg", "urllib.Request",
             "http.client", "smtplib", "ftplib", "poplib", "imaplib")  # fmt: skip
RUNS = ("pickle.find_class", "code.__new__", "ctypes.dlopen", "ctypes.dlsym")
FILES = ("open", "os.", "shutil.", "tempfile.", "glob.", "pathlib.")
WATCHED = (*STARTS, *CALLS_OUT, *RUNS, *FILES, "import", "marshal.")
_WATCHING: list[Seen] = []


def _look(kind: str, about: tuple[Any, ...]) -> None:
    if _WATCHING and kind.startswith(WATCHED):
        said = " ".join(repr(one) for one in about if isinstance(one, str | bytes | int | tuple | list))
        for seen in _WATCHING:
            seen.events.append((kind, said))


@functools.cache
def _hook() -> None:
    sys.addaudithook(_look)  # it stays for good, and sees nothing while nobody watches


@contextlib.contextmanager
def watched() -> Iterator[Seen]:
    """Sees what this process does, in all of its threads: files, connections, processes, imports (PEP 578)."""
    _hook()
    seen = Seen()
    _WATCHING.append(seen)
    try:
        yield seen
    finally:
        _WATCHING.remove(seen)


Flaw = Callable[[Sent], bytes | None]
"""What a weakened build does with a request before it is looked at; returns what it tells of it."""


async def nothing_there(_scope: Any, _receive: Any, send: Any) -> None:
    """An application that has nothing."""
    await send({"type": "http.response.start", "status": 404, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def weakened(flaw: Flaw, app: App = nothing_there) -> App:
    """Returns an application with a flaw in front: checks have to find it."""

    async def weak(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        headers = tuple((k.decode("latin-1"), v.decode("latin-1")) for k, v in scope["headers"])
        path = scope["raw_path"].decode() + "?" + scope["query_string"].decode()
        told = None
        with contextlib.suppress(Exception):
            told = flaw(Sent(scope["method"], path, message["body"], dict(headers)["content-type"], headers))
        if told is not None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": told})
            return
        left = [message]

        async def again() -> Any:
            return left.pop() if left else await receive()

        await app(scope, again, send)

    return weak


def said_in(sent: Sent) -> Iterator[str]:
    """Yields the texts of a request, as a careless server would take them."""
    path, _, query = sent.path.partition("?")
    yield from (unquote(part) for part in path.split("/"))
    yield unquote(path.split("/", 3)[-1])
    yield from (unquote(part.partition("=")[2]) for part in query.split("&"))
    yield from (value for _, value in sent.headers)
    with contextlib.suppress(ValueError):
        yield from _texts_in(json.loads(sent.body))


def _texts_in(found: Any) -> Iterator[str]:
    if isinstance(found, str):
        yield found
    elif isinstance(found, dict):
        for name, value in found.items():
            yield name
            yield from _texts_in(value)
    elif isinstance(found, list):
        for value in found:
            yield from _texts_in(value)


ALL = os.environ.get("DANLU_ATTACKS") == "all"


def some(text: Text, values: list[str], count: int) -> list[str]:
    """Returns as many of the values, spread over them; which, the text's name decides. All by DANLU_ATTACKS=all."""
    if ALL or count >= len(values):
        return values
    begin, step = zlib.crc32(text.name.encode()), len(values) // count
    return [values[(begin + n * step) % len(values)] for n in range(count)]


def fuzz(app: App, document: Document, values: list[str], each: int = 1) -> tuple[Seen, list[Got]]:
    """Sends some of the values at the place of each text; returns what was done meanwhile, and the answers."""
    asked = []
    for text in document.texts():
        for value in some(text, values, each):
            written = quote(value, safe="") if text.place in ("path", "query") else value
            asked.append(document.request(text, written))
    with watched() as seen:
        return seen, ask(app, document.api.tokens["admin"], asked)


def prepared(api: Api) -> Document:
    """Makes the edge one that answers any number of requests, and streams at once; returns its document."""
    api.limit(requests_per_s=1e9, burst_requests=10**9)
    api.edge.streams.end()
    return Document(api)
