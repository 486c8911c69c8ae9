"""What is shipped opens nothing: no key is in the wheel, and each server makes its own."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.process.platform import Server

ROOT = Path(__file__).parents[2]
CREDENTIALS = [
    rb"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])",  # a master key, as it is kept
    rb"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    rb"\bdanlu_[A-Za-z0-9_-]{32,}",
    rb"\b(?:hf|ghp|glpat)[_-][A-Za-z0-9]{20,}",
    rb"(?i)\b(?:password|passwd|secret|secret_key|master_key|token)\b\s*[:=]\s*[\"'][^\"'\s]{4,}[\"']",
]
NOT_SHIPPED = (".pem", ".key", ".crt", ".p12", ".env", ".db", ".netrc", "bootstrap", "master", "attempts")


def credentials(name: str, data: bytes) -> list[bytes]:
    """Returns what in a shipped file could be a credential, and its name where that is one's."""
    found = [name.encode()] if name.endswith(NOT_SHIPPED) else []
    hashes = name.startswith("danlu/environments/locks/") or name.endswith(("RECORD", ".json"))  # of packages
    for pattern in CREDENTIALS[:1] + CREDENTIALS[2:] if hashes else CREDENTIALS:
        found += re.findall(pattern, data)
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_no_credential_is_shipped(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert "danlu/server/main.py" in names
        for name in names:
            assert not credentials(name, archive.read(name)), name


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("danlu/x.py", b"-----BEGIN EC PRIVATE " + b"KEY-----"),
        ("danlu/x.py", b"KEY = '" + b"0f" * 32 + b"'"),
        ("danlu/x.py", b"password = 'admin1234'"),
        ("danlu/x.py", b'token: "danlu"'),
        ("danlu/keys/master", b""),
    ],
)
def test_a_credential_would_be_seen(name: str, data: bytes) -> None:
    assert credentials(name, data)


@pytest.fixture
def two(tmp_path: Path) -> Iterator[list[Server]]:
    made = [Server(tmp_path / name) for name in ("a", "b")]
    yield made
    for one in made:
        one.close()


def test_a_server_without_settings_lets_nobody_in_but_whom_it_gave_a_key(two: list[Server]) -> None:
    kept = []
    for server in two:
        assert server.start()["ready"]
        for guess in (None, "Bearer admin", "Bearer danlu", "Bearer danlu_admin", "Basic YWRtaW46YWRtaW4="):
            headers = {} if guess is None else {"Authorization": guess}
            for path in ("/v1/jobs", "/v1/whoami", "/v1/openapi.json", "/"):
                assert httpx2.get(server.url + path, headers=headers).status_code == 401
        kept.append({path.name: path.read_bytes() for path in (server.home / "keys").iterdir() if path.is_file()})
    assert kept[0].keys() == kept[1].keys() >= {"master", "attempts"}
    assert not any(kept[0][name] == kept[1][name] for name in kept[0])
