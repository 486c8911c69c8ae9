"""docs/reference/signing.md and its second implementation, made of curl and openssl, agree with the platform."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from danlu.client.connection import KEY_FILE
from danlu.client.credentials import bootstrap
from danlu.domain.ids import make_id
from danlu.domain.signing import EXPIRES_S, SAFE_METHODS, Message, claim, content_digest, lowered, sign
from tests.examples.platform import ROOT
from tests.process.platform import Server

PAGE = (ROOT / "docs" / "reference" / "signing.md").read_text()
FOLDER = ROOT / "examples" / "signing"
VECTORS: list[dict[str, Any]] = [json.loads(block) for block in re.findall(r"^```json\n(.*?)^```$", PAGE, re.M | re.S)]
TIMEOUT_S = 60.0


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: str(vector["name"]))
def test_the_pages_vectors_are_what_is_computed(vector: dict[str, Any]) -> None:
    body = vector["body"].encode()
    unsafe = vector["method"] not in SAFE_METHODS
    digest = content_digest(body) if body or unsafe else ""
    assert digest == vector["content_digest"]
    headers = {**vector["headers"], **({"Content-Digest": digest} if digest else {})}
    message = Message(vector["method"], vector["host"], vector["path"], vector["query"], lowered(headers))
    secret = vector["secret"].encode()
    made = sign(message, vector["key_id"], secret, created_s=vector["created"], nonce=vector["nonce"])
    assert made == {"Signature-Input": vector["signature_input"], "Signature": vector["signature"]}
    whole = Message(message.method, message.authority, message.path, message.query, (*message.headers, *lowered(made)))
    found = claim(whole, once=unsafe)
    assert found.base.decode() == "\n".join(vector["signature_base"])
    assert found.proven(secret)
    assert found.expires_s - found.created_s == EXPIRES_S


def test_the_vectors_show_each_kind() -> None:
    assert {vector["method"] for vector in VECTORS} == {"GET", "PUT", "DELETE"}
    assert any(vector["query"] for vector in VECTORS)
    assert any("Danlu-Project" in vector["headers"] for vector in VECTORS)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: str(vector["name"]))
def test_openssl_computes_the_pages_vectors(vector: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "base").write_text("\n".join(vector["signature_base"]))
    command = 'openssl dgst -sha256 -hmac "$SECRET" -binary base | openssl base64 -A'
    found = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, env={**os.environ, "SECRET": vector["secret"]}, capture_output=True,
        text=True, check=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    assert f"danlu=:{found.stdout}:" == vector["signature"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("signing") / "home")
    made.start()
    yield made
    made.close()


def signed(server: Server, *arguments: str, **environ: str) -> Any:
    key = bootstrap(server.home / KEY_FILE)
    given = {**os.environ, "DANLU_URL": server.url, "DANLU_ACCESS_KEY_ID": key.key_id,
             "DANLU_SECRET_ACCESS_KEY": key.secret, **environ}  # fmt: skip
    run = subprocess.run(
        ["sh", str(FOLDER / "sign.sh"), *arguments],
        cwd=FOLDER,
        env=given,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.skipif(not (shutil.which("openssl") and shutil.which("curl")), reason="curl or openssl is not installed")
def test_curl_and_openssl_are_a_client(server: Server) -> None:
    assert signed(server, "GET", "/v1/whoami")["name"] == "admin"
    assert signed(server, "GET", "/v1/jobs?limit=2&name=%61")["items"] == []
    job = make_id("j", time.time_ns(), 1)
    made = signed(server, "PUT", f"/v1/jobs/{job}", "job.yaml", DANLU_PROJECT="default")
    assert (made["id"], made["name"], made["spec"]["command"]) == (job, "signed", ["echo", "hello"])
    assert signed(server, "POST", f"/v1/jobs/{job}/stop", os.devnull)["code"] in ("InvalidRequest", "InvalidSpec")
    assert signed(server, "GET", f"/v1/jobs/{job}")["id"] == job
    assert signed(server, "DELETE", "/v1/keys/nothing")["code"] == "NotFound"
    wrong = signed(server, "GET", "/v1/jobs", DANLU_SECRET_ACCESS_KEY="danlu_sk_wrong")
    assert wrong["code"] == "NotAuthenticated"
    assert abs(wrong["details"]["server_time"] - time.time_ns()) < 300 * 10**9


def test_it_is_short() -> None:
    assert len((FOLDER / "sign.sh").read_text().splitlines()) <= 40
