"""Sends a folder to the platform: only what it does not have yet."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from danlu.api import MAX_ADDRESSES, MAX_PACK_BYTES, Addresses
from danlu.blobs.folders import Cache, Scan, scan
from danlu.client.connection import cache_folder
from danlu.client.transport import Client
from danlu.domain.trees import FRAME_HEAD_BYTES, MAX_FRAMES, address_of, frames
from danlu.errors import InvalidRequest, InvalidSpec

SMALL_BYTES: Final = 2**20

Progress = Callable[[int, int], None]
"""Called with (bytes sent, bytes to send)."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A folder that the platform now has: its tree, and what had to be sent."""

    tree: str
    files: int
    size_bytes: int
    sent_files: int
    sent_bytes: int
    skipped: tuple[str, ...]


class _Changed(Exception):
    """A file is not what it was when it was read."""


def send(client: Client, root: Path, *, cache: Path | None = None, progress: Progress | None = None) -> Sent:
    """Packs a folder (``.gitignore`` and ``.danluignore`` are honoured) and sends what is missing.

    Args:
        client: of the platform and project.
        root: the folder.
        cache: the folder that remembers addresses of unchanged files; this user's when left out.
        progress: see Progress.

    Raises:
        InvalidSpec: the folder or something in it cannot be read, or it changes while it is sent.
    """
    root = root.expanduser().absolute()
    if not root.is_dir():
        raise InvalidSpec(f"{root} is not a folder", next_step="name the folder of your code: --code DIR, or --no-code")
    name = hashlib.sha256(str(root).encode(errors="surrogateescape")).hexdigest()[:32]
    cache_file = (cache or cache_folder() / "code") / name
    for last in (False, True):
        try:
            found = scan(root, code=True, now=time.time_ns(), cache=None if last else Cache(cache_file))
            return _send(client, found, progress)
        except _Changed as changed:
            cache_file.unlink(missing_ok=True)
            if last:
                raise InvalidSpec(
                    f"{changed} changes while it is sent",
                    next_step="wait until it is written, or leave it out: .danluignore",
                ) from changed
    raise AssertionError


def _send(client: Client, found: Scan, progress: Progress | None) -> Sent:
    absent = set[str]()
    addresses = [*found.nodes, *found.files]
    for at in range(0, len(addresses), MAX_ADDRESSES):
        asked = Addresses(addresses=tuple(addresses[at : at + MAX_ADDRESSES]))
        absent.update(client.call("blobs.missing", body=asked).addresses)
    files = {address: found.files[address] for address in found.files if address in absent}
    total = sum(size for _, size in files.values()) + sum(len(found.nodes[a]) for a in absent if a in found.nodes)
    done = 0

    def moved(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(min(done, total), total)

    for pack in _packs(_small(found, absent)):
        try:
            client.call("blobs.pack", body=pack)
        except InvalidRequest as error:
            raise _Changed("a file") from error
        moved(len(pack))
    for address, (path, size) in files.items():
        if size >= SMALL_BYTES:
            _send_large(client, address, path, size, moved)
    for address in absent:
        if len(node := found.nodes.get(address, b"")) >= SMALL_BYTES:
            client.upload(address, io.BytesIO(node), len(node), moved)
    return Sent(found.root, found.count, found.size_bytes, len(files), total, tuple(found.skipped))


def _small(found: Scan, absent: set[str]) -> Iterator[bytes]:
    for address, (path, size) in found.files.items():
        if address in absent and size < SMALL_BYTES:
            data = _read(path, SMALL_BYTES)
            if address_of(data) != address:
                raise _Changed(path)
            yield data
    for address, node in found.nodes.items():
        if address in absent and len(node) < SMALL_BYTES:
            yield node


def _packs(blobs: Iterator[bytes]) -> Iterator[bytes]:
    pack, count = bytearray(), 0
    for frame in frames(blobs):
        if pack and (len(pack) + len(frame) > MAX_PACK_BYTES or count >= MAX_FRAMES):
            yield bytes(pack)
            pack, count = bytearray(), 0
        pack += frame
        count += 1
    if pack:
        yield bytes(pack)


def _read(path: str, most_bytes: int) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(most_bytes + FRAME_HEAD_BYTES)
    except OSError as error:
        raise _Changed(path) from error


def _send_large(client: Client, address: str, path: str, size: int, moved: Callable[[int], None]) -> None:
    try:
        file = Path(path).open("rb")
    except OSError as error:
        raise _Changed(path) from error
    with file:
        try:
            client.upload(address, file, size, moved)
        except InvalidRequest as error:  # the bytes were not what the address says
            raise _Changed(path) from error
