"""Hostile jobs against a machine's other jobs, its platform and its kernel; and that each layer is what stops them.

Jobs that turn on their own attempt's folder are in test_local_hostile.py; those that would leave their control groups, or
look into their runner, in test_local_group_escape.py; floods of output, memory and processes, daemons and double forks in
test_local_executor.py; keys in test_keys_unseen.py; outputs that change meanwhile in test_outputs_hostile.py, and those that
are pipes, devices, links or holes in unit/test_folders.py; records for another attempt in api/test_jobs.py.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from danlu.domain import mpi
from danlu.domain.isolation import Layer
from danlu.domain.sessions import SessionRequest
from danlu.errors import LaunchRejected
from danlu.executors.local import launcher
from danlu.runner import frames
from tests.conftest import cannot_run
from tests.executors import LocalBench
from tests.process import escapes
from tests.process.escapes import Stage, done
from tests.process.test_local_executor import opened

ROOT = os.geteuid() == 0
OTHER_UID = 198_777
CONFINED = tuple(layer for layer in Layer if not layer.endswith("-limit"))
SECRETS = ("work", "outputs", "checkpoint", "temporary", "log", "token")


@pytest.fixture
def bench() -> Iterator[LocalBench]:
    if not ROOT:
        cannot_run("only root can run jobs as other users")
    with escapes.public_folder() as folder:  # what lies below /tmp is hidden by another layer too
        home = folder / "home"
        home.mkdir()
        bench = LocalBench(home)
        yield bench
        bench.close()


@pytest.fixture
def outside() -> Iterator[Path]:
    with escapes.public_folder() as folder:
        yield folder


def need(bench: LocalBench, *layers: str) -> None:
    for layer in layers:
        if layer not in bench.executor.capabilities.layers:
            cannot_run(f"this machine has no {layer}: {bench.executor.capabilities.no_layers[layer]}")


def setuid_copy(folder: Path) -> str:
    """Returns a program that makes whoever starts it root, and says so."""
    program = folder / "id"
    shutil.copy(shutil.which("id") or "/usr/bin/id", program)
    program.chmod(0o4755)
    return str(program)


def attacked(bench: LocalBench, outside: Path, *off: str) -> dict[str, str]:
    """Returns what came of it when a job of project 2 turned on one of project 1, on one of its own, and on the server."""
    stage = Stage(bench, outside, off)
    victims = {"stranger": stage.victim(1), "neighbour": stage.victim(2)}
    outcome, seen = stage.outcome(2, victims, setuid_copy(outside))
    assert not {*off} & {*seen.limits}
    if not off:
        assert {*CONFINED} <= {*seen.limits}
    return outcome


def test_no_way_leads_out(bench: LocalBench, outside: Path) -> None:
    need(bench, *CONFINED)
    outcome = attacked(bench, outside)
    assert len(outcome) > 80
    assert done(outcome) == set(), outcome
    assert {outcome[way] for way in ("io_uring", "clone3")} == {"ENOSYS"}, "so that libraries do without"
    assert (bench.home / "environments" / "shared" / "module.py").read_text() == "as it was"
    assert (outside / "file").read_text() == "as it was"


CONTROLS: dict[tuple[str, ...], set[str]] = {
    ("seccomp",): {"user namespace", "clone", "clone3", "keyring", "key"},
    ("private-tmp",): {f"read {folder} of stranger" for folder in ("/tmp", "/var/tmp", "/dev/shm")},
    ("ipc-namespace",): {"attach stranger", "attach neighbour"},
    ("hidden-processes",): {
        f"{what}{who}" for what in ("see ", "cmdline of ") for who in ("stranger", "neighbour", "server", "first")
    },
    ("closed-data-folder",): {
        "read platform", "enter neighbour", *(f"read {what} of neighbour" for what in SECRETS),
    },
    ("landlock",): {"make outside", "write outside"},
    ("closed-data-folder", "landlock"): {"write environment", "write log of neighbour"},
    ("scoped-signals",): {"signal neighbour", "signal runner of neighbour", "connect to server"},
    ("hidden-processes", "landlock", "scoped-signals"): {
        "trace neighbour", "environ of neighbour", "maps of neighbour", "mem of neighbour", "files of neighbour",
    },
    ("no-new-privileges", "landlock", "scoped-signals", "seccomp"): {"become root by a copy"},
    ("rlimits",): {"core dump"},
}  # fmt: skip


@pytest.mark.parametrize("off", CONTROLS, ids=",".join)
def test_without_a_layer_there_is_a_way(bench: LocalBench, outside: Path, off: tuple[str, ...]) -> None:
    need(bench, *CONFINED)
    yama = Path("/proc/sys/kernel/yama/ptrace_scope")
    if "hidden-processes" in off and yama.exists() and yama.read_text().strip() != "0":
        cannot_run("this kernel lets a process trace only what it has started")
    if off == ("rlimits",) and resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        cannot_run("nobody here may dump core")
    outcome = attacked(bench, outside, *off)
    ways = CONTROLS[off]
    assert ways <= done(outcome), {way: outcome[way] for way in ways}


def test_only_root_may_what_a_job_may_not() -> None:
    """The control for what no layer can be left out for: the kernel asks for root, and a job never is."""
    if not ROOT:
        cannot_run("it must be root that may")
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close()


# what has to work all the same

SHARING = r"""
import ctypes, os, signal, sys, time
libc = ctypes.CDLL(None)
libc.shmat.restype = ctypes.c_void_p
first = os.environ["DANLU_INDEX"] == "0"
def wait(path):
    while not os.path.exists(path):
        time.sleep(0.02)
if first:
    here = ctypes.cast(libc.shmat(libc.shmget(4711, 4096, 0o1600), None, 0), ctypes.POINTER(ctypes.c_char))
    here[0] = b"x"
    for path in ("/dev/shm/pid", "/tmp/pid"):
        with open(path + ".new", "w") as file:
            file.write(str(os.getpid()))
        os.rename(path + ".new", path)
    signal.sigwait({signal.SIGUSR1})
else:
    wait("/tmp/pid"), wait("/dev/shm/pid")
    pid = int(open("/dev/shm/pid").read())
    assert str(pid) in os.listdir("/proc")
    there = ctypes.cast(libc.shmat(libc.shmget(4711, 4096, 0), None, 0), ctypes.POINTER(ctypes.c_char))
    assert there[0] == b"x"
    os.kill(pid, signal.SIGUSR1)
"""


def test_tasks_of_an_attempt_share_memory_files_and_signals(bench: LocalBench) -> None:
    """As data loaders, NCCL and MPI do between the processes of one machine."""
    program = SHARING.replace("import ctypes, os, signal, sys, time", (
        "import ctypes, os, signal, sys, time\nsignal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})"
    ))  # fmt: skip
    roles = {"worker": {"replicas": 2, "command": ["python", "-c", program]}}
    attempt = bench.launch("unused", roles=roles, framework="none")
    seen = bench.end(attempt)
    assert [task.exit_code for task in seen.tasks] == [0, 0], bench.log(attempt)


def test_nothing_of_it_is_left_on_the_machine(bench: LocalBench) -> None:
    need(bench, Layer.PRIVATE_TMP, Layer.IPC_NAMESPACE)
    stage = Stage(bench, bench.home)
    attempt, key, mark = stage.victim(1)
    bench.executor.stop(attempt, grace_s=0)
    bench.end(attempt)
    assert f"0x{key:08x}" not in Path("/proc/sysvipc/shm").read_text()
    assert not [place for place in ("/tmp", "/var/tmp", "/dev/shm") if Path(place, mark).exists()]
    assert (bench.tmp(attempt) / mark).exists()
    bench.executor.forget(attempt)
    assert list(bench.home.rglob(mark)) == [bench.home / "checkpoints" / attempt.rpartition("-")[0] / mark]


def test_a_session_is_in_the_sandbox_of_its_task(bench: LocalBench) -> None:
    need(bench, *CONFINED)
    stage = Stage(bench, bench.home)
    attempt, _, mark = stage.victim(1)
    pid = stage.pid(attempt)
    program = (
        f"set -e; cat /tmp/{mark} /dev/shm/{mark}; kill -0 {pid}; test -r /proc/{pid}/environ; "
        "grep -h -E '^(Seccomp|NoNewPrivs):' /proc/self/status; readlink /proc/self/ns/mnt; touch /opt/x || echo refused; "
        "ls -d /proc/1 || echo hidden"
    )
    said = answered(bench, attempt, program)
    mounts = str(Path(f"/proc/{pid}/ns/mnt").readlink())
    assert said.split() == ["secretsecretNoNewPrivs:", "1", "Seccomp:", "2", mounts, "refused", "hidden"], said


def test_workers_of_mpi_have_host_names_and_no_more_than_others(bench: LocalBench) -> None:
    need(bench, *CONFINED)
    asking = (
        "hostname; unshare -U true || echo refused; ls -d /proc/1 || echo hidden; pgrep -f [s]erve >&2 && echo seen"
    )
    hosts = f"{mpi.host(0)} {mpi.host(1)}"
    command = f"for host in {hosts}; do ../mpi/agent $host '{asking}'; done; unshare -U true || hostname"
    roles = {"launcher": {"command": ["sh", "-c", command]}, "worker": {"replicas": 2}}
    attempt = bench.launch("unused", roles=roles, framework="mpi")
    seen = bench.end(attempt)
    words = {"worker-0", "worker-1", os.uname().nodename, "refused", "hidden", "seen"}
    said = [line for line in bench.log(attempt, "launcher-0").splitlines() if line in words]
    every = ("refused", "hidden", "seen")
    assert said == ["worker-0", *every, "worker-1", *every, os.uname().nodename], bench.log(attempt)
    assert seen.tasks[0].exit_code == 0


def answered(bench: LocalBench, attempt: str, program: str) -> str:
    """Returns what a session's command printed."""
    said, decoder = b"", frames.Decoder(frames.FROM_RUNNER)
    with bench.executor.open_session(attempt, "main-0", SessionRequest(command=("sh", "-c", program))) as stream:
        stream.settimeout(20)
        while data := stream.recv(65_536):
            said += b"".join(content for kind, content in decoder.feed(data) if kind == frames.STDOUT)
    return said.decode()


# what is required


def test_what_is_required_and_in_force_starts(bench: LocalBench) -> None:
    order = bench.order("true").model_copy(update={"require": tuple(bench.executor.capabilities.layers[:3])})
    bench.executor.launch(order)
    assert bench.end(order.attempt.id).tasks[0].exit_code == 0


@pytest.mark.parametrize(("layer", "why"), [
    (Layer.LANDLOCK, "landlock is required, and is not in force: left out"),
    (Layer.MEMORY_LIMIT, "memory-limit is required, and is not in force: "),
    ("moat", "moat is required.*no such layer"),
])  # fmt: skip
def test_what_is_required_and_not_in_force_starts_nothing(bench: LocalBench, layer: str, why: str) -> None:
    Stage(bench, bench.home, [Layer.LANDLOCK])
    order = bench.order("sh", "-c", f"touch {bench.home}/started").model_copy(update={"require": (layer,)})
    with pytest.raises(LaunchRejected, match=why) as caught:
        bench.executor.launch(order)
    if layer in bench.executor.capabilities.layers and layer == Layer.MEMORY_LIMIT:
        assert "only for a job that asks for memory" in caught.value.message
    assert bench.executor.observe() == ()
    assert not (bench.home / "started").exists()


# a server that is not root

STARTED_AS = """
import os, sys
from danlu.executors.local import launcher
uid, needed = int(sys.argv[1]), [{"path": path, "write": False} for path in sys.argv[2].split(os.pathsep)]
if os.geteuid() == 0:
    launcher.mounts.open_closed(needed, uid)
    launcher.drop(uid, uid)
os.execv(sys.executable, [sys.executable, "-m", "tests.process.escapes", *sys.argv[3:]])
"""


def ordinary(tmp_path: Path, outside: Path, *off: str) -> dict[str, dict[str, str]]:
    """Returns what a job of an ordinary user's server said."""
    home = opened(tmp_path) / "home"
    home.mkdir()
    if ROOT:
        for path in (home, outside):
            os.chown(path, OTHER_UID, OTHER_UID)
    repository = Path(__file__).parents[2]
    needed = {sys.base_prefix, sys.prefix, str(repository), str(Path(launcher.__file__).parents[4])}
    words = [str(OTHER_UID), os.pathsep.join(sorted(needed)), str(home), str(outside), *off]
    ran = subprocess.run(
        [sys.executable, "-c", STARTED_AS, *words], capture_output=True, text=True, check=False, cwd=repository,
        env={"PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    found: dict[str, dict[str, str]] = json.loads(ran.stdout.splitlines()[-1])
    return found


OWN = {
    "read /tmp of neighbour", "read /var/tmp of neighbour", "read /dev/shm of neighbour", "attach neighbour",
    "write outside", "make outside", "make among sockets", "replace the server's ear", "user namespace", "clone", "clone3",
    *(f"{what}{who}" for what in ("see ", "cmdline of ") for who in ("server", "first", "neighbour", "runner of neighbour")),
}  # fmt: skip
"""What is the user's own good right where all jobs are that user."""


def test_an_ordinary_users_server_keeps_its_platform_to_itself(tmp_path: Path, outside: Path) -> None:
    found = ordinary(tmp_path, outside)
    for layer in (Layer.CLOSED_DATA_FOLDER, Layer.SCOPED_SIGNALS, Layer.SECCOMP):
        if layer not in found["layers"]:
            cannot_run(f"an ordinary user has no {layer} here: {found['missing'][layer]}")
    assert done(found["outcome"]) - OWN == set(), found["outcome"]
    assert {"write outside", "make outside"} <= done(found["outcome"]), "where the user may write, so may the job"
    assert found["missing"]["separate-user"] == "all jobs run as you"


def test_without_its_layers_there_are_ways(tmp_path: Path, outside: Path) -> None:
    found = ordinary(tmp_path, outside, "mount-namespace", "scoped-signals", "seccomp")
    assert {
        "read database", "read keys", "write environment", "signal server", "connect to server", "keyring",
        "environ of neighbour", "enter neighbour", *(f"read {what} of neighbour" for what in SECRETS),
    } <= done(found["outcome"])  # fmt: skip
