"""A pinned certificate is looked at within the handshake, by a socket and by what stands for one behind a proxy."""

from __future__ import annotations

import contextlib
import datetime
import ssl
from pathlib import Path

import pytest

from danlu.client.certificates import PinBroken, context, of_certificate, refusal
from danlu.errors import NotTrusted
from danlu.server import tls

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
OTHER = "sha256:" + "00" * 32


@pytest.fixture
def server(tmp_path: Path) -> tuple[ssl.SSLContext, str]:
    """A server's side, and the fingerprint of its certificate."""
    made = tls._made(tmp_path / "tls", "127.0.0.1", NOW)
    found = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    found.load_cert_chain(tmp_path / "tls")
    return found, tls._fingerprint(made)


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> ssl.SSLObject:
    """Returns the client's end of a connection without a network."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(to_client, to_server, server_hostname="danlu")
    far = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(5):
        for end in (near, far):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    return near


def test_the_pinned_certificate_is_accepted_whatever_name_and_age_it_has(server: tuple[ssl.SSLContext, str]) -> None:
    near = shake_hands(server[0], context(server[1]))
    assert of_certificate(near.getpeercert(binary_form=True) or b"") == server[1]


def test_another_one_ends_the_handshake_and_is_told(server: tuple[ssl.SSLContext, str]) -> None:
    with pytest.raises(PinBroken) as caught:
        shake_hands(server[0], context(OTHER))
    try:
        raise ConnectionError("reset") from caught.value
    except ConnectionError as error:
        told = refusal(error, "https://danlu")
    assert isinstance(told, NotTrusted)
    assert server[1] in told.message
    assert OTHER in told.message
    assert refusal(ConnectionError("reset"), "https://danlu") is None


def test_without_a_pin_authorities_decide(server: tuple[ssl.SSLContext, str]) -> None:
    with pytest.raises(ssl.SSLCertVerificationError) as caught:
        shake_hands(server[0], context(""))
    assert not isinstance(caught.value, PinBroken)
    assert isinstance(refusal(caught.value, "https://danlu"), NotTrusted)
