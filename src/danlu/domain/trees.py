"""A folder as a Merkle tree of content addresses, and packs of small blobs. Pure.

A blob's address is ``sha256:`` and the 64 hex digits of its SHA-256. A tree node is a blob too: canonical JSON of its entries
in the order of their names' UTF-8 bytes, no spaces::

    {"format":1,"entries":[{"name":"a.py","kind":"file","mode":420,"size":12,"address":"sha256:..."},
                           {"name":"lib","kind":"dir","size":99,"files":3,"address":"sha256:..."},
                           {"name":"now","kind":"link","target":"a.py"}]}

A pack is a sequence of frames: 32 bytes of SHA-256, 8 bytes of length (big-endian), the bytes.

There is one way only to write a folder: what is written in another way is refused, as is what could lead out of it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from danlu.errors import InvalidRequest

ADDRESS_PATTERN: Final = r"^sha256:[0-9a-f]{64}$"
ADDRESS: Final = re.compile(ADDRESS_PATTERN)
MAX_NODE_BYTES: Final = 16 * 2**20
MAX_ENTRIES: Final = 100_000
MAX_DEPTH: Final = 64
MAX_NAME_BYTES: Final = 255
MAX_PATH_BYTES: Final = 3000
"""Of a path in a tree: with the folder that it is copied to it must stay below the 4096 that Linux opens."""
MODES: Final = (0o644, 0o755)
FRAME_HEAD_BYTES: Final = 40
MAX_FRAMES: Final = 100_000
MAX_TARGET_BYTES: Final = 4096
MAX_TREE_ENTRIES: Final = 1_000_000
_DRIVE: Final = re.compile(r"[A-Za-z]:")


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
    if not isinstance(text, str) or not ADDRESS.fullmatch(text):
        raise InvalidRequest(f"{str(text)[:80]!r} is not an address: sha256: and 64 hex digits")
    return text


def link_stays_inside(depth: int, target: str) -> bool:
    """Says whether a link ``depth`` folders below the root, with this target, ends inside the tree.

    ``..`` may only stand at the beginning. After a name it would climb from wherever a second link leads, and so could
    leave the tree although the text of the target does not.
    """
    if not target or target.startswith("/") or "\0" in target or "\\" in target or _DRIVE.match(target):
        return False
    ups = climb(target)
    parts = [part for part in target.split("/") if part not in ("", ".")]
    return ups <= depth and ".." not in parts[ups:]


def climb(target: str) -> int:
    """Returns how many folders up a link with this target begins."""
    parts = [part for part in target.split("/") if part not in ("", ".")]
    return next((at for at, part in enumerate(parts) if part != ".."), len(parts))


def encode(entries: Iterable[Entry]) -> bytes:
    """Returns a node's bytes; equal folders give equal bytes.

    Raises:
        InvalidRequest: they are more than a node holds.
    """
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
    data = json.dumps({"format": 1, "entries": listed}, separators=(",", ":"), ensure_ascii=False).encode()
    if len(listed) > MAX_ENTRIES or len(data) > MAX_NODE_BYTES:
        raise InvalidRequest(
            f"a folder holds at most {MAX_ENTRIES} names in {MAX_NODE_BYTES} bytes; this one has {len(listed)} in {len(data)}"
        )
    return data


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
        node = json.loads(data.decode())
        if (
            not isinstance(node["entries"], list)
            or node["format"] != 1
            or set(node) != {"format", "entries"}
            or len(node["entries"]) > MAX_ENTRIES
        ):
            raise ValueError("it is not of format 1")
        entries = tuple(_entry(raw) for raw in node["entries"])
        if len({entry.name for entry in entries}) != len(entries):
            raise ValueError("a name is there twice")
        if encode(entries) != data:
            raise ValueError("it is not in canonical form")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, UnicodeError) as error:
        raise InvalidRequest(f"this is not a tree node: {type(error).__name__}: {str(error)[:200]!a}") from error
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
    if kind == "link":
        target = raw["target"]
        if not isinstance(target, str) or len(target.encode()) > MAX_TARGET_BYTES:
            raise ValueError(f"a link's target is a text of at most {MAX_TARGET_BYTES} bytes")
        if not link_stays_inside(MAX_DEPTH, target):
            raise ValueError(f"the link {raw['name']!r} to {target[:80]!r} leaves its tree")
    elif not isinstance(raw["address"], str) or not ADDRESS.fullmatch(raw["address"]):
        raise ValueError(f"address is {raw['address']!r}")
    return Entry(**raw)


def require_name(name: object) -> None:
    """Raises ValueError unless ``name`` can be one name in a folder."""
    if (
        not isinstance(name, str)
        or name in ("", ".", "..")
        or "/" in name
        or "\0" in name
        or len(name.encode()) > MAX_NAME_BYTES
    ):
        raise ValueError(f"{str(name)[:80]!r} cannot be a file's name")


def frames(blobs: Iterable[bytes]) -> Iterator[bytes]:
    """Yields a pack's bytes, a frame at a time."""
    for blob in blobs:
        yield hashlib.sha256(blob).digest() + len(blob).to_bytes(8, "big") + blob


def unpack(
    pack: bytes | Iterable[bytes], *, max_blob_bytes: int = MAX_NODE_BYTES, max_blobs: int = MAX_FRAMES
) -> Iterator[tuple[str, bytes]]:
    """Yields (address, bytes) of a pack, each checked, as soon as it is complete.

    The pack may come in chunks, cut anywhere; at most one blob and one chunk are held.

    Raises:
        InvalidRequest: a frame is cut short or too large, there are too many, or bytes are not what their hash says.
    """
    held, begin, found = bytearray(), 0, 0
    for chunk in (pack,) if isinstance(pack, bytes) else pack:
        held += chunk
        at = 0
        while len(held) - at >= FRAME_HEAD_BYTES:
            size = int.from_bytes(held[at + 32 : at + FRAME_HEAD_BYTES], "big")
            if size > max_blob_bytes or found >= max_blobs:
                raise InvalidRequest(
                    f"a pack carries at most {max_blobs} blobs of {max_blob_bytes} bytes; number {found + 1} has {size}"
                )
            end = at + FRAME_HEAD_BYTES + size
            if len(held) < end:
                break
            digest, blob = bytes(held[at : at + 32]), bytes(memoryview(held)[at + FRAME_HEAD_BYTES : end])
            if hashlib.sha256(blob).digest() != digest:
                raise InvalidRequest(f"the pack's bytes at {begin + at} are not those that its hash promises")
            yield "sha256:" + digest.hex(), blob
            found += 1
            at = end
        del held[:at]
        begin += at
    if held:
        raise InvalidRequest(f"the pack is cut short at byte {begin} of {begin + len(held)}")


def walk(
    root: str, read: Callable[[str], bytes], *, max_entries: int = MAX_TREE_ENTRIES
) -> Iterator[tuple[tuple[str, ...], tuple[Entry, ...]]]:
    """Yields (path, entries) of each folder of a tree, a folder before those in it.

    Bounded however the tree was made: a few nodes that name each other twice would describe 2**64 folders.

    Args:
        root: the address of the topmost folder, whose path is ().
        read: returns a node's bytes, which it must have checked against the address.
        max_entries: of all folders together.

    Raises:
        InvalidRequest: a node is wrong or claims other totals than it has, a link leaves the tree, it is too deep or large.
    """
    seen = 0
    waiting: list[tuple[tuple[str, ...], str, Entry | None]] = [((), require_address(root), None)]
    while waiting:
        path, address, claim = waiting.pop()
        entries = decode(read(address))
        seen += len(entries)
        if seen > max_entries or len(path) > MAX_DEPTH:
            raise InvalidRequest(f"tree {root} has more than {max_entries} entries or {MAX_DEPTH} levels")
        if claim is not None and (claim.size, claim.files) != totals(entries):
            raise InvalidRequest(f"tree {root}: {'/'.join(path)!a} has other totals than the folder above it says")
        for entry in entries:
            if entry.kind == "link" and not link_stays_inside(len(path), entry.target):
                name = "/".join((*path, entry.name))
                raise InvalidRequest(f"tree {root}: the link {name!a} leaves it: {entry.target!a}")
            if sum(len(part.encode()) + 1 for part in (*path, entry.name)) > MAX_PATH_BYTES:
                raise InvalidRequest(f"tree {root}: a path in it has more than {MAX_PATH_BYTES} bytes")
        yield path, entries
        waiting.extend(((*path, e.name), e.address, e) for e in reversed(entries) if e.kind == "dir")


def totals(entries: Iterable[Entry]) -> tuple[int, int]:
    """Returns (bytes, files) of a folder and all below it."""
    size = files = 0
    for entry in entries:
        size += entry.size
        files += entry.files if entry.kind == "dir" else entry.kind == "file"
    return size, files
