"""An environment is packed, unpacked by a pod's init container, and runs where nothing of the server's machine is left."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from danlu.domain.environments import Environment, PodEnvironment
from danlu.environments.builder import Builder
from danlu.environments.sources import source_digest, source_for
from danlu.runner import environment as program
from danlu.runner import environments_cache
from danlu.runner.channel import PROBLEM
from tests.conftest import cannot_run
from tests.process.package_index import kept_environments, kept_folder, require_index

TOKEN = "danlu_attempt_x"
ATTEMPT = "j" + "0" * 26 + "-1"
POD = f"{ATTEMPT}-main-0"
REQUIREMENTS = "tabulate==0.9.0\n"
"""Pure Python, with a console script."""


Said = tuple[int, str, bytes]


def problem(status: int, code: str) -> Said:
    return status, PROBLEM, json.dumps({"code": code, "detail": f"it is {code}"}).encode()


class Kept:
    """An environment, its archive and the server that sends it."""

    def __init__(self, pods: PodEnvironment, data: bytes, folder: Path) -> None:
        self.pods, self.data, self.folder = pods, data, folder
        self.asked: list[int] = []
        self.drops: list[int] = []
        """After how many bytes the next answers end too early."""
        self.refusals: list[Said] = []
        """The next answers."""
        kept = self

        class Server(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                kept._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        url = urlsplit(request.path)
        assert url.path == f"/v1/attempts/{ATTEMPT}/environment"
        assert request.headers["Authorization"] == f"Bearer {TOKEN}"
        offset = int(parse_qs(url.query)["offset"][0])
        self.asked.append(offset)
        status, kind, said = self.refusals.pop(0) if self.refusals else (200, "application/octet-stream", b"")
        request.send_response(status)
        request.send_header("Content-Type", kind)
        request.end_headers()
        end = offset + self.drops.pop(0) if self.drops else len(self.data)
        with contextlib.suppress(ConnectionError):  # who asks has seen enough
            request.wfile.write(said or self.data[offset:end])

    def node(self, name: str, **changed: Any) -> tuple[Path, Path]:
        """Returns the folders of a pod on a node of that name: the order's and the attempt's."""
        order, attempt = self.folder / name / "order", self.folder / name / "attempt"
        for folder in (order, attempt):
            folder.mkdir(parents=True)
        asked = {**self.pods.order(), "path": f"{self.folder / name}/environments/{self.pods.digest}", **changed}
        pod = {"url": f"http://127.0.0.1:{self.server.server_port}", "attempt_id": ATTEMPT, "environment": asked}
        (order / "order.json").write_text(json.dumps({"pod": pod}))
        (order / "token").write_text(TOKEN + "\n")
        return order, attempt

    def fill(self, name: str, **changed: Any) -> int:
        """Runs an init container on a node; returns its exit status."""
        order, attempt = self.node(name, **changed)
        return program.main(POD, str(order), str(attempt))

    def cache(self, name: str) -> Path:
        return self.folder / name / "environments"


@pytest.fixture(scope="module")
def built() -> tuple[Builder, PodEnvironment, bytes]:
    """An environment of requirements, and its archive."""
    require_index()
    builder, source = Builder(kept_environments(), kept_folder() / "uv"), source_for("python", REQUIREMENTS, None)
    digest = builder.build(source, lambda _: None).lock_digest
    with builder.packed(digest, lambda _: None) as (path, archive):
        made = Environment(
            id="e1", project="p", name="requirements-1", source=source, source_digest=source_digest(source),
            lock_digest=digest, archive=archive, created_at=1, updated_at=1,
        )  # fmt: skip
        pods = builder.for_pods(made)
        assert pods is not None
        return builder, pods, path.read_bytes()


@pytest.fixture
def kept(built: tuple[Builder, PodEnvironment, bytes], tmp_path: Path) -> Iterator[Kept]:
    made = Kept(built[1], built[2], tmp_path)
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_the_same_environment_gives_the_same_archive(built: tuple[Builder, PodEnvironment, bytes]) -> None:
    builder, pods, data = built
    with builder.packed(pods.digest, lambda _: None) as (path, archive):
        assert archive == pods.archive
        assert path.read_bytes() == data
    assert not path.exists()


IN_A_POD = """
set -e
mount -t tmpfs none "$ROOT"
for one in bin lib lib64 usr etc dev proc; do
  mkdir "$ROOT/$one"; mount --rbind "/$one" "$ROOT/$one"
done
mkdir -p "$ROOT/tmp" "$ROOT/danlu/environments"
mount --rbind "$CACHE" "$ROOT/danlu/environments"
mount -o remount,bind,ro "$ROOT/danlu/environments"
exec chroot "$ROOT" /usr/bin/env -i HOME=/tmp PATH="/danlu/environments/$DIGEST/bin:/usr/bin:/bin" sh -c "$PROGRAM"
"""
PROGRAM = """
python -W error -c '
import ctypes, hashlib, json, os, sqlite3, ssl, sys, sysconfig, tabulate
print(json.dumps([sys.prefix, sys.base_prefix, tabulate.__file__, tabulate.__cached__, sysconfig.get_path("include"),
    os.path.exists(tabulate.__cached__), sysconfig.get_config_var("INCLUDEPY"), os.path.realpath(sys.executable)]))'
echo 'a b' | tabulate
python -c 'import os; os.mkdir("/danlu/environments/mine")' 2>&1 | tail -1
"""


def test_it_runs_where_nothing_of_the_servers_machine_is(kept: Kept) -> None:
    assert kept.fill("node") == 0
    root = kept.folder / "root"
    root.mkdir()
    command = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"]), "sh", "-c", IN_A_POD]
    environ = {
        "ROOT": str(root), "CACHE": str(kept.cache("node")), "DIGEST": kept.pods.digest, "PROGRAM": PROGRAM,
        "PATH": os.environ["PATH"],
    }  # fmt: skip
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False)
    if "unshare failed" in done.stderr:
        cannot_run(f"no namespace of mounts can be made: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    facts, table, refused = done.stdout.splitlines()[0], done.stdout.splitlines()[1:-1], done.stdout.splitlines()[-1]
    told = json.loads(facts)
    inside = f"/danlu/environments/{kept.pods.digest}"
    assert told[0] == inside
    assert told[1] == f"{inside}/.python"
    assert all(str(path).startswith(inside) for path in told if isinstance(path, str)), told
    assert told[5] is True, "its byte code came with it"
    assert "a  b" in "".join(table)
    assert "Read-only file system" in refused


def test_byte_code_is_of_the_sources_that_came(kept: Kept) -> None:
    """Else each start would compile all that it imports."""
    assert kept.fill("node") == 0
    folder = kept.cache("node") / kept.pods.digest
    source = next(folder.glob("lib/python3*/site-packages/tabulate/__init__.py"))
    code = next(folder.glob("lib/python3*/site-packages/tabulate/__pycache__/__init__.*.pyc")).read_bytes()
    assert int.from_bytes(code[8:12], "little") == int(source.stat().st_mtime)
    assert int.from_bytes(code[12:16], "little") == source.stat().st_size


def test_the_second_pod_of_a_node_fetches_nothing(kept: Kept) -> None:
    assert kept.fill("node") == 0
    told = json.loads((kept.folder / "node" / "attempt" / program.TOLD).read_text())
    assert (told["found"], told["bytes"]) == (False, len(kept.data))
    shutil.rmtree(kept.folder / "node" / "order")
    shutil.rmtree(kept.folder / "node" / "attempt")
    assert kept.fill("node") == 0
    assert kept.asked == [0]
    assert json.loads((kept.folder / "node" / "attempt" / program.TOLD).read_text())["found"] is True
    cache = kept.cache("node")
    os.link(environments_cache.file_of(str(cache), kept.pods.digest, POD), cache / environments_cache.HELD)
    os.close(program.hold({**kept.pods.order(), "path": str(cache / kept.pods.digest)}))


def test_it_goes_on_where_a_connection_broke_off(kept: Kept) -> None:
    kept.drops = [1000, 0, 70_000]
    assert kept.fill("node") == 0
    assert kept.asked == [0, 1000, 1000, 71_000]


def test_another_archive_than_was_ordered_is_not_taken(kept: Kept, capsys: pytest.CaptureFixture[str]) -> None:
    middle = len(kept.data) // 2
    kept.data = kept.data[:middle] + bytes([kept.data[middle] ^ 1]) + kept.data[middle + 1 :]
    assert kept.fill("node") == program.TROUBLE
    assert "cannot be unpacked on this node: the archive" in capsys.readouterr().out
    assert [path.name for path in kept.cache("node").iterdir()] == [environments_cache.LOCKS]


@pytest.mark.parametrize(
    ("said", "times"),
    [(problem(403, "NotAllowed"), 1), (problem(409, "StaleAttempt"), 1), (problem(401, "NotAuthenticated"), 3)],
)
def test_an_attempt_that_is_over_ends_at_once(kept: Kept, said: Said, times: int) -> None:
    kept.refusals = [said] * 4
    assert kept.fill("node") == program.OVER
    assert kept.asked == [0] * times


@pytest.mark.parametrize("status", [200, 401, 403, 404, 409, 502])
def test_what_is_not_danlus_own_says_nothing_of_the_attempt(kept: Kept, status: int) -> None:
    """An ingress answers so for a moment while its servers are replaced."""
    kept.refusals = [(status, "text/html", b"<h1>backend not found</h1>")] * 3
    assert kept.fill("node") == 0
    assert kept.asked == [0] * 4


def test_what_the_server_does_not_have_is_told(kept: Kept, capsys: pytest.CaptureFixture[str]) -> None:
    kept.refusals = [problem(404, "NotFound")]
    assert kept.fill("node") == program.TROUBLE
    assert "cannot be unpacked on this node: it is NotFound" in capsys.readouterr().out


def test_a_full_disk_is_told_before_anything_is_fetched(kept: Kept, capsys: pytest.CaptureFixture[str]) -> None:
    assert kept.fill("node", unpacked_bytes=2**60) == program.TROUBLE
    assert "the environment needs" in capsys.readouterr().out
    assert kept.asked == []


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(
    kept: Kept, small_disk: Callable[[int], Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "make_room", lambda *_: [])  # there was room when it looked
    disk = small_disk(16 * 2**20)
    assert kept.fill("node", path=str(disk / kept.pods.digest)) == program.TROUBLE
    assert "No space left on device" in capsys.readouterr().out
    assert not (disk / kept.pods.digest).exists()
    assert not (disk / f"{environments_cache.NEW}{kept.pods.digest}").exists()
