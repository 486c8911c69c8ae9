"""Environments that nobody wants any more, and uv's cache past its limit, are removed: safe at any line, and beside builds.

A folder first loses its name, under the lock that a build of it would hold. From then on it is a ``.new-`` folder whose lock
is free once its remover has died, and any later build removes it.

What is linked in from elsewhere (a link in place of the folder or the cache) may serve others, and is never swept.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from danlu.environments import sharing
from danlu.environments.folder_locks import NEW, remove, try_lock, unlock
from danlu.environments.uv_command import Uv

CACHE_LIMIT_BYTES: Final = 20 * 2**30
"""What uv's cache may hold beyond what environments link to."""
CLEAN_TIMEOUT_S: Final = 600.0
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


class Doomed(NamedTuple):
    """A folder that has lost its name, and the lock that is held until it is gone."""

    folder: Path
    lock: Path
    descriptor: int


def folders(root: Path) -> frozenset[str]:
    """Returns the names of whole environments; none where the folder may serve other platforms too."""
    if root.is_symlink() or not root.is_dir():
        return frozenset()
    return frozenset(entry.name for entry in os.scandir(root) if _DIGEST.fullmatch(entry.name))


def doom(root: Path, names: Collection[str]) -> list[Doomed]:
    """Takes the names of folders away, at once; a folder that is being built or removed by another is left alone."""
    taken = []
    for name in names:
        lock = root / ".locks" / name
        descriptor = try_lock(lock)
        if descriptor is None:
            continue
        unnamed = root / f"{NEW}{name}"
        remove(unnamed)  # of a build that was killed
        try:
            (root / name).rename(unnamed)
        except FileNotFoundError:
            unlock(descriptor, lock)
        else:
            taken.append(Doomed(unnamed, lock, descriptor))
    return taken


def discard(root: Path, doomed: Collection[Doomed], caches: Sequence[Path]) -> None:
    """Removes what has lost its name, and then the files that only it had (see sharing.drop_unused)."""
    for one in doomed:
        try:
            remove(one.folder)
        finally:
            unlock(one.descriptor, one.lock)
    sharing.drop_unused(root, caches)


def cache_bytes(cache: Path) -> int:
    """Returns what a cache takes on the disk beyond what is linked from environments."""
    size = 0
    for at, _, files in os.walk(cache):
        for name in files:
            with contextlib.suppress(FileNotFoundError):  # uv is at work there
                status = os.lstat(os.path.join(at, name))  # noqa: PTH118 - tens of thousands of files
                size += status.st_blocks * 512 * (status.st_nlink == 1)
    return size


def bound_cache(cache: Path, uv: Uv, limit_bytes: int) -> bool:
    """Empties uv's cache if it holds more than ``limit_bytes``; returns whether it did. uv itself waits for its builds."""
    if cache.is_symlink() or not cache.is_dir() or cache_bytes(cache) <= limit_bytes:
        return False
    uv.answer(["cache", "prune"], timeout_s=CLEAN_TIMEOUT_S)  # what no later build could use
    if cache_bytes(cache) > limit_bytes:
        uv.answer(["cache", "clean"], timeout_s=CLEAN_TIMEOUT_S)
    return True
