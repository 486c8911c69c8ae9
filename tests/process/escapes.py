"""What a hostile job tries, and whom it tries it on: shared by the tests as root and those as an ordinary user."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from danlu.executors.base import Observation
from tests.executors import LocalBench

VICTIM = r"""
import ctypes, os, time
mark, key = os.environ["MARK"], int(os.environ["KEY"])
own = [".", *(os.environ[name] for name in ("DANLU_OUTPUT_DIR", "DANLU_CHECKPOINT_DIR", "TMPDIR"))]
places = [*own, "/tmp", "/var/tmp", "/dev/shm"]
for place in places:
    with open(os.path.join(place, mark), "w") as file:
        file.write("secret")
    os.chmod(os.path.join(place, mark), 0o644)
assert ctypes.CDLL(None).shmget(key, 4096, 0o1666) >= 0
print("up", flush=True)
try:
    time.sleep(1000)
finally:
    for place in places[-3:]:
        os.unlink(os.path.join(place, mark))
"""
WAYS = r"""
import ctypes, errno, json, os, resource, signal, socket, struct, subprocess, sys

targets = json.loads(os.environ["TARGETS"])
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
ARM = os.uname().machine == "aarch64"
PTRACE_SEIZE, PTRACE_DETACH = 0x4206, 17
NEW_USER = 0x10000000

def called(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result

def system(on_intel, on_arm, *arguments):
    return called(libc.syscall(on_arm if ARM else on_intel, *arguments))

def read(path):
    with open(path, "rb") as file:
        file.read(1)

def written(path):
    with open(path, "ab") as file:
        file.write(b"changed")

def made(path):
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))

def traced(pid):
    called(libc.ptrace(PTRACE_SEIZE, pid, None, None))
    libc.ptrace(PTRACE_DETACH, pid, None, None)

def shown(pid):
    if str(pid) not in os.listdir("/proc"):
        raise FileNotFoundError(errno.ENOENT, "not shown")

def attached(key):
    found = called(libc.shmget(key, 0, 0))
    if libc.shmat(found, None, 0o10000) == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "shmat")

def connected(name):
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(chr(0) + name)

def entered(path):
    folder = os.open(os.path.dirname(path), os.O_PATH)  # a socket's path is limited, a folder's is not
    with socket.socket(socket.AF_UNIX) as one:
        one.connect("/proc/self/fd/%d/%s" % (folder, os.path.basename(path)))

def replaced(path):
    os.rename(path, path + ".away")
    os.rename(path + ".away", path)

def became_root(program):
    said = subprocess.run([program, "-u"], stdout=subprocess.PIPE, check=True).stdout.strip()
    if said != b"0":
        raise PermissionError(errno.EPERM, "nobody")

def in_a_new_namespace(call):
    pid = os.fork()
    if pid == 0:
        try:
            call()
        except OSError as error:
            os._exit(error.errno)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(code, os.strerror(code))

def cloned():
    pid = called(libc.syscall(220 if ARM else 56, NEW_USER | signal.SIGCHLD, 0, 0, 0, 0))
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)

def cloned3():
    asked = struct.pack("11Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, 0, 0, 0)
    pid = called(libc.syscall(435, asked, len(asked)))
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)

def raw():
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()

ways = {
    "mount": lambda: called(libc.mount(b"none", b"/mnt", b"tmpfs", 0, None)),
    "umount": lambda: called(libc.umount2(b"/proc", 2)),
    "new mount": lambda: system(430, 430, b"tmpfs", 0),
    "chroot": lambda: os.chroot("/"),
    "user namespace": lambda: in_a_new_namespace(lambda: called(libc.unshare(NEW_USER))),
    "clone": cloned,
    "clone3": cloned3,
    "own namespace": lambda: called(libc.setns(os.open("/proc/self/ns/mnt", os.O_RDONLY), 0)),
    "first process's namespace": lambda: called(libc.setns(os.open("/proc/1/ns/mnt", os.O_RDONLY), 0)),
    "keyring": lambda: system(250, 219, 0, -3, 0),
    "key": lambda: system(248, 217, b"user", b"danlu-test", b"x", 1, -2),
    "bpf": lambda: system(321, 280, 0, b"", 0),
    "io_uring": lambda: system(425, 425, 1, ctypes.create_string_buffer(120)),
    "page faults": lambda: system(323, 282, 1),
    "file by number": lambda: system(304, 265, -100, ctypes.create_string_buffer(64), 0),
    "module": lambda: system(175, 105, b"", 0, b""),
    "reboot": lambda: system(169, 142, 0, 0, 0, 0),
    "clock": lambda: system(227, 112, 0, struct.pack("qq", 0, 0)),
    "swap": lambda: system(167, 224, b"/nothing", 0),
    "host name": lambda: called(libc.sethostname(b"x", 1)),
    "kernel's log": lambda: system(103, 116, 3, ctypes.create_string_buffer(10), 10),
    "raw socket": raw,
    "a million files": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, ((1 << 20) + 1, (1 << 20) + 1)),
    "core dump": lambda: resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20)),
}
for name, path in targets.get("read", {}).items():
    ways["read " + name] = lambda path=path: read(path)
for name, path in targets.get("list", {}).items():
    ways["list " + name] = lambda path=path: os.listdir(path)
for name, path in targets.get("write", {}).items():
    ways["write " + name] = lambda path=path: written(path)
for name, path in targets.get("make", {}).items():
    ways["make " + name] = lambda path=path: made(path)
for name, pid in targets.get("process", {}).items():
    for file in ("environ", "cmdline", "maps", "mem"):
        path = "/proc/%d/%s" % (pid, file)
        ways["%s of %s" % (file, name)] = lambda path=path: os.close(os.open(path, os.O_RDONLY))
    ways["files of " + name] = lambda pid=pid: os.readlink("/proc/%d/fd/0" % pid)
    ways["see " + name] = lambda pid=pid: shown(pid)
    ways["trace " + name] = lambda pid=pid: traced(pid)
    ways["signal " + name] = lambda pid=pid: os.kill(pid, 0)
for name, key in targets.get("shared memory", {}).items():
    ways["attach " + name] = lambda key=key: attached(key)
for name, socket_name in targets.get("abstract", {}).items():
    ways["connect to " + name] = lambda found=socket_name: connected(found)
for name, path in targets.get("door", {}).items():
    ways["enter " + name] = lambda path=path: entered(path)
for name, path in targets.get("replace", {}).items():
    ways["replace " + name] = lambda path=path: replaced(path)
for name, program in targets.get("setuid", {}).items():
    ways["become root by " + name] = lambda program=program: became_root(program)

outcome = {}
for name, way in ways.items():
    try:
        way()
        outcome[name] = "done"
    except OSError as error:
        outcome[name] = errno.errorcode.get(error.errno, str(error))
    except ValueError as error:  # how Python says that a limit cannot be raised
        outcome[name] = "EPERM"
print(json.dumps(outcome), flush=True)
"""


class Victim(NamedTuple):
    """A running attempt, the key of its shared memory, and the name of its files."""

    attempt: str
    key: int
    mark: str


@dataclass
class Stage:
    """A server, jobs that mind their own business, and one that does not.

    Args:
        bench: runs them; its own process plays the server.
        off: layers of isolation that are left out, to see what they are for.
        outside: a folder of the machine that every user may write to.
    """

    bench: LocalBench
    outside: Path
    off: Sequence[str] = ()
    mark: str = field(default_factory=lambda: secrets.token_hex(8))

    def __post_init__(self) -> None:
        found = self.bench.executor.capabilities
        missing = {**found.no_layers, **dict.fromkeys(self.off, "left out")}
        self.bench.executor.capabilities = found.model_copy(update={"no_layers": missing})
        for name, mode in (("danlu.db", 0o600), ("keys", 0o600), ("platform", 0o644)):
            (self.bench.home / name).write_text("secret")
            (self.bench.home / name).chmod(mode)
        self.environment = self.bench.home / "environments" / "shared"
        self.environment.mkdir(parents=True)
        for path, mode in ((self.environment / "module.py", 0o666), (self.outside / "file", 0o666)):
            path.write_text("as it was")
            path.chmod(mode)

    def launch(self, project: int, program: str, **variables: str) -> str:
        order = self.bench.order("python", "-c", program, variables=variables, grace=1)
        interpreter = self.bench.interpreter()
        interpreter = interpreter.model_copy(update={"roots": (*interpreter.roots, self.environment)})
        order = order.model_copy(update={"project_number": project, "interpreter": interpreter})
        self.bench.executor.launch(order)
        return order.attempt.id

    def marked(self, project: int) -> str:
        """Returns the name of the files that a victim of a project has made."""
        return f"{self.mark}-{project}"

    def victim(self, project: int) -> Victim:
        """Starts an attempt and returns it once it has made its files."""
        key = secrets.randbelow(2**30) + 1
        attempt = self.launch(project, VICTIM, MARK=self.marked(project), KEY=str(key))
        self.bench.printed(attempt, "up")
        return Victim(attempt, key, self.marked(project))

    def pid(self, attempt: str) -> int:
        return int(next(event["pid"] for event in self.bench.events(attempt) if event["event"] == "started"))

    def outcome(self, project: int, victims: dict[str, Victim], setuid: str = "") -> tuple[dict[str, str], Observation]:
        """Returns what came of each way that a job of this project tries, and the job."""
        home = self.bench.home
        targets: dict[str, dict[str, Any]] = {
            "read": {"database": home / "danlu.db", "keys": home / "keys", "platform": home / "platform",
                     "code that is kept": home / "cache" / "code" / "uses"},
            "list": {"attempts' shared code": home / "cache" / "code"},
            "write": {"environment": self.environment / "module.py", "outside": self.outside / "file"},
            "make": {"outside": self.outside / self.mark, "among sockets": self.bench.runtime / self.mark},
            "replace": {"the server's ear": self.bench.runtime / "hints.sock"},
            "process": {"server": os.getpid(), "first": 1},
            "setuid": {"a copy": setuid} if setuid else {},
        }  # fmt: skip
        for name, (attempt, key, mark) in victims.items():
            folder = home / "attempts" / attempt
            places = {
                "work": folder / "work", "outputs": folder / "outputs", "temporary": folder / "tmp",
                "checkpoint": home / "checkpoints" / attempt.rpartition("-")[0], "/tmp": "/tmp", "/var/tmp": "/var/tmp",
                "/dev/shm": "/dev/shm",
            }  # fmt: skip
            targets["read"].update({f"{what} of {name}": Path(place, mark) for what, place in places.items()})
            targets["read"][f"log of {name}"] = folder / "main-0" / "stdout"
            targets["read"][f"token of {name}"] = folder / "token"
            targets["write"][f"log of {name}"] = folder / "main-0" / "stdout"
            targets["list"][f"folder of {name}"] = folder
            targets.setdefault("door", {})[name] = folder / "session"
            targets["process"][name] = self.pid(attempt)
            targets["process"][f"runner of {name}"] = self.bench.runner_pid(attempt)
            targets.setdefault("shared memory", {})[name] = key
        with self.listening() as found:
            targets["abstract"] = {"server": found}
            attempt = self.launch(project, WAYS, TARGETS=json.dumps(targets, default=str))
            seen = self.bench.end(attempt)
        said = self.bench.log(attempt)
        assert seen.tasks[0].exit_code == 0, said
        outcome: dict[str, str] = json.loads(said.splitlines()[-1])
        return outcome, seen

    @contextlib.contextmanager
    def listening(self) -> Iterator[str]:
        """Listens on an abstract socket, as some servers do."""
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(f"\0danlu-test-{self.mark}")
            listening.listen(16)
            yield f"danlu-test-{self.mark}"


def done(outcome: dict[str, str]) -> set[str]:
    return {way for way, how in outcome.items() if how == "done"}


@contextlib.contextmanager
def public_folder() -> Iterator[Path]:
    """Makes a folder for every user that is not below a folder for all."""
    parent = "/opt" if os.access("/opt", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="danlu-test-", dir=parent))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def as_ordinary_user(home: str, outside: str, *off: str) -> None:
    """The program of a server that is not root: one victim, one hostile job; prints what came of it."""
    bench = LocalBench(Path(home))
    try:
        stage = Stage(bench, Path(outside), off)
        victim = stage.victim(0)
        outcome, seen = stage.outcome(0, {"neighbour": victim})
        layers, missing = map(str, bench.executor.capabilities.layers), dict(bench.executor.capabilities.no_layers)
        print(json.dumps({"outcome": outcome, "limits": seen.limits, "layers": [*layers], "missing": missing}))
    finally:
        bench.close()


if __name__ == "__main__":
    as_ordinary_user(*sys.argv[1:])
