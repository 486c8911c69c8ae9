"""A process's own mounts: folders are covered, and what is needed is bound back below them at the same paths.

Only before the user's code runs, by whoever starts the runner: root, or an ordinary user in a user namespace.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Set

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER = 0x00020000, 0x08000000, 0x10000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = (
    1,
    2,
    4,
    8,
    32,
    4096,
    16384,
    1 << 18,
)
MS_RELATIME, ST_RELATIME = 1 << 21, 4096
KEPT_FLAGS = 4 | 8 | 1024 | 2048
"""nodev, noexec, noatime, nodiratime, which statvfs and mount number alike: who is not root cannot take them from a mount."""


class Refused(Exception):
    """The attempt can never start so."""


class Unmounted(Exception):
    """The shared code could not be mounted."""


class Back(NamedTuple):
    """A path that is bound back below a cover."""

    path: str
    write: bool


def libc_call(name: str, *arguments: Any) -> None:
    """Calls a function of the C library; raises OSError where it fails."""
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, "%s: %s" % (name, os.strerror(number)))


def mount(source: str, target: str, kind: Optional[str], flags: int, data: Optional[str] = None) -> None:
    """Mounts."""
    libc_call(
        "mount", source.encode(), target.encode(), None if kind is None else kind.encode(), ctypes.c_ulong(flags),
        None if data is None else data.encode(),
    )  # fmt: skip


def write(path: str, text: str) -> None:
    """Writes one of the kernel's files."""
    with open(path, "w") as file:
        file.write(text)


def own(more: int = 0) -> None:
    """Gives this process mounts of its own, and the namespaces of the flags ``more``.

    Who is not root gets a user namespace too, in which this is allowed, and in which nothing changes but that: the same user,
    without further rights once ``give_up`` was called or a program is executed.
    """
    if os.geteuid() == 0:
        libc_call("unshare", CLONE_NEWNS | more)
    else:
        ids = (("uid_map", os.geteuid()), ("gid_map", os.getegid()))
        libc_call("unshare", CLONE_NEWUSER | CLONE_NEWNS | more)
        write("/proc/self/setgroups", "deny")
        for name, number in ids:
            write("/proc/self/" + name, "%d %d 1" % (number, number))
    mount("none", "/", None, MS_REC | MS_PRIVATE)


def users_of(uid: int) -> None:
    """Moves root into a user namespace in which there is this user alone, who may make host names until it executes.

    The mounts stay as they are. Another process says who is there: root can, and this one is root no more then. Where there
    are no user namespaces, nothing happens.
    """
    mine = os.getpid()
    reader, writer = os.pipe()
    helper = os.fork()
    if helper == 0:
        os.close(writer)
        try:
            if os.read(reader, 1):
                for name in ("uid_map", "gid_map"):
                    write("/proc/%d/%s" % (mine, name), "%d %d 1" % (uid, uid))
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or 1)
    os.close(reader)
    try:
        libc_call("unshare", CLONE_NEWUSER)
        os.write(writer, b"!")
    except OSError:
        pass
    finally:
        os.close(writer)
    number = os.WEXITSTATUS(os.waitpid(helper, 0)[1])
    if number:
        raise OSError(number, "the user namespace: %s" % os.strerror(number))


def give_up() -> None:
    """Gives up what the user namespace allows."""
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc_call("capset", header, nothing)


def lay_over(paths: Dict[str, str]) -> None:
    """Makes ``target`` a private copy of ``lower``, among this process's own mounts.

    What is written goes to ``upper``; ``inner`` is the kernel's, who empties it: no job may pass to these two. ``target``
    lies in a folder that a job owns.
    """
    # without redirect_dir folders of the code could not be renamed; with userxattr Linux has none
    options = "redirect_dir=on" if os.geteuid() == 0 else "userxattr"
    try:
        held = [os.open(paths[name], os.O_PATH) for name in ("lower", "upper", "inner")]
        held.append(open_owned(paths["target"]))
        # a path may have colons and commas
        lower, upper, inner, target = ("/proc/self/fd/%d" % number for number in held)
        options = "lowerdir=%s,upperdir=%s,workdir=%s,%s" % (lower, upper, inner, options)
        mount("overlay", target, "overlay", MS_NOSUID | MS_NODEV, options)
    except OSError as error:
        raise Unmounted("the code cannot be mounted: %s" % error) from error
    for number in held:
        os.close(number)


def open_owned(path: str) -> int:
    """Opens a folder in one of the same owner, for a mount; raises Refused where something else stands in its place."""
    outer = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        inner = os.open(os.path.basename(path), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=outer)
        if os.fstat(inner).st_uid == os.fstat(outer).st_uid:
            return inner
        os.close(inner)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
    finally:
        os.close(outer)
    raise Refused("%s is no folder of the attempt any more: another job of the project has put something there" % path)


def closed_ancestor(path: str, uid: int, gid: int) -> Optional[str]:
    """Returns the topmost folder above ``path`` that this user may not pass, or None."""
    at = "/"
    for part in [""] + [p for p in path.split("/")[:-1] if p]:
        at = os.path.join(at, part) if part else at
        status = os.stat(at)
        bits = 0o100 if status.st_uid == uid else 0o010 if status.st_gid == gid else 0o001
        if not status.st_mode & bits:
            return at
    return None


def chain(path: str) -> List[str]:
    """Returns every path that must be passable to open ``path``: itself and where links on the way lead."""
    found = [os.path.abspath(path)]
    if os.path.realpath(path) != found[0]:
        found.append(os.path.realpath(path))
    return found


def covers(needed: Iterable[Dict[str, Any]], uid: Optional[int], hidden: Iterable[str] = ()) -> Dict[str, List[Back]]:
    """Returns the folders to cover, none in another, each with what of the ``needed`` is bound back below it.

    They are those that are ``hidden`` in any case, and on the way to what is needed the topmost that are closed to the user.
    """
    back: Dict[str, bool] = {}
    for item in needed:
        for path in chain(item["path"]):
            if os.path.lexists(path):
                back[path] = bool(item["write"]) or back.get(path, False)
    closed = [] if uid is None else [closed_ancestor(path, uid, uid) for path in back]
    found: Set[str] = {*hidden, *(folder for folder in closed if folder is not None)}
    tops = sorted(folder for folder in found if not any(folder.startswith(other + "/") for other in found))
    return {top: _outermost({p: w for p, w in back.items() if p.startswith(top + "/")}) for top in tops}


def _outermost(back: Dict[str, bool]) -> List[Back]:
    """Leaves out what comes with a folder above it; what is written to in one that is not, comes after it."""
    inside = [
        p for p, w in back.items() if any(p != q and p.startswith(q + "/") and (not w or v) for q, v in back.items())
    ]
    return [Back(path, write) for path, write in sorted(back.items()) if path not in inside]


def cover(folder: str, back: Iterable[Back], instead: Optional[str] = None, *, shared: bool = False) -> None:
    """Puts an empty file system over a folder, or the folder ``instead``, and binds back what is needed.

    Nothing can be written there but to what is bound back; where it is ``shared`` memory, anything by anybody.
    """
    held = [(os.open(one.path, os.O_PATH), one) for one in back]
    if instead is None:
        mount("tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777" if shared else "mode=0755,size=1m")
    else:
        mount(instead, folder, None, MS_BIND)
        _change(folder, MS_NOSUID | MS_NODEV)
    before = os.umask(0o022)  # what leads there is for the job to pass
    for descriptor, one in held:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            os.makedirs(one.path, mode=0o755, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(one.path), mode=0o755, exist_ok=True)
            os.close(os.open(one.path, os.O_CREAT | os.O_WRONLY, 0o644))
        mount("/proc/self/fd/%d" % descriptor, one.path, None, MS_BIND | MS_REC)
        if not one.write:
            _change(one.path, MS_RDONLY | MS_NOSUID)
        os.close(descriptor)
    os.umask(before)
    if instead is None and not shared:
        _change(folder, MS_RDONLY | MS_NOSUID | MS_NODEV)  # else what is written there would be lost without a word


def _change(path: str, flags: int) -> None:
    """Adds flags to a mount, and keeps those that it has."""
    found = os.statvfs(path).f_flag
    kept = found & KEPT_FLAGS | (MS_RELATIME if found & ST_RELATIME else 0)
    mount("none", path, None, MS_BIND | MS_REMOUNT | flags | kept)


def unopened(found: Dict[str, List[Back]], error: OSError) -> Refused:
    """Returns why a job's user cannot pass to what it needs where nothing can be covered."""
    closed, back = next(iter(found.items()))
    return Refused(
        "the job's user cannot pass %s to reach %s, and this machine does not allow mounts (%s): put DANLU_HOME and the "
        "interpreter where every user may go, or open it: chmod o+x %s" % (closed, back[0].path, error.strerror, closed)
    )


def open_closed(needed: List[Dict[str, Any]], uid: int) -> None:
    """Makes every needed path passable for the user, by mounts of this process's own where some is not."""
    found = covers(needed, uid)
    if not found:
        return
    try:
        own()
    except OSError as error:
        raise unopened(found, error) from error
    for folder, back in found.items():
        cover(folder, back)
