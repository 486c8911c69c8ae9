"""Sessions in real jobs: they do what a shell there would do, and nothing of them is left when either end has gone."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from danlu.client.sessions import opened
from danlu.domain.jobs import Job, JobState
from danlu.domain.sessions import SessionRequest
from danlu.errors import TooManyRequests
from danlu.runner import frames
from danlu.server.sessions import MAX_OF_A_JOB
from tests.process.inside import DANLU, begun, danlu, environ, gone, marked, running
from tests.process.platform import Server, processes_with, until
from tests.process.terminal import COLUMNS, ROWS, terminal

DEAF = "trap '' TERM HUP INT; echo up; while :; do sleep 0.1; done"


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
    after = "while kill -0 $$ 2>/dev/null; do sleep 0.01; done"
    done = danlu(shared, "exec", "target", "--", "sh", "-c", f"({after}; echo late) & echo early")
    assert done.stdout == b"early\nlate\n"


def test_it_says_what_is_missing(shared: Server, job: Job) -> None:
    assert b"there is no command to run" in danlu(shared, "exec", "target").stderr
    assert b"it has main-0" in danlu(shared, "exec", "--task", "worker-1", "target", "--", "ls").stderr
    assert b"there is no job 'nobody'" in danlu(shared, "exec", "nobody", "--", "ls").stderr
    assert b"going on without one" in danlu(shared, "exec", "-it", "target", "--", "true").stderr


def test_a_terminal(shared: Server, job: Job) -> None:
    with terminal(shared.home, "exec", "-it", "target", "--", "bash", "--norc") as screen:
        screen.shows("$ ")
        screen.types("stty size; echo $TERM $COLOUR; tty\n")
        screen.shows(f"\r{ROWS} {COLUMNS}\r\nxterm red\r\n/dev/pts/")
        screen.resize(20, 60)
        screen.types(
            "until [ \"$(stty size)\" = '20 60' ]; do sleep 0.05; done; sh -c 'echo re\"\"sized; exec sleep 1000'\n"
        )
        screen.shows("resized")
        screen.types("\x03")
        screen.types("echo interr''upted; exit 5\n")
        screen.shows("interrupted")
        assert screen.ends() == 5


def test_a_shell_is_what_a_terminal_gets_without_words(shared: Server, job: Job) -> None:
    with terminal(shared.home, "exec", "-it", "target") as screen:
        screen.types("echo shell: $0; exit\n")
        screen.shows("shell: bash" if shutil.which("bash") else "shell: sh")
        assert screen.ends() == 0


def test_a_task_of_several_is_entered_by_its_name(server: Server) -> None:
    roles = {
        "ps": {"command": "sleep 1000", "cpu": 0.1},
        "worker": {"replicas": 2, "command": "sleep 1000", "cpu": 0.1},
    }
    job = server.submit(roles=roles, name="gang", command=None)
    until(lambda: server.job(job.id).state is JobState.RUNNING, 30, "it runs")
    pids = {}

    def all_run() -> bool:
        pids.update({e["task"]: e["pid"] for e in server.events(f"{job.id}-1") if e["event"] == "started"})
        return len(pids) == 3

    until(all_run, 30, "all of it runs")
    for task in pids:
        done = danlu(
            server, "exec", "--task", task, "gang", "--", "sh", "-c", "echo $DANLU_TASK; cat /proc/self/cgroup"
        )
        name, _, groups = done.stdout.decode().partition("\n")
        assert (name, groups) == (task, Path(f"/proc/{pids[task]}/cgroup").read_text())
    done = danlu(server, "exec", "gang", "--", "sh", "-c", "echo $DANLU_TASK")
    assert done.stdout.decode().strip() in done.stderr.decode()
    assert b"one of 3 tasks" in done.stderr
    with terminal(server.home, "exec", "-it", "gang", "--", "true") as screen:
        screen.shows("one of 3 tasks: --task names another\r\n")  # the terminal itself does nothing at a line's end now
        assert screen.ends() == 0
    assert b"did you mean worker-1?" in danlu(server, "exec", "--task", "worker1", "gang", "--", "ls").stderr


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


@pytest.mark.parametrize("how", ["killed", "closed"])
def test_a_terminal_that_is_gone_takes_its_shell_with_it(shared: Server, job: Job, how: str) -> None:
    mark = marked()
    with terminal(shared.home, "exec", "-it", "target", "--", "sh") as screen:
        screen.types(f'export X={mark}; echo be""gins; sh -c "{DEAF.replace("do ", "do echo on; ")}"\n')
        screen.shows("begins\r\nup\r\n")
        assert processes_with(mark)
        screen.process.kill() if how == "killed" else screen.hang_up()
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


# attach


def test_attach_goes_on_following_and_ends_with_the_jobs_code(server: Server) -> None:
    running(server, "sh", "-c", "seq 100; until [ -e go ]; do sleep 0.05; done; echo last; exit 3", name="target")
    until(lambda: danlu(server, "logs", "target", "--tail", "1").stdout == b"100\n", 30, "all its lines")
    with subprocess.Popen(
        [*DANLU, "attach", "target", "--tail", "2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ(server)
    ) as client:
        assert client.stdout is not None
        first = [client.stdout.readline() for _ in range(2)]
        danlu(server, "exec", "target", "--", "touch", "go")
        out, _ = client.communicate(timeout=30)
    assert (first, out, client.returncode) == ([b"99\n", b"100\n"], b"last\n", 3)
    done = danlu(server, "attach", "target")
    assert (done.returncode, b"has ended already" in done.stderr) == (3, True)


def test_attach_asks_what_ctrl_c_means(shared: Server, job: Job) -> None:
    with terminal(shared.home, "attach", "target") as screen:
        screen.shows("running on")
        screen.types("\x03")
        screen.shows("[D]etach (Enter)  [s]top  [c]ontinue")
        screen.types("d\n")
        screen.shows("danlu logs -f target")
        assert screen.ends() == 0
    assert shared.job(job.id).state is JobState.RUNNING
