"""Gangs of real processes: one fails, all end; ports, memory and restarts are each task's own; nothing is left behind."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from danlu.domain.ids import attempt_id, make_id
from danlu.domain.isolation import Layer
from danlu.domain.jobs import JobState, Reason
from danlu.domain.sessions import SessionRequest
from danlu.errors import LeasedPortTaken
from danlu.executors.base import Observation, Phase
from danlu.scheduler.ports import lease
from tests.conftest import cannot_run
from tests.executors import LocalBench
from tests.process.platform import Server, processes_with, until
from tests.process.test_local_executor import opened

LARGE_S = 240.0
EAT = "import os; x = []\nwhile True: x.append(bytearray(os.urandom(1 << 20)))"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[LocalBench]:
    home = tmp_path / "home"
    home.mkdir()
    bench = LocalBench(opened(home))
    yield bench
    bench.close()


def ends(seen: Observation) -> dict[str, Any]:
    return {task.name: task.exit_code if task.signal is None else -task.signal for task in seen.tasks}


def listener(port: int) -> socket.socket:
    """Returns a stranger that listens on a port."""
    taken = socket.socket()
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    taken.bind(("127.0.0.1", port))
    taken.listen(1)
    return taken


def test_the_task_that_uses_up_its_memory_is_killed_alone_and_named(bench: LocalBench) -> None:
    if Layer.MEMORY_LIMIT not in bench.executor.capabilities.layers:
        cannot_run("this machine cannot limit memory (control groups)")
    program = f"import os, time\nif os.environ['DANLU_INDEX'] == '1': exec({EAT!r})\ntime.sleep(1000)"
    roles = {
        "worker": {"replicas": 3, "memory": "64MiB", "command": ["python", "-c", program]},
        "big": {
            "memory": "256MiB",
            "command": ["python", "-c", "x = bytearray(128 << 20); import time; time.sleep(1000)"],
        },
    }
    seen = bench.end(bench.launch("unused", roles=roles, framework="none", grace=1))
    found = {task.name: task for task in seen.tasks}
    assert [name for name, task in found.items() if task.oom] == ["worker-1"]
    assert "of its 64.0 MiB" in found["worker-1"].error
    assert [name for name, task in found.items() if not task.stopped] == ["worker-1"]
    assert "memory-limit" in seen.limits
    peak = found["big-0"].peak_memory_bytes
    assert peak is not None
    assert peak > 128 << 20  # its own limit let it


def test_each_task_is_in_a_group_of_its_own_and_the_runner_in_none_of_them(bench: LocalBench) -> None:
    if Layer.MEMORY_LIMIT not in bench.executor.capabilities.layers:
        cannot_run("this machine cannot limit memory (control groups)")
    show = (
        "grep -o '[^/]*$' /proc/self/cgroup | sort -u; cat /proc/$PPID/cgroup | grep -o '[^/]*$' | sort -u; sleep 0.1"
    )
    attempt = bench.launch("unused", roles={"a": {"replicas": 2, "command": show}}, framework="none")
    bench.end(attempt)
    assert "task-a-0" in bench.log(attempt, "a-0")
    assert "task-a-1" in bench.log(attempt, "a-1")
    assert "task-a-1" not in bench.log(attempt, "a-0")


def test_who_hangs_in_a_collective_is_ended_within_the_grace(bench: LocalBench) -> None:
    hang = "trap '' TERM; echo up; while :; do sleep 0.1; done"
    crash = "sleep 0.5; echo 'first line' >&2; echo 'RuntimeError: rank 3' >&2; exit 7"
    line = f"[ $DANLU_RANK = 3 ] && {{ {crash}; }}; {hang}"
    seen = bench.end(
        bench.launch("unused", roles={"worker": {"replicas": 4, "command": line}}, framework="none", grace=1)
    )
    assert ends(seen) == {"worker-0": -9, "worker-1": -9, "worker-2": -9, "worker-3": 7}
    assert [task.stopped for task in seen.tasks] == [True, True, True, False]
    assert seen.tasks[3].last_lines == "first line\nRuntimeError: rank 3"
    assert seen.ended_at is not None
    assert seen.started_at is not None
    assert seen.ended_at - seen.started_at < 30 * 10**9


def test_a_parameter_server_that_is_killed_ends_the_gang(bench: LocalBench) -> None:
    roles = {"ps": {"command": "sleep 1000"}, "worker": {"replicas": 2, "command": "sleep 1000"}}
    attempt = bench.launch("unused", roles=roles, grace=1)
    bench.until(lambda: sum(event["event"] == "started" for event in bench.events(attempt)) == 3)
    server = next(event for event in bench.events(attempt) if event.get("task") == "ps-0")
    os.kill(server["pid"], signal.SIGKILL)
    seen = bench.end(attempt)
    assert ends(seen) == {"worker-0": -15, "worker-1": -15, "ps-0": -9}
    assert [task.name for task in seen.tasks if not task.stopped] == ["ps-0"]


def test_a_port_that_is_taken_is_told_before_anything_is_made(bench: LocalBench) -> None:
    order = bench.order("unused", roles={"worker": {"replicas": 2, "command": "true"}}, framework="none")
    with listener(order.attempt.tasks[1].ports[0]) as stranger:
        with pytest.raises(LeasedPortTaken, match=r"port \d+ of worker-1 is taken by another program"):
            bench.executor.launch(order)
        assert stranger.getsockname()[1] == order.attempt.tasks[1].ports[0]
    assert bench.executor.observe() == ()
    assert list(bench.executor.attempts.iterdir()) == []


BIND = """
import os, socket, time
host, port = os.environ["DANLU_ADDRESS"].split(":")
print("up", flush=True)
while not os.path.exists("go"): time.sleep(0.02)
listening = socket.socket()
listening.bind((host, int(port)))
listening.listen()
print("bound", flush=True)
time.sleep(float(os.environ.get("REST", "0")))
"""


def test_a_port_that_is_stolen_later_is_told_from_a_fault_of_the_program(bench: LocalBench) -> None:
    roles = {"worker": {"replicas": 2, "command": ["python", "-c", BIND], "variables": {"REST": "1000"}}}
    attempt = bench.launch("unused", roles=roles, framework="none", grace=1)
    bench.until(lambda: bench.log(attempt).count("up") == 2)
    order = json.loads((bench.home / "attempts" / attempt / "order.json").read_text())
    port = order["tasks"][1]["ports"][0]
    with listener(port):
        (bench.home / "attempts" / attempt / "work" / "go").touch()
        seen = bench.end(attempt)
    assert (seen.tasks[1].exit_code, seen.tasks[1].port_taken) == (1, port)
    assert "Address already in use" in seen.tasks[1].last_lines
    assert seen.tasks[0].stopped


def test_a_failure_beside_a_port_of_ones_own_is_ones_own(bench: LocalBench) -> None:
    program = BIND.replace("while not", "os._exit(4) if os.environ['DANLU_INDEX'] == '1' else 0\nwhile not")
    roles = {"worker": {"replicas": 2, "command": ["python", "-c", program]}}
    attempt = bench.launch("unused", roles=roles, framework="none", grace=1)
    seen = bench.end(attempt)
    assert (seen.tasks[1].exit_code, seen.tasks[1].port_taken) == (4, None)


def test_a_role_is_started_again_alone_while_the_others_go_on(bench: LocalBench) -> None:
    worker = "echo try $DANLU_RESTART; (sleep 1000 &) ; [ $DANLU_RESTART = 2 ] || exit 9; touch done"
    roles = {
        "worker": {"command": worker, "restarts": 2},
        "other": {"command": "while [ ! -e done ]; do sleep 0.1; done; echo $DANLU_RESTART"},
    }
    attempt = bench.launch("unused", roles=roles, framework="none", grace=1)
    seen = bench.end(attempt)
    assert ends(seen) == {"other-0": 0, "worker-0": 0}
    assert {task.name: task.restarts for task in seen.tasks} == {"other-0": 0, "worker-0": 2}
    assert [line for line in bench.log(attempt, "worker-0").splitlines() if line.startswith("try")] == [
        "try 0", "try 1", "try 2",
    ]  # fmt: skip
    assert bench.log(attempt, "worker-0").count("worker-0 failed (exit code 9): it is started again") == 2
    assert bench.log(attempt, "other-0") == "0"
    assert processes_with(attempt) == set()


def test_a_task_whose_control_group_is_gone_is_lost_and_not_to_blame(bench: LocalBench) -> None:
    if Layer.MEMORY_LIMIT not in bench.executor.capabilities.layers:
        cannot_run("this machine cannot limit memory (control groups)")
    roles = {"worker": {"command": "exit 9", "restarts": 100}, "other": {"command": "sleep 1000"}}
    attempt = bench.launch("unused", roles=roles, framework="none", grace=1)
    tasks = json.loads((bench.home / "attempts" / attempt / "order.json").read_text())["tasks"]
    group = next(Path(task["counters"]["memory"]) for task in tasks if task["name"] == "worker-0")

    def lost() -> bool:
        with contextlib.suppress(OSError):  # while a process is in it
            group.rmdir()
        return any(event["event"] == "ended" for event in bench.events(attempt))

    bench.until(lost)
    seen = bench.end(attempt)
    assert seen.phase is Phase.LOST
    assert seen.message == "worker-0: its control group cannot be joined: No such device"


AWAY = "env -i setsid /bin/sleep 1000 & echo $! > away; until [ -e go ]; do sleep 0.05; done; exit 9"


def test_what_a_task_has_sent_away_is_ended_before_it_is_started_again_but_no_session(bench: LocalBench) -> None:
    if Layer.MEMORY_LIMIT not in bench.executor.capabilities.layers:
        cannot_run("this machine has no control groups")
    line = (
        f"[ $DANLU_RESTART = 0 ] && {{ {AWAY}; }}; kill -0 $(cat away) && exit 1; until [ -e out ]; do sleep 0.05; done"
    )
    roles = {"worker": {"command": line, "restarts": 1}}
    attempt = bench.launch("unused", roles=roles, framework="none", grace=1)
    work = bench.home / "attempts" / attempt / "work"
    bench.until(lambda: (work / "away").exists())
    request = SessionRequest(command=("sh", "-c", "touch in; until [ -e end ]; do sleep 0.05; done; touch out"))
    with bench.executor.open_session(attempt, "worker-0", request):
        bench.until(lambda: (work / "in").exists())
        (work / "go").touch()
        bench.until(lambda: sum(event["event"] == "started" for event in bench.events(attempt)) == 2)
        (work / "end").touch()
        bench.until(lambda: (work / "out").exists())
    assert ends(bench.end(attempt)) == {"worker-0": 0}


def test_a_role_that_fails_too_often_ends_the_gang(bench: LocalBench) -> None:
    roles = {"worker": {"command": "exit 9", "restarts": 1}, "other": {"command": "sleep 1000"}}
    seen = bench.end(bench.launch("unused", roles=roles, framework="none", grace=1))
    assert ends(seen) == {"other-0": -15, "worker-0": 9}


def test_a_lingering_task_that_fails_takes_no_time_from_the_others(bench: LocalBench) -> None:
    roles = {
        "chief": {"command": "true"}, "worker": {"command": "sleep 0.5; exit 1"},
        "evaluator": {"command": "sleep 1.5; echo evaluated", "linger": "60s"}, "ps": {"command": "sleep 1000"},
    }  # fmt: skip
    attempt = bench.launch("unused", roles=roles, grace=1)
    seen = bench.end(attempt)
    assert ends(seen) == {"chief-0": 0, "worker-0": 1, "ps-0": -15, "evaluator-0": 0}
    assert bench.log(attempt, "evaluator-0") == "evaluated"
    assert [task.name for task in seen.tasks if not task.stopped] == ["chief-0"]


def test_nothing_is_started_again_once_the_result_is_known(bench: LocalBench) -> None:
    roles = {"chief": {"command": "sleep 0.7"}, "worker": {"command": "echo up; exit 9", "restarts": 5}}
    began = time.monotonic()
    attempt = bench.launch("unused", roles=roles, framework="tensorflow", grace=1)
    seen = bench.end(attempt)
    assert ends(seen) == {"chief-0": 0, "worker-0": 9}
    assert [task.stopped for task in seen.tasks] == [False, True]
    assert bench.log(attempt, "worker-0").count("up") == 1
    assert time.monotonic() - began < 20  # and not for the 30 s that a worker may linger


def test_out_of_time_while_it_ends_is_not_out_of_time(bench: LocalBench) -> None:
    line = "[ $DANLU_RANK = 1 ] && exit 3; trap '' TERM; while :; do sleep 0.1; done"
    roles = {"worker": {"replicas": 2, "command": line}}
    seen = bench.end(bench.launch("unused", roles=roles, framework="none", grace=2, max_time=1))
    assert not seen.timed_out
    assert ends(seen) == {"worker-0": -9, "worker-1": 3}


def test_a_large_gang_has_more_files_than_select_can_watch(bench: LocalBench) -> None:
    roles = {"worker": {"replicas": 300, "command": "true"}}
    attempt = bench.launch("unused", roles=roles, framework="none")
    until(
        lambda: (seen := bench.see(attempt)) is not None and seen.phase is Phase.ENDED, LARGE_S, "300 tasks have ended"
    )
    seen = bench.end(attempt)
    assert (seen.phase, {task.exit_code for task in seen.tasks}) == (Phase.ENDED, {0})


def test_a_gang_whose_runner_is_killed_is_lost_as_one(bench: LocalBench) -> None:
    attempt = bench.launch("unused", roles={"w": {"replicas": 3, "command": "echo up; sleep 1000"}}, framework="none")
    bench.until(lambda: bench.log(attempt).count("up") == 3)
    bench.lose(attempt)
    seen = bench.end(attempt)
    assert seen.phase is Phase.LOST
    assert bench.log(attempt).count("up") == 3
    assert processes_with(attempt) == set()


# the whole platform


@pytest.fixture
def gpus(home: Path) -> Iterator[Server]:
    """A server with four declared GPUs."""
    made = Server(home, "--gpus", "4")
    assert made.start().get("ready")
    yield made
    made.close()


def last(server: Server, job_id: str) -> Any:
    with server.client() as client:
        return client.call("jobs.attempts", {"job": job_id}).items


def test_gpus_are_given_out_by_plan(gpus: Server) -> None:
    line = (
        "echo gpu $CUDA_VISIBLE_DEVICES; touch $DANLU_ROLE; until [ -e ps ]; do sleep 0.05; done"  # workers end the ps
    )
    job = gpus.submit("sh", "-c", line, roles={"worker": {"replicas": 3}, "ps": {}}, gpu=1)
    ended = gpus.wait(job.id)
    assert ended.state is JobState.SUCCEEDED, (ended.reason, ended.message)
    assert sorted(gpus.lines(job.id, 1)) == ["gpu", "gpu 0", "gpu 1", "gpu 2"]
    (attempt,) = last(gpus, job.id)
    assert [task.devices for task in attempt.tasks] == [(0,), (1,), (2,), ()]


def test_a_stolen_port_costs_no_retry_and_the_next_attempt_has_others(server: Server) -> None:
    job_id = make_id("j", time.time_ns(), secrets.randbits(82))
    ports = lease(attempt_id(job_id, 1), 2, ())  # they follow from the id, which the client makes
    assert ports is not None
    with listener(ports[1]):
        job = server.submit("true", job_id=job_id, roles={"worker": {"replicas": 2}}, framework="none")
        ended = server.wait(job.id)
    assert ended.state is JobState.SUCCEEDED
    assert (ended.failures, ended.losses, ended.attempts) == (0, 1, 2)
    newest, first = last(server, job.id)
    assert first.reason is Reason.PORT_TAKEN
    assert f"port {ports[1]}" in first.message
    assert not {p for t in newest.tasks for p in t.ports} & {*ports}


def test_the_first_failure_is_named_with_its_rank_and_last_lines(server: Server) -> None:
    line = "[ $DANLU_RANK = 1 ] && { echo 'ValueError: bad batch' >&2; exit 3; }; sleep 1000"
    job = server.submit("sh", "-c", line, roles={"worker": {"replicas": 3}}, framework="none", grace=1)
    ended = server.wait(job.id)
    assert (ended.state, ended.reason, ended.exit_code) == (JobState.FAILED, Reason.PROCESS_FAILED, 3)
    assert ended.message == "worker-1 (rank 1): exit code 3; the last that it wrote:\nValueError: bad batch"
    assert processes_with(f"{job.id}-1") == set()


def test_a_gang_is_repeated_as_one(server: Server) -> None:
    line = "echo attempt $DANLU_ATTEMPT; [ $DANLU_ATTEMPT = 2 ] || [ $DANLU_RANK = 0 ] || exit 1; sleep 0.2"
    roles = {"worker": {"replicas": 2}}
    job = server.submit("sh", "-c", line, roles=roles, framework="none", grace=1, retry={"attempts": 2})
    ended = server.wait(job.id)
    assert (ended.state, ended.attempts, ended.failures) == (JobState.SUCCEEDED, 2, 1)
    assert sorted(server.lines(job.id, 2)) == ["attempt 2", "attempt 2"]
