"""Platforms that other machines reach: by TLS unless no TLS was asked for, and only the trusted one is told anything."""

from __future__ import annotations

import contextlib
import datetime
import json
import resource
import socket
import ssl
import stat
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from danlu.api.bodies import WaitQuery
from danlu.client.certificates import shown_by
from danlu.domain.jobs import JobState
from danlu.errors import PlatformError
from danlu.server import tls
from danlu.server.connections import MAX_QUIET
from danlu.server.main import MAX_CONNECTIONS
from tests.process.commands import Person
from tests.process.platform import Server, until
from tests.process.terminal import Terminal

OUTSIDE = "0.0.0.0"
NOW = datetime.datetime.now(datetime.UTC)


def told(server: Server) -> Any:
    """Returns what a server says of itself."""
    return json.loads((server.home / "platform.json").read_text())


def elsewhere(server: Server) -> str:
    """Returns the address at which other machines reach it, by the number of this one."""
    return f"https://127.0.0.1:{urlsplit(told(server)['public_url']).port}"


def started(home: Path, *flags: str) -> Server:
    made = Server(home, *flags)
    assert made.start().get("ready")
    return made


@pytest.fixture
def secured(home: Path) -> Iterator[Server]:
    made = started(home, "--host", OUTSIDE, "--tls", "self-signed")
    yield made
    made.close()


@pytest.fixture
def admin(home: Path, tmp_path: Path) -> Person:
    return Person(tmp_path, {"DANLU_HOME": str(home)})


@pytest.fixture
def ada(tmp_path: Path) -> Person:
    return Person(tmp_path / "ada")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--host", OUTSIDE], "other machines"),
        (["--host", "::"], "other machines"),
        (["--host", OUTSIDE, "--tls-cert", "/x"], "needs its key"),
        (["--host", OUTSIDE, "--tls", "self-signed", "--insecure-http"], "choose one"),
        (["--host", OUTSIDE, "--tls-cert", "/nothing", "--tls-key", "/nothing"], "/nothing cannot be read"),
        (["--host", "203.0.113.7", "--insecure-http"], "no address of this machine"),
        (["--host", "no.such.host.invalid", "--insecure-http"], "is no address"),
    ],
)
def test_nothing_listens_beyond_this_machine_without_a_choice(home: Path, flags: list[str], said: str) -> None:
    error = Server(home, *flags).start()["error"]
    assert said in error["detail"] + error["next_step"]
    assert not (home / "danlu.db").exists()
    if said == "other machines":
        for choice in ("--tls-cert", "--tls self-signed", "--insecure-http"):
            assert choice in error["next_step"]


def test_a_fingerprint_is_pinned_and_another_server_is_told_nothing(
    home: Path, secured: Server, admin: Person, ada: Person
) -> None:
    key = home / "keys" / "tls"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    secret, url, fingerprint = admin.danlu("token", "create", "ada"), elsewhere(secured), told(secured)["fingerprint"]
    assert shown_by(url) == (fingerprint, False)
    login = ("login", url, "--token", "--profile", "far")
    ada.danlu(*login, stdin=secret, code=3)
    assert fingerprint in ada.said  # without a terminal nobody is asked
    ada.danlu(*login, "--fingerprint", "sha256:" + "00" * 32, stdin=secret, code=3)
    assert "is not the server that was trusted" in ada.said
    assert not ada.profiles.exists()
    ada.danlu(*login, "--fingerprint", fingerprint, stdin=secret)
    assert ada.json("whoami")["url"] == url
    job = secured.submit("sleep", "1000", name="target", gpu=0)
    with secured.client() as client:
        client.call("jobs.wait", {"job": job.id}, query=WaitQuery(timeout_s=30, state=JobState.RUNNING))
    assert ada.danlu("exec", "target", "--", "echo", "inside") == "inside\n"
    secured.end()
    key.unlink()
    assert secured.start().get("ready")  # with another certificate
    pinned = ada.profiles.read_text().replace(url, elsewhere(secured))
    ada.profiles.write_text(pinned)
    for words in (["whoami"], ["exec", "target", "--", "true"]):
        ada.danlu(*words, code=3)
        assert "is not the server that was trusted" in ada.said
        assert fingerprint in ada.said
    ada.danlu("login", elsewhere(secured), "--token", "--profile", "far", "--fingerprint",
              told(secured)["fingerprint"], stdin=secret)  # fmt: skip
    ada.danlu("whoami")


def test_a_person_compares_the_fingerprint_and_types_the_secret_unseen(
    home: Path, secured: Server, admin: Person, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "eve"))
    made = admin.json("user", "create", "eve")
    words = ["login", elsewhere(secured), "--profile", "far"]
    wary = Terminal(words, home)
    wary.shows("is it the same? [y/N]")
    wary.types("n\n")
    assert wary.ends() == 3
    assert "nothing was sent there" in wary.shown
    terminal = Terminal(words, home)
    terminal.shows(told(secured)["fingerprint"])
    terminal.shows("is it the same? [y/N]")
    terminal.types("y\n")
    terminal.shows("access key id:")
    terminal.types(made["key"]["id"] + "\n")
    terminal.shows("secret:")
    terminal.types(made["secret"] + "\n")
    assert terminal.ends() == 0, terminal.shown
    assert made["secret"] not in terminal.shown
    assert Person(tmp_path / "eve").json("whoami")["name"] == "eve"


def test_jobs_on_this_machine_reach_a_platform_that_listens_elsewhere(secured: Server) -> None:
    ask = "import os, urllib.request as u; print(u.urlopen(os.environ['DANLU_URL'] + '/livez').read().decode())"
    job = secured.submit(sys.executable, "-c", ask, gpu=0)
    assert secured.wait(job.id).state == "succeeded"
    assert secured.lines(job.id, 1)[0] == "ok"


def test_a_certificate_of_ones_own_is_served_and_verified_by_its_authority(home: Path, tmp_path: Path) -> None:
    pem = tmp_path / "pem"
    tls._made(pem, "127.0.0.1", NOW)
    text = pem.read_text()
    cut = text.index("-----BEGIN CERTIFICATE")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    key.write_text(text[:cut])
    certificate.write_text(text[cut:])
    flags = ["--host", OUTSIDE, "--tls-cert", str(certificate), "--tls-key", str(key)]
    key.chmod(0o644)
    error = Server(home, *flags).start()["error"]
    assert "may be read by others" in error["detail"]
    key.chmod(0o600)
    server = started(home, *flags)
    try:
        admin = Person(tmp_path / "admin", {"DANLU_HOME": str(home)})
        secret = admin.danlu("token", "create", "ada").strip()
        named = {"DANLU_URL": elsewhere(server), "DANLU_TOKEN": secret}
        assert Person(tmp_path, {**named, "SSL_CERT_FILE": str(certificate)}).json("whoami")["name"] == "admin"
        stranger = Person(tmp_path, named)
        stranger.danlu("whoami", code=3)
        assert "is not trusted" in stranger.said
        assert "danlu login" in stranger.said
        assert Person(tmp_path, {**named, "DANLU_FINGERPRINT": told(server)["fingerprint"]}).json("whoami")
    finally:
        server.close()


def test_an_own_certificate_that_has_expired_is_made_anew_with_a_warning(home: Path) -> None:
    keys = home / "keys"
    keys.mkdir(parents=True)
    tls._made(keys / "tls", OUTSIDE, NOW - tls.VALID_FOR - datetime.timedelta(days=2))
    old = (keys / "tls").read_text()
    server = started(home, "--host", OUTSIDE, "--tls", "self-signed")
    try:
        assert (keys / "tls").read_text() != old
        (warning,) = told(server)["warnings"]
        assert "had expired" in warning
        assert shown_by(elsewhere(server))[0] == told(server)["fingerprint"]
    finally:
        server.close()


def test_a_damaged_certificate_is_told_and_kept(tmp_path: Path) -> None:
    wanted = tls.Wanted(self_signed=True)
    (tmp_path / "tls").touch(0o600)
    with pytest.raises(PlatformError, match="damaged"):
        tls.certificate(tmp_path, OUTSIDE, wanted, NOW)
    assert (tmp_path / "tls").read_text() == ""


def test_no_stranger_gets_in_by_the_outer_door(secured: Server) -> None:
    unverified = ssl._create_unverified_context()
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{elsewhere(secured)}/v1/jobs", context=unverified)
    with caught.value as refusal:
        assert refusal.code == 401
    with pytest.raises((urllib.error.URLError, ConnectionError, OSError)):
        urllib.request.urlopen(elsewhere(secured).replace("https", "http") + "/livez")
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with urllib.request.urlopen(f"{elsewhere(secured)}/livez", context=old) as answer:
        assert answer.read() == b"ok\n"


def still_open(connections: list[socket.socket]) -> int:
    """Counts those that the other side has not closed."""
    found = 0
    for one in connections:
        try:
            found += one.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK) != b""
        except BlockingIOError:
            found += 1
        except OSError:
            continue
    return found


@pytest.mark.parametrize("first", [b"", b"\x16\x03\x01\x02\x00\x01"], ids=["nothing", "half a greeting"])
def test_who_never_ends_the_handshake_has_few_connections_and_little_time(home: Path, first: bytes) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    server = started(home, "--host", OUTSIDE, "--tls", "self-signed")
    address, opened = urlsplit(elsewhere(server)), []
    unverified = ssl._create_unverified_context()

    def served() -> None:
        with urllib.request.urlopen(f"{elsewhere(server)}/livez", context=unverified, timeout=30) as answer:
            assert answer.read() == b"ok\n"

    try:
        for _ in range(MAX_CONNECTIONS + 100):
            opened.append(socket.create_connection((address.hostname, address.port)))
            with contextlib.suppress(OSError):  # it may be closed as fast
                opened[-1].sendall(first)
        served()
        assert still_open(opened) <= MAX_QUIET
        until(lambda: still_open(opened) == 0, 30, "none of them is waited for any more")
        served()
    finally:
        for one in opened:
            one.close()
        server.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_tls_only_where_it_was_said(home: Path, tmp_path: Path) -> None:
    server = started(home, "--host", OUTSIDE, "--insecure-http")
    try:
        facts = told(server)
        assert facts["public_url"].startswith("http://")
        assert facts["fingerprint"] == ""
        port = urlsplit(facts["public_url"]).port
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/livez") as answer:
            assert answer.read() == b"ok\n"
    finally:
        server.close()
