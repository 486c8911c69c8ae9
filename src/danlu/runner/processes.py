"""Processes: started as the job's own session, counted, ended to the last descendant.

The runner is the subreaper of everything that a task starts: what a daemon leaves behind by double fork and setsid becomes
the runner's child, so that its tree is always whole.
"""

from __future__ import annotations

import ctypes
import difflib
import errno
import os
import signal
import sys
import time
from typing import Any, Callable, Dict, FrozenSet, Iterable, List, NamedTuple, Optional, Sequence, Set, Tuple

from . import hostname, procfs, seccomp

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
KILL_ROUNDS = 200
NOT_JOINED, NOT_FORKED = 0, -1
"""In the place of an error number, where a process could not join its control groups, or there was none to spare: no fault of
what it was to execute."""


class Exit(NamedTuple):
    """How a process ended."""

    pid: int
    exit_code: Optional[int]
    signal: Optional[int]
    max_rss_bytes: int
    cpu_ns: int


class Files(NamedTuple):
    """What a process begins in: its folder, the files that it reads and appends to, the control groups that it joins.

    ``cgroup_procs``: descriptors, as the groups' files are not the job's. ``terminal``: a pseudo terminal's path, instead of
    the three files; the process becomes the leader of its session. ``host_name``: it has this one, where that is possible.
    """

    cwd: str
    stdout: str
    stderr: str
    cgroup_procs: Sequence[int] = ()
    stdin: str = os.devnull
    terminal: str = ""
    host_name: str = ""


BLAMELESS: Dict[int, Optional[int]] = {NOT_JOINED: None, NOT_FORKED: 1}
"""The exit codes that ``start`` gives for these."""
Started = Tuple[Optional[int], str, Optional[int]]
"""(pid, "", 0), or (None, error, exit code) as ``start`` says."""


def become_subreaper() -> None:
    """Makes orphans of this process's descendants its children."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def die_with_parent() -> None:
    """Lets the kernel kill this process when its parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def start(argv: List[str], env: Dict[str, str], files: Files) -> Started:
    """Starts a process in its own session, its output appended to two files.

    Returns (pid, "", 0), or (None, error, 127 or 126) where it could not be executed, (None, error, 1) where there is no
    process to spare: another task may have them all, and (None, error, None) where it could not join its control groups. If
    this process dies, the kernel kills that one.
    """
    return begin(argv, env, files)()


def begin(argv: List[str], env: Dict[str, str], files: Files) -> Callable[[], Started]:
    """Does as ``start``, but what is returned waits for the answer: several can be on their way at once."""
    answer = fork(files, lambda: os.execvpe(argv[0], argv, env))

    def started() -> Started:
        pid, failure = answer()
        if not failure:
            return pid, "", 0
        number, _, text = failure.partition(" ")
        if int(number) in BLAMELESS:
            return None, text, BLAMELESS[int(number)]
        exists = "/" in argv[0] and os.path.exists(os.path.join(files.cwd, argv[0]))
        if exists and int(number) == errno.ENOENT:
            text = "the interpreter in its first line does not exist"
            number = str(errno.ENOEXEC)
        error = _explain(argv[0], int(number), text, env.get("PATH", ""))
        return None, error, 127 if int(number) in (errno.ENOENT, errno.ENOTDIR) else 126

    return started


def fork(files: Files, become: Callable[[], Any]) -> Callable[[], Tuple[int, str]]:
    """Starts a process in its own session that calls ``become``, which executes a program, or closes descriptor 3 first.

    What is returned waits until that has happened, and is called once. It returns (pid, ""), or (0, error number and text)
    where it failed.
    """
    libc = ctypes.CDLL(None)  # loaded before the fork: the child must do as little as possible
    parent = os.getpid()
    reader, writer = os.pipe()
    try:
        pid = os.fork()
    except OSError as found:
        os.close(reader)
        os.close(writer)
        failure = "%d no process can be started: %s" % (NOT_FORKED, found.strerror)
        return lambda: (0, failure)
    if pid == 0:
        _child(libc, parent, writer, files, become)
    os.close(writer)  # at once: who is forked next must not keep it open

    def answer() -> Tuple[int, str]:
        with os.fdopen(reader, "rb") as pipe:
            failure = pipe.read()
        if failure:
            os.waitpid(pid, 0)
        return 0 if failure else pid, failure.decode(errors="replace")

    return answer


def _child(libc: Any, parent: int, writer: int, files: Files, become: Callable[[], Any]) -> None:
    try:
        _join(files.cgroup_procs)
        os.setsid()
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before the call above
            os._exit(137)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)  # what the server's parents ignored is not the job's affair
        signal.set_wakeup_fd(-1)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        for target, source in enumerate(_streams(files)):
            os.dup2(source, target)
        os.set_inheritable(writer, False)
        keep = os.dup2(writer, 3, inheritable=False)
        close_from(4)
        writer = keep
        os.chdir(files.cwd)
        if files.host_name:
            hostname.take(files.host_name)  # who needs it says so itself
        seccomp.seal()
        become()
    except _NotJoined as error:
        os.write(writer, ("%d %s" % (NOT_JOINED, error)).encode())
    except OSError as error:
        text = error.strerror or repr(error)
        if error.filename == files.cwd:
            text = "its working folder %s: %s" % (files.cwd, text)
            error.errno = errno.EACCES
        os.write(writer, ("%d %s" % (error.errno or 1, text)).encode())
    except Exception as error:  # noqa: BLE001 - nothing may come back from here
        os.write(writer, ("1 %r" % error).encode())
    finally:
        os._exit(127)


class _NotJoined(Exception):
    """A process could not join its control groups."""


def _join(groups: Sequence[int]) -> None:
    """Moves this process into control groups, by the descriptors of their ``cgroup.procs``."""
    for descriptor in groups:
        try:
            os.write(descriptor, b"0")  # itself
        except OSError as error:
            raise _NotJoined("its control group cannot be joined: %s" % error.strerror) from error


def close_from(first: int, kept: Sequence[int] = ()) -> None:
    """Closes every descriptor from ``first`` on but those ``kept``; there may be thousands."""
    end = 1 + max(int(name) for name in os.listdir("/proc/self/fd"))
    for keep in sorted(descriptor for descriptor in kept if descriptor >= first):
        os.closerange(first, keep)
        first = keep + 1
    os.closerange(first, end)


def _streams(files: Files) -> List[int]:
    """Opens what a process reads from and writes to."""
    if files.terminal:  # the first one that a session's leader opens is its own
        return [os.open(files.terminal, os.O_RDWR)] * 3
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    return [
        os.open(files.stdin, os.O_RDONLY), os.open(files.stdout, flags, 0o600), os.open(files.stderr, flags, 0o600),
    ]  # fmt: skip


def _explain(command: str, number: int, text: str, path: str) -> str:
    if number != 2:
        return "cannot execute %s: %s" % (command, text)
    if "/" in command:
        return "command not found: %s (no such file)" % command
    names: Set[str] = set()
    for folder in path.split(":"):
        try:
            names.update(os.listdir(folder or "."))
        except OSError:
            continue
    near = difflib.get_close_matches(command, sorted(names), n=1, cutoff=0.75)
    return "command not found: %s" % command + (" (did you mean %s?)" % near[0] if near else "")


def signal_name(number: int) -> str:
    """Returns SIGKILL for 9; real-time signals have numbers only."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return "signal %d" % number


def reap() -> List[Exit]:
    """Returns every child that has ended since the last call, orphans included."""
    ended: List[Exit] = []
    while True:
        try:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        cpu_ns = int((usage.ru_utime + usage.ru_stime) * 1e9)
        ended.append(Exit(pid, code, killed, usage.ru_maxrss * 1024, cpu_ns))


def descendants(root: int, closed: FrozenSet[int] = frozenset()) -> List[int]:
    """Returns every living process below ``root``, by /proc; nothing below those that are ``closed``."""
    children: Dict[int, List[int]] = {}
    for pid in procfs.pids():
        try:
            fields = procfs.read(pid, "stat").rpartition(b")")[2].split()
        except OSError:
            continue
        if fields[0] not in (b"Z", b"X"):
            children.setdefault(int(fields[1]), []).append(pid)
    found: List[int] = []
    waiting = [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found.extend(below)
        waiting.extend(pid for pid in below if pid not in closed)
    return found


def kill(pids: Iterable[int]) -> int:
    """Kills these; returns to how many the signal went."""
    sent = 0
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
            sent += 1
        except (ProcessLookupError, PermissionError):
            continue
    return sent


def session(pid: int) -> Optional[int]:
    """Returns a process's session; None where it has ended."""
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def variable(pid: int, name: str) -> Optional[str]:
    """Returns what a variable was when a process began; None where there is none, or the process has cleared it."""
    try:
        words = procfs.read(pid, "environ").split(b"\0")
    except OSError:
        return None
    before = name.encode() + b"="
    return next((word[len(before) :].decode(errors="replace") for word in words if word.startswith(before)), None)


def send(number: int, closed: FrozenSet[int] = frozenset()) -> int:
    """Sends a signal to every descendant of this process; returns to how many.

    What is ``closed`` passes it on itself to what is below it.
    """
    return tell(number, descendants(os.getpid(), closed))


def tell(number: int, pids: Iterable[int]) -> int:
    """Sends a signal to these; returns to how many."""
    sent = 0
    for pid in pids:
        try:
            os.kill(pid, number)
            sent += 1
        except ProcessLookupError:
            continue
        except PermissionError as error:
            print("cannot signal %d: %s" % (pid, error), file=sys.stderr)
    return sent


def handling(number: int, pids: Iterable[int]) -> List[int]:
    """Returns who of these handles a signal and is not below another one that does."""
    found = {pid for pid in pids if handles(number, pid)}
    return sorted(pid for pid in found if found.isdisjoint(_above(pid)))


def _above(pid: int) -> List[int]:
    """Returns a process's parent, that one's parent and so on."""
    found: List[int] = []
    while pid > 1:
        try:
            pid = int(procfs.read(pid, "stat").rpartition(b")")[2].split()[1])
        except OSError:
            return found
        found.append(pid)
    return found


def handles(number: int, pid: int) -> bool:
    """Says whether a process has a function of its own for a signal; one that ignores it, or has ended, has none."""
    try:
        lines = procfs.read(pid, "status").splitlines()
    except OSError:
        return False
    caught = next((line.split()[1] for line in lines if line.startswith(b"SigCgt:")), b"0")
    return bool(int(caught, 16) >> (number - 1) & 1)


def kill_all() -> List[Exit]:
    """Kills every descendant until none is left, and returns those that were reaped."""
    ended: List[Exit] = []
    _freeze()
    for _ in range(KILL_ROUNDS):
        left = send(signal.SIGKILL)
        ended.extend(reap())
        if not left:
            break
        time.sleep(0.005)
    return ended


def _freeze() -> None:
    """Stops every descendant, so that none can start another one while they are killed."""
    known: Set[int] = set()
    for _ in range(KILL_ROUNDS):
        found = set(descendants(os.getpid()))
        if found <= known:
            return
        known |= found
        send(signal.SIGSTOP)
