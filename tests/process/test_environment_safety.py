"""What users name is built without being run, and without lending it anything of the server's."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import os
import shutil
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from uv import find_uv_bin

from danlu.environments import pythons, sources
from danlu.environments.build_user import BUILD_UID, hindrance, settings_files
from danlu.environments.builder import Builder
from danlu.environments.catalogue import CATALOGUE
from danlu.environments.sources import source_for
from danlu.environments.uv_command import BUILD_TIMEOUT_S, COMPILE_WARNING, Uv
from danlu.errors import EnvironmentFailed
from tests.conftest import cannot_run
from tests.process.test_environment_builder import entries, home, made  # noqa: F401 - fixtures


def make_wheel(folder: Path, files: dict[str, str]) -> None:
    """Writes the wheel ``thing`` 1.0, made of the given files."""
    whole = {
        **files,
        "thing-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n",
        "thing-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "thing-1.0.dist-info/RECORD,,\n"
    for name, text in whole.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(text.encode())}\n"
    folder.mkdir(mode=0o755, exist_ok=True)
    with zipfile.ZipFile(folder / "thing-1.0-py3-none-any.whl", "w") as wheel:
        for name, text in {**whole, "thing-1.0.dist-info/RECORD": record}.items():
            wheel.writestr(name, text)


@pytest.fixture
def wheels(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """A folder that is all of the package index."""
    folder = home / "wheels"
    folder.mkdir(mode=0o755)
    monkeypatch.setenv("UV_FIND_LINKS", str(folder))
    monkeypatch.setenv("UV_NO_INDEX", "1")
    return folder


def test_nothing_that_is_installed_runs_during_the_build(home: Path, wheels: Path) -> None:  # noqa: F811
    ran = home / "ran"
    ran.mkdir()
    ran.chmod(0o777)
    mark = f"import os; open({str(ran)!r} + '/' + str(os.getuid()) + {{!r}}, 'w')\n"
    make_wheel(
        wheels,
        {
            "thing.py": "x = 1\n",
            "broken.py": "def (:\n",
            "warns.py": "x = '\\d'\n",
            "thing.pth": mark.format("pth"),
            "sitecustomize.py": mark.format("sitecustomize"),
            "usercustomize.py": mark.format("usercustomize"),
            "encodings/__init__.py": mark.format("encodings"),
        },
    )
    said: list[str] = []
    built = made(home).build(source_for("python", "thing", None), said.append)
    assert list(ran.iterdir()) == []
    assert COMPILE_WARNING in said
    assert list((home / "environments" / built.lock_digest).glob("lib/*/site-packages/__pycache__/thing.*.pyc"))
    assert made(home).build(source_for("python", "thing", None), said.append).lock_digest == built.lock_digest
    assert list(ran.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    [
        "thing-1.0.data/scripts/python",
        "thing-1.0.data/data/bin/python3",
        "thing-1.0.data/data/pyvenv.cfg",
        "thing-1.0.data/data/danlu.json",
    ],
)
def test_a_wheel_that_replaces_the_environments_own_files_is_refused(home: Path, wheels: Path, name: str) -> None:  # noqa: F811
    make_wheel(wheels, {"thing.py": "", name: "#!/bin/sh\n"})
    with pytest.raises(EnvironmentFailed, match="cannot be installed") as caught:
        made(home).build(source_for("python", "thing", None), lambda _: None)
    assert name.rpartition("/")[2] in caught.value.message
    assert caught.value.details["stage"] == "install"
    assert entries(home) == []


@pytest.fixture
def reachable(monkeypatch: pytest.MonkeyPatch) -> str:
    """The version of a Python that every user of this machine can run, and that builds are made with."""
    if os.getuid() != 0:
        cannot_run("only root can become another user")
    path = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    if path is None or hindrance(BUILD_UID, Path(path), read=[Path(find_uv_bin())], write=[]) is not None:
        cannot_run("no Python and uv that every user can run")
    monkeypatch.setattr(pythons, "_candidates", lambda *_: iter([path]))
    monkeypatch.setenv("HOME", "/root")
    return ".".join(map(str, pythons.ask(path).version[:2]))


def owners(folder: Path) -> set[int]:
    return {path.lstat().st_uid for path in (folder, *folder.rglob("*"))}


def test_a_root_server_builds_as_another_user(home: Path, wheels: Path, reachable: str) -> None:  # noqa: F811
    make_wheel(wheels, {"thing.py": "x = 1\n", "broken.py": "def (:\n", "thing-1.0.data/scripts/x": "#!python\n"})
    said: list[str] = []
    before = os.umask(0o077)  # a server's own, strict
    try:
        builder = Builder(home / "environments", home / "cache" / "uv")
        built = builder.build(source_for("python", "thing", reachable), said.append)
        hooked = _install_hook(home, builder, reachable)
    finally:
        os.umask(before)
    assert not any("server's own user" in line for line in said), said
    for digest in (built.lock_digest, hooked):
        assert owners(home / "environments" / digest) == {0}
        assert list((home / "environments" / digest).glob("lib/*/site-packages/__pycache__/*.pyc"))
    assert entries(home) == sorted({built.lock_digest, hooked})
    cache = home / "cache" / f"uv-{BUILD_UID}"
    linked = {path for path in cache.rglob("*") if path.is_file() and path.stat().st_nlink > 1}
    assert linked  # from the environment, whose files are root's alone
    assert {path.stat().st_uid for path in linked} == {0}
    assert {path.lstat().st_uid for path in (cache, *cache.rglob("*")) if path not in linked} == {BUILD_UID}
    assert list((home / "cache" / "uv").iterdir()) == []  # root's uv was not used


def _install_hook(home: Path, builder: Builder, version: str) -> str:  # noqa: F811
    """Builds the same with a hook beside the package."""
    entry = dataclasses.replace(CATALOGUE["python"], hook="tf1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CATALOGUE, "python", entry)  # type: ignore[arg-type]
        sources._recipe.cache_clear()
        digest = builder.build(source_for("python", None, version), lambda _: None).lock_digest
    sources._recipe.cache_clear()
    assert list((home / "environments" / digest).glob("lib/*/site-packages/danlu_tf1.pth"))
    return digest


def test_where_that_user_cannot_build_the_log_says_so(home: Path, wheels: Path, reachable: str) -> None:  # noqa: F811
    make_wheel(wheels, {"thing.py": "x = 1\n"})
    (home / "closed").mkdir(mode=0o700)
    said: list[str] = []
    builder = Builder(home / "environments", home / "closed" / "uv")
    built = builder.build(source_for("python", "thing", reachable), said.append)
    assert f"building as the server's own user: user {BUILD_UID} cannot use {home}/closed/uv-{BUILD_UID}" in said
    assert owners(home / "environments" / built.lock_digest) == {0}
    python = home / "closed" / "python"
    python.symlink_to("/usr/bin/python3")
    assert hindrance(BUILD_UID, python, read=[], write=[]) == f"user {BUILD_UID} cannot run {python}"


def test_the_files_that_uv_reads_are_named(tmp_path: Path) -> None:
    (tmp_path / ".netrc").touch()
    (tmp_path / ".config" / "uv").mkdir(parents=True)
    (tmp_path / ".config" / "uv" / "uv.toml").touch()
    (tmp_path / "certificates").touch()
    found = settings_files(
        {"HOME": str(tmp_path), "SSL_CERT_FILE": str(tmp_path / "certificates"), "UV_CONFIG_FILE": "/none"}
    )
    assert found == [tmp_path / "certificates", tmp_path / ".netrc", tmp_path / ".config" / "uv" / "uv.toml"]


class _Answer(BaseHTTPRequestHandler):
    seen: list[str | None]
    released: threading.Event
    slow: bool

    def do_GET(self) -> None:
        self.seen.append(self.headers.get("Authorization"))
        if self.slow:
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            self.wfile.flush()
            self.released.wait(60)
        else:
            self.send_error(404)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def host() -> Iterator[tuple[str, type[_Answer]]]:
    answer = type("Answer", (_Answer,), {"seen": [], "released": threading.Event(), "slow": False})
    server = ThreadingHTTPServer(("127.0.0.1", 0), answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://localhost:{server.server_port}/thing-1.0-py3-none-any.whl", answer
    answer.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


def fetch(uv: Uv, folder: Path, address: str, timeout_s: float = 60) -> EnvironmentFailed:
    folder.mkdir()
    (folder / "requirements.txt").write_text(f"thing @ {address}\n")
    with pytest.raises(EnvironmentFailed) as caught:
        uv.run(
            "resolve", ["pip", "compile", "requirements.txt", "--no-cache"], folder, lambda _: None,
            deadline=time.monotonic() + timeout_s,
        )  # fmt: skip
    return caught.value


def test_a_users_address_is_sent_no_password(
    home: Path,  # noqa: F811
    host: tuple[str, type[_Answer]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address, answer = host
    (home / "netrc").write_text("machine localhost login root password secret\n")
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    uv = Uv(home / "cache", home / "pythons")
    fetch(uv, home / "with", address)
    assert any(answer.seen)
    answer.seen.clear()
    fetch(uv.without_passwords(), home / "without", address)
    assert answer.seen
    assert not any(answer.seen)


def test_an_address_that_never_ends_is_ended(home: Path, host: tuple[str, type[_Answer]]) -> None:  # noqa: F811
    address, answer = host
    answer.slow = True
    found = fetch(Uv(home / "cache", home / "pythons"), home / "slow", address, timeout_s=2)
    assert "not built in 30 min" in found.message
    assert BUILD_TIMEOUT_S == 1800


def test_uv_waits_for_a_silent_host_a_bounded_time(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    fake = home / "python"
    fake.write_text(f"#!/bin/sh\nenv > {home}/variables\n")
    fake.chmod(0o755)

    def variables() -> list[str]:
        uv = Uv(home / "cache", home / "pythons")
        uv.compile(fake, home / "lib", lambda _: None, deadline=time.monotonic() + 60)
        return (home / "variables").read_text().splitlines()

    monkeypatch.delenv("UV_HTTP_TIMEOUT", raising=False)
    assert {"UV_HTTP_TIMEOUT=30", "UV_HTTP_CONNECT_TIMEOUT=10"} <= set(variables())
    monkeypatch.setenv("UV_HTTP_TIMEOUT", "77")
    assert "UV_HTTP_TIMEOUT=77" in variables()
    assert os.environ["UV_HTTP_TIMEOUT"] == "77"
