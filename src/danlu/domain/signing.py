"""Signed requests: RFC 9421 with HMAC-SHA256, and Content-Digest of RFC 9530. Both ends build the same bytes from a request.

A signature covers method, authority, raw path, raw query, and of the headers that are there every one that changes what is
done: the content's type, encoding and digest, and each header of the platform. What is not covered does not get in.
docs/reference/signing.md says the same for who writes a client.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

LABEL: Final = "danlu"
TAG: Final = "danlu-v1"
ALGORITHM: Final = "hmac-sha256"
EXPIRES_S: Final = 300
"""How long after its creation a signature may expire, at most."""
SKEW_S: Final = 300
"""How far a signer's clock may be ahead of the server's, and behind it once the signature has expired."""
NONCE_BYTES: Final = 16
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
ALWAYS: Final = ("@method", "@authority", "@path", "@query")
PLATFORM_HEADERS: Final = "danlu-"
HEADERS: Final = frozenset({"content-type", "content-digest", "content-encoding", "last-event-id", "idempotency-key"})
"""Beside the platform's own headers, those that the server acts on."""
SIGNATURE_HEADERS: Final = ("signature-input", "signature")

_WORD = r'"[a-z@][a-z0-9-]{0,63}"'
_VALUE = r'(?:[0-9]{1,12}|"[!#-\[\]-~]{0,128}")'
_INPUT: Final = re.compile(
    rf"([a-z][a-z0-9_-]{{0,31}})=(\(({_WORD}(?: {_WORD}){{0,31}})\)((?:;[a-z]{{1,16}}={_VALUE}){{0,8}}))"
)
_PARAMETER: Final = re.compile(r';([a-z]+)=(?:([0-9]+)|"([^"]*)")')
_BYTES_32 = r"([A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=)"
"""Of 32 bytes there is one base64 only: the last character has two bits that say nothing, and they are zero."""
_SIGNATURE: Final = re.compile(rf"([a-z][a-z0-9_-]{{0,31}})=:{_BYTES_32}:")
_DIGEST: Final = re.compile(rf"sha-256=:{_BYTES_32}:")
_NONCE: Final = re.compile(r"[A-Za-z0-9+/=_-]{22,64}")


class BadSignature(Exception):
    """A request's signature is not one. The reason is for our own log: a stranger is told nothing."""


@dataclass(frozen=True, slots=True)
class Message:
    """A request as it is on the wire.

    Attributes:
        method: in capitals.
        authority: the Host header.
        path: percent-encoded as it is sent, without the query.
        query: what follows the question mark, as it is sent; empty without one.
        headers: names in small letters, in the order of arrival.
    """

    method: str
    authority: str
    path: str
    query: str = ""
    headers: tuple[tuple[str, str], ...] = ()

    def values(self, name: str) -> list[str]:
        """Returns a header's values."""
        return [value.strip(" \t") for key, value in self.headers if key == name]

    def required(self) -> frozenset[str]:
        """Returns the components that a signature has to cover."""
        there = (name for name, _ in self.headers if name in HEADERS or name.startswith(PLATFORM_HEADERS))
        return frozenset((*ALWAYS, *there))


@dataclass(frozen=True, slots=True)
class Claim:
    """What a request says of itself: whose it is, from when, and the MAC of ``base`` by which that is to be proven."""

    key_id: str
    created_s: int
    expires_s: int
    nonce: str
    base: bytes
    signature: bytes
    digest: bytes | None

    def proven(self, secret: bytes) -> bool:
        """Says whether whoever signed it has the secret."""
        return hmac.compare_digest(hmac.digest(secret, self.base, "sha256"), self.signature)

    def current(self, now_s: int) -> bool:
        """Says whether it is neither of the future nor of the past, by clocks that differ by ``SKEW_S`` at most."""
        return self.created_s - SKEW_S <= now_s <= self.expires_s + SKEW_S

    @property
    def forgotten_at_s(self) -> int:
        """From when on it is refused for its age alone."""
        return self.expires_s + SKEW_S + 1


def content_digest(body: bytes) -> str:
    """Returns the Content-Digest of a body."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(body).digest()).decode()}:"


def sign(message: Message, key_id: str, secret: bytes, *, created_s: int, nonce: str = "") -> dict[str, str]:
    """Returns the two headers that sign a request.

    Args:
        message: with its Content-Digest, if it has a body or its method is not safe.
        key_id: of the access key.
        secret: of the access key.
        created_s: seconds since 1970, UTC.
        nonce: at least 128 random bits in base64; not needed for what is safe.
    """
    extra = sorted(message.required() - {*ALWAYS})
    parameters = f'created={created_s};expires={created_s + EXPIRES_S};keyid="{key_id}";alg="{ALGORITHM}"'
    parameters += (f';nonce="{nonce}"' if nonce else "") + f';tag="{TAG}"'
    components = (*ALWAYS, *extra)
    given = "(" + " ".join(f'"{name}"' for name in components) + ");" + parameters
    mac = hmac.digest(secret, base(message, components, given), "sha256")
    return {"Signature-Input": f"{LABEL}={given}", "Signature": f"{LABEL}=:{base64.b64encode(mac).decode()}:"}


def base(message: Message, components: Iterable[str], given: str) -> bytes:
    """Returns the bytes that are signed (RFC 9421, section 2.5).

    Args:
        message: the request.
        components: what is covered, in the signer's order.
        given: the signature's input as it was written, from its bracket on.

    Raises:
        BadSignature: a component is not there, is there twice, or cannot be signed.
    """
    lines = [f'"{name}": {_component(message, name)}' for name in components]
    return "\n".join([*lines, f'"@signature-params": {given}']).encode("latin-1", "strict")


def _component(message: Message, name: str) -> str:
    if name == "@method":
        return message.method
    if name == "@authority":
        return message.authority.lower()
    if name == "@path":
        return message.path
    if name == "@query":
        return "?" + message.query
    values = message.values(name)
    if name.startswith("@") or len(values) != 1:
        raise BadSignature(f"the component {name} is there {len(values)} times")
    return values[0]


def claim(message: Message, *, once: bool) -> Claim:
    """Returns what a request says of itself; nothing of it is proven yet.

    Args:
        message: as it arrived.
        once: it must not be done twice: it needs a nonce, and a digest of its body even if that is empty.

    Raises:
        BadSignature: it is not signed, or covers less than what is acted on.
    """
    label, components, given, parameters = _input(message)
    seconds, texts = parameters
    signature = _SIGNATURE.fullmatch(_only(message, "signature"))
    if signature is None or signature[1] != label:
        raise BadSignature("the signature is not that of the input")
    missing = message.required() - {*components}
    if missing or len(set(components)) != len(components):
        raise BadSignature(f"not covered: {sorted(missing)}")
    if seconds.keys() != {"created", "expires"}:
        raise BadSignature(f"of created and expires there is {sorted(seconds)}")
    created_s, expires_s = seconds["created"], seconds["expires"]
    if texts.pop("alg", ALGORITHM) != ALGORITHM or texts.pop("tag", "") != TAG:
        raise BadSignature("another algorithm or tag")
    if not created_s <= expires_s <= created_s + EXPIRES_S:
        raise BadSignature("it lives too long")
    key_id, nonce = texts.pop("keyid", ""), texts.pop("nonce", "")
    if texts or not key_id or (nonce and not _NONCE.fullmatch(nonce)) or (once and not nonce):
        raise BadSignature("a parameter is missing, or too many are there")
    digest = _digest(message, once=once)
    return Claim(
        key_id, created_s, expires_s, nonce, base(message, components, given), base64.b64decode(signature[2]), digest
    )


def _input(message: Message) -> tuple[str, list[str], str, tuple[dict[str, int], dict[str, str]]]:
    """Returns the label, the components, what stands for both in the base, and the parameters: numbers and texts."""
    found = _INPUT.fullmatch(_only(message, "signature-input"))
    if found is None:
        raise BadSignature("the signature's input is not one that is understood")
    pairs = _PARAMETER.findall(found[4])
    seconds = {name: int(number) for name, number, _ in pairs if number}
    texts = {name: text for name, number, text in pairs if not number}
    if len(seconds) + len(texts) != len(pairs) or seconds.keys() & texts.keys():
        raise BadSignature("a parameter is there twice")
    return found[1], found[3][1:-1].split('" "'), found[2], (seconds, texts)


def _only(message: Message, name: str) -> str:
    values = message.values(name)
    if len(values) != 1:
        raise BadSignature(f"{name} is there {len(values)} times")
    return values[0]


def _digest(message: Message, *, once: bool) -> bytes | None:
    values = message.values("content-digest")
    if not values and not once and message.method in SAFE_METHODS:
        return None
    found = _DIGEST.fullmatch(values[0]) if len(values) == 1 else None
    if found is None:
        raise BadSignature("there is no digest of the body by SHA-256 alone")
    return base64.b64decode(found[1])


def lowered(headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Returns headers as a message has them."""
    return tuple((name.lower(), value) for name, value in headers.items())
