"""Container images: how one is named, and what is known of one that is here."""

from __future__ import annotations

import re
from typing import Final

from pydantic import Field

from danlu.domain.records import Value

MAX_CHARACTERS: Final = 512
DEFAULT_REGISTRY: Final = "docker.io"
LOCAL: Final = "localhost"
"""The registry of images that were built or loaded on this machine: they are looked for here, and nowhere else."""

_HOST = re.compile(
    r"(?:[A-Za-z0-9](?:[-A-Za-z0-9]*[A-Za-z0-9])?)(?:\.[A-Za-z0-9](?:[-A-Za-z0-9]*[A-Za-z0-9])?)*(?::\d{1,5})?"
)
_PART = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
IMAGE_ID: Final = r"^[0-9a-f]{64}$"


class Image(Value):
    """An image that is here: what a container of it can be started from."""

    id: str = Field(pattern=IMAGE_ID, description="SHA-256 over its configuration")
    variables: dict[str, str] = Field(default_factory=dict, description="those that the image sets")
    size_bytes: int = Field(default=0, ge=0)


def full_reference(text: str) -> str:
    """Returns an image's whole name: ``python:3.12`` gives ``docker.io/library/python:3.12``.

    A name without a registry is Docker Hub's, as everywhere; one without a tag or digest means ``latest``.

    Raises:
        ValueError: it is no image's name (OCI distribution specification, "pulling manifests").
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"it has more than {MAX_CHARACTERS} characters")
    scheme, separator, rest = text.partition("://")
    if separator:
        raise ValueError(f"an image's name begins with its registry, without {scheme}://; leave that out: {rest[:80]}")
    named, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise ValueError(f"after @ comes a digest, sha256: and 64 hex digits, not {digest[:80]!r}")
    head, slash, tail = named.partition("/")
    has_registry = bool(slash) and ("." in head or ":" in head or head == LOCAL)
    registry, path = (head, tail) if has_registry else (DEFAULT_REGISTRY, named)
    path, colon, tag = path.partition(":")
    if has_registry and not _HOST.fullmatch(registry):
        raise ValueError(f"{registry[:80]!r} is no registry's name: HOST or HOST:PORT")
    if colon and not _TAG.fullmatch(tag):
        raise ValueError(f"{tag[:80]!r} is no tag: at most 128 letters, digits, _, . and -")
    parts = path.split("/")
    wrong = next((part for part in parts if not _PART.fullmatch(part)), None)
    if wrong is not None:
        hint = f"; did you mean {text.lower()}?" if all(_PART.fullmatch(part.lower()) for part in parts) else ""
        raise ValueError(
            f"{text[:80]!r} is no image's name: {wrong[:80]!r} is not lower-case letters, digits, ., _ and -, "
            f"as in python:3.12 or ghcr.io/team/train:1{hint}"
        )
    if registry == DEFAULT_REGISTRY and len(parts) == 1:
        parts = ["library", *parts]
    if not colon and not at:
        tag = "latest"
    return f"{registry}/{'/'.join(parts)}" + (f":{tag}" if tag else "") + (f"@{digest}" if at else "")


def is_local(reference: str) -> bool:
    """Whether a whole name is of an image that only this machine can have."""
    return reference.startswith(f"{LOCAL}/")
