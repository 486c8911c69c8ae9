"""Brings what a job left onto this machine."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final, cast

from danlu.api.bodies import Paging
from danlu.blobs.folders import checkout
from danlu.client.transport import Client
from danlu.domain.artifacts import Artifact
from danlu.errors import DanluError, InvalidSpec

IN_MEMORY_BYTES: Final = 8 * 2**20


class RemoteBlobs:
    """Blobs of the platform, by address."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def open(self, address: str) -> BinaryIO:
        """Opens a copy of a blob; the caller closes it. Large ones lie in a file without a name."""
        copy = cast(BinaryIO, tempfile.SpooledTemporaryFile(max_size=IN_MEMORY_BYTES))  # noqa: SIM115 - the caller's
        try:
            self._client.download(address, copy)
            copy.seek(0)
        except BaseException:
            copy.close()
            raise
        return copy


def fetch(
    client: Client, artifact: Artifact, destination: Path, *, progress: Callable[[int, int], None] | None = None
) -> tuple[int, int]:
    """Writes an artifact's files into a folder that is empty or absent; returns (files, bytes).

    The folder is there with all of them or not at all.

    Raises:
        InvalidSpec: the folder is not empty, or cannot be written.
    """
    try:
        if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
            raise InvalidSpec(f"{destination} is there already", next_step="name another folder: --to DIR")
        destination.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
        try:
            counts = checkout(RemoteBlobs(client), artifact.tree, unfinished / "tree", progress=progress)
            with contextlib.suppress(FileNotFoundError):
                destination.rmdir()
            (unfinished / "tree").rename(destination)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise InvalidSpec(f"{destination} cannot be written: {error.strerror or error}") from error
    except DanluError as error:
        error.next_step = error.next_step or "nothing was kept of it: repeat"
        raise
    return counts


def left_by(client: Client, job: str) -> list[Artifact]:
    """Returns all that a job left, newest first."""
    found: list[Artifact] = []
    query = Paging(limit=500)
    while True:
        page = client.call("jobs.artifacts", {"job": job}, query=query)
        found += page.items
        if page.next_cursor is None:
            return found
        query = Paging(limit=500, cursor=page.next_cursor)
