"""What a good administrator looks at in the data folder: its disk, its file system, its keys. Looks only."""

from __future__ import annotations

import os
import platform
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from danlu.domain.diagnosis import Check, fail, ok, warn
from danlu.domain.resources import format_bytes

FAIL_BYTES: Final = 2**30
WARN_BYTES: Final = 10 * 2**30
WANTED_INODES: Final = 100_000
NETWORK: Final = frozenset(
    {
        "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "gpfs", "beegfs", "ocfs2", "gfs2",
        "fuse.sshfs", "fuse.glusterfs", "fuse.s3fs", "fuse.rclone", "fuse.cephfs", "vboxsf", "virtiofs",
    }
)  # fmt: skip
MEMORY: Final = frozenset({"tmpfs", "ramfs"})


def checks(home: Path, *, sqlite: bool) -> Iterator[Check]:
    """Yields how the data folder is; ``sqlite``: the database lies in it."""
    yield ok("server", f"Python {platform.python_version()} at {sys.executable}")
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    mounts = Path("/proc/self/mountinfo")
    kind = file_system(existing.resolve(), mounts.read_text(errors="replace") if mounts.exists() else "")
    yield folder_kind(home, kind, sqlite=sqlite)
    yield from room(existing)
    yield from keys(home / "keys", os.geteuid())


def file_system(folder: Path, mounts: str) -> str:
    """Returns the type of the file system that a folder is on, by the text of ``/proc/self/mountinfo``."""
    found = ("", "")
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.partition(" ")[0]
        if len(fields) < 5 or not kind:
            continue
        place = fields[4].encode().decode("unicode_escape", errors="replace")  # a space is written \040
        if folder.is_relative_to(place) and len(place) >= len(found[0]):
            found = (place, kind)
    return found[1]


def folder_kind(home: Path, kind: str, *, sqlite: bool) -> Check:
    """Says whether a data folder may lie on a file system of that kind."""
    value = f"{home} on {kind or 'an unknown file system'}"
    if kind in NETWORK:
        step = "set DANLU_HOME to a folder on a disk of this machine"
        if sqlite:
            return fail("data", f"{value}: locks and SQLite's log are not safe on it", step)
        return warn("data", f"{value}: jobs start slowly on it, and locks may not hold", step)
    if kind in MEMORY:
        return warn(
            "data", f"{value}: all of it is lost when the machine restarts", "set DANLU_HOME to a folder on a disk"
        )
    return ok("data", value)


def room(folder: Path) -> Iterator[Check]:
    """Says how much is free where a folder is."""
    usage, status = shutil.disk_usage(folder), os.statvfs(folder)
    value = f"{format_bytes(usage.free)} free of {format_bytes(usage.total)}"
    step = "remove old jobs' files and environments, or set DANLU_HOME to a larger disk"
    if usage.free < FAIL_BYTES:
        yield fail("disk", value, step)
    elif usage.free < WARN_BYTES:
        yield warn("disk", value, step)
    elif status.f_files and status.f_favail < WANTED_INODES:
        yield warn("disk", f"{value}, but only {status.f_favail:,} more files", step)
    else:
        yield ok("disk", value)


def keys(folder: Path, uid: int) -> Iterator[Check]:
    """Says whether others could read, or own, the platform's keys."""
    if not folder.exists():
        return  # they are made by the first start
    if (owner := folder.lstat().st_uid) != uid:
        step = "set DANLU_HOME to a folder of your own, or ask its owner for a token"
        yield fail("keys", f"{folder} belongs to user {owner}, not to {uid}", step)
        return
    wrong, steps = [], []
    for path in (folder, *sorted(folder.iterdir())):
        status = path.lstat()
        if status.st_uid != uid:
            wrong.append(f"{path} belongs to user {status.st_uid}")
            steps.append(f"chown {uid} {path}")
        if stat.S_IMODE(status.st_mode) & 0o077:
            wrong.append(f"{path} has mode {stat.S_IMODE(status.st_mode):o}")
            steps.append(f"chmod {700 if path == folder else 600} {path}")
    if wrong:
        yield fail("keys", "; ".join(wrong), "   ".join(steps))
    else:
        yield ok("keys", f"{folder}: this user's alone")
