"""The server's certificate: given, or made here; and the rule that nothing leaves the machine in the clear unasked."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import psutil
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from danlu.errors import InvalidRequest, PlatformError
from danlu.server import keys

FILE = "tls"
VALID_FOR = datetime.timedelta(days=3650)
"""Clients pin this one certificate, so that its age says nothing to them; a new one has to be pinned again by everybody."""
EARLIER = datetime.timedelta(days=1)
"""Clients whose clocks are behind accept it too."""
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2; those of 1.3 are all good ones."""
MAX_NAMES = 100


class Certificate(NamedTuple):
    """What a server proves itself by. ``key`` is None where the certificate's file holds it too."""

    file: Path
    key: Path | None
    fingerprint: str
    warnings: tuple[str, ...] = ()


class Wanted(NamedTuple):
    """Which certificate was asked for."""

    certificate: Path | None = None
    key: Path | None = None
    self_signed: bool = False
    insecure: bool = False


def require_choice(host: str, loopback: bool, wanted: Wanted) -> None:
    """Raises unless it is clear how what is sent is protected.

    Raises:
        InvalidRequest: it would leave the machine in the clear, which nobody has asked for; or flags contradict.
    """
    if (wanted.certificate is None) != (wanted.key is None):
        raise InvalidRequest("a certificate needs its key", next_step="danlu up --tls-cert FILE --tls-key FILE")
    chosen = (wanted.certificate is not None, wanted.self_signed, wanted.insecure)
    if sum(chosen) > 1:
        raise InvalidRequest(
            "--tls-cert, --tls self-signed and --insecure-http are three different ways", next_step="choose one of them"
        )
    if not any(chosen) and not loopback:
        raise InvalidRequest(
            f"{host} can be reached from other machines: without TLS, everything could be read on the way",
            next_step="--tls-cert FILE --tls-key FILE   a certificate of your own\n"
            "--tls self-signed                 one made here, which danlu login pins\n"
            "--insecure-http                   no TLS: where the network is trusted, or a proxy does it",
        )


def certificate(folder: Path, host: str, wanted: Wanted, now: datetime.datetime) -> Certificate | None:
    """Returns the certificate to serve with; None: none was asked for.

    Args:
        folder: of the platform's keys.
        host: the address that the server listens on.
        wanted: see there.
        now: UTC.

    Raises:
        PlatformError: it cannot be read, others may read its key, or they do not belong together.
    """
    if wanted.certificate is not None and wanted.key is not None:
        return _given(wanted.certificate, wanted.key, now)
    return _own(folder / FILE, host, now) if wanted.self_signed else None


def context(found: Certificate) -> ssl.SSLContext:
    """Returns what the server proves itself by, as connections take it."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(found.file, found.key)
    made.set_ciphers(CIPHERS)
    return made


def _given(file: Path, key: Path, now: datetime.datetime) -> Certificate:
    try:
        found = x509.load_pem_x509_certificates(file.read_bytes())[0]
    except (OSError, ValueError) as error:
        raise PlatformError(
            f"the certificate {file} cannot be read: {error}",
            next_step="--tls-cert takes a file in PEM, chain included",
        ) from error
    try:
        keys.read(key)
    except FileNotFoundError as error:
        raise PlatformError(f"there is no key {key}", next_step="--tls-key takes a file in PEM") from error
    _require_pair(file, key)
    until = found.not_valid_after_utc
    warnings = (
        [f"the certificate {file} has expired on {until:%Y-%m-%d}: clients will refuse it"] if until < now else []
    )
    return Certificate(file, key, _fingerprint(found), tuple(warnings))


def _own(file: Path, host: str, now: datetime.datetime) -> Certificate:
    warnings: tuple[str, ...] = ()
    try:
        found = x509.load_pem_x509_certificate(keys.read(file).encode())
        _require_pair(file, None)
        until = found.not_valid_after_utc
        if until < now:
            said = f"this platform's own certificate had expired on {until:%Y-%m-%d}: a new one was made"
            warnings = (f"{said}, and whoever logged in with the old one has to log in again",)
            found = _made(file, host, now)
    except FileNotFoundError:
        found = _made(file, host, now)
    except ValueError as error:
        raise PlatformError(
            f"the certificate in {file} is damaged",
            next_step=f"move it away: {file}. A new one is made then, to be pinned",
        ) from error
    return Certificate(file, None, _fingerprint(found), warnings)


def _require_pair(file: Path, key: Path | None) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(file, key, password=lambda: "")
    except (ssl.SSLError, OSError) as error:
        raise PlatformError(
            f"the certificate {file} and the key {key or file} do not serve: {error}",
            next_step="both are files in PEM, the key without a passphrase, and belong together",
        ) from error


def _made(file: Path, host: str, now: datetime.datetime) -> x509.Certificate:
    """Makes a key and its certificate, and stores both in one file: never one without the other."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "danlu")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLIER)
        .not_valid_after(now + VALID_FOR)
        .add_extension(x509.SubjectAlternativeName(_names(host)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    keys.write(file, (private + made.public_bytes(serialization.Encoding.PEM)).decode().strip())
    return made


def _names(host: str) -> list[x509.GeneralName]:
    """Returns the names and addresses of this machine."""
    addresses = (entry.address.partition("%")[0] for entries in psutil.net_if_addrs().values() for entry in entries)
    given = dict.fromkeys((host, socket.gethostname(), socket.getfqdn(), "localhost", "127.0.0.1", "::1", *addresses))
    return list(_general(given))[:MAX_NAMES]


def _general(names: Iterable[str]) -> Iterable[x509.GeneralName]:
    for name in names:
        try:
            yield x509.IPAddress(ipaddress.ip_address(name))
        except ValueError:
            if name and name.isascii() and ":" not in name:  # a hardware's address is no name
                yield x509.DNSName(name)


def _fingerprint(found: x509.Certificate) -> str:
    return "sha256:" + found.fingerprint(hashes.SHA256()).hex()
