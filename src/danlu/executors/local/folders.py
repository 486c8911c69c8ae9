"""The folders of attempts: begun or not, held or free, given to the job's user, removed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

from danlu.domain.ids import is_id, job_of_attempt
from danlu.errors import DataDamaged, ExecutorUnavailable, InvalidRequest, LaunchRejected
from danlu.executors.base import LaunchOrder
from danlu.executors.local import beneath
from danlu.executors.local.observing import passing
from danlu.runner import formats

LOG = logging.getLogger("danlu.executors")
NO_LOCK = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.EACCES, errno.ETXTBSY}
"""What a job can put in the lock's place: nothing, a link, a folder, a socket, a closed file, a running program."""
_TASK = re.compile(r"[a-z0-9]([-a-z0-9]{0,77}[a-z0-9])?")


def checked(attempt_id: str) -> str:
    """Returns an attempt's id; raises InvalidRequest where it is none, and might lead elsewhere as a path."""
    try:
        job_of_attempt(attempt_id)
    except ValueError as error:
        raise InvalidRequest(str(error)) from None
    return attempt_id


def check(order: LaunchOrder) -> None:
    """Raises LaunchRejected where a name of the order that becomes a path is none."""
    owner = order.job.checkpoint_owner
    if not is_id(owner, owner[:1]):
        raise LaunchRejected(f"{owner!r} owns no checkpoints: it is not a job's id")
    for task in order.attempt.tasks:
        if not _TASK.fullmatch(task.name):
            raise LaunchRejected(f"{task.name!r} cannot be a task's name")


def begun(folder: Path) -> bool:
    """Whether a runner has ever spoken in this folder, or something stands where it would speak."""
    try:
        return bool(formats.parse_status(beneath.read(folder, "status", max_bytes=4096)))
    except FileNotFoundError:
        return False
    except (OSError, DataDamaged) as error:
        if passing(error):
            raise
        return True


def lock_is_free(folder: Path) -> bool:
    """Whether no runner holds the attempt's lock. What a job has put in its place is held by none.

    Raises:
        ExecutorUnavailable: that cannot be found out now. Whoever takes that for an answer kills a live attempt.
    """
    try:
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in NO_LOCK:
            return True
        raise ExecutorUnavailable(f"the lock of {folder.name} cannot be opened: {error}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise ExecutorUnavailable(f"the lock of {folder.name} cannot be tried: {error}") from error
    else:
        return True
    finally:
        os.close(descriptor)


def spool_starts(names: list[str], stream: str) -> list[int]:
    """Returns where the files of a stream begin, in order."""
    found = [name.partition(".") for name in names]
    return sorted(int(start) for head, _, start in found if head == stream and start.isdecimal())


def give(folder: Path, uid: int) -> None:
    """Makes a tree the job's user's own; ``order.json`` stays the server's, which believes it later."""
    for base, names, files in os.walk(folder):
        for name in [*names, *files]:
            os.chown(Path(base) / name, uid, uid, follow_symlinks=False)
    os.chown(folder / "order.json", os.geteuid(), os.getegid())
    (folder / "order.json").chmod(0o644)
    os.chown(folder, uid, uid)


def same(one: Path, other: Path) -> bool:
    """Whether two folders have the same modules."""

    def content(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.py")}

    return content(one) == content(other)


def install_sdk(package: Path, sdk: Path) -> None:
    """Copies what jobs may import (danlu.log and the runner) of ``package`` to a folder that holds nothing else."""
    target = sdk / "danlu"
    fresh = sdk.with_name(f".{sdk.name}.{os.getpid()}")
    remove(fresh)
    (fresh / "danlu" / "runner").mkdir(parents=True)
    shutil.copyfile(package / "__init__.py", fresh / "danlu" / "__init__.py")
    for source in sorted((package / "runner").glob("*.py")):
        shutil.copyfile(source, fresh / "danlu" / "runner" / source.name)
    for path in [fresh.parent, fresh, *fresh.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    if target.exists() and same(target, fresh / "danlu"):
        remove(fresh)
        return
    remove(sdk)
    fresh.rename(sdk)


def remove(folder: Path) -> None:
    """Removes a tree whatever its modes and however deep; links in it are not followed. Absent is success.

    What cannot be removed (a mount, a disk that fails) is left, and said in the log.
    """

    def opened(_function: object, path: str, _error: object) -> None:
        if os.geteuid() == 0:
            return  # no mode stops it, and what lies there may have become a link to anything
        with contextlib.suppress(OSError):
            Path(path).parent.chmod(0o700)
            status = Path(path).lstat()
            if not stat.S_ISDIR(status.st_mode):
                Path(path).unlink()
            elif status.st_mode & 0o700 != 0o700:  # else it is not the mode that stops it
                Path(path).chmod(0o700)
                shutil.rmtree(path, onerror=opened)

    if folder.is_symlink() or folder.is_file():
        folder.unlink(missing_ok=True)
    elif folder.exists():
        with contextlib.suppress(RecursionError):
            shutil.rmtree(folder, onerror=opened)
        if folder.exists():  # deeper than Python can walk: rm can
            done = subprocess.run(["rm", "-rf", "--", str(folder)], capture_output=True, check=False)
            if done.returncode:
                LOG.error("%s cannot be removed: %s", folder, done.stderr.decode(errors="replace")[-500:])
