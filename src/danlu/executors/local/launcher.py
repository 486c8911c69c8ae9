"""From the server to the runner: joins the control groups, opens what the job must see, drops privileges, becomes it.

Started as a program of its own (``python -I -S launcher.py``, its configuration as JSON on standard input), because a server
with threads must not fork and go on in Python. It answers on standard output with one JSON line,
``{"limits": [...], "pid": the runner's}`` or ``{"error": ..., "rejected": true or false}``, and is gone; the runner goes on
as nobody's child.

The control groups' files stay the server's. Those through which the tasks join are opened here, while that is allowed, and
the runner goes on with the descriptors. Since 5.16 Linux asks what the one who opened such a file may do. Before, it asked
the writer: with version 1 only whether the process is of his user, so that it works as well; with version 2 also whether he
may write the files himself, so that nothing is started there. A descriptor moves more than its own process, so the runner is
closed to its own user: it cannot be traced, and its ``/proc/PID/fd`` is root's.

Where a folder on the way to what the job needs is closed to the job's user (a home folder of mode 0700, with the interpreter
in it), a small empty file system is mounted over the topmost closed folder, in this attempt's own mount namespace, and only
what is needed is bound back below it, at the same path. The job sees the same paths and nothing else of that folder.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import signal
import stat
import sys
from typing import Any

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38


CANNOT_BECOME = 125


class Refused(Exception):
    """The attempt can never start so."""


class Unmounted(Exception):
    """The shared code could not be mounted."""


def libc_call(name: str, *arguments: Any) -> None:
    """Calls a function of the C library; raises OSError where it fails."""
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """Mounts."""
    libc_call(
        "mount", source.encode(), target.encode(), None if kind is None else kind.encode(), ctypes.c_ulong(flags),
        None if data is None else data.encode(),
    )  # fmt: skip


def lay_over(paths: dict[str, str]) -> None:
    """Makes ``target`` a private copy of ``lower``, in a mount namespace of this process's own.

    What is written goes to ``upper``; ``inner`` is the kernel's, who empties it: no job may pass to these two. ``target``
    lies in a folder that a job owns. Who is not root gets a user namespace too, in which this is allowed, and in which
    nothing changes but that: the same user, without further rights once a program is executed.
    """
    options = "redirect_dir=on"  # else folders of the code could not be renamed
    try:
        if os.geteuid() != 0:
            ids = (("uid_map", os.geteuid()), ("gid_map", os.getegid()))
            libc_call("unshare", CLONE_NEWUSER | CLONE_NEWNS)
            write("/proc/self/setgroups", "deny")
            for name, number in ids:
                write(f"/proc/self/{name}", f"{number} {number} 1")
            options = "userxattr"  # with which Linux has no redirect_dir
        else:
            libc_call("unshare", CLONE_NEWNS)
        mount("none", "/", None, MS_REC | MS_PRIVATE)
        held = [os.open(paths[name], os.O_PATH) for name in ("lower", "upper", "inner")]
        held.append(open_owned(paths["target"]))
        # a path may have colons and commas
        lower, upper, inner, target = (f"/proc/self/fd/{number}" for number in held)
        options = f"lowerdir={lower},upperdir={upper},workdir={inner},{options}"
        mount("overlay", target, "overlay", MS_NOSUID | MS_NODEV, options)
    except OSError as error:
        raise Unmounted(f"the code cannot be mounted: {error}") from error
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
    raise Refused(f"{path} is no folder of the attempt any more: another job of the project has put something there")


def write(path: str, text: str) -> None:
    """Writes one of the kernel's files."""
    with open(path, "w") as file:
        file.write(text)


def closed_ancestor(path: str, uid: int, gid: int) -> str | None:
    """Returns the topmost folder above ``path`` that this user may not pass, or None."""
    at = "/"
    for part in [""] + [p for p in path.split("/")[:-1] if p]:
        at = os.path.join(at, part) if part else at
        status = os.stat(at)
        bits = 0o100 if status.st_uid == uid else 0o010 if status.st_gid == gid else 0o001
        if not status.st_mode & bits:
            return at
    return None


def chain(path: str) -> list[str]:
    """Returns every path that must be passable to open ``path``: itself and where links on the way lead."""
    found = [os.path.abspath(path)]
    if os.path.realpath(path) != found[0]:
        found.append(os.path.realpath(path))
    return found


def open_closed(needed: list[dict[str, Any]], uid: int, gid: int) -> bool:
    """Makes every needed path passable for the user; returns whether anything had to be mounted."""
    covers: dict[str, list[tuple[str, bool]]] = {}
    for item in needed:
        for path in chain(item["path"]):
            closed = closed_ancestor(path, uid, gid) if os.path.lexists(path) else None
            if closed is not None:
                covers.setdefault(closed, []).append((path, bool(item["write"])))
    if not covers:
        return False
    try:
        libc_call("unshare", CLONE_NEWNS)
        mount("none", "/", None, MS_REC | MS_PRIVATE)
    except OSError as error:
        closed, paths = next(iter(covers.items()))
        raise Refused(
            f"the job's user cannot pass {closed} to reach {paths[0][0]}, and this machine does not allow mounts "
            f"({error.strerror}): put DANLU_HOME and the interpreter where every user may go, or open it: chmod o+x {closed}"
        ) from error
    for closed, paths in covers.items():
        unique = sorted(dict(paths).items())
        kept = [
            (p, w) for p, w in unique if not any(p != q and p.startswith(q + "/") and (not w or v) for q, v in unique)
        ]
        held = [(os.open(path, os.O_PATH), path, write) for path, write in kept]
        mount("tmpfs", closed, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=1m")
        for descriptor, path, write in held:
            source = f"/proc/self/fd/{descriptor}"
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                os.makedirs(path, mode=0o755, exist_ok=True)
            else:
                os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))
            mount(source, path, None, MS_BIND | MS_REC)
            if not write:
                mount("none", path, None, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID)
            os.close(descriptor)
    return True


def drop(uid: int, gid: int) -> None:
    """Becomes the job's user, for ever."""
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def open_groups(paths: list[str]) -> list[int]:
    """Opens the files through which control groups are joined; they are closed in whatever is executed."""
    opened: list[int] = []
    try:
        for path in paths:
            opened.append(os.open(path, os.O_WRONLY | os.O_CLOEXEC))  # noqa: PERF401 - to close them again
        return opened
    except OSError as error:
        for descriptor in opened:
            os.close(descriptor)
        if error.errno != errno.EMFILE:
            raise
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        raise Refused(
            f"its tasks' control groups are more files than the server may open ({most:,}): raise the limit "
            "(LimitNOFILE=, ulimit -Hn) and start the platform again, or ask for fewer tasks"
        ) from error


def join(groups: list[int]) -> None:
    """Moves this process into control groups."""
    for descriptor in groups:
        os.write(descriptor, b"0")  # itself


def join_again(groups: list[int]) -> None:
    """Joins the groups in which this process is, now that it has no privilege: as its tasks will join theirs."""
    try:
        join(groups)
    except PermissionError as error:
        raise Refused(
            f"Linux {os.uname().release} lets the job's user join no control group that root has opened for it: "
            "5.16 does, and so do the older series' releases of 2022 and later; update it"
        ) from error


def prepare(config: dict[str, Any]) -> list[str]:
    """Does all that needs privilege; returns what is in force."""
    force: list[str] = list(config["limits"])
    own = open_groups(config["cgroup_procs"])
    join(own)
    if config["overlay"] is not None:
        lay_over(config["overlay"])
    if config["uid"] is not None:
        if open_closed(config["needed"], config["uid"], config["uid"]):
            force.append("mounts")
        drop(config["uid"], config["uid"])
        libc_call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)  # for what is forked too, until it executes a program
        join_again(own)
        force.append("user")
    for descriptor in own:
        os.close(descriptor)
    libc_call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    force.append("no-new-privileges")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.umask(0o077)
    return force


def become(config: dict[str, Any]) -> None:
    """Executes ``words`` as the job's user, who may pass to what is ``needed``; it dies with whom it was started by."""
    join(open_groups(config["cgroup_procs"]))
    if config["uid"] is not None:
        open_closed(config["needed"], config["uid"], config["uid"])
        drop(config["uid"], config["uid"])
    libc_call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc_call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.umask(0o077)
    os.execv(config["words"][0], config["words"])  # noqa: S606 - the engine, never a shell


def runner_log(path: str, instead: int) -> int:
    """Opens where the runner's own words go. What a job has put in its place (a pipe, a link) gets nothing."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError:
        return instead
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return instead
    os.set_blocking(descriptor, True)
    return descriptor


def main() -> int:
    """Reads the configuration, prepares, answers, and runs the runner; or becomes what an argument describes."""
    if sys.argv[1:]:
        try:
            become(json.loads(sys.argv[1]))
        except (OSError, Refused) as error:
            os.write(2, f"Error: {error}\n".encode())
            return CANNOT_BECOME
    config = json.load(sys.stdin)
    answer = os.dup(1)
    if "trial" in config:
        return _try(answer, config["trial"])
    sys.path.insert(0, config["sdk"])
    from danlu.runner import main as runner  # imported before the user changes: later the path may be closed
    from danlu.runner.handed import Handed

    os.setsid()
    if os.fork():
        os._exit(0)
    try:
        groups = {task: open_groups(paths) for task, paths in config["task_procs"].items()}
        force = prepare(config)
    except Refused as error:
        return _answer(answer, {"error": str(error), "rejected": True})
    except Unmounted as error:
        return _answer(answer, {"error": str(error), "unmounted": True})
    except OSError as error:
        passing = (errno.EAGAIN, errno.ENOMEM, errno.ENOSPC, errno.EBUSY)
        return _answer(answer, {"error": str(error), "rejected": error.errno not in passing})
    null = os.open(os.devnull, os.O_RDWR)
    log = runner_log(os.path.join(config["folder"], "runner.log"), null)
    for target, source in ((0, null), (1, log), (2, log)):
        os.dup2(source, target)
    _answer(answer, {"limits": force, "pid": os.getpid()})
    handed = Handed(config["secrets"], config["secret_folder"])
    return runner.run(config["folder"], salvage=config["salvage"], groups=groups, handed=handed)


def _try(answer: int, paths: dict[str, str]) -> int:
    """Says whether an overlay can be mounted, and written to, here and by this user."""
    try:
        lay_over(paths)
        write(os.path.join(paths["target"], "written"), "")
    except (Unmounted, OSError) as error:
        return _answer(answer, {"mounted": False, "error": str(error)})
    return _answer(answer, {"mounted": os.path.exists(os.path.join(paths["upper"], "written"))})


def _answer(descriptor: int, answer: dict[str, Any]) -> int:
    os.write(descriptor, json.dumps(answer).encode() + b"\n")
    os.close(descriptor)
    return 1


if __name__ == "__main__":
    sys.exit(main())
