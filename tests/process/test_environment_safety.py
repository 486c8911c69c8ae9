"""What users name is built without being run, and without lending it anything of the server's."""

from __future__ import annotations

import base64
import hashlib
import os
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from danlu.environments.sources import source_for
from danlu.environments.uv_command import BUILD_TIMEOUT_S, COMPILE_WARNING, Uv
from danlu.errors import EnvironmentFailed
from tests.process.test_environment_builder import builder, entries, home, made  # noqa: F401 - fixtures


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

    do_HEAD = do_GET

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
    home: Path, host: tuple[str, type[_Answer]], monkeypatch: pytest.MonkeyPatch  # noqa: F811
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
