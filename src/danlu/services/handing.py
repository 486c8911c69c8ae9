"""What an attempt in a pod is handed when it begins: its code, and its secrets. Only to itself."""

from __future__ import annotations

import io
from collections.abc import Generator
from typing import BinaryIO, Final

from danlu.database.engine import Transaction
from danlu.database.records import ATTEMPTS, JOBS
from danlu.domain.jobs import Job
from danlu.domain.secrets import HandedSecrets
from danlu.domain.trees import Entry, walk
from danlu.errors import DataDamaged, NotFound
from danlu.services import secrets
from danlu.services.context import Call, Platform
from danlu.services.reports import require_own

READ_BYTES: Final = 2**20
HASH_BYTES: Final = 32


def code(call: Call, attempt: str) -> BinaryIO:
    """Returns the job's code, if it has any, as a pack: see ``packed``.

    Raises:
        NotAllowed: it is another attempt's.
        NotFound: it is not there any more.
    """
    require_own(call, attempt)
    job = _job(call, attempt)
    if job.spec.code is None:
        return io.BytesIO()
    return packed(call.platform, job.project, job.spec.code)


def secrets_of(call: Call, attempt: str) -> HandedSecrets:
    """Returns the secrets that the attempt begins with.

    Raises:
        NotAllowed: it is another attempt's.
        SecretUnavailable: one was removed after the job was submitted, or cannot be opened.
    """
    require_own(call, attempt)
    platform = call.platform
    return HandedSecrets(secrets=secrets.handed(platform.database, platform.vault, _job(call, attempt)))


def packed(platform: Platform, project: str, tree: str) -> BinaryIO:
    """Returns a tree as a pack, to be read from its beginning to its end and closed.

    Every folder's description and every file is in it once, a folder before what is in it.

    Raises:
        NotFound: the project has no such tree.
    """
    absent = platform.blobs.absent(project, tree, most=1)
    if absent:
        raise NotFound(f"{absent[0]} of tree {tree} is not there", next_step="upload it again: danlu run, danlu apply")
    platform.blobs.read(project, tree)  # what was there a while ago may be gone: that can be said now, and not later
    return io.BufferedReader(_Pieces(_frames(platform, project, tree)), READ_BYTES)


def _job(call: Call, attempt: str) -> Job:
    def work(tx: Transaction) -> Job:
        return JOBS.require(tx, ATTEMPTS.require(tx, attempt).job_id)

    return call.platform.database.read(work)


def _frames(platform: Platform, project: str, tree: str) -> Generator[bytes]:
    """Yields the pack, no file whole in memory: see domain/trees.py for its format."""
    sent: set[str] = set()
    nodes: list[bytes] = []

    def read(address: str) -> bytes:
        data = platform.blobs.read(project, address)
        if address not in sent:
            sent.add(address)
            nodes.append(_head(address, len(data)) + data)
        return data

    for _, entries in walk(tree, read):
        yield from nodes
        nodes.clear()
        for entry in entries:
            if entry.kind == "file" and entry.address not in sent:
                sent.add(entry.address)
                yield _head(entry.address, entry.size)
                yield from _file(platform, project, entry)


def _file(platform: Platform, project: str, entry: Entry) -> Generator[bytes]:
    left = entry.size
    with platform.blobs.open(project, entry.address) as file:
        while piece := file.read(READ_BYTES):
            left -= len(piece)
            yield piece
    if left:
        raise DataDamaged(f"blob {entry.address} of {entry.name} has another size than its tree says")


def _head(address: str, size: int) -> bytes:
    return bytes.fromhex(address.partition(":")[2]) + size.to_bytes(8, "big")


class _Pieces(io.RawIOBase):
    """Bytes that are made as they are read."""

    def __init__(self, pieces: Generator[bytes]) -> None:
        self._pieces, self._held = pieces, memoryview(b"")

    def readable(self) -> bool:
        """See io.RawIOBase."""
        return True

    def close(self) -> None:
        """See io.RawIOBase."""
        self._pieces.close()
        super().close()

    def readinto(self, into: bytearray | memoryview) -> int:  # type: ignore[override]
        """See io.RawIOBase."""
        while not self._held:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._held = memoryview(piece)
        size = min(len(into), len(self._held))
        into[:size] = self._held[:size]
        self._held = self._held[size:]
        return size
