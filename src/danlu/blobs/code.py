"""A project's code on this machine: private copies of a tree, or trees of hard links into files that are kept once.

A tree of links is for readers only: whoever writes into one file of it writes into all. It stands where no job can reach it,
and jobs see it through a layer that takes what they write (see executors/local/layers.py).
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from pathlib import Path
from typing import BinaryIO, Final

from danlu.blobs.base import Blobs
from danlu.blobs.folders import Reader, checkout, copy_file
from danlu.domain.trees import Entry, decode, totals
from danlu.errors import DataDamaged, NotFound

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

    def names(self, project: str, tree: str) -> frozenset[str]:
        """Returns the names in a tree's topmost folder."""
        return frozenset(entry.name for entry in decode(self._blobs.read(project, tree)))

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

    def change(self, project: str, old: str, new: str, folder: Path, files: Path, uid: int | None) -> None:
        """Makes a tree of links that ``link`` made for ``old`` one for ``new``: only what differs is touched.

        Raises:
            DanluError: it cannot be done; the folder is neither then.
        """
        if self._blobs.absent(project, new, most=1):
            raise NotFound(f"tree {new} is not complete")
        _Change(_Project(self._blobs, project), _Kept(files, uid)).folder(str(folder), old, new)


class _Change:
    """Turns folders of links into others. What is removed is never followed; what is made, under a name that is free."""

    def __init__(self, reader: _Project, kept: _Kept) -> None:
        self._reader, self._kept = reader, kept

    def folder(self, path: str, old: str | None, new: str) -> None:
        """Makes a folder, which is empty where ``old`` is None, the one that ``new`` describes."""
        before = {} if old is None else {entry.name: entry for entry in self._entries(old)}
        after = {entry.name: entry for entry in self._entries(new)}
        for name, entry in before.items():
            stays = after.get(name)
            if stays != entry and not (stays is not None and stays.kind == entry.kind == "dir"):
                _remove(f"{path}/{name}")
        for name, entry in after.items():
            there = before.get(name)
            if there != entry:
                self._make(f"{path}/{name}", entry, there)

    def _make(self, path: str, entry: Entry, there: Entry | None) -> None:
        if entry.kind == "link":
            Path(path).symlink_to(entry.target)
        elif entry.kind == "file":
            self._kept.place(self._reader, entry, path)
        elif there is not None and there.kind == "dir":
            self.folder(path, there.address, entry.address)
        else:
            os.mkdir(path, 0o755)  # noqa: PTH102
            self._kept.own(path)
            self.folder(path, None, entry.address)

    def _entries(self, address: str) -> tuple[Entry, ...]:
        with self._reader.open(address) as file:
            return decode(file.read())


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):  # noqa: PTH112, PTH114
        shutil.rmtree(path)
    else:
        os.unlink(path)  # noqa: PTH108


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
            self._keep(reader, entry, Path(kept), path)
        if os.lstat(path).st_size != entry.size:
            os.unlink(path)  # noqa: PTH108
            raise DataDamaged(f"blob {entry.address} of {entry.name} has another size than its tree says")
        return entry.size

    def own(self, path: str | Path) -> None:
        """Gives something to the user whose the files are."""
        if self._uid is not None:
            os.chown(path, self._uid, self._uid)

    def _keep(self, reader: Reader, entry: Entry, kept: Path, path: str) -> None:
        """Stores a file, and links it: before it has its name, as what no tree names may be removed at any time."""
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        unfinished = kept.with_name(f".{secrets.token_hex(8)}")
        try:
            copy_file(reader, entry, str(unfinished))
            self.own(unfinished)
            os.link(unfinished, path)
            unfinished.replace(kept)
        finally:
            with contextlib.suppress(FileNotFoundError):
                unfinished.unlink()
