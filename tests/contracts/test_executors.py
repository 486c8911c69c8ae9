"""Every executor: orders go down, the whole truth comes up, nothing is started twice, nothing is left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from danlu.domain.secrets import HandedSecret
from danlu.executors.base import Phase
from danlu.executors.simulated import AT_NOTICE
from tests.executors import Bench, benches, notice
from tests.factories import SECOND

KINDS = ("simulated", "local", "kubernetes")
SPOOLS = [kind for kind in KINDS if kind != "kubernetes"]  # pods send what they write to the server themselves


@pytest.fixture(params=KINDS)
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder: Path = tmp_path_factory.mktemp("home")
    for parent in [folder, *folder.parents[:3]]:
        if parent != Path("/tmp") and parent.stat().st_mode & 0o077 == 0:
            parent.chmod(0o711)
    yield from benches(request.param, folder)


def test_it_has_machines(bench: Bench) -> None:
    (node,) = bench.executor.capacity()
    assert node.cpu_milli >= 1000
    assert node.memory_bytes > 0


@pytest.mark.parametrize("code", [0, 3])
def test_an_attempt_ends_with_its_exit_code(bench: Bench, code: int) -> None:
    seen = bench.end(bench.launch(*bench.program(code=code)))
    assert seen.phase is Phase.ENDED
    assert [task.exit_code for task in seen.tasks] == [code]
    assert not seen.stopped
    assert seen.started_at is not None
    assert seen.ended_at is not None
    assert seen.ended_at >= seen.started_at


def test_the_same_order_twice_starts_it_once(bench: Bench) -> None:
    order = bench.order(*bench.program(lines=("once",)))
    bench.executor.launch(order)
    bench.executor.launch(order)
    bench.end(order.attempt.id)
    bench.executor.launch(order)
    assert bench.log(order.attempt.id) == "once"
    assert [one.attempt_id for one in bench.executor.observe()] == [order.attempt.id]


def test_everything_is_seen_until_it_is_forgotten(bench: Bench) -> None:
    ids = {bench.launch(*bench.program()) for _ in range(3)}
    assert {one.attempt_id for one in bench.executor.observe()} == ids
    for attempt_id in ids:
        bench.end(attempt_id)
    assert {one.attempt_id for one in bench.executor.observe()} == ids
    for attempt_id in ids:
        bench.executor.forget(attempt_id)
        bench.executor.forget(attempt_id)
    assert bench.executor.observe() == ()


def test_what_is_alive_is_not_forgotten(bench: Bench) -> None:
    attempt_id = bench.launch(*bench.program(lines=("up",), hold=True))
    bench.printed(attempt_id, "up")
    bench.executor.forget(attempt_id)
    seen = bench.see(attempt_id)
    assert seen is not None
    assert seen.phase is Phase.RUNNING
    bench.executor.stop(attempt_id, grace_s=1.0)
    bench.end(attempt_id)


def test_stop_ends_it_by_sigterm(bench: Bench) -> None:
    attempt_id = bench.launch(*bench.program(lines=("up",), hold=True))
    bench.printed(attempt_id, "up")
    bench.executor.stop(attempt_id, grace_s=20.0)
    bench.executor.stop(attempt_id, grace_s=20.0)
    seen = bench.end(attempt_id)
    assert (seen.phase, seen.stopped) == (Phase.ENDED, True)
    assert seen.tasks[0].signal == 15


def test_what_is_deaf_is_killed_after_its_grace(bench: Bench) -> None:
    attempt_id = bench.launch(*bench.program(lines=("up",), hold=True, deaf=True))
    bench.printed(attempt_id, "up")
    bench.executor.stop(attempt_id, grace_s=0.3)
    seen = bench.end(attempt_id)
    assert (seen.stopped, seen.tasks[0].signal) == (True, 9)


def test_a_shorter_grace_wins(bench: Bench) -> None:
    attempt_id = bench.launch(*bench.program(lines=("up",), hold=True, deaf=True))
    bench.printed(attempt_id, "up")
    bench.executor.stop(attempt_id, grace_s=3600.0)
    bench.executor.stop(attempt_id, grace_s=0.1)
    assert bench.end(attempt_id).stopped


def test_what_is_not_there_can_be_stopped_and_forgotten(bench: Bench) -> None:
    attempt_id = bench.order(*bench.program()).attempt.id
    bench.executor.stop(attempt_id, grace_s=1.0)
    bench.executor.forget(attempt_id)
    assert list(bench.executor.pending(attempt_id, max_bytes=10)) == []
    assert bench.executor.outputs(attempt_id) is None


@pytest.mark.parametrize("bench", SPOOLS, indirect=True)
def test_what_it_wrote_comes_in_pieces_without_gaps(bench: Bench) -> None:
    lines = tuple(f"line {number}" for number in range(50))
    attempt_id = bench.launch(*bench.program(lines=lines))
    bench.end(attempt_id)
    assert bench.log(attempt_id).split("\n") == list(lines)
    pieces = list(bench.executor.pending(attempt_id, max_bytes=100))
    assert all(len(piece.data) <= 100 for piece in pieces)
    at = 0
    for piece in pieces:
        assert piece.offset == at
        at += len(piece.data)


@pytest.mark.parametrize("bench", SPOOLS, indirect=True)
def test_what_was_collected_does_not_come_again(bench: Bench) -> None:
    attempt_id = bench.launch(*bench.program(lines=("one", "two")))
    bench.end(attempt_id)
    first = next(iter(bench.executor.pending(attempt_id, max_bytes=10)))
    bench.executor.collected(first, durably=lambda: None)
    bench.executor.collected(first.model_copy(update={"data": first.data[:5]}), durably=lambda: None)
    assert next(iter(bench.executor.pending(attempt_id, max_bytes=10))).offset == 10


def test_a_lost_runner_is_told_and_what_was_written_is_kept(bench: Bench) -> None:
    attempt_id = bench.launch(*bench.program(lines=("before",), hold=True))
    bench.printed(attempt_id, "before")
    bench.lose(attempt_id)
    seen = bench.end(attempt_id)
    assert seen.phase is Phase.LOST
    assert "before" in bench.log(attempt_id)
    bench.executor.forget(attempt_id)
    assert bench.see(attempt_id) is None


def test_another_server_finds_it_again(bench: Bench) -> None:
    attempt_id = bench.launch(*bench.program(lines=("up",), hold=True))
    bench.printed(attempt_id, "up")
    bench.again()
    seen = bench.see(attempt_id)
    assert seen is not None
    assert seen.phase is Phase.RUNNING
    bench.executor.stop(attempt_id, grace_s=1.0)
    assert bench.end(attempt_id).stopped
    bench.again()
    seen = bench.see(attempt_id)
    assert seen is not None
    assert (seen.phase, seen.stopped) == (Phase.ENDED, True)
    assert bench.log(attempt_id) == "up"


# giving way


def test_who_heeds_the_notice_saves_and_ends_by_itself(bench: Bench) -> None:
    attempt_id = bench.launch(*bench.program(lines=("up",), hold=True, heeds=True), grace=3600)
    bench.printed(attempt_id, "up")
    bench.executor.stop(attempt_id, grace_s=3600, notice=notice(3600))
    bench.again()
    bench.executor.stop(attempt_id, grace_s=3600, notice=notice(3600))
    seen = bench.end(attempt_id)
    assert (seen.phase, seen.preempted, seen.stopped, seen.timed_out) == (Phase.ENDED, True, False, False)
    assert [task.exit_code for task in seen.tasks] == [0]
    assert seen.saved_as.startswith(AT_NOTICE)
    assert seen.saved_at is not None
    assert seen.started_at is not None
    assert seen.saved_at > seen.started_at


@pytest.mark.parametrize("deaf", [False, True])
def test_who_does_not_hear_the_notice_goes_on_until_its_time_is_over(bench: Bench, deaf: bool) -> None:
    attempt_id = bench.launch(*bench.program(lines=("up",), hold=True, deaf=deaf), grace=3600)
    bench.printed(attempt_id, "up")
    bench.executor.stop(attempt_id, grace_s=3600, notice=notice(2))
    seen = bench.end(attempt_id)
    assert (seen.preempted, seen.stopped, seen.saved_at) == (True, False, None)
    assert seen.ended_at is not None
    assert seen.started_at is not None
    assert seen.ended_at - seen.started_at > 1.9 * SECOND
    assert seen.tasks[0].signal in ({9} if deaf else {9, 15})


def test_another_signal_leaves_sigterm_and_the_grace(bench: Bench) -> None:
    attempt_id = bench.launch(*bench.program(lines=("up",), hold=True), grace=3600)
    bench.printed(attempt_id, "up")
    bench.executor.stop(attempt_id, grace_s=3600, notice=notice(0.2, "USR2"))
    seen = bench.end(attempt_id)
    assert (seen.preempted, seen.tasks[0].signal) == (True, 15)


def test_a_stop_during_the_notice_wins(bench: Bench) -> None:
    attempt_id = bench.launch(*bench.program(lines=("up",), hold=True))
    bench.printed(attempt_id, "up")
    bench.executor.stop(attempt_id, grace_s=20.0, notice=notice(3600))
    bench.executor.stop(attempt_id, grace_s=20.0)
    seen = bench.end(attempt_id)
    assert (seen.stopped, seen.tasks[0].signal) == (True, 15)


def test_a_gang_hears_the_notice_as_one(bench: Bench) -> None:
    attempt_id = gang(bench, worker=[bench.program(lines=("up",), hold=True, heeds=True)] * 3)
    bench.until(lambda: bench.log(attempt_id).count("up") == 3)
    bench.executor.stop(attempt_id, grace_s=20.0, notice=notice(3600))
    seen = bench.end(attempt_id)
    assert seen.preempted
    assert [(task.exit_code, task.stopped) for task in seen.tasks] == [(0, True)] * 3


def test_who_has_ended_hears_no_notice(bench: Bench) -> None:
    attempt_id = bench.launch(*bench.program())
    bench.end(attempt_id)
    bench.executor.stop(attempt_id, grace_s=1.0, notice=notice(1))
    seen = bench.see(attempt_id)
    assert seen is not None
    assert (seen.preempted, seen.tasks[0].exit_code) == (False, 0)


def test_who_is_not_there_hears_no_notice(bench: Bench) -> None:
    bench.executor.stop(bench.order(*bench.program()).attempt.id, grace_s=1.0, notice=notice(1))


# gangs


def gang(bench: Bench, framework: str = "none", **programs: list[list[str]]) -> str:
    """Launches a gang of roles, each with one program a task: tasks of one role run the program of their index."""
    roles = {}
    for role, each in programs.items():
        assert all(one == each[0] for one in each)
        roles[role] = {"replicas": len(each), "command": each[0], "cpu": 0.25}
    return bench.launch("unused", roles=roles, framework=framework, grace=1)


def test_a_gang_runs_together_and_ends_together(bench: Bench) -> None:
    attempt_id = gang(
        bench, one=[bench.program(lines=("hello",))] * 2, two=[bench.program(lines=("there",), after_s=0.3)]
    )
    seen = bench.end(attempt_id)
    assert [(task.name, task.exit_code, task.stopped) for task in seen.tasks] == [
        ("one-0", 0, False), ("one-1", 0, False), ("two-0", 0, False),
    ]  # fmt: skip
    assert [bench.log(attempt_id, task) for task in ("one-0", "one-1", "two-0")] == ["hello", "hello", "there"]


def test_the_first_failure_ends_the_gang(bench: Bench) -> None:
    attempt_id = gang(
        bench, fine=[bench.program(hold=True)] * 2, deaf=[bench.program(hold=True, deaf=True)],
        wrong=[bench.program(lines=("no",), code=3, after_s=0.5)],
    )  # fmt: skip
    seen = bench.end(attempt_id)
    found = {task.name: (task.exit_code, task.signal, task.stopped) for task in seen.tasks}
    assert found["wrong-0"] == (3, None, False)
    assert found["fine-0"] == found["fine-1"] == (None, 15, True)
    assert found["deaf-0"] == (None, 9, True)
    assert (seen.phase, seen.stopped) == (Phase.ENDED, False)


def test_what_serves_ends_once_the_result_is_known(bench: Bench) -> None:
    attempt_id = gang(bench, "tensorflow", ps=[bench.program(hold=True)] * 2, worker=[bench.program(after_s=0.5)])
    seen = bench.end(attempt_id)
    assert {task.name: (task.exit_code, task.signal, task.stopped) for task in seen.tasks} == {
        "worker-0": (0, None, False), "ps-0": (None, 15, True), "ps-1": (None, 15, True),
    }  # fmt: skip
    assert not seen.stopped


def test_who_may_linger_gets_the_time(bench: Bench) -> None:
    roles = {
        "chief": {"command": bench.program()},
        "worker": {"command": bench.program(after_s=1.0), "linger": "60s"},
        "evaluator": {"command": bench.program(hold=True), "linger": "0.2s"},
        "ps": {"command": bench.program(hold=True)},
    }
    seen = bench.end(bench.launch("unused", roles=roles, framework="tensorflow", grace=1, cpu=0.25))
    found = {task.name: (task.exit_code, task.signal) for task in seen.tasks}
    assert found == {"chief-0": (0, None), "worker-0": (0, None), "evaluator-0": (None, 15), "ps-0": (None, 15)}


def test_a_gang_is_stopped_as_one(bench: Bench) -> None:
    attempt_id = gang(bench, worker=[bench.program(lines=("up",), hold=True)] * 3)
    bench.until(lambda: bench.log(attempt_id).count("up") == 3)
    bench.executor.stop(attempt_id, grace_s=5.0)
    seen = bench.end(attempt_id)
    assert seen.stopped
    assert [(task.signal, task.stopped) for task in seen.tasks] == [(15, True)] * 3


HANDED = (
    HandedSecret(variable="HF_TOKEN", value="hf_0123456789"),
    HandedSecret(variable="DEPLOY_KEY", value="BEGIN KEY\nAAAABBBBCCCC\n", file=True),
)


def test_an_order_with_secrets_tells_none(bench: Bench) -> None:
    order = bench.order(*bench.program(lines=("ran",)), handed=HANDED)
    assert not any(secret in repr(order) for secret in ("hf_0123456789", "AAAABBBB"))
    bench.executor.launch(order)
    seen = bench.end(order.attempt.id)
    assert [task.exit_code for task in seen.tasks] == [0]
    assert bench.log(order.attempt.id) == "ran"
    bench.executor.forget(order.attempt.id)
