"""One copy of a large file for all environments that have it: hard links, where nobody but root can write through them.

``.shared/KEY`` holds a link to each large file of an environment, named by its size, mode and a digest of its ends. A new
environment's file that is the same, byte by byte, becomes a link to it. Both belong to root, and every job to another user,
so a job can neither write into them nor change their mode. A file that only ``.shared`` and uv's cache link to is garbage.

Only where the server is root. Elsewhere a job is the server's own user, could write through a link, and so gets copies (which
share their blocks on file systems with copy on write).
"""

from __future__ import annotations

import contextlib
import filecmp
import hashlib
import os
import stat
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

SHARED: Final = ".shared"
SMALLEST_BYTES: Final = 64 * 1024
"""Smaller files are most of the files and little of the bytes."""
_END_BYTES: Final = 16 * 1024
_LINK: Final = ".danlu-link"


def may_share() -> bool:
    """Whether jobs run as other users than the one who owns environments."""
    return os.geteuid() == 0


def share(folder: Path, root: Path) -> int:
    """Replaces large files below ``folder``, which belongs to root alone, by links to the same files elsewhere.

    Returns the bytes that are no longer there twice. Killed at any line, it leaves whole files and whole links.
    """
    store = root / SHARED
    store.mkdir(mode=0o700, exist_ok=True)
    saved = 0
    for at, _, files in os.walk(folder):
        for name in files:
            path = Path(at, name)
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and status.st_size >= SMALLEST_BYTES:
                saved += _share_one(path, status, store)
    return saved


def _share_one(path: Path, status: os.stat_result, store: Path) -> int:
    kept = store / _key(path, status)
    try:
        os.link(path, kept)
    except FileExistsError:
        pass
    except OSError:
        return 0  # this file system has no links, or no more of them for this file: it stays a file of its own
    else:
        return 0
    other = kept.lstat()
    same = (status.st_mode, status.st_uid, status.st_size) == (other.st_mode, other.st_uid, other.st_size)
    if status.st_ino == other.st_ino or not same or not filecmp.cmp(path, kept, shallow=False):
        return 0
    new = path.with_name(f"{_LINK}-{path.name[:200]}")
    with contextlib.suppress(OSError):
        os.link(kept, new)
        new.replace(path)
        return status.st_size
    return 0


def _key(path: Path, status: os.stat_result) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(_END_BYTES))
        file.seek(-min(_END_BYTES, status.st_size), os.SEEK_END)
        digest.update(file.read())
    return f"{status.st_size:x}-{stat.S_IMODE(status.st_mode):o}-{digest.hexdigest()}"


def drop_unused(root: Path, caches: Sequence[Path]) -> int:
    """Removes files that no environment links to any more; returns their bytes.

    Args:
        root: the folder of environments.
        caches: uv's; a link from there is none of an environment.
    """
    freed, cached = 0, _links(caches)
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(root / SHARED):
            status = entry.stat(follow_symlinks=False)
            if status.st_nlink <= 1 + cached[status.st_ino]:
                Path(entry.path).unlink()
                freed += status.st_size
    return freed


def _links(caches: Sequence[Path]) -> Counter[int]:
    """Returns how often each large file that has several names is named in the caches."""
    found: Counter[int] = Counter()
    for cache in caches:
        for at, _, files in os.walk(cache):
            for name in files:
                with contextlib.suppress(FileNotFoundError):  # uv is at work there
                    status = os.lstat(os.path.join(at, name))  # noqa: PTH118 - tens of thousands of files
                    found[status.st_ino] += status.st_nlink > 1 and status.st_size >= SMALLEST_BYTES
    return found
