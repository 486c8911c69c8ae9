"""The S3 server that the tests use: it stores, survives a kill, and knows who signed."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import time
from collections.abc import Iterator

import pytest

from tests.s3_server import S3Server


def ask(server: S3Server, method: str, path: str, body: bytes = b"", secret: str = "") -> tuple[int, bytes]:
    """Sends one request signed by AWS Signature Version 4."""
    host = server.endpoint.removeprefix("http://")
    now, digest = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()), hashlib.sha256(body).hexdigest()
    headers = {"host": host, "x-amz-content-sha256": digest, "x-amz-date": now}
    names = ";".join(headers)
    lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
    canonical = hashlib.sha256("\n".join((method, path, "", lines, names, digest)).encode()).hexdigest()
    scope = f"{now[:8]}/{server.region}/s3/aws4_request"
    key = f"AWS4{secret or server.secret_key}".encode()
    for part in (*scope.split("/"), f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{canonical}"):
        key = hmac.digest(key, part.encode(), "sha256")
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={server.access_key}/{scope}, SignedHeaders={names}, Signature={key.hex()}"
    )
    connection = http.client.HTTPConnection(host, timeout=10)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with S3Server() as running:
        yield running


def test_what_was_stored_outlives_a_kill(server: S3Server) -> None:
    bucket = server.make_bucket("kept")
    assert ask(server, "PUT", f"/{bucket}/a/b", b"bytes")[0] == 200
    server.kill()
    with pytest.raises(OSError, match="refused"):
        ask(server, "GET", f"/{bucket}/a/b")
    server.restart()
    assert ask(server, "GET", f"/{bucket}/a/b") == (200, b"bytes")


def test_a_wrong_key_is_refused(server: S3Server) -> None:
    bucket = server.make_bucket("closed")
    assert ask(server, "PUT", f"/{bucket}/x", b"bytes", secret="wrong")[0] == 403
    assert ask(server, "GET", f"/{bucket}/x")[0] == 404


def test_two_servers_share_nothing(server: S3Server) -> None:
    server.make_bucket("mine")
    ask(server, "PUT", "/mine/x", b"bytes")
    with S3Server() as other:
        other.make_bucket("mine")
        assert ask(other, "GET", "/mine/x")[0] == 404
