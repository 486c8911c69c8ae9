"""An attempt's whole life with nothing but the runner, on this Python and on 3.8."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from danlu.runner import formats
from danlu.runner.main import ALREADY
from tests.unit.test_sdk import PACKAGE, python38

TIMEOUT_S = 30


@pytest.fixture(params=[sys.executable, "3.8"])
def python(request: pytest.FixtureRequest) -> str:
    return sys.executable if request.param == sys.executable else python38()


class Life:
    """An attempt's folder and the runner in it."""

    def __init__(self, folder: Path, python: str) -> None:
        self.folder, self.python = folder, python
        for name in ("work", "outputs", "checkpoints"):
            (folder / name).mkdir(parents=True)

    def order(self, *argv: str, **fields: Any) -> None:
        env = {
            "PATH": os.defpath,
            "PYTHONPATH": str(PACKAGE.parent),
            "DANLU_ATTEMPT_ID": "a-1",
            "MARK": str(self.folder),
        }
        task = {"name": "main-0", "role": "main", "index": 0, "rank": 0, "argv": argv, "env": env,
                "cwd": str(self.folder / "work"), "devices": [0, 2], "cpu": 2}  # fmt: skip
        order = {"attempt_id": "a-1", "grace_s": 5, "max_time_s": None, "log_limit_bytes": 2**20, "parse_metrics": False,
                 "checkpoint_dir": str(self.folder / "checkpoints"), "tasks": [task], **fields}  # fmt: skip
        (self.folder / "order.json").write_text(json.dumps(order))

    def gang(self, *tasks: dict[str, Any], **fields: Any) -> None:
        """Orders several tasks: each a shell's line, with whatever else is agreed of it."""
        self.order("unused")
        (task,) = json.loads((self.folder / "order.json").read_text())["tasks"]
        every = [
            {**task, "name": f"main-{rank}", "index": rank, "rank": rank, **one, "argv": ["/bin/sh", "-c", one["line"]]}
            for rank, one in enumerate(tasks)
        ]
        self.order("unused", tasks=every, **fields)

    def sealed(self) -> set[str]:
        path = self.folder / "checkpoints" / ".danlu" / "sealed.json"
        return set(json.loads(path.read_text())) if path.exists() else set()

    @contextlib.contextmanager
    def start(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        program = str(PACKAGE / "runner" / "__main__.py")
        command = [self.python, "-I", "-S", "-W", "error", program, *arguments, str(self.folder)]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL) as runner:
            try:
                yield runner
            finally:
                runner.kill()  # no test that fails waits for it

    def run(self, *arguments: str) -> int:
        with self.start(*arguments) as runner:
            return runner.wait(TIMEOUT_S)

    def events(self, name: str = "") -> list[dict[str, Any]]:
        found = formats.read_status(str(self.folder / "status"))
        return [event for event in found if not name or event["event"] == name]

    def log(self) -> list[str]:
        spool = self.folder / "main-0" / "spool"
        if not spool.exists():
            return []
        data = b"".join(Path(path).read_bytes() for _, path in formats.spool_files(str(spool), formats.LOG))
        return [line.text for line in formats.parse_lines(data.decode())]


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        os.sched_yield()


@pytest.fixture
def life(tmp_path: Path, python: str) -> Life:
    return Life(tmp_path / "attempt", python)


def test_a_life_from_order_to_end(life: Life) -> None:
    program = (
        "import danlu, os\n"
        "print('hello', os.environ['CUDA_VISIBLE_DEVICES'], os.environ['DANLU_TASK'])\n"
        "danlu.log(step=1, loss=0.5)\n"
        "open(os.path.join(danlu.checkpoint_dir(), 'a.json'), 'w').write('{}')\n"
        "os._exit(3)"
    )
    life.order(life.python, "-S", "-c", program)
    order = json.loads((life.folder / "order.json").read_text())
    order["tasks"][0]["env"]["DANLU_CHECKPOINT_DIR"] = str(life.folder / "checkpoints")
    (life.folder / "order.json").write_text(json.dumps(order))
    assert life.run() == 0
    assert [event["event"] for event in life.events()] == ["runner", "started", "exited", "ended"]
    exited = life.events("exited")[0]
    assert (exited["exit_code"], exited["signal"], exited["oom"]) == (3, None, False)
    assert exited["peak_memory_bytes"] > 0
    assert exited["cpu_ns"] > 0
    assert life.log() == []  # what a program has not flushed was never written
    assert json.loads((life.folder / "main-0" / "spool" / formats.spool_name("metrics", 0)).read_text())["m"] == {
        "loss": 0.5
    }
    assert "a.json" in json.loads((life.folder / "checkpoints" / ".danlu" / "sealed.json").read_text())
    assert life.run() == ALREADY
    assert life.run("--salvage") == ALREADY


def test_output_and_resumption(life: Life) -> None:
    (life.folder / "checkpoints" / "ckpt-1.json").write_text("{}")
    (life.folder / "checkpoints" / "ckpt-2.json").write_text("{")
    life.order("/bin/sh", "-c", "echo out; echo err >&2; basename $DANLU_RESUME_FROM; printf end")
    assert life.run() == 0
    assert sorted(life.log()) == ["checkpoint ckpt-2.json was not complete: it was set aside in .danlu/incomplete",
                                  "ckpt-1.json", "end", "err", "out"]  # fmt: skip
    assert life.events("resumed")[0]["set_aside"] == ["ckpt-2.json"]


@pytest.mark.parametrize(("argv", "code", "error"), [
    (("pyton3",), 127, "command not found: pyton3"),
    (("./no/such",), 127, "command not found: ./no/such (no such file)"),
    (("./plain",), 126, "cannot execute ./plain: Permission denied"),
    (("./folder",), 126, "cannot execute ./folder: Permission denied"),
    (("./nowhere",), 126, "cannot execute ./nowhere: the interpreter in its first line does not exist"),
    (("./junk",), 126, "cannot execute ./junk: Exec format error"),
    (("/bin/echo", "x" * 200_000), 126, "cannot execute /bin/echo: Argument list too long"),
])  # fmt: skip
def test_what_cannot_be_executed_is_explained(life: Life, argv: tuple[str, ...], code: int, error: str) -> None:
    work = life.folder / "work"
    (work / "plain").write_text("text")
    (work / "folder").mkdir()
    (work / "nowhere").write_text("#!/no/such/interpreter\n")
    (work / "junk").write_bytes(b"\x00\x01junk")
    for name in ("nowhere", "junk"):
        (work / name).chmod(0o755)
    life.order(*argv)
    assert life.run() == 0
    (exited,) = life.events("exited")
    assert exited["exit_code"] == code
    assert exited["error"].startswith(error)
    assert life.log() == [exited["error"]]


def test_a_working_folder_that_is_gone_is_named(life: Life) -> None:
    (life.folder / "work").rmdir()
    life.order("/bin/true")
    assert life.run() == 0
    (exited,) = life.events("exited")
    assert exited["exit_code"] == 126
    assert "working folder" in exited["error"]


@pytest.mark.parametrize("number", [1, 2, 6, 9, 10, 11, 15, 40, 64])
def test_any_signal_can_end_a_task(life: Life, number: int) -> None:
    life.order("/bin/sh", "-c", f"kill -{number} $$; sleep 30")
    assert life.run() == 0
    (exited,) = life.events("exited")
    assert (exited["signal"], exited["exit_code"]) == (number, None)
    assert exited["error"].startswith("killed by ")


def test_ignored_signals_are_not_handed_on(life: Life) -> None:
    life.order("/bin/sh", "-c", "grep -E 'Sig(Ign|Blk)' /proc/self/status")
    ignored = [
        signal.SIGINT,
        signal.SIGHUP,
        signal.SIGQUIT,
        signal.SIGUSR2,
        signal.SIGTSTP,
        signal.SIGPIPE,
        signal.SIGXFSZ,
    ]
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ignored}
    try:
        assert life.run() == 0
    finally:
        for number, old in before.items():
            signal.signal(number, old)
    library_s_own = 0b11 << 31  # 32 and 33: no program can set them through the C library, whatever it was started with
    assert [int(line.split()[1], 16) & ~library_s_own for line in life.log()] == [0, 0]


def test_stop_gives_the_whole_tree_its_grace(life: Life) -> None:
    """The shell dies at once of SIGTERM; what it started saves its work."""
    saving = "trap 'sleep 3; echo saved > ../outputs/saved; exit 0' TERM; echo up; while :; do sleep 0.1; done"
    life.order("/bin/sh", "-c", f'sh -c "{saving}" & wait')
    with life.start() as runner:
        until(lambda: "up" in life.log())
        formats.write_atomically(str(life.folder / "stop"), b'{"grace_s": 20}')
        runner.send_signal(signal.SIGUSR1)
        assert runner.wait(TIMEOUT_S) == 0
    assert (life.folder / "outputs" / "saved").read_text() == "saved\n"
    assert life.events("ended")[0]["stopped"] is True
    assert life.events("exited")[0]["signal"] == signal.SIGTERM


def test_stop_before_the_start_starts_nothing(life: Life) -> None:
    life.order("/bin/sh", "-c", "echo started")
    (life.folder / "stop").write_text('{"grace_s": 1}')
    assert life.run() == 0
    assert life.log() == []
    assert life.events("exited")[0]["error"] == "stopped before it began"
    assert life.events("ended")[0]["stopped"] is True


@pytest.mark.parametrize("content", ["", "{", "[]", '{"grace_s": "x"}', "null"])
def test_a_stop_that_is_none_is_none(life: Life, content: str) -> None:
    life.order("/bin/sh", "-c", "echo done")
    (life.folder / "stop").write_text(content)
    assert life.run() == 0
    assert life.log() == ["done"]


def test_of_two_runners_one_runs(life: Life) -> None:
    life.order("/bin/sh", "-c", "echo once; while [ ! -e go ]; do sleep 0.05; done")
    with life.start() as first:
        until(lambda: life.log() == ["once"])
        assert life.run() == ALREADY
        assert life.run("--salvage") == ALREADY
        (life.folder / "work" / "go").touch()
        assert first.wait(TIMEOUT_S) == 0
    assert life.log() == ["once"]


def test_a_killed_runner_takes_its_processes_along_and_is_salvaged(life: Life) -> None:
    life.order("/bin/sh", "-c", "echo before; while :; do sleep 0.1; done")
    with life.start() as runner:
        until(lambda: life.events("started"))
        pid = life.events("started")[0]["pid"]
        until(lambda: (life.folder / "main-0" / "stdout").stat().st_size)
        runner.kill()
        runner.wait(TIMEOUT_S)
    until(lambda: formats.start_time(pid) is None)
    with (life.folder / "status").open("ab") as status:
        status.write(b'{"event": "torn')
    assert life.run() == ALREADY
    files = [life.folder / "status", *(path for path in (life.folder / "main-0").rglob("*") if path.is_file())]
    for number, path in enumerate(files):
        os.utime(path, ns=(0, 1_000_000_000 + number))
    assert life.run("--salvage") == 0
    assert life.log() == ["before"]
    ended = life.events("ended")[0]
    assert (
        ended["seen_at"] == 1_000_000_000 + len(files) - 1
    )  # when something of it last wrote, not when it is salvaged
    assert (ended["lost"], ended["message"]) == (True, "the runner was lost")
    assert life.events("exited")[0]["error"] == "its runner was killed"


def test_it_says_how_it_is_used() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(PACKAGE / "runner" / "__main__.py")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (2, "usage: runner [--salvage] FOLDER\n")


STUCK_CLOCK = """
import sys, time
time.time_ns = lambda: 5  # nobody sets it on
sys.path.insert(0, sys.argv[1])
from danlu.runner.main import main
sys.exit(main(sys.argv[2:]))
"""


def test_a_checkpoint_is_sealed_by_a_clock_that_nobody_sets(life: Life) -> None:
    save = (
        "cd ../checkpoints; echo 7 > model-1.bin; n=0; "
        "until grep -q model-1 .danlu/sealed.json; do sleep 0.1; n=$((n+1)); [ $n -lt 200 ] || exit 9; done"
    )
    life.order("/bin/sh", "-c", save)
    command = [life.python, "-I", "-S", "-c", STUCK_CLOCK, str(PACKAGE.parent), str(life.folder)]
    done = subprocess.run(command, check=False, timeout=TIMEOUT_S)
    assert done.returncode == 0
    assert [event["exit_code"] for event in life.events("exited")] == [0]


def test_the_runner_notes_what_runs_below_it(life: Life) -> None:
    life.order("/bin/sh", "-c", "env -i setsid sleep 1000 & wait")
    noted = life.folder / formats.PROCESSES
    with life.start() as runner:
        until(lambda: noted.exists() and len(json.loads(noted.read_text())["processes"]) >= 2)
        said = json.loads(noted.read_text())
        assert said["boot_id"] == formats.boot_id()
        assert all(formats.start_time(pid) == born for pid, born in said["processes"])
        runner.send_signal(signal.SIGUSR1)
        (life.folder / "stop").write_text('{"grace_s": 0}')
        assert runner.wait(TIMEOUT_S) == 0


# what a failed task leaves

LATER = "until grep -q {0} .danlu/sealed.json; do n=$((n+1)); [ $n -lt 200 ] || exit 9; sleep 0.1; done"


def test_what_a_task_was_writing_when_it_was_killed_is_not_resumed_from_when_it_is_started_again(life: Life) -> None:
    first = "mkdir step-5; echo half > step-5/weights.bin; kill -9 $$"
    second = f"echo from:$DANLU_RESUME_FROM; echo whole > step-4.bin; {LATER.format('step-4')}"
    life.gang({"line": f"cd ../checkpoints; if [ $DANLU_RESTART = 0 ]; then {first}; fi; {second}", "restarts": 1})
    assert life.run() == 0
    assert [event["exit_code"] for event in life.events("exited")] == [0]
    assert "from:" in life.log()
    assert life.sealed() == {"step-4.bin"}


def test_what_a_task_was_writing_when_it_failed_is_not_trusted_though_the_others_end_in_good_order(life: Life) -> None:
    saving = (
        "cd ../checkpoints; trap 'echo saved > asked-1.bin; exit 0' TERM; touch ../up; while :; do sleep 0.05; done"
    )
    failing = "until [ -e ../up ]; do sleep 0.05; done; cd ../checkpoints; echo half > step-5.bin; exit 1"
    life.gang({"line": saving}, {"line": failing})
    assert life.run() == 0
    assert {event["task"]: event["exit_code"] for event in life.events("exited")} == {"main-0": 0, "main-1": 1}
    assert life.sealed() == {"asked-1.bin"}


def test_what_was_saved_before_the_result_was_known_is_trusted_though_a_server_of_the_others_is_killed(
    life: Life,
) -> None:
    life.gang(
        {"line": "until [ -e ../up ]; do sleep 0.05; done; echo result > ../checkpoints/model.bin"},
        {"line": "touch ../up; while :; do sleep 0.05; done", "decides": False},
    )
    assert life.run() == 0
    assert life.events("exited")[1]["signal"] == signal.SIGTERM
    assert life.sealed() == {"model.bin"}


# whose port it is


@pytest.mark.parametrize(("daemon", "host", "taken"), [
    (False, "127.0.0.1", True), (False, "127.64.0.8", False), (True, "127.0.0.1", False),
])  # fmt: skip
def test_what_belongs_to_an_engine_s_daemon_cannot_be_told_from_a_stranger(
    life: Life, daemon: bool, host: str, taken: bool
) -> None:
    """The container's process is the engine here; it fails beside somebody who listens on its port."""
    container = {
        "engine": "docker" if daemon else "podman", "daemon": daemon, "image": "i", "run": ["/bin/sh", "-c", "exit 3"],
        "environ": {"PATH": os.defpath}, "folders": [], "signal": [], "state": [], "remove": [], "name": "n",
    }  # fmt: skip
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        life.gang({"line": "", "container": container, "ports": [port], "host": host})
        assert life.run() == 0
    (exited,) = life.events("exited")
    assert (exited["exit_code"], exited["port_taken"]) == (3, port if taken else None)


@pytest.mark.parametrize("away", ["setsid", "env -i setsid"])
def test_what_a_task_that_is_started_again_has_sent_away_is_ended_first(life: Life, away: str) -> None:
    """One is known by its environment; one that has cleared it was noted while its task ran."""
    first = f"{away} /bin/sleep 1000 & echo $! > ../pid; until [ -e ../go ]; do sleep 0.05; done; exit 9"
    second = "kill -0 $(cat ../pid) && echo there || echo gone"
    other = "env -i setsid sleep 1000 & echo $! > ../other; until [ -e ../go2 ]; do sleep 0.05; done; kill -0 $!"
    line = f"[ $DANLU_RESTART = 1 ] && {{ {second}; touch ../go2; exit 0; }}; {first}"
    life.gang({"line": line, "restarts": 1}, {"line": other})
    noted = life.folder / formats.PROCESSES
    with life.start() as runner:
        files = [life.folder / "pid", life.folder / "other"]
        until(lambda: all(file.exists() and file.read_text().endswith("\n") for file in files))
        until(lambda: noted.exists() and all(f"[{int(file.read_text())}, " in noted.read_text() for file in files))
        (life.folder / "go").touch()
        assert runner.wait(TIMEOUT_S) == 0
    assert "gone" in life.log()
    assert [event["exit_code"] for event in life.events("exited")] == [0, 0]  # what another task has sent away goes on


NO_GROUP = """
import os, sys
sys.path.insert(0, sys.argv[1])
from danlu.runner.main import run
sys.exit(run(sys.argv[2], groups={"main-0": [os.open("/dev/full", os.O_WRONLY)]}))
"""


@pytest.mark.parametrize("contained", [False, True])
def test_a_control_group_that_cannot_be_joined_is_no_fault_of_the_command(life: Life, contained: bool) -> None:
    container = {"engine": "podman", "folders": [], "remove": []} if contained else None
    life.gang({"line": "echo started", "container": container}, {"line": "sleep 1000"})
    command = [life.python, "-I", "-S", "-c", NO_GROUP, str(PACKAGE.parent), str(life.folder)]
    assert subprocess.run(command, check=False, timeout=TIMEOUT_S).returncode == 0
    exited = next(event for event in life.events("exited") if event["task"] == "main-0")
    words = "its control group cannot be joined: No space left on device"
    assert exited["exit_code"] is None
    assert exited["error"] == ("cannot start podman: " + words if contained else words)
    (ended,) = life.events("ended")
    assert (ended["lost"], ended["message"]) == (True, "main-0: " + exited["error"])
