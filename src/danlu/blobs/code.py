"""A project's code on this machine: private copies of a tree, or trees of hard links into files that are kept once.

A tree of links is for readers only: whoever writes into one file of it writes into all. It stands where no job can reach it,
and jobs see it through a layer that takes what they write (see executors/local/layers.py).
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from pathlib import Path
from typing import BinaryIO, Final

from danlu.blobs.base import Blobs
from danlu.blobs.folders import Reader, checkout, copy_file
from danlu.domain.trees import Entry, decode, totals
from danlu.errors import DataDamaged

NO_LINK: Final = (errno.EMLINK, errno.ENOENT)
"""It has as many names as a file can have; it is not there yet."""


class _Project:
    """One project's blobs, as a Reader."""

    def __init__(self, blobs: Blobs, project: str) -> None:
        self._blobs, self._project = blobs, project

    def open(self, address: str) -> BinaryIO:
        return self._blobs.open(self._project, address)


class Code:
    """Lays trees of code out as folders. See CodeSource in executors/local/layers.py."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    def size(self, project: str, tree: str) -> tuple[int, int]:
        """Returns a tree's (bytes, files).

        Raises:
            NotFound, InvalidRequest, DataDamaged: it is none, or not there.
        """
        return totals(decode(self._blobs.read(project, tree)))

    def copy(self, project: str, tree: str, folder: Path) -> None:
        """Writes a private copy of a tree into an empty folder."""
        checkout(_Project(self._blobs, project), tree, folder)

    def link(self, project: str, tree: str, folder: Path, files: Path, uid: int | None) -> None:
        """Makes a tree of hard links to the files kept in ``files``, where missing ones are stored first.

        Args:
            project: whose tree.
            tree: its address.
            folder: becomes the tree; on the same file system as ``files``.
            files: the project's kept files.
            uid: who all of it shall belong to; left as it is for None.
        """
        checkout(_Project(self._blobs, project), tree, folder, place=_Kept(files, uid).place)
        if uid is not None:
            for base, _, _ in os.walk(
                folder
            ):  # the files are their user's already, and whose a link is does not matter
                os.chown(base, uid, uid)


class _Kept:
    """Files by content and mode, in a folder of this machine."""

    def __init__(self, folder: Path, uid: int | None) -> None:
        self._folder, self._uid = folder, uid

    def place(self, reader: Reader, entry: Entry, path: str) -> int:
        """See Place in blobs/folders.py."""
        digest = entry.address.partition(":")[2]
        kept = f"{self._folder}/{digest[:2]}/{digest[2:]}{'.x' if entry.mode & 0o100 else ''}"
        try:
            os.link(kept, path)
        except OSError as error:
            if error.errno not in NO_LINK:
                raise
            self._keep(reader, entry, Path(kept))
            os.link(kept, path)
        if os.lstat(path).st_size != entry.size:
            os.unlink(path)  # noqa: PTH108
            raise DataDamaged(f"blob {entry.address} of {entry.name} has another size than its tree says")
        return entry.size

    def _keep(self, reader: Reader, entry: Entry, kept: Path) -> None:
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        unfinished = kept.with_name(f".{secrets.token_hex(8)}")
        try:
            copy_file(reader, entry, str(unfinished))
            if self._uid is not None:
                os.chown(unfinished, self._uid, self._uid)
            unfinished.replace(kept)
        finally:
            with contextlib.suppress(FileNotFoundError):
                unfinished.unlink()
