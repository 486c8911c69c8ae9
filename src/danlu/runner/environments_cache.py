"""The environments of a node: a folder that its pods share, in which each is unpacked once.

``DIGEST`` is a whole environment, ``.new-DIGEST`` one that is being unpacked or removed, ``.locks/DIGEST`` its lock: held
alone by who unpacks or removes it, shared by who runs with it. A killed one's lock is free, and what it left is removed by
the next. When a lock was last changed says when its environment was last asked for.

Only the init container, whose program and image are the platform's, can write here: for jobs the folder is read-only.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import re
import shutil
import time
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional

NEW, LOCKS, MARK = ".new-", ".locks", ".danlu-archive.json"
YOUNG_S = 3600.0
"""Asked for so lately, an environment is not removed: its pod may still be fetching its image, and hold no lock yet."""
POLL_S = 0.1
SPARE_BYTES = 256 << 20
"""Of the disk, what stays free."""
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Gone(Exception):
    """An environment is not on this node any more."""


class Full(Exception):
    """There is no room on this node."""


class Kept(NamedTuple):
    """An environment that is there."""

    digest: str
    size_bytes: int
    asked_at: float


def require_digest(digest: str) -> str:
    """Returns the text if it can name an environment, else raises ValueError."""
    if not _DIGEST.fullmatch(digest):
        raise ValueError("%.80r is no environment's digest" % digest)
    return digest


def locked(cache: str, digest: str, how: int, write: bool = True) -> Optional[int]:
    """Returns a descriptor that holds the lock; None where ``how`` does not wait and another has it.

    Args:
        cache: the folder.
        digest: of which environment.
        how: as in flock.
        write: whether the folder can be written to; else the lock must be there.

    Raises:
        FileNotFoundError: it is not there.
    """
    path = os.path.join(cache, LOCKS, digest)
    while True:
        flags = os.O_RDWR | os.O_CREAT if write else os.O_RDONLY
        try:
            descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except IsADirectoryError:
            os.rmdir(path)  # the kubelet makes a folder of what it is to mount and does not find
            continue
        try:
            fcntl.flock(descriptor, how)
        except BlockingIOError:
            os.close(descriptor)
            return None
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)  # it was removed between open and lock
        if not write:  # and where it is mounted by itself it stays so
            raise FileNotFoundError(path)


def hold(cache: str, digest: str) -> int:
    """Returns a descriptor; while it is open the environment is not removed. Writes nothing.

    Raises:
        Gone: it was removed.
    """
    try:
        descriptor = locked(cache, require_digest(digest), fcntl.LOCK_SH, write=False)
    except FileNotFoundError:
        descriptor = None
    if descriptor is None or not whole(cache, digest):
        if descriptor is not None:
            os.close(descriptor)
        raise Gone("environment %s is not in %s any more" % (digest[:12], cache))
    return descriptor


def whole(cache: str, digest: str) -> bool:
    """Says whether an environment is there."""
    return os.path.exists(os.path.join(cache, digest, MARK))


def ensure(cache: str, digest: str, make: Callable[[str], Dict[str, Any]], waits: Callable[[], None]) -> bool:
    """Makes sure that an environment is there; returns whether it was. Of several at a time one makes it.

    Args:
        cache: the folder.
        digest: of which environment.
        make: fills an empty folder, and returns what is noted of it, ``unpacked_bytes`` among it. What it raises is raised,
            and nothing is left.
        waits: called where another one makes it.
    """
    require_digest(digest)
    os.makedirs(os.path.join(cache, LOCKS), 0o755, exist_ok=True)
    while True:
        if _look(cache, digest, waits):
            return True
        # never waited for: who has made it meanwhile may run with it for days, and shares the lock all that time
        with _alone(cache, digest) as alone:
            if alone:
                if whole(cache, digest):
                    return True
                _make(cache, digest, make)
                return False
        time.sleep(POLL_S)


def _look(cache: str, digest: str, waits: Callable[[], None]) -> bool:
    """Returns whether an environment is there; waits for who is making it."""
    descriptor = locked(cache, digest, fcntl.LOCK_SH | fcntl.LOCK_NB)
    if descriptor is None:
        waits()
        descriptor = locked(cache, digest, fcntl.LOCK_SH)
    assert descriptor is not None  # noqa: S101 - it was waited for
    try:
        os.utime(os.path.join(cache, LOCKS, digest))
        return whole(cache, digest)
    finally:
        os.close(descriptor)


def _make(cache: str, digest: str, make: Callable[[str], Dict[str, Any]]) -> None:
    new, final = os.path.join(cache, NEW + digest), os.path.join(cache, digest)
    remove(new)
    remove(final)  # without its mark it is of no use
    try:
        os.mkdir(new, 0o755)
        facts = make(new)
        with open(os.path.join(new, MARK), "w") as file:
            file.write(json.dumps(facts))
        sync(new)  # a folder with a name must be whole after a power failure too
        os.rename(new, final)
        sync(cache)
    except BaseException:
        remove(new)
        raise


def sync(folder: str) -> None:
    """Makes all durable that was written to the file system of a folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, "syncfs of %s: %s" % (folder, os.strerror(number)))
    finally:
        os.close(descriptor)


def remove(folder: str) -> None:
    """Removes a folder, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)


def kept(cache: str) -> List[Kept]:
    """Returns the whole environments, those first that were asked for longest ago."""
    found = []
    for entry in os.scandir(cache):
        if _DIGEST.fullmatch(entry.name):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # another pod is removing it
                with open(os.path.join(entry.path, MARK)) as file:
                    size = int(json.loads(file.read())["unpacked_bytes"])
                asked_at = os.stat(os.path.join(cache, LOCKS, entry.name)).st_mtime
                found.append(Kept(entry.name, size, asked_at))
    return sorted(found, key=lambda one: one.asked_at)


def make_room(cache: str, wanted_bytes: int, max_bytes: int, unused_s: float) -> List[str]:
    """Removes what no pod uses or has asked for lately: what is too old, and the oldest where the room does not suffice.

    Args:
        cache: the folder.
        wanted_bytes: what is to be unpacked.
        max_bytes: what all together may take, with that.
        unused_s: how long one is kept that no pod asks for.

    Returns:
        The digests of what was removed.

    Raises:
        Full: the disk has no room for it.
    """
    for name in os.listdir(cache):
        if name.startswith(NEW):
            _discard(cache, name[len(NEW) :])
    there, gone = kept(cache), []
    total, now = sum(one.size_bytes for one in there), time.time()
    for one in there:
        idle_s = now - one.asked_at
        crowded = total + wanted_bytes > max_bytes or free_bytes(cache) < wanted_bytes + SPARE_BYTES
        if idle_s >= YOUNG_S and (idle_s >= unused_s or crowded) and _discard(cache, one.digest):
            gone.append(one.digest)
            total -= one.size_bytes
    if wanted_bytes and free_bytes(cache) < wanted_bytes + SPARE_BYTES:
        raise Full(
            "the environment needs %d MB, and the disk of %s has %d MB"
            % ((wanted_bytes + SPARE_BYTES) >> 20, cache, free_bytes(cache) >> 20)
        )
    return gone


def free_bytes(cache: str) -> int:
    """Returns what can be written to the disk."""
    found = os.statvfs(cache)
    return found.f_bavail * found.f_frsize


def _discard(cache: str, digest: str) -> bool:
    """Removes an environment and what is left of it, unless somebody has its lock; returns whether it did."""
    with _alone(cache, digest) as alone:
        if not alone:
            return False
        new = os.path.join(cache, NEW + digest)
        remove(new)
        with contextlib.suppress(FileNotFoundError):
            os.rename(os.path.join(cache, digest), new)
        remove(new)
        os.unlink(os.path.join(cache, LOCKS, digest))
        return True


@contextlib.contextmanager
def _alone(cache: str, digest: str) -> Iterator[bool]:
    descriptor = locked(cache, digest, fcntl.LOCK_EX | fcntl.LOCK_NB) if _DIGEST.fullmatch(digest) else None
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)
