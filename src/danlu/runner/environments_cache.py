"""The environments of a node: a folder that its pods share, in which each is unpacked once.

``DIGEST`` is a whole environment, ``.new-DIGEST`` one that is being unpacked or removed, ``.locks/DIGEST`` its lock: held
alone by who unpacks or removes it, shared by who looks for it. A killed one's lock is free, and what it left is removed by
the next. When a lock was last changed says when its environment was last asked for. ``.uses/DIGEST/POD`` is held by one pod
while it runs with it: a file for each, since whoever can open a file can hold its lock, alone too.

Only the init container, whose program and image are the platform's, sees all that, and can write here. A job has, read-only,
its environment and its own pod's file: what it does with that one keeps nobody waiting.
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

NEW, LOCKS, USES, MARK = ".new-", ".locks", ".uses", ".danlu-archive.json"
HELD = ".held"
"""Where a job's container has its own pod's file."""
YOUNG_S = 3600.0
"""Asked for so lately, an environment is not removed: its pod may still be fetching its image, and hold no lock yet."""
POLL_S = 0.1
SPARE_BYTES = 256 << 20
"""Of the disk, what stays free."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
_POD = re.compile(r"[a-z0-9][a-z0-9-]{0,200}")


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


def locked(cache: str, digest: str, how: int) -> Optional[int]:
    """Returns a descriptor that holds the lock; None where ``how`` does not wait and another has it.

    Args:
        cache: the folder.
        digest: of which environment.
        how: as in flock.
    """
    path = os.path.join(cache, LOCKS, digest)
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except IsADirectoryError:
            os.rmdir(path)  # the kubelet has made a folder of what it was to mount and did not find
            continue
        try:
            fcntl.flock(descriptor, how)
        except BlockingIOError:
            os.close(descriptor)
            return None
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)  # it was removed between open and lock


def hold(cache: str, digest: str, own: str) -> int:
    """Returns a descriptor; while it is open the environment is not removed. Writes nothing.

    Args:
        cache: the folder.
        digest: of which environment.
        own: the pod's own file, wherever it is mounted.

    Raises:
        Gone: it was removed.
    """
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(own, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # waits at most for who looks whether somebody holds it
        # what was removed stays where it is mounted by itself
        if os.fstat(descriptor).st_nlink and whole(cache, require_digest(digest)):
            return descriptor
        os.close(descriptor)
    raise Gone("environment %s is not in %s any more" % (require_digest(digest)[:12], cache))


def file_of(cache: str, digest: str, pod: str) -> str:
    """Returns the path of a pod's own file."""
    if not _POD.fullmatch(pod):
        raise ValueError("%.80r is no pod's name" % pod)
    return os.path.join(cache, USES, require_digest(digest), pod)


def whole(cache: str, digest: str) -> bool:
    """Says whether an environment is there."""
    return os.path.exists(os.path.join(cache, digest, MARK))


def ensure(cache: str, digest: str, pod: str, make: Callable[[str], Dict[str, Any]], waits: Callable[[], None]) -> bool:
    """Makes sure that an environment is there; returns whether it was. Of several at a time one makes it.

    Args:
        cache: the folder.
        digest: of which environment.
        pod: who is going to hold it: its file is there afterwards.
        make: fills an empty folder, and returns what is noted of it, ``unpacked_bytes`` among it. What it raises is raised,
            and nothing is left.
        waits: called where another one makes it.
    """
    own = file_of(cache, digest, pod)
    os.makedirs(os.path.join(cache, LOCKS), 0o755, exist_ok=True)
    while True:
        if _look(cache, digest, own, waits):
            return True
        # never waited for: who looks, or has begun with an earlier version, may share the lock for long
        with _alone(cache, digest) as alone:
            if alone:
                found = whole(cache, digest)
                if not found:
                    _make(cache, digest, make)
                _add(own)
                return found
        time.sleep(POLL_S)


def _look(cache: str, digest: str, own: str, waits: Callable[[], None]) -> bool:
    """Returns whether an environment is there; waits for who is making it."""
    descriptor = locked(cache, digest, fcntl.LOCK_SH | fcntl.LOCK_NB)
    if descriptor is None:
        waits()
        descriptor = locked(cache, digest, fcntl.LOCK_SH)
    assert descriptor is not None  # noqa: S101 - it was waited for
    try:
        os.utime(os.path.join(cache, LOCKS, digest))
        found = whole(cache, digest)
        if found:
            _add(own)
            _used(cache, digest, YOUNG_S)
        return found
    finally:
        os.close(descriptor)


def _add(own: str) -> None:
    """Makes a pod's own file, under the environment's lock."""
    os.makedirs(os.path.dirname(own), 0o755, exist_ok=True)
    os.close(os.open(own, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644))
    os.utime(own)


def _used(cache: str, digest: str, young_s: float) -> bool:
    """Says whether a pod holds an environment; under its lock. The files of those that do not are removed.

    Args:
        cache: the folder.
        digest: of which environment.
        young_s: a file that was made so lately is left: its pod may not have begun.
    """
    used = False
    folder = os.path.join(cache, USES, digest)
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        path = os.path.join(folder, name)
        with contextlib.suppress(FileNotFoundError):  # another one, which shares the lock, was faster
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            except IsADirectoryError:
                os.rmdir(path)  # as in `locked`
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - os.fstat(descriptor).st_mtime >= young_s:
                    os.unlink(path)
            except BlockingIOError:
                used = True
            finally:
                os.close(descriptor)
    return used


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
        if not alone or _used(cache, digest, 0.0):
            return False
        new = os.path.join(cache, NEW + digest)
        remove(new)
        with contextlib.suppress(FileNotFoundError):
            os.rename(os.path.join(cache, digest), new)
        remove(new)
        with contextlib.suppress(FileNotFoundError):
            os.rmdir(os.path.join(cache, USES, digest))
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
