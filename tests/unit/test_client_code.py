"""A folder sent to the platform: only what is missing, in few words, and on from where it was broken off."""

import hashlib
import io
import os
import shutil
import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from danlu.blobs.folders import scan
from danlu.client import code
from danlu.client.artifacts import fetch
from danlu.client.connection import Connection
from danlu.client.credentials import Credentials
from danlu.client.missing import Tree
from danlu.client.transport import PIECE_BYTES, Client
from danlu.domain.artifacts import Artifact
from danlu.domain.trees import address_of
from danlu.errors import InvalidRequest, InvalidSpec, NotFound, Unavailable
from tests.conftest import cannot_run
from tests.wire import Store, Wire, problem, reply

JOB_ID = "j" + "0" * 26


@pytest.fixture
def wire() -> Iterator[Wire]:
    made = Wire()
    yield made
    made.close()


@pytest.fixture
def client(wire: Wire) -> Iterator[Client]:
    with Client(Connection(wire.url, Credentials("secret")), project="p", patience_s=5) as made:
        yield made


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "lib").mkdir(parents=True)
    (folder / "train.py").write_text("print(1)")
    (folder / "lib" / "big.bin").write_bytes(os.urandom(2_000_000))
    (folder / "empty").touch()
    return folder


def test_a_folder_is_sent_once_and_comes_back_as_it_was(wire, client, project, tmp_path):
    wire.answer = store = Store(wire)
    seen: list[tuple[int, int]] = []
    sent = code.send(client, project, cache=tmp_path / "cache", progress=lambda done, total: seen.append((done, total)))
    assert (sent.files, sent.sent_files) == (3, 3)
    assert seen[-1][0] == seen[-1][1] < sent.sent_bytes  # the questions too
    again = code.send(client, project, cache=tmp_path / "cache")
    assert (again.tree, again.sent_files) == (sent.tree, 0)
    assert again.sent_bytes < 200
    (project / "train.py").write_text("print(2)")
    assert code.send(client, project, cache=tmp_path / "cache").sent_files == 1
    artifact = Artifact(
        id="a" + "0" * 26, project="p", created_at=0, updated_at=0, job_id=JOB_ID, attempt_id=JOB_ID + "-1",
        tree=sent.tree, partial=False, files=3, size_bytes=sent.size_bytes,
    )  # fmt: skip
    assert fetch(client, artifact, tmp_path / "back") == (3, sent.size_bytes)
    assert (tmp_path / "back" / "train.py").read_text() == "print(1)"
    big = (tmp_path / "back" / "lib" / "big.bin").read_bytes()
    assert hashlib.sha256(big).hexdigest() == hashlib.sha256((project / "lib" / "big.bin").read_bytes()).hexdigest()
    with pytest.raises(InvalidSpec, match="there already"):
        fetch(client, artifact, tmp_path / "back")
    del store.blobs[address_of(big)]
    client.patience_s = 0
    with pytest.raises(NotFound):
        fetch(client, artifact, tmp_path / "torn")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "cache", "project"]


def test_a_file_that_changes_while_it_is_sent_is_told(wire, client, project, tmp_path):
    store = Store(wire)

    def change(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        with (project / "train.py").open("a") as file:
            file.write("#")
        store(handler, body)

    wire.answer = change
    with pytest.raises(InvalidSpec, match=r"train\.py changes while it is sent"):
        code.send(client, project, cache=tmp_path / "cache")


def test_a_folder_that_is_none_is_told(client, tmp_path):
    with pytest.raises(InvalidSpec, match="is not a folder"):
        code.send(client, tmp_path / "nope")


def test_a_large_blob_goes_on_where_it_was_broken_off(wire, client):
    data = os.urandom(3 * PIECE_BYTES + 5)
    store, pieces = Store(wire), []

    def break_off(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        if handler.command == "PUT" and len(pieces) == 2:
            reply(handler, 503, problem(Unavailable()))
            return
        pieces.extend([body] if handler.command == "PUT" else [])
        store(handler, body)

    wire.answer = break_off
    client.patience_s = 0
    with pytest.raises(Unavailable):
        client.upload(address_of(data), io.BytesIO(data), len(data))
    wire.answer = store
    before, seen = client.sent_bytes, []
    client.upload(address_of(data), io.BytesIO(data), len(data), seen.append)
    assert client.sent_bytes - before == PIECE_BYTES + 5
    assert sum(seen) == len(data)  # what was there counts as done
    assert store.blobs == {address_of(data): data}


def test_an_answer_that_was_lost_is_no_conflict(wire, client):
    data = os.urandom(PIECE_BYTES + 1)
    store, lost = Store(wire), []

    def lose(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        store(handler, body)
        if handler.command == "PUT" and not lost:
            lost.append(handler.wfile.flush())
            handler.close_connection = True
            handler.connection.close()

    wire.answer = lose
    client.upload(address_of(data), io.BytesIO(data), len(data))
    assert store.blobs == {address_of(data): data}


def test_bytes_that_are_not_what_was_promised_are_refused(wire, client):
    wire.answer = Store(wire)
    with pytest.raises(InvalidRequest, match="not those bytes"):
        client.upload(address_of(b"right"), io.BytesIO(b"wrong"), 5)
    with pytest.raises(InvalidRequest, match="not those bytes"):  # a file that became shorter
        client.upload(address_of(b"right"), io.BytesIO(b"ri"), 5)


def test_a_large_file_travels_in_pieces(wire, client, tmp_path):
    wire.answer = store = Store(wire)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "big.bin").write_bytes(os.urandom(PIECE_BYTES + 3))
    sent = code.send(client, tmp_path / "code", cache=tmp_path / "cache")
    assert (sent.files, sent.sent_files) == (1, 1)
    assert {len(body) for method, _, _, body in wire.asked if method == "PUT"} == {PIECE_BYTES, 3}
    assert sum(map(len, store.blobs.values())) > PIECE_BYTES


def many(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"file-{number:04}.txt").write_text(f"{number}")
    return folder


def test_one_file_of_many_in_one_folder_costs_little(wire, client, tmp_path):
    wire.answer = Store(wire)
    folder = many(tmp_path / "code", 2000)
    first = code.send(client, folder, cache=tmp_path / "cache")
    assert first.sent_bytes > 300_000
    (folder / "file-1000.txt").write_text("changed")
    asked = len(wire.asked)
    second = code.send(client, folder, cache=tmp_path / "cache")
    assert (second.files, second.sent_files) == (2000, 1)
    assert second.sent_bytes < 1000
    assert second.sent_bytes == sum(len(body) for _, _, _, body in wire.asked[asked:])  # it is what really went


def test_a_platform_that_lost_something_gets_it_again(wire, client, tmp_path):
    wire.answer = store = Store(wire)
    folder = many(tmp_path / "code", 20)
    code.send(client, folder, cache=tmp_path / "cache")
    del store.blobs[address_of(b"7")]
    (folder / "file-0003.txt").write_text("changed")
    assert code.send(client, folder, cache=tmp_path / "cache").sent_files == 2
    store.blobs.clear()
    (folder / "file-0003.txt").write_text("changed again")
    sent = code.send(client, folder, cache=tmp_path / "cache")
    assert sent.sent_files == 20
    assert store.below(sent.tree) == set()


def test_what_a_splice_is_made_of_may_be_gone(wire, client, tmp_path):
    store, folder = Store(wire), many(tmp_path / "code", 200)
    wire.answer = store
    code.send(client, folder, cache=tmp_path / "cache")
    (folder / "file-0003.txt").write_text("changed")

    def gone(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        if handler.path == "/v1/blobs/splices":
            reply(handler, 404, problem(NotFound("there is no such blob")))
        else:
            store(handler, body)

    wire.answer = gone
    assert store.below(code.send(client, folder, cache=tmp_path / "cache").tree) == set()
    assert any(path == "/v1/blobs/splices" for _, path, _, _ in wire.asked)


@pytest.mark.parametrize("content", [b"", b"x", b"\0" * 100, None])
def test_a_memory_that_is_damaged_only_costs_time(wire, client, tmp_path, content):
    wire.answer = store = Store(wire)
    folder = many(tmp_path / "code", 20)
    code.send(client, folder, cache=tmp_path / "cache")
    (memory,) = (tmp_path / "cache").glob("*.tree")
    if content is None:
        memory.unlink()
        memory.mkdir()
    else:
        memory.write_bytes(content)
    (folder / "file-0003.txt").write_text("changed")
    sent = code.send(client, folder, cache=tmp_path / "cache")
    assert sent.sent_files == 1
    assert store.below(sent.tree) == set()


def test_the_uncommitted_diff_goes_with_the_code(wire, client, project, tmp_path, monkeypatch):
    if shutil.which("git") is None:
        cannot_run("git is not installed")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    wire.answer = store = Store(wire)
    assert code.send(client, project, cache=tmp_path / "cache").git is None
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "x"]):
        subprocess.run(["git", *words], cwd=project, check=True, timeout=60)
    (project / "train.py").write_text("print(2)")
    (project / "lib" / "big.bin").write_bytes(b"left out")
    (project / ".danluignore").write_text("lib\n")
    sent = code.send(client, project, cache=tmp_path / "cache")
    assert sent.git is not None
    assert sent.fields()["git"]["commit"] == sent.git.commit
    diff = store.blobs[sent.git.diff]
    assert b"+print(2)" in diff
    assert b"big.bin" not in diff


def test_a_tree_knows_what_is_in_it(project):
    found = scan(project, code=True, now=0)
    tree = Tree(found.root, found.nodes)
    there = {path: tree.has(path) for path in ("lib/big.bin", "lib", "train.py", "lib/nope", "empty/x", "nope/x", "")}
    assert there == {"lib/big.bin": True, "lib": True, "train.py": True, "lib/nope": False, "empty/x": False,
                     "nope/x": False, "": False}  # fmt: skip


def test_what_changed_travels_compressed(wire, client, tmp_path):
    wire.answer = store = Store(wire)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "train.py").write_text("print(1)\n" * 5000)
    sent = code.send(client, tmp_path / "code", cache=tmp_path / "cache")
    assert sent.sent_bytes < 2000
    assert store.below(sent.tree) == set()
