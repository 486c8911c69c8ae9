"""Reading files in a folder that the job's user owns, without ever being led out of it.

The job may replace anything there by a link to a file that only the server may read. Every part of a path is opened relative
to the one before, links are refused, and what is opened must be a regular file that belongs to the job's user.
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from danlu.errors import DataDamaged

MAX_DEPTH = 64
MAX_NAMES = 1_000_000
BLOCK_BYTES = 512
"""Of what ``stat`` counts as a block, whatever the file system's own."""
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_folder(root: Path, *parts: str) -> int:
    """Opens a folder below ``root``; the caller closes the descriptor. Raises OSError where there is none."""
    descriptor = os.open(root, FOLDER)
    for part in parts:
        if "/" in part or part == "..":
            os.close(descriptor)
            raise DataDamaged(f"{part!r} names no folder in {root}")
        try:
            inner = os.open(part, FOLDER, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        descriptor = inner
    return descriptor


def read(root: Path, *parts: str, max_bytes: int, offset: int = 0, ours: bool = False) -> bytes:
    """Returns up to ``max_bytes`` of a file below ``root``.

    Args:
        root: the attempt's folder.
        *parts: the path below it.
        max_bytes: no more is read.
        offset: where to begin.
        ours: only the server may have written it; the folder's owner may not.

    Raises:
        FileNotFoundError: it is not there.
        DataDamaged: it is no regular file of the folder's owner, or not the server's.
    """
    folder = open_folder(root, *parts[:-1])
    try:
        owners = {os.geteuid()} if ours else {os.geteuid(), os.fstat(folder).st_uid}
        descriptor = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_uid not in owners or status.st_nlink != 1:
                raise DataDamaged(f"{root / Path(*parts)} is no file of this attempt any more")
            return os.pread(descriptor, max_bytes, offset)
        finally:
            os.close(descriptor)
    finally:
        os.close(folder)


def names(root: Path, *parts: str) -> list[str]:
    """Returns the names in a folder below ``root``; none where there is no such folder."""
    try:
        descriptor = open_folder(root, *parts)
    except FileNotFoundError:
        return []
    try:
        return os.listdir(descriptor)  # noqa: PTH208 - a descriptor has no path
    finally:
        os.close(descriptor)


def remove(root: Path, *parts: str) -> None:
    """Removes a file below ``root``. Absent is success."""
    try:
        descriptor = open_folder(root, *parts[:-1])
    except FileNotFoundError:
        return
    try:
        os.unlink(parts[-1], dir_fd=descriptor)
    except FileNotFoundError:
        return
    finally:
        os.close(descriptor)


def size(root: Path, *parts: str) -> int:
    """Returns how many bytes the files take in a folder below ``root`` and the folders in it: each once, without its holes.

    What lies deeper than ``MAX_DEPTH`` or comes after ``MAX_NAMES`` does not count: whoever looks must not be kept busy. Nor
    does what its owner has closed to the server.
    """
    counted: set[int] = set()
    left = MAX_NAMES

    def of(descriptor: int, depth: int) -> int:
        nonlocal left
        total = 0
        try:
            with os.scandir(descriptor) as entries:  # one by one: of a list nobody knows how long it becomes
                for entry in entries:
                    left -= 1
                    if left < 0:
                        break
                    with contextlib.suppress(OSError):  # it is being removed, or became something else
                        status = entry.stat(follow_symlinks=False)
                        if stat.S_ISREG(status.st_mode) and status.st_ino not in counted:
                            if status.st_nlink > 1:
                                counted.add(status.st_ino)
                            total += min(status.st_size, status.st_blocks * BLOCK_BYTES)
                        elif stat.S_ISDIR(status.st_mode) and depth < MAX_DEPTH:
                            total += of(os.open(entry.name, FOLDER, dir_fd=descriptor), depth + 1)
        finally:
            os.close(descriptor)
        return total

    try:
        folder = open_folder(root, *parts)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return 0
    return of(folder, 1)
