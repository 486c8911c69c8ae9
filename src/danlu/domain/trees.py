"""A folder as a Merkle tree of content addresses, and packs of small blobs. Pure.

A blob's address is ``sha256:`` and the 64 hex digits of its SHA-256. A tree node is a blob too: canonical JSON of its entries
in the order of their names' UTF-8 bytes, no spaces::

    {"format":1,"entries":[{"name":"a.py","kind":"file","mode":420,"size":12,"address":"sha256:..."},
                           {"name":"lib","kind":"dir","size":99,"files":3,"address":"sha256:..."},
                           {"name":"now","kind":"link","target":"a.py"}]}

A pack is a sequence of frames: 32 bytes of SHA-256, 8 bytes of length (big-endian), the bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from danlu.errors import InvalidRequest

ADDRESS: Final = re.compile(r"^sha256:[0-9a-f]{64}$")
MAX_NODE_BYTES: Final = 16 * 2**20
MAX_ENTRIES: Final = 100_000
MAX_DEPTH: Final = 64
MAX_NAME_BYTES: Final = 255
MODES: Final = (0o644, 0o755)
FRAME_HEAD_BYTES: Final = 40


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a folder. ``files`` and ``size`` of a folder are totals of all below it."""

    name: str
    kind: str
    address: str = ""
    mode: int = 0o644
    size: int = 0
    files: int = 0
    target: str = ""


def address_of(data: bytes) -> str:
    """Returns the address of these bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def require_address(text: str) -> str:
    """Returns ``text`` if it is an address, else raises InvalidRequest."""
    if not ADDRESS.match(text) or text.endswith("\n"):
        raise InvalidRequest(f"{text[:80]!r} is not an address: sha256: and 64 hex digits")
    return text


def link_stays_inside(depth: int, target: str) -> bool:
    """Says whether a link ``depth`` folders below the root, with this target, ends inside the tree."""
    if not target or target.startswith("/") or "\0" in target or "\\" in target or re.match(r"^[A-Za-z]:", target):
        return False
    for part in target.split("/"):
        if part == "..":
            depth -= 1
            if depth < 0:
                return False
        elif part not in ("", "."):
            depth += 1
    return True


def encode(entries: Iterable[Entry]) -> bytes:
    """Returns a node's bytes; equal folders give equal bytes."""
    listed: list[dict[str, Any]] = []
    for entry in sorted(entries, key=lambda e: e.name.encode()):
        if entry.kind == "file":
            listed.append(
                {"name": entry.name, "kind": "file", "mode": entry.mode, "size": entry.size, "address": entry.address}
            )
        elif entry.kind == "dir":
            listed.append(
                {"name": entry.name, "kind": "dir", "size": entry.size, "files": entry.files, "address": entry.address}
            )
        else:
            listed.append({"name": entry.name, "kind": "link", "target": entry.target})
    return json.dumps({"format": 1, "entries": listed}, separators=(",", ":"), ensure_ascii=False).encode()


_FIELDS: Final = {
    "file": {"name", "kind", "mode", "size", "address"},
    "dir": {"name", "kind", "size", "files", "address"},
    "link": {"name", "kind", "target"},
}


def decode(data: bytes) -> tuple[Entry, ...]:
    """Returns a node's entries in order.

    Raises:
        InvalidRequest: the bytes are not exactly what ``encode`` would have made of them.
    """
    if len(data) > MAX_NODE_BYTES:
        raise InvalidRequest(f"a tree node has at most {MAX_NODE_BYTES} bytes; this one has {len(data)}")
    try:
        node = json.loads(data)
        if node["format"] != 1 or set(node) != {"format", "entries"} or len(node["entries"]) > MAX_ENTRIES:
            raise ValueError("it is not of format 1")
        entries = tuple(_entry(raw) for raw in node["entries"])
        if len({entry.name for entry in entries}) != len(entries):
            raise ValueError("a name is there twice")
        if encode(entries) != data:
            raise ValueError("it is not in canonical form")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, UnicodeError) as error:
        raise InvalidRequest(f"this is not a tree node: {error}") from error
    return entries


def _entry(raw: dict[str, Any]) -> Entry:
    kind = raw["kind"]
    if kind not in _FIELDS or set(raw) != _FIELDS[kind]:
        raise ValueError(f"an entry of kind {kind!r} with fields {sorted(raw)}")
    require_name(raw["name"])
    for number in ("size", "files"):
        if number in raw and (type(raw[number]) is not int or not 0 <= raw[number] < 2**63):
            raise ValueError(f"{number} is {raw[number]!r}")
    if kind == "file" and (type(raw["mode"]) is not int or raw["mode"] not in MODES):
        raise ValueError(f"mode is {raw['mode']!r}")
    if kind == "link" and (not isinstance(raw["target"], str) or len(raw["target"]) > 4096):
        raise ValueError("a link's target is no text")
    if kind != "link" and (not isinstance(raw["address"], str) or not ADDRESS.match(raw["address"])):
        raise ValueError(f"address is {raw['address']!r}")
    return Entry(**raw)


def require_name(name: object) -> None:
    """Raises ValueError unless ``name`` can be one name in a folder."""
    if (
        not isinstance(name, str)
        or name in ("", ".", "..")
        or "/" in name
        or "\0" in name
        or "\\" in name
        or len(name.encode()) > MAX_NAME_BYTES
    ):
        raise ValueError(f"{name!r} cannot be a file's name")


def frames(blobs: Iterable[bytes]) -> Iterator[bytes]:
    """Yields a pack's bytes, a frame at a time."""
    for blob in blobs:
        yield hashlib.sha256(blob).digest() + len(blob).to_bytes(8, "big") + blob


def unpack(pack: bytes) -> Iterator[tuple[str, bytes]]:
    """Yields (address, bytes) of a pack, each checked.

    Raises:
        InvalidRequest: a frame is cut short, or its bytes are not what its hash says.
    """
    at = 0
    while at < len(pack):
        head = pack[at : at + FRAME_HEAD_BYTES]
        size = int.from_bytes(head[32:], "big")
        blob = pack[at + FRAME_HEAD_BYTES : at + FRAME_HEAD_BYTES + size]
        if len(head) != FRAME_HEAD_BYTES or len(blob) != size:
            raise InvalidRequest(f"the pack is cut short at byte {at} of {len(pack)}")
        if hashlib.sha256(blob).digest() != head[:32]:
            raise InvalidRequest(f"the pack's bytes at {at} are not those that its hash promises")
        yield "sha256:" + head[:32].hex(), blob
        at += FRAME_HEAD_BYTES + size
