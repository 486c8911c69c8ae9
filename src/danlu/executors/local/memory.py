"""Folders in memory, one for each attempt that has secrets: files there never reach a disk of ours."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from danlu.domain.secrets import HandedSecret
from danlu.errors import ExecutorUnavailable, LaunchRejected
from danlu.executors.base import LaunchOrder
from danlu.executors.local import folders

IN_MEMORY: Final = frozenset({"tmpfs", "ramfs"})
SHARED: Final = Path("/dev/shm")  # noqa: S108 - a folder of ours in it, which nobody else can have made
MOUNTS: Final = Path("/proc/self/mounts")


class Given(NamedTuple):
    """What a runner is handed: secrets, and the folder for those that are files, if there are any."""

    secrets: Sequence[HandedSecret] = ()
    folder: Path | None = None


def to_redact(values: Iterable[str]) -> Given:
    """Returns values as what a runner is handed that starts nothing, and only keeps what another one has left."""
    return Given([HandedSecret(variable="_", value=value) for value in values])


class Memory:
    """Makes and removes them, below the first of some places that is in memory.

    Args:
        places: each may be missing, but not the folder that it is in.
    """

    def __init__(self, places: Iterable[Path]) -> None:
        self.base = next((place for place in places if file_system(place) in IN_MEMORY), None)

    def start(self, attempts: Collection[str]) -> None:
        """Removes what was left of others than these attempts."""
        if self.base is not None and self.base.is_dir() and self.base.lstat().st_uid == os.geteuid():
            for folder in self.base.iterdir():
                if folder.name not in attempts:
                    folders.remove(folder)

    def close(self) -> None:
        """Removes what the folders are in, unless an attempt goes on that has one."""
        if self.base is not None:
            with contextlib.suppress(OSError):
                self.base.rmdir()

    def folder(self, order: LaunchOrder) -> Path | None:
        """Returns where an attempt's folder is; None where it needs none.

        Raises:
            LaunchRejected: it needs one, and this machine has no place for it.
        """
        if not any(secret.file for secret in order.secrets) and not (order.secrets and order.image is not None):
            return None
        if self.base is None:
            raise LaunchRejected(
                f"its secrets need a file in memory, and neither {SHARED} nor the platform's runtime folder is a tmpfs here: "
                "give them as variables (file: false), or mount one"
            )
        return self.base / order.attempt.id

    def make(self, order: LaunchOrder, uid: int | None) -> Given:
        """Makes an attempt's folder anew, for the job's user alone, if it needs one; returns what its runner is handed."""
        folder = self.folder(order)
        if folder is None:
            return Given(order.secrets)
        base = folder.parent
        base.mkdir(mode=0o711, parents=True, exist_ok=True)
        if base.is_symlink() or base.lstat().st_uid != os.geteuid():
            raise ExecutorUnavailable(f"{base}, where secrets are to be, belongs to another user: remove it")
        base.chmod(0o711 if uid is not None else 0o700)
        folders.remove(folder)
        folder.mkdir(mode=0o700)
        if uid is not None:
            os.chown(folder, uid, uid)
        return Given(order.secrets, folder)

    def remove(self, attempt_id: str) -> None:
        """Removes an attempt's folder with all that is in it. Absent is success."""
        if self.base is not None:
            folders.remove(self.base / attempt_id)


def file_system(path: Path) -> str:
    """Returns the kind of the file system that a path is on, or would be; "" where that cannot be told."""
    there = next((one for one in (path, *path.parents) if one.exists()), Path("/")).resolve()
    try:
        lines = [line.split(" ") for line in MOUNTS.read_text().splitlines()]
    except OSError:
        return ""
    found = [(fields[1], fields[2]) for fields in lines if len(fields) > 2 and _holds(Path(fields[1]), there)]
    return max(enumerate(found), key=lambda one: (len(one[1][0]), one[0]), default=(0, ("", "")))[1][1]


def _holds(mounted: Path, path: Path) -> bool:
    return mounted == path or mounted in path.parents
