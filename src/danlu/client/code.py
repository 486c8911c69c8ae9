"""Sends a folder to the platform: only what it does not have yet. What was broken off goes on where it was."""

from __future__ import annotations

import contextlib
import hashlib
import io
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from danlu.api import MAX_PACK_BYTES, MAX_SPLICED_BYTES
from danlu.api.bodies import MAX_SPLICES, Splices
from danlu.blobs.folders import Cache, Scan, scan
from danlu.client.connection import cache_folder
from danlu.client.git import Looking
from danlu.client.missing import Missing, Tree, asking, missing, remember, remembered
from danlu.client.requests import Deflated
from danlu.client.transport import Client
from danlu.domain.git import GitState
from danlu.domain.splices import Splice, splice_of
from danlu.domain.trees import FRAME_HEAD_BYTES, MAX_FRAMES, address_of, frames
from danlu.errors import InvalidRequest, InvalidSpec, NotFound, TooLarge

SMALL_BYTES: Final = 4 * 2**20
"""What is larger travels alone, in pieces."""
SPLICED_BYTES: Final = 4096
"""A node that is shorter is not worth a splice."""
DEFLATED_BYTES: Final = 2**20
"""A larger pack is sent as it is: compressing it takes longer than a quick network needs for it."""
MAX_MIDDLES_BYTES: Final = 2**20
PATIENCE_S: Final = 60.0
"""How long an upload waits for a platform that is away, before it gives up; what it sent is not lost then either."""

Progress = Callable[[int, int], None]
"""Called with (bytes sent, bytes to send)."""
Read = Callable[[int, int], None]
"""Called with (files, bytes) read so far."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A folder that the platform now has: its tree, and what had to be sent.

    Attributes:
        tree: its address.
        files: in it.
        size_bytes: of all of them.
        sent_files: that the platform did not have.
        sent_bytes: of all requests' bodies: files, folders, and the questions what is missing.
        skipped: what was left out, and why.
        git: the state of its repository, if it is in one.
    """

    tree: str
    files: int
    size_bytes: int
    sent_files: int
    sent_bytes: int
    skipped: tuple[str, ...]
    git: GitState | None = None

    def fields(self) -> dict[str, Any]:
        """Returns the fields of JobSpec that say what was sent and where it came from, as JSON has them."""
        return {"code": self.tree, "git": None if self.git is None else self.git.model_dump(mode="json")}


class _Changed(Exception):
    """A file is not what it was when it was read."""


def send(
    client: Client,
    root: Path,
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
    read: Read | None = None,
) -> Sent:
    """Packs a folder (``.gitignore`` and ``.danluignore`` are honoured) and sends what is missing.

    Args:
        client: of the platform and project.
        root: the folder.
        cache: the folder that remembers addresses of unchanged files; this user's when left out.
        progress: see Progress.
        read: see Read.

    Raises:
        InvalidSpec: the folder or something in it cannot be read, or it changes while it is sent.
        Unavailable: the platform went away and did not come back. Sent again, only what is left is sent.
    """
    root = root.expanduser().absolute()
    if not root.is_dir():
        raise InvalidSpec(f"{root} is not a folder", next_step="name the folder of your code: --code DIR, or --no-code")
    name = hashlib.sha256(str(root).encode(errors="surrogateescape")).hexdigest()[:32]
    cache_file = (cache or cache_folder() / "code") / name
    with contextlib.closing(Looking(root)) as git:
        for last in (False, True):
            try:
                known = None if last else Cache(cache_file)
                found = scan(root, code=True, now=time.time_ns(), cache=known, progress=read)
                return _Sending(client, found, progress).run(cache_file.with_suffix(".tree"), git)
            except _Changed as changed:
                cache_file.unlink(missing_ok=True)
                if last:
                    raise InvalidSpec(
                        f"{changed} changes while it is sent",
                        next_step="wait until it is written, or leave it out: .danluignore",
                    ) from changed
    raise AssertionError


class _Sending:
    """One folder on its way."""

    def __init__(self, client: Client, found: Scan, progress: Progress | None) -> None:
        self._client, self._found, self._progress = client, found, progress
        self._done = self._total = 0

    def run(self, tree_file: Path, git: Looking) -> Sent:
        found, before = self._found, self._client.sent_bytes
        new, last, ask = Tree(found.root, found.nodes), remembered(tree_file), asking(self._client)
        lacks = missing(new, last, ask)
        state, diff = git.result(new.has)
        with self._client.waiting(PATIENCE_S):
            files = {address: found.files[address] for address in found.files if address in lacks.addresses}
            splices = _splices(found, lacks)
            whole = {a: n for a, n in found.nodes.items() if a in lacks.addresses and a not in splices}
            more = [] if diff is None or not ask((address_of(diff),), ()) else [diff]
            self._total = sum(size for _, size in files.values()) + sum(len(one.middle) for one in splices.values())
            self._total += sum(map(len, (*whole.values(), *more)))
            self._send(files, whole, more)
            self._splice(splices)
        if last is None or last.root != new.root:
            remember(tree_file, new)
        sent = self._client.sent_bytes - before
        return Sent(found.root, found.count, found.size_bytes, len(files), sent, tuple(found.skipped), state)

    def _send(self, files: dict[str, tuple[str, int]], nodes: dict[str, bytes], extra: Iterable[bytes]) -> None:
        """Sends files first, then the folders that name them, from below."""
        small = {address: file for address, file in files.items() if file[1] <= SMALL_BYTES}
        for address, (path, size) in files.items():
            if address not in small:
                self._send_large(address, path, size)
        for address, node in nodes.items():
            if len(node) > SMALL_BYTES:
                self._client.upload(address, io.BytesIO(node), len(node), self._moved)
        short = [node for node in nodes.values() if len(node) <= SMALL_BYTES]
        for pack in _packs(_blobs(small, [*extra, *short])):
            try:
                self._client.call("blobs.pack", body=_deflated(pack))
            except InvalidRequest as error:
                raise _Changed("a file") from error
            self._moved(len(pack))

    def _splice(self, splices: dict[str, Splice]) -> None:
        for some in _batches(splices.values()):
            try:
                self._client.call("blobs.splice", body=Splices(splices=tuple(some)))
            except (NotFound, TooLarge):  # what they are made of is lost meanwhile, or much larger
                for pack in _packs(self._found.nodes[one.address] for one in some):
                    self._client.call("blobs.pack", body=pack)
            self._moved(sum(len(one.middle) for one in some))

    def _send_large(self, address: str, path: str, size: int) -> None:
        try:
            with Path(path).open("rb") as file:
                self._client.upload(address, file, size, self._moved)
        except (OSError, InvalidRequest) as error:  # it is gone, or its bytes are not what the address says
            raise _Changed(path) from error

    def _moved(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(min(self._done, self._total), self._total)


def _splices(found: Scan, lacks: Missing) -> dict[str, Splice]:
    """Returns those nodes, by address, that travel as what changed in them."""
    made = {}
    for address, base in lacks.bases.items():
        node = found.nodes[address]
        if len(node) >= SPLICED_BYTES:
            splice = splice_of(base, node)
            if len(splice.middle) <= min(len(node) // 2, MAX_MIDDLES_BYTES):
                made[address] = splice
    return made


def _batches(splices: Iterable[Splice]) -> Iterator[list[Splice]]:
    batch, size, whole = list[Splice](), 0, 0
    for one in splices:
        both = 2 * (one.head_bytes + one.tail_bytes) + len(one.middle)  # of the base, too, at least
        if batch and (
            len(batch) >= MAX_SPLICES or size + len(one.middle) > MAX_MIDDLES_BYTES or whole + both > MAX_SPLICED_BYTES
        ):
            yield batch
            batch, size, whole = [], 0, 0
        batch.append(one)
        size, whole = size + len(one.middle), whole + both
    if batch:
        yield batch


def _blobs(files: dict[str, tuple[str, int]], others: Iterable[bytes]) -> Iterator[bytes]:
    for address, (path, _) in files.items():
        data = _read(path, SMALL_BYTES)
        if address_of(data) != address:
            raise _Changed(path)
        yield data
    yield from others


def _packs(blobs: Iterable[bytes]) -> Iterator[bytes]:
    pack, count = bytearray(), 0
    for frame in frames(blobs):
        if pack and (len(pack) + len(frame) > MAX_PACK_BYTES or count >= MAX_FRAMES):
            yield bytes(pack)
            pack, count = bytearray(), 0
        pack += frame
        count += 1
    if pack:
        yield bytes(pack)


def _deflated(pack: bytes) -> bytes:
    """Returns a small pack compressed, if that helps: what changes from one submit to the next is mostly text."""
    if len(pack) > DEFLATED_BYTES:
        return pack
    short = zlib.compress(pack)
    return Deflated(short) if len(short) < 0.9 * len(pack) else pack


def _read(path: str, most_bytes: int) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(most_bytes + FRAME_HEAD_BYTES)
    except OSError as error:
        raise _Changed(path) from error
