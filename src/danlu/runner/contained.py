"""A task in a container: the process that stands between the runner and the container engine.

It is forked by the runner in the place of the user's process, so that all that the runner knows of a process (exit code,
signals, its death with the runner) is true of a container too. It starts the engine, hands SIGTERM to each process inside
once, and kills all of it when the runner dies. Podman's processes, and so the container's, are its own descendants: it is
their subreaper. Docker's are its daemon's; they are signalled and removed by name.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import time
from typing import Any, Callable, Dict, FrozenSet, List, Optional, Tuple

from . import formats, processes, procfs

TICK_S = 0.5
MONITOR_S = 2.0
ENGINE_TIMEOUT_S = 20.0
SESSION = "DANLU_SESSION"
SESSION_ENDING_S = 0.5
REFUSED = "refused"
TAIL_BYTES = 8192
MAX_FILES = 1 << 20
PR_SET_PDEATHSIG = 1
ENGINE_FAILED = 125
ENGINES_PROGRAMS = ("conmon", "podman", "catatonit")
GONE = signal.SIGUSR2
"""Sent by the kernel when the runner has died."""
WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, GONE)

ENGINES_OWN = re.compile(
    r"(PATH|HOME|USER|TMPDIR|TZ|LD_.*|XDG_.*|CONTAINERS?_.*|_CONTAINERS_.*|DOCKER_.*|PODMAN_.*|BUILDAH_.*|STORAGE_.*|"
    r"REGISTRY_AUTH_FILE|GO[A-Z]+|DBUS_.*|NOTIFY_SOCKET|LISTEN_.*|SSL_CERT_.*|LC_.*|LANG)"
)
"""Variables that would mean something to the engine too: they reach the container by its command line alone."""
IN_A_FILE = re.compile(r"_?(CONTAINERS?|DOCKER|PODMAN|BUILDAH|STORAGE)_.*|REGISTRY_AUTH_FILE")
"""Those of them that may be secrets: they reach it by a file, for every user of the machine can read a command line."""
MAX_FILE_VALUE_BYTES = 60_000
_NOT_FOUND = re.compile(
    r"failed to exec pid1: (.*)|\(\d+\)\] exec .* failed: (.*)|exec: \"[^\"]*\": (.*)|"
    r"^exec .*: (no such file or directory|permission denied)"
)


def command(container: Dict[str, Any], argv: List[str], env: Dict[str, str]) -> Tuple[List[str], Dict[str, str]]:
    """Returns the engine's command line, and its environment: a value is taken from there, so that none is in argv.

    Raises:
        ValueError: a variable's value can be given to the engine in no way that keeps it to itself.
        OSError: the file for such values cannot be written.
    """
    secret = [name for name in container.get("secret", ()) if ENGINES_OWN.fullmatch(name)]
    filed = {name: value for name, value in env.items() if IN_A_FILE.fullmatch(name) or name in secret}
    passed = {name: value for name, value in env.items() if not ENGINES_OWN.fullmatch(name)}
    said = [name for name in env if name not in filed]
    flags = ["--env=%s" % name if name in passed else "--env=%s=%s" % (name, env[name]) for name in said]
    if filed:
        _write_variables(container["env_file"], filed)
        flags.append("--env-file=%s" % container["env_file"])
    if container["engine"] == "podman":
        flags += ["--ulimit=%s" % limit for limit in _limits()]
    return [*container["run"], *flags, container["image"], *argv], {**passed, **container["environ"]}


def _write_variables(path: str, variables: Dict[str, str]) -> None:
    """Writes the file that the engine reads variables from, one a line, for this user alone."""
    for name, value in variables.items():
        if "\n" in value or "\r" in value or len(os.fsencode(value)) > MAX_FILE_VALUE_BYTES:
            raise ValueError(
                "variable %s has a line break or more than %d bytes, and one of this name, which the engine might take for "
                "its own, cannot be given to a container so: give it another name" % (name, MAX_FILE_VALUE_BYTES)
            )
    lines = "".join("%s=%s\n" % pair for pair in variables.items())
    formats.write_atomically(path, os.fsencode(lines))


def entering(
    container: Dict[str, Any], argv: List[str], env: Dict[str, str], terminal: bool
) -> Tuple[List[str], Dict[str, str]]:
    """Returns the command line and environment by which a program is run beside the task's, in its container."""
    name = container["name"]
    if not name:
        with open(container["id_file"]) as file:
            name = file.read().strip()
    flags = ["--interactive", *(["--tty"] if terminal else []), "--workdir=%s" % env["PWD"]]
    return command({**container, "engine": "", "run": [*container["enter"], *flags], "image": name}, argv, env)


def session_mark(container: Dict[str, Any]) -> str:
    """Returns by what a session's processes are found again that are none of the runner's: the daemon's; else nothing."""
    return os.urandom(16).hex() if container["daemon"] else ""


def end_session(mark: str) -> None:
    """Ends the processes with this mark in their environment, and what is below them; docker would let them go on."""
    if not mark:
        return
    _signal_marked(mark, signal.SIGHUP)
    until = time.monotonic() + SESSION_ENDING_S
    while _marked(mark) and time.monotonic() < until:
        time.sleep(0.02)
    while _signal_marked(mark, signal.SIGKILL) and time.monotonic() < until + ENGINE_TIMEOUT_S:
        time.sleep(0.005)


def _marked(mark: str) -> List[int]:
    own = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    found = [pid for pid in own if processes.variable(pid, SESSION) == mark]
    return [*found, *(below for pid in found for below in processes.descendants(pid))]


def _signal_marked(mark: str, number: int) -> int:
    """Returns to how many the signal went."""
    sent = 0
    for pid in set(_marked(mark)):
        try:
            os.kill(pid, number)
            sent += 1
        except (ProcessLookupError, PermissionError):
            continue
    return sent


def _limits() -> List[str]:
    """Returns this process's own limits as flags: podman's defaults are more than a user may ask for."""
    with open("/proc/sys/kernel/pid_max") as file:
        most = int(file.read())  # podman lowers its own limit of processes to that first
    found = []
    for name, number, ceiling in (
        ("nofile", resource.RLIMIT_NOFILE, MAX_FILES),
        ("nproc", resource.RLIMIT_NPROC, most),
    ):
        soft, hard = (ceiling if n == resource.RLIM_INFINITY else min(n, ceiling) for n in resource.getrlimit(number))
        found.append("%s=%d:%d" % (name, soft, hard))
    return found


class Guard:
    """One container's life."""

    def __init__(self, container: Dict[str, Any], folder: str, files: processes.Files) -> None:
        self.container = container
        self.folder = folder
        self.files = files
        self.asked = False

    def begin(self, argv: List[str], env: Dict[str, str]) -> Callable[[], processes.Started]:
        """Forks the guard; returns what ``processes.begin`` does."""
        parent = os.getpid()

        def become() -> None:
            os.close(3)  # which says that it was started
            os._exit(self.run(argv, env, parent))

        answer = processes.fork(self.files, become)

        def started() -> processes.Started:
            pid, failure = answer()
            if not failure:
                return pid, "", 0
            number, _, text = failure.partition(" ")
            return (
                None,
                "cannot start %s: %s" % (self.container["engine"], text),
                processes.BLAMELESS.get(int(number), 126),
            )

        return started

    def run(self, argv: List[str], env: Dict[str, str], parent: int) -> int:
        """Runs the container to its end; returns the exit code."""
        signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
        processes.become_subreaper()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, GONE, 0, 0, 0)
        if os.getppid() != parent:
            return 128 + signal.SIGKILL
        if os.path.lexists(os.path.join(self.folder, REFUSED)):
            os.unlink(os.path.join(self.folder, REFUSED))
        for path in self.container["folders"]:
            wipe(path)  # of an earlier start: podman would look for the container that it believes to run
            os.makedirs(path, mode=0o700, exist_ok=True)
        try:
            words, environ = command(self.container, argv, env)
        except (OSError, ValueError) as found:
            self.refuse("the container cannot be started: %s" % found)
            return 126
        before = os.stat(self.files.stderr).st_size
        pid, error, code = processes.start(words, environ, self.files._replace(cgroup_procs=()))
        if pid is None:
            self.refuse(error)
            return 126 if code is None else code
        code = self.wait(pid)
        if self.container["engine"] == "podman":
            processes.kill_all()  # what is left is the engine's: nothing inside outlives the first process
        else:
            code = self.remove(code)
        return self.explain(code, argv, before)

    def wait(self, engine: int) -> int:
        """Waits for the engine to end. Where its monitor was killed, it would wait long for an end that nobody tells."""
        until = None
        while True:
            got = signal.sigtimedwait(WATCHED, TICK_S)
            number = None if got is None else got.si_signo
            if number == GONE:
                processes.kill_all()
                self.engine_says("remove")
                os._exit(128 + signal.SIGKILL)
            if number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP) and not self.asked:
                self.asked = True
                self.end()
            over = processes.reap()
            for ended in over:
                if ended.pid == engine:
                    return int(128 + (ended.signal or 0) if ended.exit_code is None else ended.exit_code)
            if until is None and over and self.monitor() in [ended.pid for ended in over]:
                until = time.monotonic() + MONITOR_S
            if until is not None and time.monotonic() > until:
                self.refuse("the monitor of its container was killed, and so was the container")
                return 128 + signal.SIGKILL

    def monitor(self) -> int:
        """Returns the process that podman has set beside the container, once it is known."""
        try:
            with open(self.container["monitor"]) as file:
                return int(file.read())
        except (OSError, ValueError, KeyError):
            return 0

    def end(self) -> None:
        """Asks what runs inside to end; a container that has not begun never does."""
        if self.container["engine"] != "podman":
            self.engine_says("signal")
            return
        found = inside()
        for pid in found:
            for number in (signal.SIGTERM, signal.SIGCONT):
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    continue
        if not found:
            processes.send(signal.SIGKILL)

    def engine_says(self, what: str) -> Optional[str]:
        """Runs one of the engine's commands; returns what it printed."""
        if not self.container[what]:
            return None
        try:
            done = subprocess.run(
                self.container[what], env=self.container["environ"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, timeout=ENGINE_TIMEOUT_S, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.decode(errors="replace")

    def remove(self, code: int) -> int:
        """Removes an ended container of docker's; says whether it was killed for lack of memory."""
        if (self.engine_says("state") or "").strip() == "true":
            self.refuse("killed by the kernel: it used all of its memory limit", oom=True)
            code = 128 + signal.SIGKILL
        self.engine_says("remove")
        return code

    def explain(self, code: int, argv: List[str], before: int) -> int:
        """Returns the exit code as a process would have it, and keeps in words why nothing was executed."""
        if code not in (1, 125, 126, 127):
            return code
        with open(self.files.stderr, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(before, size - TAIL_BYTES))
            lines = file.read(TAIL_BYTES).decode(errors="replace").splitlines()
        for line in lines:
            found = _NOT_FOUND.search(line)
            by_engine = code != 1 or line.startswith("ERROR (catatonit")
            if found and by_engine:
                why = next(group for group in found.groups() if group)
                self.refuse("command not found in the image: %s (%s)" % (argv[0], why.strip()))
                return 126 if "denied" in why.lower() else 127
        if code == ENGINE_FAILED:
            said = next((line for line in reversed(lines) if line.lower().startswith(("error", "docker:"))), "")
            if said:
                self.refuse("%s could not start the container: %s" % (self.container["engine"], said))
        return code

    def refuse(self, words: str, oom: bool = False) -> None:
        """Keeps why nothing was executed, or what killed it, for the runner to say."""
        try:
            with open(os.path.join(self.folder, REFUSED), "w") as file:
                json.dump({"error": words[:4096], "oom": oom}, file)
        except OSError:
            return


def inside() -> List[int]:
    """Returns the processes in the container but its first, which would only pass a signal on to them once more."""
    return [pid for pid in processes.descendants(os.getpid()) if _is_inside(_numbers(pid))]


def running(container: Dict[str, Any], guard: int, attempt_id: str, task: str) -> List[int]:
    """Returns the processes in a task's container but its first; the daemon's are known by what they began with."""
    found = processes.descendants(guard)
    if container["daemon"]:
        marks = {"DANLU_ATTEMPT_ID": attempt_id, "DANLU_TASK": task, SESSION: None}
        found = [pid for pid in procfs.pids() if all(processes.variable(pid, n) == v for n, v in marks.items())]
    return [pid for pid in found if _is_inside(_numbers(pid))]


def _is_inside(numbers: List[bytes]) -> bool:
    return len(numbers) > 1 and numbers[-1] != b"1"


def _numbers(pid: int) -> List[bytes]:
    """Returns a process's ids, one for each namespace that it is in; none where it has ended."""
    try:
        with open("/proc/%d/status" % pid, "rb") as file:
            return next((line.split()[1:] for line in file if line.startswith(b"NSpid:")), [])
    except OSError:
        return []


def refused(folder: str) -> Tuple[str, bool]:
    """Returns why a task's container executed nothing, or what killed it, and whether that was for lack of memory."""
    try:
        with open(os.path.join(folder, REFUSED)) as file:
            said = json.load(file)
        return str(said["error"]), bool(said["oom"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", False


def devices(count: int) -> Dict[str, str]:
    """Returns the variables that name a task's GPUs: a container shows only these, and they count from 0 in it."""
    shown = ",".join(map(str, range(count)))
    return {"CUDA_VISIBLE_DEVICES": shown, "NVIDIA_VISIBLE_DEVICES": "void"}  # the engine hands them in, no hook need


def wipe(folder: str) -> None:
    """Removes a folder of ours whatever the modes in it. Absent is success."""
    for base, names, _ in os.walk(folder):
        for name in names:
            path = os.path.join(base, name)
            if not os.path.islink(path):
                os.chmod(path, 0o700)
    shutil.rmtree(folder, ignore_errors=True)


def end_orphans(guards: FrozenSet[int]) -> None:
    """Kills what a guard that was killed has left to the runner: the engine's and a container's, not below another guard."""
    for pid in processes.descendants(os.getpid(), guards):
        if pid not in guards and (len(_numbers(pid)) > 1 or _program(pid) in ENGINES_PROGRAMS):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def _program(pid: int) -> str:
    try:
        with open("/proc/%d/comm" % pid) as file:
            return file.read().strip()
    except OSError:
        return ""


def remove(container: Optional[Dict[str, Any]]) -> None:
    """Removes a container that may have outlived its guard; there may be none."""
    if container and container["remove"]:
        Guard(container, "", processes.Files("", "", "")).engine_says("remove")
