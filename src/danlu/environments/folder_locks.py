"""The lock of one folder of environments, held while it is built or removed, and how such a folder is cleared away."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from pathlib import Path
from typing import Final

NEW: Final = ".new-"
"""Begins the name of a folder that is not whole; its lock is named as the rest."""


def try_lock(path: Path) -> int | None:
    """Returns a descriptor that holds the lock, or None where another has it. The file is removed when it is let go."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_nlink:
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        os.close(descriptor)  # it was removed between open and lock


def unlock(descriptor: int, path: Path) -> None:
    """Lets a lock go."""
    path.unlink(missing_ok=True)
    os.close(descriptor)


def remove(folder: Path) -> None:
    """Removes a folder, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)
