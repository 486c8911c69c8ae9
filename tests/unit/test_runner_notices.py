"""A notice as a runner gives it: who hears it, how long there is time, what ends it sooner; on this Python and on 3.8."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from danlu.runner import processes
from danlu.runner.checkpoints import SETTLED_NS, Seals
from tests.unit.test_runner_main import Life, life, python, until

__all__ = ["life", "python"]
FOREVER = "while :; do sleep 0.05; done"


def tell(life: Life, runner: subprocess.Popen[bytes], number: str = "TERM", within_s: float = 3600) -> None:
    """Asks a runner to give the notice, as an executor does."""
    notice = {
        "signal": number,
        "within_s": within_s,
        "deadline": time.time_ns(),
        "why": "its guarantee",
        "whom": "job big",
    }
    (life.folder / "stop").write_text(json.dumps({"grace_s": 5, "notice": notice}))
    os.kill(runner.pid, signal.SIGUSR1)


def stop(life: Life, runner: subprocess.Popen[bytes]) -> None:
    (life.folder / "stop").write_text(json.dumps({"grace_s": 5}))
    os.kill(runner.pid, signal.SIGUSR1)


def ended(life: Life) -> dict[str, Any]:
    (found,) = life.events("ended")
    return found


def test_a_program_reads_why_and_saves(life: Life) -> None:
    save = "cat $DANLU_PREEMPTION_FILE; cp $DANLU_PREEMPTION_FILE %s/at-notice.json; exit 0" % (
        life.folder / "checkpoints"
    )
    life.order("/bin/sh", "-c", f"trap '{save}' TERM; [ -e $DANLU_PREEMPTION_FILE ] && exit 9; echo up; "
               "while :; do sleep 0.05; done")  # fmt: skip
    with life.start() as runner:
        until(lambda: "up" in life.log())
        began = time.time()
        tell(life, runner)
        assert runner.wait(30) == 0
    said = json.loads(next(line for line in life.log() if line.startswith("{")))
    assert (said["reason"], said["for"]) == ("its guarantee", "job big")
    assert abs(said["deadline"] - began) < 30
    end = ended(life)
    assert (end["preempted"], end["stopped"], end["timed_out"]) == (True, False, False)
    assert end["saved"]["name"] == "at-notice.json"
    assert end["saved"]["at"] >= int((began - 1) * 1e9)
    (exited,) = life.events("exited")
    assert (exited["exit_code"], exited["stopped"]) == (0, True)
    assert any("told so (SIGTERM to 1 of its processes): 3600 s to save" in line for line in life.log())


def test_the_signal_spares_who_would_die_of_it(life: Life) -> None:
    """A wrapper above the training and a data loader's process below it know nothing of the signal."""
    training = (
        "import signal, subprocess, sys, time\n"
        "loader = subprocess.Popen(['sleep', '1000'])\n"
        "told = []\n"
        "signal.signal(signal.SIGUSR1, lambda *_: told.append(1))\n"
        "print('up', flush=True)\n"
        "while not told: time.sleep(0.01)\n"
        "print('loader', loader.poll(), flush=True)\n"
        "loader.kill(); sys.exit(7)\n"
    )
    (life.folder / "work" / "train.py").write_text(training)
    life.order("/bin/sh", "-c", f"{life.python} train.py; echo the wrapper goes on; exit 8")
    with life.start() as runner:
        until(lambda: "up" in life.log())
        tell(life, runner, "USR1")
        assert runner.wait(30) == 0
    assert {"loader None", "the wrapper goes on"} <= set(life.log())
    assert (ended(life)["preempted"], life.events("exited")[0]["exit_code"]) == (True, 8)


def test_a_checkpoint_after_the_notice_ends_it_at_once(life: Life) -> None:
    """A program that saves and goes on is asked to end once what it saved is proven, long before the deadline."""
    folder = life.folder / "checkpoints"
    line = f"echo {{}} > {folder}/early.json; trap 'echo {{}} > {folder}/late.json' USR1; echo up; "
    life.order("/bin/sh", "-c", line + FOREVER)
    with life.start() as runner:
        until(lambda: "up" in life.log())
        tell(life, runner, "USR1")
        assert runner.wait(30) == 0
    assert (life.events("exited")[0]["signal"], ended(life)["saved"]["name"]) == (signal.SIGTERM, "late.json")
    assert life.sealed() == {"early.json", "late.json"}


def test_who_ends_first_does_not_cut_the_others_short(life: Life) -> None:
    """Who fails ends a gang, but not while the others save; and nobody is started again."""
    saving = f"trap 'sleep 1; echo {{}} > {life.folder}/checkpoints/a.json; exit 0' TERM; echo up; {FOREVER}"
    leaving = f"trap 'exit 143' TERM; echo up; {FOREVER}"
    life.gang(
        {"line": saving}, {"line": leaving, "restarts": 3}, {"line": "echo up; exec sleep 1000", "decides": False}
    )
    with life.start() as runner:
        until(lambda: len(life.events("started")) == 3 and "up" in life.log())
        until(lambda: (life.folder / "main-1" / "stdout").read_text() == "up\n")
        tell(life, runner, within_s=5)
        assert runner.wait(30) == 0
    codes = {event["task"]: event["exit_code"] for event in life.events("exited")}
    assert codes == {"main-0": 0, "main-1": 143, "main-2": None}
    assert life.events("restarted") == []
    assert (ended(life)["preempted"], ended(life)["saved"]["name"]) == (True, "a.json")


def test_a_notice_that_is_told_again_leaves_the_time_that_there_was(life: Life) -> None:
    """It is told at each look, with what is left of it by the server's clock, which somebody may have set."""
    life.order("/bin/sh", "-c", f"trap 'sleep 1; exit 0' TERM; echo up; {FOREVER}")
    with life.start() as runner:
        until(lambda: "up" in life.log())
        tell(life, runner, within_s=30)
        until(lambda: life.events("notice"))
        tell(life, runner, within_s=0)
        assert runner.wait(30) == 0
    assert (life.events("exited")[0]["exit_code"], ended(life)["preempted"]) == (0, True)


def test_what_has_not_begun_never_does(life: Life) -> None:
    life.order("/bin/sh", "-c", "echo never")
    notice = {"signal": "TERM", "within_s": 3600, "deadline": 0, "why": "", "whom": ""}
    (life.folder / "stop").write_text(json.dumps({"grace_s": 5, "notice": notice}))
    assert life.run() == 0
    assert life.log() == []
    assert (ended(life)["preempted"], life.events("started")) == (True, [])


def test_max_time_ends_nothing_that_makes_way(life: Life) -> None:
    life.order("/bin/sh", "-c", "trap 'sleep 2; exit 0' TERM; echo up; while :; do sleep 0.05; done", max_time_s=1.5)
    with life.start() as runner:
        until(lambda: "up" in life.log())
        tell(life, runner)
        assert runner.wait(30) == 0
    assert (ended(life)["preempted"], ended(life)["timed_out"]) == (True, False)


def test_a_stop_wins_over_the_notice(life: Life) -> None:
    life.order("/bin/sh", "-c", "echo up; exec sleep 1000")
    with life.start() as runner:
        until(lambda: "up" in life.log())
        tell(life, runner)
        until(lambda: life.events("notice"))
        stop(life, runner)
        assert runner.wait(30) == 0
    assert (ended(life)["stopped"], life.events("exited")[0]["signal"]) == (True, signal.SIGTERM)


@pytest.mark.parametrize("notice", ["x", {}, {"signal": "TERM"}, {"signal": "TERM", "within_s": "soon"}, []])
def test_a_notice_that_cannot_be_read_is_none(life: Life, notice: object) -> None:
    life.order("/bin/sh", "-c", "echo through")
    (life.folder / "stop").write_text(json.dumps({"grace_s": 5, "notice": notice}))
    assert life.run() == 0
    assert life.log() == ["through"]


def test_who_handles_a_signal() -> None:
    program = "import signal, sys; signal.signal(signal.SIGUSR2, print); print(1, flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert processes.handles(signal.SIGUSR2, child.pid)
        assert processes.handles(signal.SIGINT, child.pid), "as every Python does"
        assert not processes.handles(signal.SIGUSR1, child.pid)
        assert not processes.handles(signal.SIGPIPE, child.pid), "ignored is not handled"
        assert processes.handling(signal.SIGUSR2, [os.getpid(), child.pid]) == [child.pid]
        assert processes.handling(signal.SIGINT, [os.getpid(), child.pid]) == [os.getpid()], "which is above it"
        child.kill()
        child.wait()
    assert not processes.handles(signal.SIGUSR2, child.pid)


def test_only_what_was_written_after_the_notice_ends_it(tmp_path: Path) -> None:
    seals = Seals(str(tmp_path))
    at = 1_700_000_000_000_000_000

    def write(name: str, written: int) -> None:
        (tmp_path / name).write_text("{}")
        os.utime(tmp_path / name, ns=(written, written))

    write("step-1.json", at - 1_000_000_000)
    seals.watch(0)
    assert seals.watch(SETTLED_NS)
    assert not seals.saved_since(at), "it was complete before, and proven after"
    write("step-2.json", at + 1)
    assert not seals.saved_since(at), "it is not proven"
    seals.watch(SETTLED_NS)
    seals.watch(2 * SETTLED_NS)
    assert seals.saved_since(at)
    write("step-3.json", at + 2)
    assert not seals.saved_since(at), "another one is being written"
