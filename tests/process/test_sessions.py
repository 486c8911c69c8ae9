"""Sessions in real jobs: they do what a shell there would do, and nothing of them is left when either end has gone."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import pty
import re
import secrets
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from danlu.client.sessions import opened
from danlu.domain.jobs import Job, JobState
from danlu.domain.sessions import SessionRequest
from danlu.errors import DanluError, TooManyRequests
from danlu.runner import frames
from danlu.server.sessions import MAX_OF_A_JOB
from tests.factories import write_files
from tests.process.platform import Server, processes_with, until

DANLU = [sys.executable, "-m", "danlu.cli.main"]
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="jobs have users of their own only where the server is root")
DEAF = "trap '' TERM HUP INT; echo up; while :; do sleep 0.1; done"


@pytest.fixture(scope="module")
def shared() -> Iterator[Server]:
    """One server for the tests that harm nobody."""
    outer = Path(tempfile.mkdtemp(prefix="danlu-test-", dir="/tmp"))
    outer.chmod(0o711)  # jobs run as other users where the tests run as root
    made = Server(outer / "home")
    assert made.start().get("ready")
    yield made
    made.close()
    shutil.rmtree(outer, ignore_errors=True)


@pytest.fixture(scope="module")
def job(shared: Server) -> Job:
    return running(shared, "sleep", "1000", name="target", gpu=0, variables={"COLOUR": "red"})


def running(server: Server, *command: str, **spec: Any) -> Job:
    """Submits a job and waits until it runs."""
    found = server.submit(*command, **spec)
    until(lambda: server.job(found.id).state is JobState.RUNNING, 30, "it runs")
    return found


def environ(server: Server) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DANLU_")}
    return {**kept, "DANLU_HOME": str(server.home), "NO_COLOR": "1", "TERM": "xterm"}


def danlu(
    server: Server, *words: str, data: bytes = b"", cwd: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*DANLU, *words], input=data, capture_output=True, env=environ(server), timeout=60, check=False, cwd=cwd
    )


def begun(server: Server, *words: str) -> subprocess.Popen[bytes]:
    """Starts a command that goes on, and waits for the line ``up``."""
    made = subprocess.Popen(
        [*DANLU, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ(server)
    )
    assert made.stdout is not None
    assert made.stdout.readline() == b"up\n"
    return made


def marked() -> str:
    return f"mark-{secrets.token_hex(8)}"


def gone(mark: str) -> None:
    until(lambda: not processes_with(mark), 20, "nothing of it is left")


class Screen:
    """A command in a pseudo terminal, and what it has shown."""

    def __init__(self, server: Server, *words: str, rows: int = 33, columns: int = 111) -> None:
        self.shown = b""
        self.code: int | None = None
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            os.execve(DANLU[0], [*DANLU, *words], environ(server))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def shows(self, pattern: str) -> bytes:
        """Waits until what was shown since the last call matches."""
        deadline = time.monotonic() + 30
        while re.search(pattern.encode(), self.shown) is None:
            assert time.monotonic() < deadline, f"{pattern!r} is not in {self.shown!r}"
            if select.select([self.fd], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):  # it has ended
                    self.shown += os.read(self.fd, 65_536)
        found, self.shown = self.shown, b""
        return found

    def end(self) -> int | None:
        """Waits until the command has ended; returns its exit code."""

        def over() -> bool:
            with contextlib.suppress(OSError):
                while select.select([self.fd], [], [], 0)[0]:
                    self.shown += os.read(self.fd, 65_536)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
            return self.code is not None

        until(over, 30, f"it ends; it has shown {self.shown!r}")
        return self.code


# what a command finds, and how it ends


def test_a_command_runs_as_the_jobs_own_process_does(shared: Server, job: Job) -> None:
    ask = (
        "import json, os; print(json.dumps([dict(os.environ), os.getcwd(), os.getuid(), "
        "open('/proc/self/cgroup').read(), open('/proc/self/status').read().partition('NoNewPrivs:\\t')[2][:1]]))"
    )
    variables, folder, uid, groups, fixed = json.loads(
        danlu(shared, "exec", "target", "--", "python", "-c", ask).stdout
    )
    pid = next(event["pid"] for event in shared.events(f"{job.id}-1") if event["event"] == "started")
    task = Path(f"/proc/{pid}")
    own = dict(part.split("=", 1) for part in (task / "environ").read_text().split("\0") if part)
    assert variables == own
    assert (variables["COLOUR"], variables["DANLU_RANK"], variables["CUDA_VISIBLE_DEVICES"]) == ("red", "0", "")
    assert folder == str((task / "cwd").readlink())
    assert f"Uid:\t{uid}\t" in (task / "status").read_text()
    assert groups == (task / "cgroup").read_text()
    assert fixed == "1"


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (["true"], 0, b""),
        (["sh", "-c", "exit 7"], 7, b""),
        (["sh", "-c", "kill -9 $$"], 137, b""),
        (["pyhton"], 127, b"command not found: pyhton (did you mean python"),
        (["./no/such"], 127, b"no such file"),
        (["/etc/passwd"], 126, b"cannot execute /etc/passwd"),
    ],
)
def test_the_exit_code_is_the_commands(shared: Server, job: Job, command: list[str], code: int, said: bytes) -> None:
    done = danlu(shared, "exec", "target", "--", *command)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr


def test_output_and_errors_stay_apart_and_nothing_is_read_unasked(shared: Server, job: Job) -> None:
    done = danlu(shared, "exec", "target", "--", "sh", "-c", "echo out; echo err >&2; cat; tty", data=b"unasked")
    assert (done.stdout, done.stderr, done.returncode) == (b"out\nnot a tty\n", b"err\n", 1)


def test_much_goes_in_and_comes_out_as_it_was(shared: Server, job: Job) -> None:
    data = os.urandom(20_000_001)
    done = danlu(shared, "exec", "-i", "target", "--", "sh", "-c", "tee /dev/stderr", data=data)
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()
    assert hashlib.sha256(done.stderr).digest() == hashlib.sha256(data).digest()


def test_who_reads_no_more_input_harms_nobody(shared: Server, job: Job) -> None:
    done = danlu(shared, "exec", "-i", "target", "--", "head", "-c", "3", data=b"abc" * 2_000_000)
    assert (done.stdout, done.returncode) == (b"abc", 0)


def test_what_is_written_last_in_the_background_still_comes(shared: Server, job: Job) -> None:
    done = danlu(shared, "exec", "target", "--", "sh", "-c", "(sleep 0.1; echo late) & echo early")
    assert done.stdout == b"early\nlate\n"


def test_it_says_what_is_missing(shared: Server, job: Job) -> None:
    assert b"there is no command to run" in danlu(shared, "exec", "target").stderr
    assert b"it has main-0" in danlu(shared, "exec", "--task", "worker-1", "target", "--", "ls").stderr
    assert b"there is no job 'nobody'" in danlu(shared, "exec", "nobody", "--", "ls").stderr
    assert b"going on without one" in danlu(shared, "exec", "-it", "target", "--", "true").stderr


def test_a_terminal(shared: Server, job: Job) -> None:
    with Screen(shared, "exec", "-it", "target", "--", "bash", "--norc") as screen:
        screen.shows(r"\$ ")
        screen.type("stty size; echo $TERM $COLOUR; tty\n")
        assert b"33 111\r\nxterm red\r\n/dev/pts/" in screen.shows(r"pts/\d+\r\n")
        screen.resize(20, 60)
        screen.type(
            "until [ \"$(stty size)\" = '20 60' ]; do sleep 0.05; done; sh -c 'echo re\"\"sized; exec sleep 1000'\n"
        )
        screen.shows("resized")
        screen.type("\x03")
        screen.type("echo interr''upted; exit 5\n")
        screen.shows("interrupted")
        assert screen.end() == 5


def test_a_shell_is_what_a_terminal_gets_without_words(shared: Server, job: Job) -> None:
    with Screen(shared, "exec", "-it", "target") as screen:
        screen.type("echo shell: $0; exit\n")
        screen.shows(r"shell: \S*sh")
        assert screen.end() == 0


# it ends with everything that it needs


@pytest.mark.parametrize("flags", [[], ["-i"]])
def test_a_client_that_is_killed_takes_its_command_with_it(shared: Server, job: Job, flags: list[str]) -> None:
    mark = marked()
    command = f'X={mark} setsid sh -c "{DEAF}" & X={mark} exec sh -c "{DEAF.replace("echo up; ", "")}"'
    client = begun(shared, "exec", *flags, "target", "--", "sh", "-c", command)
    assert len(processes_with(mark)) >= 2
    client.kill()
    client.communicate()
    gone(mark)


def test_a_terminal_that_is_closed_takes_its_shell_with_it(shared: Server, job: Job) -> None:
    mark = marked()
    with Screen(shared, "exec", "-it", "target", "--", "sh") as screen:
        screen.type(f'export X={mark}; sh -c "{DEAF}"\n')
        screen.shows(r"[\n ]up\r\n")
        os.kill(screen.pid, signal.SIGKILL)
        screen.end()
        gone(mark)


def test_what_a_command_leaves_running_ends_with_it(shared: Server, job: Job) -> None:
    mark = marked()
    leave = f'X={mark} setsid sh -c "{DEAF}" >/dev/null 2>&1 & exit 4'
    assert danlu(shared, "exec", "target", "--", "sh", "-c", leave).returncode == 4
    gone(mark)


def test_a_server_that_is_killed_takes_it_with_it_and_the_job_goes_on(server: Server) -> None:
    job = running(server, "sleep", "1000", name="target")
    mark = marked()
    client = begun(server, "exec", "target", "--", "env", f"X={mark}", "sh", "-c", DEAF)
    server.kill()
    gone(mark)
    _, said = client.communicate(timeout=30)
    assert client.returncode == 3
    assert b"the connection to the platform broke" in said
    server.start()
    assert server.job(job.id).state is JobState.RUNNING
    assert danlu(server, "exec", "target", "--", "echo", "again").stdout == b"again\n"


def test_a_job_that_is_stopped_ends_it_and_does_not_wait_for_it(server: Server) -> None:
    job = running(server, "sleep", "1000", name="target", grace=60)
    mark = marked()
    client = begun(server, "exec", "target", "--", "env", f"X={mark}", "sh", "-c", DEAF)
    begin = time.monotonic()
    assert danlu(server, "stop", "target", "--wait").returncode == 0
    assert time.monotonic() - begin < 30, "a session holds its job up"
    _, said = client.communicate(timeout=30)
    assert (client.returncode, b"the session ended with it" in said) == (137, True), said
    gone(mark)
    assert server.job(job.id).state is JobState.CANCELLED
    done = danlu(server, "exec", "target", "--", "ls")
    assert (done.returncode, b"danlu artifacts get target" in done.stderr) == (1, True), done.stderr
    done = danlu(server, "cp", "target:out", ".")
    assert b"danlu artifacts get target" in done.stderr


def test_a_job_that_ends_by_itself_ends_it(server: Server) -> None:
    job = running(server, "sh", "-c", "until [ -e go ]; do sleep 0.05; done", name="target")
    mark = marked()
    client = begun(server, "exec", "target", "--", "env", f"X={mark}", "sh", "-c", DEAF)
    danlu(server, "exec", "target", "--", "touch", "go")
    assert server.wait(job.id).state is JobState.SUCCEEDED
    client.communicate(timeout=30)
    assert client.returncode == 137
    gone(mark)


def test_a_runner_that_is_killed_takes_it_with_it(server: Server) -> None:
    job = running(server, "sleep", "1000", name="target")
    mark = marked()
    client = begun(server, "exec", "target", "--", "env", f"X={mark}", "sh", "-c", DEAF)
    os.kill(next(event["pid"] for event in server.events(f"{job.id}-1") if event["event"] == "runner"), signal.SIGKILL)
    gone(mark)
    _, said = client.communicate(timeout=30)
    assert (client.returncode, b"the session broke off" in said) == (3, True), said


# it is bounded


def test_a_reader_that_is_slow_slows_down_the_command(shared: Server, job: Job) -> None:
    count = "import os\nn = 0\nwhile n < 2000:\n os.write(1, b'x' * 65536); n += 1; open('count', 'w').write(str(n))"
    counted = Path(shared.home, "attempts", f"{job.id}-1", "work", "count")
    received = 0

    def blocks() -> int:
        with contextlib.suppress(OSError, ValueError):
            return int(counted.read_text())
        return 0

    def write(_kind: bytes, data: bytes) -> None:
        nonlocal received
        if not received:  # nothing is taken yet: what is under way fills the window, and no more comes
            until(lambda: blocks() * 65_536 >= frames.WINDOW_BYTES, 30, "the window is full")
            threading.Event().wait(1.0)
            assert blocks() * 65_536 <= frames.WINDOW_BYTES + 512 * 1024
        received += len(data)

    with shared.client() as client:
        request = SessionRequest(command=("python", "-c", count))
        with opened(client, job.id, request) as session:
            assert session.run(write).exit_code == 0
    assert received == 2000 * 65_536


def test_a_job_has_so_many_sessions_and_no_more(shared: Server, job: Job) -> None:
    request = SessionRequest(command=("sleep", "100"))
    with shared.client() as client, contextlib.ExitStack() as stack:
        for _ in range(MAX_OF_A_JOB):
            stack.enter_context(opened(client, job.id, request))
        with pytest.raises(TooManyRequests), opened(client, job.id, request):
            pass


# files


def test_trees_go_both_ways(shared: Server, job: Job, tmp_path: Path) -> None:
    tree = {"a.txt": "alpha", "sub/b": os.urandom(3_000_000), "sub/deep/ünï": "x", "sub/empty": ""}
    write_files(tmp_path / "tree", tree)
    done = danlu(shared, "cp", "tree", "target:box/", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"4 files, 2.9 MiB" in done.stderr
    uid = Path(shared.home, "attempts", f"{job.id}-1", "work").stat().st_uid
    for path in Path(shared.home, "attempts", f"{job.id}-1", "work", "box").rglob("*"):
        assert path.stat().st_uid == uid
    danlu(shared, "exec", "target", "--", "ln", "-s", "/etc/shadow", "box/tree/link")
    done = danlu(shared, "cp", "job/target:box/tree", ".", cwd=write_files(tmp_path / "back", {}))
    assert (done.returncode, b"left out: link: a link" in done.stderr) == (0, True), done.stderr
    found = {
        str(p.relative_to(tmp_path / "back/tree")): p.read_bytes()
        for p in (tmp_path / "back/tree").rglob("*")
        if p.is_file()
    }
    assert found == {name: data.encode() if isinstance(data, str) else data for name, data in tree.items()}
    assert danlu(shared, "cp", "target:box/tree/a.txt", "one", cwd=tmp_path).returncode == 0
    assert (tmp_path / "one").read_text() == "alpha"
    danlu(shared, "cp", "target:box/tree/", "content", cwd=tmp_path)
    assert sorted(path.name for path in (tmp_path / "content").iterdir()) == ["a.txt", "sub"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["target:nothing", "."], 1, b"nothing: No such file"),
        (["nothing", "target:"], 2, b"nothing does not exist here"),
        (["a", "b"], 2, b"neither names a job"),
        (["target:a", "target:b"], 2, b"both name a job"),
        ([":a", "b"], 2, b"names no job"),
        (["/etc/hostname", "target:/etc/"], 1, b"Permission denied" if os.geteuid() == 0 else b"/etc"),
    ],
)
def test_what_cannot_be_copied_is_told(
    shared: Server, job: Job, words: list[str], code: int, said: bytes, tmp_path: Path
) -> None:
    done = danlu(shared, "cp", *words, cwd=tmp_path)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr


# a job that lies

LIAR = """
import json, os, socket, struct
def frame(kind, data): return struct.pack("!I", len(data) + 1) + kind + data
def record(kind, **fields): return frame(kind, json.dumps(fields).encode())
folder = os.path.dirname(os.environ["HOME"])
os.unlink(folder + "/session")
os.chdir(folder)
door = socket.socket(socket.AF_UNIX)
door.bind("session")
door.listen()
open("work/ready", "w").close()
while True:
    client, _ = door.accept()
    client.recv(65536)
    evil = record(b"t", folder=True, files=1, size_bytes=9)
    evil += record(b"f", path="../../evil", mode=0o755, size=4, mtime_ns=0) + frame(b"b", b"evil") + frame(b"e", b"")
    flood = [frame(b"o", b"x" * 65536)] * 64
    try:
        client.sendall(frame(b"s", b"{}") + frame(b"o", evil))
        for piece in flood: client.sendall(piece)
    except OSError: pass
    client.close()
"""


def test_a_job_that_plays_its_runner_gets_nothing_and_writes_nowhere(server: Server, tmp_path: Path) -> None:
    job = running(server, "python", "-c", LIAR, name="liar")
    work = server.home / "attempts" / f"{job.id}-1" / "work"
    until((work / "ready").exists, 20, "it lies")
    here = write_files(tmp_path / "deep" / "deeper", {})
    done = danlu(server, "cp", "liar:out", "target", cwd=here)
    assert (done.returncode, b"what arrives is not what is sent" in done.stderr) == (1, True), done.stderr
    assert list(tmp_path.rglob("evil")) == []
    done = danlu(server, "exec", "liar", "--", "true")
    assert done.returncode == 3
    assert b"is not its runner" in done.stderr or b"the session broke off" in done.stderr
    assert danlu(server, "status").returncode == 0


@AS_ROOT
@pytest.mark.parametrize("trick", ["link", "file", "folder", "gone", "foreign", "deaf"])
def test_what_stands_in_the_doors_place_is_not_entered(server: Server, trick: str, tmp_path: Path) -> None:
    job = running(server, "sleep", "1000", name="target")
    folder = server.home / "attempts" / f"{job.id}-1"
    door, owner = folder / "session", folder.stat().st_uid
    door.unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        if trick in ("link", "foreign", "deaf"):
            place = folder.parent / "s" if trick == "link" else door
            descriptor = os.open(place.parent, os.O_PATH)
            listening.bind(f"/proc/self/fd/{descriptor}/{place.name}")
            os.close(descriptor)
            listening.listen(1)
        if trick == "link":
            door.symlink_to(folder.parent / "s")
        elif trick == "file":
            door.touch()
        elif trick == "folder":
            door.mkdir()
        if trick != "gone":
            os.chown(door, owner, owner, follow_symlinks=False)
        request = SessionRequest(command=("true",))
        with server.client() as client, pytest.raises(DanluError) as caught, opened(client, job.id, request) as session:
            session.run(lambda *_: None)
        if trick in ("link", "foreign", "deaf"):  # the request, which names the command, was not told to a stranger
            listening.settimeout(0.2)
            with contextlib.suppress(OSError):
                other, _ = listening.accept()
                assert other.recv(100) == b""
    assert "door" in str(caught.value)
    assert server.job(job.id).state is JobState.RUNNING


# attach


def test_attach_goes_on_following_and_ends_with_the_jobs_code(server: Server) -> None:
    running(server, "sh", "-c", "seq 100; until [ -e go ]; do sleep 0.05; done; echo last; exit 3", name="target")
    client = subprocess.Popen(
        [*DANLU, "attach", "target", "--tail", "2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ(server)
    )
    assert client.stdout is not None
    assert [client.stdout.readline() for _ in range(2)] == [b"99\n", b"100\n"]
    danlu(server, "exec", "target", "--", "touch", "go")
    out, _ = client.communicate(timeout=30)
    assert (out, client.returncode) == (b"last\n", 3)
    done = danlu(server, "attach", "target")
    assert (done.returncode, b"has ended already" in done.stderr) == (3, True)


def test_attach_asks_what_ctrl_c_means(shared: Server, job: Job) -> None:
    with Screen(shared, "attach", "target") as screen:
        screen.shows("running on")
        screen.type("\x03")
        screen.shows("etach  .s.top  .c.ontinue")
        screen.type("d\n")
        screen.shows("danlu logs -f target")
        assert screen.end() == 0
        assert shared.job(job.id).state is JobState.RUNNING
