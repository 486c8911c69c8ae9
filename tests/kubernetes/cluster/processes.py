"""The cluster's processes on this machine: each has a name, a log, a control group, and an end."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from tests.kubernetes.cluster import layout

POLL_S = 0.05
STOP_TIMEOUT_S = 10.0
CGROUPS = Path("/sys/fs/cgroup")


class ClusterError(Exception):
    """What the cluster could not do, and what was said about it."""


def command(*words: str | Path, check: bool = True, send: str | None = None, timeout_s: float = 120) -> str:
    """Runs a program to its end and returns its output."""
    done = subprocess.run(words, input=send, capture_output=True, text=True, check=False, timeout=timeout_s)
    if check and done.returncode:
        raise ClusterError(f"`{' '.join(map(str, words))}` failed ({done.returncode}): {done.stderr.strip()[-2000:]}")
    return done.stdout


def wait_until(what: str, timeout_s: float, condition: Callable[[], object]) -> None:
    """Waits until a condition holds; `what` names it where it never does."""
    deadline, pause = time.monotonic() + timeout_s, threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            raise ClusterError(f"{what}: not within {timeout_s:g} s; the logs are in {layout.logs()}")
        pause.wait(POLL_S)


def group(name: str) -> Path:
    """Returns the folder of a control group by which processes are found: version 2's, or the hierarchy `pids` of 1."""
    return (CGROUPS if (CGROUPS / "cgroup.controllers").exists() else CGROUPS / "pids") / name


def members(name: str) -> set[int]:
    """Returns the processes of a control group and of those below it."""
    found: set[int] = set()
    for folder, _, _ in os.walk(group(name)):
        with suppress(OSError):  # it went away meanwhile
            found.update(map(int, (Path(folder) / "cgroup.procs").read_text().split()))
    return found


def start(name: str, words: Iterable[str | Path], environment: dict[str, str] | None = None) -> int:
    """Starts a process of its own session in the cluster's control group; returns its number."""
    group(layout.GROUP).mkdir(exist_ok=True)
    layout.logs().mkdir(parents=True, exist_ok=True)
    join = f'cd / && echo $$ > "{group(layout.GROUP)}/cgroup.procs" && exec "$@"'
    log = str(layout.logs() / f"{name}.log")
    # not a child to wait for: it outlives this process
    pid = os.posix_spawn(
        "/bin/sh", ["/bin/sh", "-c", join, name, *map(str, words)], os.environ | (environment or {}), setsid=True,
        file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                      (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
                      (os.POSIX_SPAWN_DUP2, 1, 2)],
    )  # fmt: skip
    _pid_file(name).parent.mkdir(parents=True, exist_ok=True)
    _pid_file(name).write_text(str(pid))
    wait_until(f"the start of {name}", STOP_TIMEOUT_S, lambda: pid in members(layout.GROUP) or _gone(pid))
    return pid


def _pid_file(name: str) -> Path:
    return layout.run() / "pids" / name


def find(name: str) -> int | None:
    """Returns a process' number; None where it does not run. A number that was given to another is not in our group."""
    try:
        pid = int(_pid_file(name).read_text())
    except (FileNotFoundError, ValueError):
        return None
    if pid not in members(layout.GROUP) or _is_dead(pid):
        return None
    return pid


def _is_dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def send(name: str, number: signal.Signals) -> None:
    """Sends a signal to a process by its name; one that does not run is an error."""
    pid = find(name)
    if pid is None:
        raise ClusterError(f"the cluster's process {name} does not run")
    os.kill(pid, number)


def stop(name: str, timeout_s: float = STOP_TIMEOUT_S) -> None:
    """Ends a process and waits for its end: by SIGTERM, and SIGKILL where that is not heard. None running is success."""
    pid = find(name)
    if pid is not None:
        end({pid}, timeout_s)
    _pid_file(name).unlink(missing_ok=True)


def end(pids: set[int], timeout_s: float = STOP_TIMEOUT_S) -> None:
    """Ends processes and waits until they are gone."""
    for number, wait_s in ((signal.SIGTERM, timeout_s), (signal.SIGKILL, STOP_TIMEOUT_S)):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
                if number is signal.SIGTERM:
                    os.kill(pid, signal.SIGCONT)  # one that a test had stopped
        with suppress(ClusterError):
            wait_until("the end of processes", wait_s, lambda: all(_gone(pid) for pid in pids))
            return
    raise ClusterError(f"processes that do not end: {sorted(pid for pid in pids if not _is_dead(pid))}")


def _gone(pid: int) -> bool:
    with suppress(ChildProcessError):  # ours, if this process started it
        os.waitpid(pid, os.WNOHANG)
    return _is_dead(pid)


def kill_all(what: str, running: Callable[[], set[int]]) -> None:
    """Kills all processes that a search finds, until it finds none."""

    def none_left() -> bool:
        found = running()
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            _gone(pid)
        return not found

    wait_until(f"the end of all processes of {what}", STOP_TIMEOUT_S, none_left)
