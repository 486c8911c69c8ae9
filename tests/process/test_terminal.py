"""Commands on a real terminal: what Ctrl-C asks and does, what signals do, the screen of ``top``, and waiting for states."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from danlu.domain.jobs import Desired, Job, JobState
from tests.process.platform import Server, until
from tests.process.terminal import TIMEOUT_S, terminal

CTRL_C = "\x03"
LONG = "print('it runs', flush=True); import time; time.sleep(600)"
TICKING = "import time\nwhile True: print('tick', flush=True); time.sleep(0.1)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + LONG
RUN = ("run", "--no-code", "--env", "host", "--cpu", "0.1", "--name", "long", "--", "python", "-c")


@pytest.fixture
def environ(home: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What commands of this test find: the Python of the tests on their PATH, the platform in ``home``."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    return {**os.environ, "DANLU_HOME": str(home)}


pytestmark = pytest.mark.usefixtures("environ")


def danlu(environ: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "danlu.cli.main", *words]
    return subprocess.run(
        command, env=environ, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL
    )


def job(server: Server) -> Job:
    return server.job("long")


def test_detach_leaves_the_job_running(server: Server, home: Path) -> None:
    with terminal(home, *RUN, LONG) as shell:
        shell.shows("it runs")
        shell.types(CTRL_C)
        shell.shows("[D]etach (Enter)  [s]top  [c]ontinue:")
        shell.types("x\n")
        shell.shows("d, s or c:")
        shell.types("d\n")
        assert shell.ends() == 0
        assert "follow it with `danlu logs -f long`" in shell.shown
    assert job(server).state is JobState.RUNNING


def test_the_question_begins_its_own_line_and_enter_is_its_default(server: Server, home: Path) -> None:
    with terminal(home, *RUN, "import time; print('no end', end='', flush=True); time.sleep(600)") as shell:
        shell.shows("no end")
        shell.types(CTRL_C)
        shell.shows("\n  long goes on if you detach.  [D]etach (Enter)")
        shell.types("\n")
        assert shell.ends() == 0
    assert job(server).state is JobState.RUNNING


def test_stop_ends_it_and_is_followed_to_the_end(server: Server, home: Path) -> None:
    with terminal(home, *RUN, LONG) as shell:
        shell.shows("it runs")
        shell.types(CTRL_C)
        shell.shows("[s]top")
        shell.types("s\n")
        assert shell.ends() == 130
        assert "long is asked to stop" in shell.shown
    assert job(server).state is JobState.CANCELLED


def test_continue_goes_on_and_a_second_ctrl_c_at_the_question_detaches(server: Server, home: Path) -> None:
    with terminal(home, *RUN, TICKING) as shell:
        shell.shows("tick")
        shell.types(CTRL_C)
        shell.shows("[c]ontinue:")
        ticks = shell.shown.count("tick")  # nothing is printed while the question stands
        shell.types("c\n")
        shell.shows("tick", times=ticks + 1)
        shell.types(CTRL_C)
        shell.shows("[c]ontinue:", times=2)
        shell.types(CTRL_C)
        assert shell.ends() == 0
    assert job(server).state is JobState.RUNNING


def test_without_a_keyboard_ctrl_c_stops(server: Server, home: Path) -> None:
    with terminal(home, *RUN, LONG, keyboard=False) as shell:
        shell.shows("it runs")
        shell.types(CTRL_C)
        assert shell.ends() == 130
        assert "[D]etach" not in shell.shown
    assert job(server).state is JobState.CANCELLED


def test_a_second_ctrl_c_leaves_a_job_that_takes_its_time_to_stop(server: Server, home: Path) -> None:
    with terminal(home, *RUN, STUBBORN, keyboard=False) as shell:
        shell.shows("it runs")
        shell.types(CTRL_C)
        shell.shows("long is asked to stop; Ctrl-C again leaves it to that")
        shell.types(CTRL_C)
        assert shell.ends() == 130
        assert "long is still being stopped: danlu wait long" in shell.shown
    assert (job(server).live, job(server).desired) == (True, Desired.STOP)


@pytest.mark.parametrize("asked", [False, True])
def test_sigterm_stops_and_asks_nobody(server: Server, home: Path, asked: bool) -> None:
    with terminal(home, *RUN, LONG) as shell:
        shell.shows("it runs")
        if asked:  # it comes while the question stands
            shell.types(CTRL_C)
            shell.shows("[c]ontinue:")
        shell.process.send_signal(signal.SIGTERM)
        assert shell.ends() == 130
        assert shell.shown.count("[D]etach") == asked
    assert job(server).state is JobState.CANCELLED


def test_a_window_that_is_closed_leaves_the_job_running(server: Server, home: Path) -> None:
    with terminal(home, *RUN, LONG) as shell:
        shell.shows("it runs")
        shell.process.send_signal(signal.SIGHUP)
        assert shell.ends() == -signal.SIGHUP
    assert job(server).state is JobState.RUNNING


def test_top_is_drawn_in_place_and_leaves_the_screen_as_it_was(server: Server, home: Path) -> None:
    with terminal(home, *RUN, "while True: pass", keyboard=False) as running:
        until(lambda: "running on" in running.shown, TIMEOUT_S, "the job runs")
        server.submit("sleep", "1", name="waits", cpu=float(os.cpu_count() or 1))
        with terminal(home, "top", "--every", "0.5s") as shell:
            shell.shows("NODE")
            shell.shows(" of 0.1")
            shell.shows("waits")
            drawn = shell.shown.count("\x1b[H")
            until(lambda: shell.shown.count("\x1b[H") > drawn, TIMEOUT_S, "it is drawn again")
            shell.types("q")
            assert shell.ends() == 0
            assert shell.shown.startswith("\x1b[?1049h")
            assert shell.shown.endswith("\x1b[?25h\x1b[?1049l")
        with terminal(home, "top") as shell:
            shell.shows("NODE")
            shell.types(CTRL_C)
            assert shell.ends() == 0
            assert shell.shown.endswith("\x1b[?25h\x1b[?1049l")


def test_what_a_job_uses_is_measured_shown_and_kept(server: Server, environ: dict[str, str]) -> None:
    busy = "x = bytearray(50_000_000)\nprint('ready', flush=True)\nwhile True: pass"
    server.submit(sys.executable, "-c", busy, name="busy", cpu=1, memory="1GiB")

    def measured() -> bool:
        with server.client() as client:
            tasks = [task for one in client.call("top.get").jobs for task in one.tasks]
        return bool(tasks) and (tasks[0].cpu_cores or 0) > 0.2 and (tasks[0].memory_bytes or 0) > 50_000_000

    until(measured, TIMEOUT_S, "the job is measured")
    shown = danlu(environ, "top", "--once")
    assert shown.returncode == 0
    assert "\x1b" not in shown.stdout
    assert any(line.startswith("busy") and " of 1.0 GiB" in line for line in shown.stdout.splitlines()), shown.stdout
    assert danlu(environ, "metrics", "busy", "-o", "name").stdout == ""
    danlu(environ, "stop", "busy", "--wait")
    kept = danlu(environ, "metrics", "busy", "--system", "-o", "name").stdout.split()
    assert kept == ["system/cpu_cores", "system/memory_bytes"]


def test_a_gang_is_followed_with_its_tasks_names(server: Server, environ: dict[str, str]) -> None:
    words = ("--no-code", "--env", "host", "--cpu", "0.1", "--name", "gang", "--worker", "2", "--framework", "none")
    program = "import os, sys; print(os.environ['DANLU_TASK']); print('bad', file=sys.stderr)"
    done = danlu(environ, "run", *words, "--", "python", "-c", program)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["worker-0 | worker-0", "worker-1 | worker-1"]
    assert sorted(line for line in done.stderr.splitlines() if " | " in line) == ["worker-0 | bad", "worker-1 | bad"]
    assert sorted(danlu(environ, "logs", "gang").stdout.splitlines()) == sorted(done.stdout.splitlines())
    assert danlu(environ, "logs", "gang", "--rank", "1").stdout == "worker-1\n"
    assert danlu(environ, "logs", "gang", "--role", "worker", "--tail", "0").stdout == ""
    wrong = danlu(environ, "logs", "gang", "--task", "worker-3")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "has no task 'worker-3'" in wrong.stderr


def test_wait_for_a_state(server: Server, environ: dict[str, str]) -> None:
    held = server.submit(
        sys.executable, "-c", LONG, name="held", cpu=float(os.cpu_count() or 1)
    )  # the next one waits for it
    waiting = server.submit(sys.executable, "-c", "raise SystemExit(7)", name="waiting", cpu=1)
    assert danlu(environ, "wait", "held", "--for", "running").returncode == 0
    assert danlu(environ, "wait", "waiting", "--for", "state=queued").returncode == 0
    late = danlu(environ, "wait", "held", "waiting", "--for", "running", "--timeout", "0.3s")
    assert late.returncode == 124
    assert "waiting is not running after 0.3s: it is queued" in late.stderr
    codes: dict[str, int] = {}

    def wait(*words: str) -> threading.Thread:
        def work() -> None:
            codes[" ".join(words)] = danlu(environ, "wait", *words).returncode

        thread = threading.Thread(target=work)
        thread.start()
        return thread

    asked = [
        wait("waiting", "--for", "succeeded"),
        wait("waiting", "--for", "failed"),
        wait("held", "waiting"),
        wait("waiting", "--for", "cancelled"),
    ]
    danlu(environ, "stop", "held", "--wait")
    for thread in asked:
        thread.join(TIMEOUT_S)
    assert codes == {
        "waiting --for succeeded": 7,
        "waiting --for failed": 0,
        "held waiting": 130,
        "waiting --for cancelled": 7,
    }
    assert danlu(environ, "wait", "waiting", "held").returncode == 7
    assert danlu(environ, "wait", held.id, "--for", "cancelled", "-o", "name").stdout == "job/held\n"
    assert server.job(waiting.id).state is JobState.FAILED


def test_a_job_that_succeeded_was_running(server: Server, environ: dict[str, str]) -> None:
    made = server.submit(sys.executable, "-c", "pass", name="short")
    server.wait(made.id)
    assert danlu(environ, "wait", "short", "--for", "running").returncode == 0
    assert danlu(environ, "wait", "short", "--for", "failed").returncode == 1


def test_a_state_that_is_none_is_named(environ: dict[str, str]) -> None:
    wrong = danlu(environ, "wait", "x", "--for", "runing")
    assert wrong.returncode == 2
    assert "did you mean running?" in wrong.stderr
