"""What a signature costs: the check alone, and a signed read of one job beside a route that returns a constant."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

from benchmarks.platform import Figure, Times, platform, run
from danlu.client.connection import KEY_FILE
from danlu.client.credentials import Credentials, bootstrap
from danlu.domain.signing import Message, claim, content_digest, lowered, sign

ROUNDS, CHECKS, SECONDS, TURNS, CONNECTIONS = 7, 2000, 3.0, 5, 8
SECRET, KEY = b"danlu_sk_" + b"0" * 64, "k00000000000000000000000000"
BODY = b"x" * 1024
CONSTANT = """
import socket, sys
import uvicorn
from fastapi import FastAPI
app = FastAPI(openapi_url=None)
@app.get("/constant")
async def constant() -> dict[str, str]:
    return {"state": "running"}
listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
listening.bind(("127.0.0.1", 0))
listening.listen()
print(listening.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", http="h11")).run(sockets=[listening])
"""


def figures() -> list[Figure]:
    """Measures."""
    return [_check(), _read()]


def _check() -> Figure:
    """The check of one request of 1 KiB, beside the same by a library, and beside the hashes alone."""
    headers = (("content-type", "application/octet-stream"), ("danlu-project", "default"), ("content-length", "1024"),
               ("content-digest", content_digest(BODY)), ("user-agent", "x"), ("accept", "*/*"))  # fmt: skip
    bare = Message("PUT", "127.0.0.1:7070", "/v1/blobs/sha256:00", "offset=0", headers)
    made = sign(bare, KEY, SECRET, created_s=int(time.time()), nonce="A" * 24)
    whole = Message(bare.method, bare.authority, bare.path, bare.query, (*headers, *lowered(made)))

    def ours() -> None:
        found = claim(whole, once=True)
        assert found.proven(SECRET)
        assert content_digest(BODY)

    base = claim(whole, once=True).base

    def hashes() -> None:
        import hashlib
        import hmac

        hmac.digest(SECRET, base, "sha256")
        hashlib.sha256(BODY).digest()

    mine, theirs, least = (_per_call(work) for work in (ours, _library(bare, made), hashes))
    return Figure(
        "a signature of a request of 1 KiB is checked", f"{mine.median * 1e6:.0f} µs of a core", "≤ 60 µs",
        mine.median <= 60e-6, f"`http-message-signatures`: {theirs.median * 1e6:.0f} µs",
        f"HMAC and SHA-256 alone: {least.median * 1e6:.1f} µs",
    )  # fmt: skip


def _library(message: Message, made: dict[str, str]) -> Callable[[], object]:
    from http_message_signatures import HTTPMessageVerifier, algorithms
    from http_message_signatures.resolvers import MappingKeyResolver

    verifier = HTTPMessageVerifier(
        signature_algorithm=algorithms.HMAC_SHA256,
        key_resolver=MappingKeyResolver(public_keys={KEY: SECRET}, private_keys={}),
    )
    request = SimpleNamespace(
        method=message.method, url=f"http://{message.authority}{message.path}?{message.query}",
        headers={**dict(message.headers), **made},
    )  # fmt: skip
    return lambda: verifier.verify(request, expect_tag="danlu-v1", body=BODY)


def _per_call(work: Callable[[], object]) -> Times:
    found = []
    for _ in range(ROUNDS):
        began = time.thread_time()
        for _ in range(CHECKS):
            work()
        found.append((time.thread_time() - began) / CHECKS)
    return Times(tuple(found))


def _read() -> Figure:
    """Signed reads of one job a second, in turns with the constant; signing is the client's own, done before."""
    with platform() as environ, tempfile.TemporaryDirectory() as folder:
        home = Path(environ["DANLU_HOME"])
        run(["danlu", "down"], environ)
        with _server(home) as url:
            key = bootstrap(home / KEY_FILE)
            job = json.loads(run(["danlu", "run", "-d", "--no-code", "-o", "json", "--", "true"], environ))["id"]
            run(["danlu", "wait", job], environ)
            program = Path(folder) / "constant.py"
            program.write_text(CONSTANT)
            with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True) as peer:
                assert peer.stdout is not None
                constant = f"http://127.0.0.1:{peer.stdout.readline().strip()}"
                ratios, ours, theirs = [], [], []
                for _ in range(TURNS):
                    ours.append(asyncio.run(_rate(url, f"/v1/jobs/{job}", key)))
                    theirs.append(asyncio.run(_rate(constant, "/constant", None)))
                    ratios.append(ours[-1] / theirs[-1])
                peer.terminate()
    ratio = Times(tuple(ratios))
    return Figure(
        "signed reads of one job, 8 connections", f"{Times(tuple(ours)).median:.0f} a second; {ratio.median:.2f} × "
        f"({min(ratios):.2f} to {max(ratios):.2f}) the constant", "≥ 0.35 × the constant", ratio.median >= 0.35,
        f"a FastAPI route that returns a constant: {Times(tuple(theirs)).median:.0f} a second", "",
    )  # fmt: skip


@contextlib.contextmanager
def _server(home: Path) -> Iterator[str]:
    """A server on a port of its own, without the limit of one user's requests."""
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "danlu.server", "--home", str(home), "--ready-fd", str(writer),
         "--user-requests-per-s", "1000000"], pass_fds=(writer,), stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(writer)
    with open(reader) as pipe:
        said = json.loads(pipe.readline())
    try:
        yield said["url"]
    finally:
        process.terminate()
        process.wait()


async def _rate(url: str, path: str, key: Credentials | None) -> float:
    """Returns how many requests a second are answered, over a few connections that each ask again at once."""
    authority = urlsplit(url).netloc
    proof = {} if key is None else key.headers(Message("GET", authority, path))
    head = [f"GET {path} HTTP/1.1", f"Host: {authority}", *(f"{name}: {value}" for name, value in proof.items())]
    request = ("\r\n".join(head) + "\r\n\r\n").encode()
    until = time.monotonic() + SECONDS
    counts = await asyncio.gather(*(_asking(authority, request, until) for _ in range(CONNECTIONS)))
    return sum(counts) / SECONDS


async def _asking(authority: str, request: bytes, until: float) -> int:
    host, _, port = authority.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    count = 0
    while time.monotonic() < until:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        length = next(
            int(line.partition(b":")[2]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
        )
        await reader.readexactly(length)
        count += 1
    writer.close()
    return count
