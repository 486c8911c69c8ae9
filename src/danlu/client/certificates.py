"""Which server is believed: one that an authority vouches for, or the one whose certificate was pinned."""

from __future__ import annotations

import hashlib
import hmac
import re
import socket
import ssl
from typing import Final
from urllib.parse import urlsplit

from danlu.errors import InvalidRequest, NotTrusted, Unavailable

FINGERPRINT_VARIABLE: Final = "DANLU_FINGERPRINT"
CONNECT_TIMEOUT_S: Final = 10.0
_PREFIX: Final = "sha256:"


class PinBroken(ssl.SSLCertVerificationError):
    """The server has another certificate than the one that was pinned."""


def context(fingerprint: str) -> ssl.SSLContext:
    """Returns what verifies a server: by authorities, or by nothing but the fingerprint of its certificate."""
    if not fingerprint:
        return ssl.create_default_context()
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE  # the pin says more than a name would

    class PinnedSocket(ssl.SSLSocket):
        """Is no connection until the certificate is the pinned one: nothing is sent before."""

        def do_handshake(self, block: bool = False) -> None:
            super().do_handshake(block)
            _require(self.getpeercert(binary_form=True), fingerprint)

    class PinnedObject(ssl.SSLObject):
        """The same, where a proxy is between."""

        def do_handshake(self) -> None:
            super().do_handshake()
            _require(self.getpeercert(binary_form=True), fingerprint)

    made.sslsocket_class, made.sslobject_class = PinnedSocket, PinnedObject
    return made


def _require(certificate: bytes | None, fingerprint: str) -> None:
    found = of_certificate(certificate or b"")
    if not hmac.compare_digest(found, fingerprint):
        raise PinBroken(f"its certificate is {found}, and the pinned one is {fingerprint}")


def of_certificate(certificate: bytes) -> str:
    """Returns the fingerprint of a certificate in DER."""
    return _PREFIX + hashlib.sha256(certificate).hexdigest()


def parsed(text: str) -> str:
    """Returns a fingerprint as it is kept; it may be written with colons, as openssl does.

    Raises:
        InvalidRequest: it is none.
    """
    digits = re.sub(r"^sha-?256[:=]", "", text.strip().lower()).replace(":", "")
    if not re.fullmatch(r"[0-9a-f]{64}", digits):
        raise InvalidRequest(
            f"{text[:100]!r} is no SHA-256 fingerprint",
            next_step="danlu up prints it on the server: sha256: and 64 hexadecimal digits",
        )
    return _PREFIX + digits


def shown_by(url: str) -> tuple[str, bool]:
    """Returns the fingerprint of the certificate that a server shows, and whether an authority vouches for it.

    Nothing is sent to it but the handshake.

    Raises:
        Unavailable: it cannot be reached, or speaks no TLS.
    """
    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
    try:
        fingerprint = _shake_hands(url, unverified)
        try:
            return fingerprint, _shake_hands(url, ssl.create_default_context()) == fingerprint
        except ssl.SSLCertVerificationError:
            return fingerprint, False
    except OSError as error:
        raise Unavailable(
            f"{url} cannot be reached by TLS: {error}", next_step="is the address right, and https its scheme?"
        ) from error


def _shake_hands(url: str, verifying: ssl.SSLContext) -> str:
    parts = urlsplit(url)
    host = parts.hostname or ""
    with (
        socket.create_connection((host, parts.port or 443), CONNECT_TIMEOUT_S) as connection,
        verifying.wrap_socket(connection, server_hostname=host) as secured,
    ):
        return of_certificate(secured.getpeercert(binary_form=True) or b"")


def refusal(error: BaseException | None, url: str) -> NotTrusted | None:
    """Returns the error that a failed connection stands for if the server's certificate is why; else None."""
    while error is not None:
        if isinstance(error, PinBroken):
            return NotTrusted(
                f"{url} is not the server that was trusted: {error.args[0]}; nothing was sent to it",
                next_step="ask its administrator whether the certificate was changed. If so: danlu login "
                f"{url} --fingerprint SHA256, with the new one. If not, somebody is in between",
            )
        if isinstance(error, ssl.SSLCertVerificationError):
            return NotTrusted(
                f"the certificate of {url} is not trusted: {error.verify_message or error}; nothing was sent to it",
                next_step=f"danlu login {url} shows its fingerprint, and pins it once you have compared it",
            )
        error = error.__cause__ or error.__context__
    return None
