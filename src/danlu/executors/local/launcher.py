"""From the server to the runner: joins the control groups, opens what the job must see, drops privileges, becomes it.

Started as a program of its own (``python -I -S launcher.py``, its configuration as JSON on standard input), because a server
with threads must not fork and go on in Python. It answers on standard output with one JSON line,
``{"limits": [...], "missing": {...}, "pid": the runner's}`` or ``{"error": ..., "rejected": true or false}``, and is gone;
the runner goes on as nobody's child, in its attempt's sandbox (runner/sandbox.py).

The control groups' files stay the server's. Those through which the tasks join are opened here, while that is allowed, and
the runner goes on with the descriptors. Since 5.16 Linux asks what the one who opened such a file may do. Before, it asked
the writer: with version 1 only whether the process is of his user, so that it works as well; with version 2 also whether he
may write the files himself, so that nothing is started there. A descriptor moves more than its own process, so the runner is
closed to its own user: it cannot be traced, and its ``/proc/PID/fd`` is root's.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import stat
import sys
from typing import Any

if __name__ == "__main__":  # nothing of ours is on the path
    sys.path.insert(0, os.path.abspath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 3)))
# all of it now: once the user has changed, its folder may be closed
from danlu.runner import main as runner
from danlu.runner import mounts
from danlu.runner.handed import Handed
from danlu.runner.mounts import Refused, Unmounted, libc_call
from danlu.runner.sandbox import PR_SET_NO_NEW_PRIVS, Sandbox

PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4
CANNOT_BECOME = 125


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


def prepare(config: dict[str, Any]) -> Sandbox:
    """Does all that needs privilege, and gives it up; returns what is in force."""
    box = Sandbox(config["sandbox"], config["limits"])
    own = open_groups(config["cgroup_procs"])
    join(own)
    box.set_up(config["needed"], config["uid"], config["overlay"])
    if config["uid"] is not None:
        drop(config["uid"], config["uid"])
        libc_call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)  # for what is forked too, until it executes a program
        join_again(own)
        box.force.append("separate-user")
    for descriptor in own:
        os.close(descriptor)
    box.close_off(config["needed"])
    os.umask(0o077)
    box.check()
    return box


def become(config: dict[str, Any]) -> None:
    """Executes ``words`` as the job's user, who may pass to what is ``needed``; it dies with whom it was started by."""
    join(open_groups(config["cgroup_procs"]))
    if config["uid"] is not None:
        mounts.open_closed(config["needed"], config["uid"])
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
    os.setsid()
    if os.fork():
        os._exit(0)
    try:
        groups = {task: open_groups(paths) for task, paths in config["task_procs"].items()}
        box = prepare(config)
    except Refused as error:
        return _answer(answer, {"error": str(error), "rejected": True})
    except Unmounted as error:
        return _answer(answer, {"error": str(error), "unmounted": True})
    except OSError as error:
        passing = (errno.EAGAIN, errno.ENOMEM, errno.ENOSPC, errno.EBUSY)
        return _answer(answer, {"error": str(error), "rejected": error.errno not in passing})
    answered = {"limits": box.force, "missing": box.missing, "pid": os.getpid()}
    if config["folder"] is None:  # it was to be found out what is possible here
        return _answer(answer, answered)
    null = os.open(os.devnull, os.O_RDWR)
    log = runner_log(os.path.join(config["folder"], "runner.log"), null)
    for target, source in ((0, null), (1, log), (2, log)):
        os.dup2(source, target)
    _answer(answer, answered)
    handed = Handed(config["secrets"], config["secret_folder"])
    return runner.run(config["folder"], salvage=config["salvage"], groups=groups, handed=handed)


def _try(answer: int, paths: dict[str, str]) -> int:
    """Says whether an overlay can be mounted, and written to, here and by this user."""
    try:
        mounts.own()
        mounts.lay_over(paths)
        mounts.write(os.path.join(paths["target"], "written"), "")
    except (Refused, Unmounted, OSError) as error:
        return _answer(answer, {"mounted": False, "error": str(error)})
    return _answer(answer, {"mounted": os.path.exists(os.path.join(paths["upper"], "written"))})


def _answer(descriptor: int, answer: dict[str, Any]) -> int:
    os.write(descriptor, json.dumps(answer).encode() + b"\n")
    os.close(descriptor)
    return 1


if __name__ == "__main__":
    sys.exit(main())
