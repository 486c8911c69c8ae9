"""The machine's own trouble: what it lacks for a while never ends an attempt, and never costs a line of its output."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from danlu.domain.isolation import Layer
from danlu.errors import DataDamaged, ExecutorUnavailable, LaunchRejected
from danlu.executors.base import Phase
from danlu.executors.local import executor as local
from danlu.executors.local import folders, machine, starting, sweep
from danlu.runner import formats
from tests.conftest import cannot_run
from tests.executors import LocalBench
from tests.process.test_local_executor import opened

HOLD = "echo up; while :; do sleep 0.1; done"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[LocalBench]:
    home = tmp_path / "home"
    home.mkdir()
    bench = LocalBench(opened(home))
    yield bench
    bench.close()


def failing(number: int) -> Any:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


def gone(pid: int) -> None:
    """Waits until a process that was killed has ended."""
    deadline = time.monotonic() + 30
    while formats.start_time(pid) is not None:
        assert time.monotonic() < deadline


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM, errno.EMFILE])
def test_without_processes_to_spare_it_is_saved_later(
    bench: LocalBench, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    attempt_id = bench.launch("/bin/sh", "-c", HOLD)
    bench.printed(attempt_id, "up")
    bench.lose(attempt_id)
    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", failing(number))
        bench.until(lambda: "cannot be started" in getattr(bench.see(attempt_id), "message", ""))
        for _ in range(5):
            seen = bench.see(attempt_id)
            assert seen is not None
            assert seen.phase is Phase.RUNNING
    seen = bench.end(attempt_id)
    assert (seen.phase, seen.message) == (Phase.LOST, "the runner was lost")
    assert bench.log(attempt_id) == "up"


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOMEM])
@pytest.mark.parametrize("function", ["open", "stat"])
def test_a_live_attempt_is_not_ended_for_an_error_of_the_machine(
    bench: LocalBench, monkeypatch: pytest.MonkeyPatch, number: int, function: str
) -> None:
    attempt_id = bench.launch("/bin/sh", "-c", HOLD)
    bench.printed(attempt_id, "up")
    bench.again()
    with monkeypatch.context() as patched:
        patched.setattr(os, function, failing(number))
        seen = bench.executor.observe()
    assert [(one.attempt_id, one.phase) for one in seen] == [(attempt_id, Phase.RUNNING)]
    assert "tried again" in seen[0].message
    assert bench.see(attempt_id).message == ""  # type: ignore[union-attr]
    os.kill(bench.runner_pid(attempt_id), 0)


def test_a_lock_that_cannot_be_opened_is_not_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert folders.lock_is_free(tmp_path)
    (tmp_path / "lock").mkdir()
    assert folders.lock_is_free(tmp_path)
    monkeypatch.setattr(os, "open", failing(errno.EMFILE))
    with pytest.raises(ExecutorUnavailable, match="cannot be opened"):
        folders.lock_is_free(tmp_path)


def test_what_cannot_be_saved_is_kept(bench: LocalBench, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt_id = bench.launch("/bin/sh", "-c", HOLD)
    bench.printed(attempt_id, "up")
    with monkeypatch.context() as patched:
        patched.setattr(local, "SALVAGE_PAUSE_S", 0.0)
        patched.setattr(starting, "ask", lambda *_: {"pid": 2**22 + 1})  # it is never heard of again
        bench.lose(attempt_id)
        seen = bench.end(attempt_id)
        assert "its folder is kept" in seen.message
        bench.executor.forget(attempt_id)
        assert (bench.home / "attempts" / attempt_id / "main-0" / "stdout").read_text() == "up\n"
    bench.again()
    assert bench.end(attempt_id).message == "the runner was lost"
    assert bench.log(attempt_id) == "up"
    bench.executor.forget(attempt_id)
    assert not (bench.home / "attempts" / attempt_id).exists()


def test_a_refused_launch_leaves_no_control_groups(bench: LocalBench, monkeypatch: pytest.MonkeyPatch) -> None:
    if Layer.MEMORY_LIMIT not in bench.executor.capabilities.layers:
        cannot_run("this machine cannot limit memory (control groups)")
    order = bench.order("/bin/true")
    group = bench.executor._group(order.attempt.id)
    assert group is not None
    there = []

    def refuse(*_: object) -> dict[str, Any]:
        there.append(group.exists())
        return {"error": "no way to the interpreter", "rejected": True}

    with monkeypatch.context() as patched:
        patched.setattr(starting, "ask", refuse)
        with pytest.raises(LaunchRejected, match="no way"):
            bench.executor.launch(order)
    bench.executor.forget(order.attempt.id)
    assert (there, group.exists()) == ([True], False)
    assert list(bench.executor.attempts.iterdir()) == []


def test_a_launcher_that_does_not_answer_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "launcher.py"
    program.write_text(
        "import os, time\nos.setsid()\nif os.fork():\n    os._exit(0)\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(1000)\n"
    )
    monkeypatch.setattr(starting, "LAUNCHER", program)
    with pytest.raises(ExecutorUnavailable, match="did not answer"):
        starting.ask({}, "attempt-1", timeout_s=2.0)
    gone(int((tmp_path / "pid").read_text()))


def test_what_does_not_do_its_work_in_time_is_ended(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as started:
        assert not starting.until(started.pid, lambda: False, timeout_s=0.1)
        assert started.wait(30) == -signal.SIGKILL


def test_a_daemon_without_environment_is_gone_when_the_runner_was_killed(
    bench: LocalBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.executor, "_tree", None)  # as on a machine without control groups
    attempt_id = bench.launch(
        "/bin/sh", "-c", "env -i setsid sh -c 'echo $$ > ../daemon.part; mv ../daemon.part ../daemon; sleep 1000 & wait' & "
        + HOLD,
    )  # fmt: skip
    folder = bench.home / "attempts" / attempt_id
    bench.until(lambda: (folder / "daemon").exists())
    daemon = int((folder / "daemon").read_text())
    bench.until(lambda: any(pid == daemon for pid, _ in sweep.recorded(folder)))
    bench.lose(attempt_id)
    assert bench.end(attempt_id).phase is Phase.LOST
    assert formats.start_time(daemon) is None


def test_a_forged_list_ends_nobody_elses_process(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "1000"]) as victim:
        born = formats.start_time(victim.pid)
        for processes, boot in (
            ([[victim.pid, born]], "of another boot"),
            ([[victim.pid, 1]], formats.boot_id()),
            ("x", ""),
        ):
            text = json.dumps({"boot_id": boot, "processes": processes})
            (tmp_path / formats.PROCESSES).write_text(text)
            assert sweep.kill("attempt-1", sweep.recorded(tmp_path), os.getuid())
        known = frozenset({(victim.pid, int(born or 0))})
        assert sweep.kill("attempt-1", known, os.getuid() + 1)
        assert victim.poll() is None
        assert victim.pid in sweep.left("attempt-1", known, os.getuid())
        victim.kill()


def test_the_node_keeps_its_name_when_the_host_changes_its_own(
    bench: LocalBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "GPU-Box.example")
    assert machine.name(bench.home) == "gpu-box-example"
    monkeypatch.setattr(socket, "gethostname", lambda: "other")
    bench.again()
    assert [node.name for node in bench.executor.capacity()] == ["gpu-box-example"]
    (bench.home / "node").write_text("Not A Name\n")
    with pytest.raises(DataDamaged, match="no node's name"):
        bench.executor.capacity()


def test_a_job_that_empties_its_own_output_loses_nothing_after_it(bench: LocalBench) -> None:
    attempt_id = bench.launch(
        "/bin/sh", "-c", "echo a longer line than the others; until grep -q longer ../main-0/spool/log.*; do :; done; "
        "echo x > /dev/stdout; echo last",
    )  # fmt: skip
    bench.end(attempt_id)
    said = bench.log(attempt_id).split("\n")
    assert said[0] == "a longer line than the others"
    assert [line for line in said if line in ("x", "last")] == ["x", "last"]


def test_gpus_are_counted_as_the_driver_counts_them(bench: LocalBench) -> None:
    attempt_id = bench.launch(
        "/bin/sh", "-c", "echo $CUDA_DEVICE_ORDER", variables={"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}
    )
    bench.end(attempt_id)
    assert bench.log(attempt_id) == "PCI_BUS_ID"
