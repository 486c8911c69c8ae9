"""Jobs that try to leave their task's control group: its files are root's, and the runner's descriptors nobody else's."""

from __future__ import annotations

import contextlib
import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from danlu.domain.isolation import Layer
from danlu.domain.sessions import SessionRequest
from danlu.executors.base import Observation
from danlu.executors.local import launcher
from danlu.executors.local.cgroups import Tree
from danlu.runner import processes
from tests.conftest import cannot_run
from tests.executors import LocalBench
from tests.process.platform import processes_with
from tests.process.test_local_executor import opened


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[LocalBench]:
    if os.geteuid() != 0:
        cannot_run("only root can run jobs as other users")
    home = tmp_path / "home"
    home.mkdir()
    bench = LocalBench(opened(home))
    if Layer.MEMORY_LIMIT not in bench.executor.capabilities.layers:
        cannot_run("this machine cannot limit memory (control groups)")
    yield bench
    bench.close()


def mounted(controller: str) -> Path:
    """Returns where a controller of version 1 is mounted, or version 2 for none."""
    root = Path("/sys/fs/cgroup")
    return root / (controller or "unified") if controller or (root / "unified").is_dir() else root


def groups_of(pid: int | str) -> dict[str, Path]:
    """Returns the folders of a process's groups that are ours, by controller."""
    found = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        for name in names.split(","):
            if "/danlu/" in path:
                found[name] = mounted(name) / path.lstrip("/")
    return found


def children(pid: int) -> set[int]:
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def links(pid: int) -> list[str]:
    """Returns where a process's open files lead."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(entry.readlink()))
    return found


def opened_still(descriptor: int) -> bool:
    """Whether a descriptor is more than the one with which the open ones were listed."""
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


MOVE = r"""
import json, os, time
before = open("/proc/self/cgroup").read()
tried = {}

def attempt(what, action):
    try:
        action()
        tried[what] = "done"
    except OSError as error:
        tried[what] = error.strerror

def write(path, text):
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)

for line in before.splitlines():
    _, names, path = line.split(":", 2)
    mounted = "/sys/fs/cgroup/" + (names.split(",")[0] or "unified")
    if not os.path.isdir(mounted):
        mounted = "/sys/fs/cgroup"
    own = mounted + path
    if "/danlu/" not in path:
        continue
    mine = os.path.dirname(own)
    all_attempts = os.path.dirname(mine)
    other = os.path.join(all_attempts, os.environ["OTHER"])
    own_other = os.path.join(mine, "task-worker-%d" % (1 - int(os.environ["DANLU_INDEX"])))
    above = [mounted]
    for part in os.path.dirname(path).strip("/").split("/"):
        above.append(above[-1] + "/" + part)
    for folder in (*above, own, own_other, mine + "/runner", other, other + "/task-main-0", other + "/runner"):
        for text in ("0", str(os.getpid())):
            attempt("%s/cgroup.procs %s" % (folder, text), lambda: write(folder + "/cgroup.procs", text))
            if os.path.exists(folder + "/tasks"):  # version 1
                attempt("%s/tasks %s" % (folder, text), lambda: write(folder + "/tasks", text))
        attempt("chmod " + folder, lambda: os.chmod(folder + "/cgroup.procs", 0o666))
        attempt("mkdir " + folder, lambda: os.mkdir(folder + "/mine"))
    for limit in ("memory.limit_in_bytes", "memory.max"):
        if os.path.exists(own + "/" + limit):
            attempt("limit " + own, lambda: write(own + "/" + limit, str(1 << 40)))
after = open("/proc/self/cgroup").read()
print(json.dumps({"tried": tried, "before": before, "after": after}), flush=True)
if os.environ["DANLU_INDEX"] == "1" and os.environ["EAT"]:
    held = [bytearray(os.urandom(1 << 20)) for _ in range(512)]
    raise SystemExit("its limit is gone")
if os.environ["EAT"]:
    time.sleep(1000)
"""


def test_a_job_cannot_move_itself_anywhere_and_its_limit_holds(bench: LocalBench) -> None:
    seen = everywhere(bench, EAT="yes")
    assert [(task.name, task.oom) for task in seen.tasks] == [("worker-0", False), ("worker-1", True)]


def test_version_2_lets_it_move_nowhere_either(bench: LocalBench) -> None:
    """Without limits where version 1 has the controllers: whoever may join what is the same."""
    whole = mounted("")
    if not (whole / "cgroup.controllers").exists():
        cannot_run("version 2 of control groups is not mounted")
    if bench.executor._tree.version == 1:
        bench.executor._tree = Tree(2, {"memory": whole})
    seen = everywhere(bench, EAT="")
    assert [task.exit_code for task in seen.tasks] == [0, 0]


def everywhere(bench: LocalBench, **variables: str) -> Observation:
    """Runs a gang that tries to move itself to every other place, beside an attempt of the same project."""
    other = bench.launch("sh", "-c", "echo up; sleep 1000")
    bench.printed(other, "up")
    roles = {"worker": {"replicas": 2, "memory": "96MiB", "command": ["python", "-c", MOVE]}}
    hostile = bench.launch("unused", roles=roles, framework="none", grace=1, variables={"OTHER": other, **variables})
    seen = bench.end(hostile)
    pid = next(event["pid"] for event in bench.events(other) if event["event"] == "started")
    assert groups_of(pid)
    for name in ("worker-0", "worker-1"):
        said = json.loads(bench.log(hostile, name).splitlines()[0])
        assert said["before"] == said["after"]
        assert set(said["tried"].values()) <= {"Permission denied", "Operation not permitted"}, said["tried"]
        targets = {
            str(place / "cgroup.procs")
            for controller, own in groups_of(pid).items()
            for place in (own, own.parents[1] / hostile / "task-worker-1", mounted(controller))
        }
        assert targets <= {what.partition(" ")[0] for what in said["tried"]}
    for place in groups_of(pid).values():
        assert set(map(int, (place / "cgroup.procs").read_text().split())) >= {pid}
        assert [file for file in place.parent.rglob("*") if file.stat().st_uid != 0] == []
    assert processes_with(hostile) == set()
    return seen


STEAL = r"""
import ctypes, json, os, struct, time
libc = ctypes.CDLL(None, use_errno=True)
PTRACE_SEIZE, PTRACE_DETACH, PIDFD_GETFD, READV = 0x4206, 17, 438, 310

def called(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

def tracing(pid):
    called(libc.ptrace(PTRACE_SEIZE, pid, None, None))

def fetching(pid):
    opened = os.pidfd_open(pid)
    last = None
    for number in range(64):
        got = libc.syscall(PIDFD_GETFD, opened, number, 0)
        if got >= 0:
            return
        last = ctypes.get_errno()
        if last != 9:  # it has no such file
            raise OSError(last, os.strerror(last))
    raise OSError(last, os.strerror(last))

def opening(pid):
    for number in range(3, 256):
        try:
            os.open("/proc/%d/fd/%d" % (pid, number), os.O_WRONLY)
            return
        except FileNotFoundError:
            continue
    os.listdir("/proc/%d/fd" % pid)
    os.open("/proc/%d/fd/0" % pid, os.O_RDONLY)

WAYS = {
    "list": lambda pid: os.listdir("/proc/%d/fd" % pid),
    "open": opening,
    "fetch": fetching,
    "memory": lambda pid: os.open("/proc/%d/mem" % pid, os.O_RDWR),
    "maps": lambda pid: open("/proc/%d/maps" % pid).read(),
    "cwd": lambda pid: os.readlink("/proc/%d/cwd" % pid),
    "trace": tracing,
}

def outcome(action, pid):
    try:
        action(pid)
        return "done"
    except OSError as error:
        return error.strerror

own = os.fork()
if own == 0:
    time.sleep(1000)
print("up", flush=True)
while not os.path.exists("victims"):
    time.sleep(0.02)
victims = {**json.load(open("victims")), "itself": own}
print(json.dumps({name: {way: outcome(action, pid) for way, action in WAYS.items()} for name, pid in victims.items()}))
for number in range(256):
    try:
        print("holds", os.readlink("/proc/self/fd/%d" % number))
    except FileNotFoundError:
        continue
"""


def test_the_runners_descriptors_are_closed_to_its_own_user_and_to_what_it_starts(bench: LocalBench) -> None:
    attempt = bench.launch("python", "-c", STEAL)
    bench.printed(attempt, "up")
    runner = bench.runner_pid(attempt)
    with bench.executor.open_session(
        attempt,
        "main-0",
        SessionRequest(command=("sh", "-c", "while [ ! -e victims ]; do sleep 0.1; done; sleep 1000")),
    ):
        task = next(event["pid"] for event in bench.events(attempt) if event["event"] == "started")
        bench.until(lambda: len(children(runner)) == 2)
        (session,) = children(runner) - {task}
        bench.until(lambda: len(children(session)) == 1)
        (command,) = children(session)
        groups = Path(f"/proc/{task}/cgroup").read_text()
        bench.until(lambda: Path(f"/proc/{command}/cgroup").read_text() == groups)
        bench.until(lambda: Path(f"/proc/{command}/comm").read_text() == "sh\n")
        for pid in (runner, session):  # the server's root sees them
            assert {link for link in links(pid) if link.endswith("cgroup.procs")} == {
                str(place.resolve() / "cgroup.procs") for place in groups_of(task).values()
            }
        for pid in (task, command):
            assert not [link for link in links(pid) if "cgroup" in link]
        victims = bench.home / "attempts" / attempt / "work" / "victims"
        fresh = victims.with_name("fresh")
        fresh.write_text(json.dumps({"runner": runner, "session": session}))
        fresh.chmod(0o644)
        fresh.rename(victims)
        seen = bench.end(attempt)
    assert seen.tasks[0].exit_code == 0, bench.log(attempt)
    lines = bench.log(attempt).splitlines()
    said: dict[str, Any] = json.loads(lines[1])
    assert set(said["itself"].values()) == {"done"}  # where it is allowed, it works
    refused = {"Permission denied", "Operation not permitted", "No such file or directory"}
    assert {way for name in ("runner", "session") for way, how in said[name].items() if how not in refused} == set()
    assert "cgroup.procs" not in "".join(lines[2:])


def test_a_process_that_executes_nothing_has_no_file_of_its_parents_however_high(tmp_path: Path) -> None:
    high = 5000
    told = tmp_path / "told"
    group = os.open(tmp_path / "joined", os.O_WRONLY | os.O_CREAT)
    os.dup2(group, high)

    def become() -> None:
        left = [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]
        told.write_text(json.dumps([number for number in left if opened_still(number)]))
        os.close(3)
        os._exit(0)

    try:
        files = processes.Files(str(tmp_path), str(tmp_path / "out"), str(tmp_path / "err"), [group])
        pid, failure = processes.fork(files, become)()
        assert failure == ""
        os.waitpid(pid, 0)
    finally:
        os.close(group)
        os.close(high)
    assert (tmp_path / "joined").read_text() == "0"
    assert set(json.loads(told.read_text())) <= {0, 1, 2, 3}


def test_a_group_that_cannot_be_joined_is_told_as_that(tmp_path: Path) -> None:
    group = os.open("/dev/full", os.O_WRONLY)
    try:
        files = processes.Files(str(tmp_path), str(tmp_path / "out"), str(tmp_path / "err"), [group])
        pid, error, code = processes.start(["true"], {"PATH": os.defpath}, files)
    finally:
        os.close(group)
    assert (pid, code) == (None, None)
    assert "its control group cannot be joined: No space left on device" in error


def test_a_kernel_that_asks_the_writer_is_named_before_anything_starts(bench: LocalBench) -> None:
    """This kernel asks the opener: here that is who may not, as the writer may not on an older one with version 2."""
    if bench.executor._tree.version != 1:
        cannot_run("with version 2 of control groups there is no such opener")
    group = bench.executor._tree.group(f"test-{bench.ids()}").places[0]
    group.mkdir(parents=True)
    procs = group / "cgroup.procs"
    try:
        os.chown(procs, 200_000, -1)
        os.seteuid(200_000)
        try:
            opened_by_a_job = os.open(procs, os.O_WRONLY)
        finally:
            os.seteuid(0)
        with pytest.raises(launcher.Refused, match=r"Linux \S+ lets the job's user join no control group.*update it"):
            launcher.join_again([opened_by_a_job])
        os.close(opened_by_a_job)
    finally:
        group.rmdir()


def test_more_groups_than_files_are_refused_with_the_number() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    least = 1 + max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    before = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (least + 10, hard))
    try:
        with pytest.raises(launcher.Refused, match=rf"may open \({least + 10:,}\): raise the limit"):
            launcher.open_groups([os.devnull] * (least + 11))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(list(Path("/proc/self/fd").iterdir())) == before
