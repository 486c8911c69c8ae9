"""What a server must never do because a client said a word: connect, run, import, fill in a template."""

from __future__ import annotations

import ast
import contextlib
import importlib
import pickle
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from danlu.api import OPERATIONS, Kind
from danlu.server.auth import App
from tests.api.attacks.sending import (
    ALL,
    CALLS_OUT,
    FILES,
    RAW,
    RUNS,
    STARTS,
    Document,
    Sent,
    ask,
    fuzz,
    prepared,
    said_in,
    watched,
    weakened,
)
from tests.api.edge import Api

SOURCES = Path(__file__).parents[3] / "src" / "danlu"
SERVER_SIDE = ("server", "services", "controllers", "database", "blobs", "domain", "scheduler", "api", "config.py")


def sources() -> Iterator[tuple[str, str]]:
    for path in SOURCES.rglob("*.py"):
        name = path.relative_to(SOURCES).as_posix()
        if name.startswith(SERVER_SIDE):
            yield name, path.read_text()


# connecting


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.setblocking(False)
        yield made


def addresses(listener: socket.socket) -> list[str]:
    port = listener.getsockname()[1]
    hosts = ["127.0.0.1", "localhost", "0x7f.1", "2130706433", "[::ffff:127.0.0.1]", "0.0.0.0", "x@127.0.0.1"]
    return [
        *(f"http://{host}:{port}/" for host in hosts), f"127.0.0.1:{port}/team/image:1", f"//127.0.0.1:{port}/x",
        f"ftp://127.0.0.1:{port}/x", f"gopher://127.0.0.1:{port}/_x", f"s3://127.0.0.1:{port}/x",
        f"git+http://127.0.0.1:{port}/x", f"\\\\127.0.0.1@{port}\\x", f"postgresql://127.0.0.1:{port}/x",
        f"thing @ https://127.0.0.1:{port}/thing-1.0-py3-none-any.whl", "http://169.254.169.254/latest/meta-data/",
    ]  # fmt: skip


def check_connects_nowhere(app: App, document: Document, listener: socket.socket) -> None:
    seen, _ = fuzz(app, document, addresses(listener), 2)
    connected = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()
            connected += 1
    assert not connected
    assert not seen.of(*CALLS_OUT)


def test_no_address_is_connected_to(api: Api, listener: socket.socket) -> None:
    api.platform.facts = replace(api.platform.facts, images=True)
    document = prepared(api)
    check_connects_nowhere(api.gate, document, listener)


def connects(sent: Sent) -> None:
    for said in said_in(sent):
        if found := re.search(r"(127[0-9.]+):([0-9]+)", said):
            socket.create_connection((found[1], int(found[2])), timeout=0.01).close()


def test_a_connection_would_be_seen(api: Api, listener: socket.socket) -> None:
    with pytest.raises(AssertionError):
        check_connects_nowhere(weakened(connects), prepared(api), listener)


CLIENTS = {
    "httpx",
    "httpx2",
    "requests",
    "urllib",
    "urllib3",
    "aiohttp",
    "http",
    "ftplib",
    "smtplib",
    "xmlrpc",
    "telnetlib",
}
CONNECTING = ("create_connection", "connect", "connect_ex", "open_connection", "urlopen", "urlretrieve")
OWN_MACHINE = {"server/listening.py", "server/tls.py"}
"""These look for this machine's own addresses."""


def clients(text: str) -> list[str]:
    """Returns what of a source could ask another server."""
    found = []
    for node in ast.walk(ast.parse(text)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
        found += [name for name in names if name.partition(".")[0] in CLIENTS and name != "urllib.parse"]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CONNECTING:
            open_already = any(keyword.arg == "sock" for keyword in node.keywords)
            found += [] if open_already else [ast.unparse(node.func)]
    return found


def test_the_server_has_no_client() -> None:
    """What fetches, of names that were checked, are programs of their own: uv, and a project's container engine."""
    for name, text in sources():
        allowed = name in OWN_MACHINE or name.startswith("database/")
        assert allowed or not clients(text), name


@pytest.mark.parametrize(
    "text", ["import httpx2", "from urllib.request import urlopen", "s.connect(a)", "import http.client"]
)
def test_a_client_would_be_seen(text: str) -> None:
    assert clients(text)


# running


def payloads(canary: Path) -> list[bytes]:
    """Returns what runs a program where it is read by what runs what it reads."""
    program = f"touch {canary}"
    return [
        f"cos\nsystem\n(S'{program}'\ntR.".encode(),
        f"!!python/object/apply:os.system ['{program}']".encode(),
        f'{{"py/reduce": [{{"py/function": "os.system"}}, {{"py/tuple": ["{program}"]}}]}}'.encode(),
        f"__import__('os').system('{program}')".encode(),
    ]


KINDS = ["application/json", RAW, "application/x-python-pickle", "application/vnd.bentoml+pickle", "application/x-yaml",
         "text/yaml", "application/x-msgpack", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded",
         "application/xml", "text/plain"]  # fmt: skip


def check_runs_nothing(app: App, document: Document, canary: Path) -> None:
    api, asked = document.api, []
    for operation in (one for one in OPERATIONS if one.kind is not Kind.SOCKET):
        ids = {"job": api.new_id("j")} if operation.id == "jobs.submit" else {}
        for kind in KINDS:
            bodies = payloads(canary)
            bodies = bodies if ALL else bodies[len(asked) % len(bodies) :][:1]
            asked += [Sent(operation.method, api.path(operation, **ids), body, kind) for body in bodies]
    with watched() as seen:
        ask(app, api.tokens["admin"], asked)
    assert not canary.exists()
    assert not seen.of(*STARTS, *RUNS)
    also, _ = fuzz(app, document, [body.decode() for body in payloads(canary)])
    assert not canary.exists()
    assert not also.of(*STARTS, *RUNS)


def test_nothing_that_is_sent_runs(api: Api, tmp_path: Path) -> None:
    document = prepared(api)
    check_runs_nothing(api.gate, document, tmp_path / "ran")


def unpickles(sent: Sent) -> None:
    pickle.loads(sent.body)


def loads_yaml(sent: Sent) -> None:
    yaml.unsafe_load(sent.body)


def evaluates_a_text(sent: Sent) -> None:
    for said in said_in(sent):
        with contextlib.suppress(SyntaxError, NameError):
            eval(said)


@pytest.mark.parametrize("flaw", [unpickles, loads_yaml, evaluates_a_text])
def test_what_would_run_is_seen(api: Api, tmp_path: Path, flaw: Any) -> None:
    with pytest.raises(AssertionError):
        check_runs_nothing(weakened(flaw), prepared(api), tmp_path / "ran")


# importing

NAMES = [
    "tests.api.attacks.planted",
    "tests.api.attacks.planted.Planted",
    "tests.api.attacks.planted:Planted",
    "planted",
]
BY_NAME = {
    ("server/app.py", "importlib.import_module(f'danlu.services.{noun}')"),
}
"""Of the table of operations, while the application is made: before there is a request."""


def check_imports_nothing(app: App, document: Document) -> None:
    seen, _ = fuzz(app, document, NAMES)
    assert not seen.about("planted", *FILES, "import")


def test_no_name_is_imported(api: Api) -> None:
    document = prepared(api)
    check_imports_nothing(api.gate, document)


def imports(sent: Sent) -> None:
    for said in said_in(sent):
        if said in NAMES:
            importlib.import_module(said)


def test_an_import_would_be_seen(api: Api) -> None:
    with pytest.raises(AssertionError):
        check_imports_nothing(weakened(imports), prepared(api))


def by_name(text: str) -> set[str]:
    calls = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
    named = ("import_module", "__import__", "find_spec", "resolve_name", "locate")
    return {ast.unparse(call) for call in calls if ast.unparse(call.func).rpartition(".")[2] in named}


def test_modules_are_named_by_the_table_alone() -> None:
    assert {(name, call) for name, text in sources() for call in by_name(text)} == BY_NAME


@pytest.mark.parametrize("text", ["importlib.import_module(body.kind)", "__import__(name)", "pydoc.locate(name)"])
def test_an_import_by_name_would_be_seen(text: str) -> None:
    assert by_name(text)


# templates

MARK = "51901621"  # 7103 * 7307
TEMPLATES = ["{{7103*7307}}", "${7103*7307}", "#{7103*7307}", "<%= 7103*7307 %>", "{%print(7103*7307)%}", "$((7103*7307))",
             "{7103*7307}", "{0.__class__}", "{self.__class__}", "%(x)s %s"]  # fmt: skip


def check_fills_in_nothing(app: App, document: Document) -> None:
    _, answers = fuzz(app, document, TEMPLATES)
    for got in answers:
        assert MARK.encode() not in got.body
        assert b"<class" not in got.body


def test_no_text_is_a_template(api: Api) -> None:
    document = prepared(api)
    check_fills_in_nothing(api.gate, document)
    for text in TEMPLATES:
        made = api.submit(command=["echo", text], variables={"A": text})
        assert made.json()["spec"]["command"] == ["echo", text]
        assert api.call("jobs.get", job=made.json()["id"]).json()["spec"]["variables"] == {"A": text}


def computes(sent: Sent) -> bytes | None:
    for said in said_in(sent):
        if found := re.search(r"\{\{(\d+)\*(\d+)\}\}", said):
            return str(int(found[1]) * int(found[2])).encode()
    return None


def formats(sent: Sent) -> bytes | None:
    for said in said_in(sent):
        with contextlib.suppress(ValueError, LookupError, AttributeError):
            if (told := said.format(sent)) != said:
                return told.encode()
    return None


@pytest.mark.parametrize("flaw", [computes, formats])
def test_a_template_would_be_seen(api: Api, flaw: Any) -> None:
    with pytest.raises(AssertionError):
        check_fills_in_nothing(weakened(flaw), prepared(api))


LINES = ['numpy"; touch x; "', "numpy==$(id)", "numpy==`id`", "numpy\\\nRUN id", "{{7*7}}", "numpy==1${IFS}2",
         "numpy==1\x0bRUN id", "x @ https://example.org/$(id)/x-1-py3-none-any.whl"]  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_no_recipe_for_an_image_holds_more_than_packages(api: Api, line: str) -> None:
    """What stands in a Dockerfile's commands comes from a lock, and there from these lines."""
    for answer in (api.call("environments.build", data={"requirements": line}), api.submit(requirements=line)):
        assert (answer.status, answer.json()["code"]) == (422, "InvalidSpec"), answer.content
