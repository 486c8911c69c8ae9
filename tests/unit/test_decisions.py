"""What follows for an attempt: every combination of job, wish, attempt and observation."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from danlu.controllers.decisions import SAVED_PAUSE_NS, Action, Decision, decide, rejected, service, verdict
from danlu.domain.jobs import (
    INFRASTRUCTURE_ATTEMPTS,
    LOST,
    NEVER_RETRIED,
    Attempt,
    AttemptState,
    Desired,
    Job,
    JobState,
    Preemption,
    Reason,
)
from danlu.domain.notices import notice_of
from danlu.domain.resources import Resources
from danlu.executors.base import Observation, Phase
from tests.factories import NOW, SECOND, make_attempt, make_job, make_task

A, J, R = AttemptState, JobState, Reason
LATER = NOW + 100 * SECOND

# what may be stored together: a job's state and that of its current attempt
PAIRS = [
    (J.ADMITTED, A.PLACED),
    (J.STARTING, A.LAUNCHING),
    (J.RUNNING, A.RUNNING),
    (J.STOPPING, A.ENDING),
]
STOPPED_PAIRS = {J.STOPPING}


def seen(phase: Phase, **fields: Any) -> Observation:
    task = {name: fields.pop(name) for name in ("exit_code", "signal", "oom", "error", "ended_at") if name in fields}
    fields.setdefault("tasks", (make_task(started_at=NOW + 1, **task),) if phase is not Phase.STARTING else ())
    fields.setdefault("started_at", None if phase is Phase.STARTING else NOW + 1)
    return Observation(attempt_id="x", phase=phase, **fields)


ENDS: dict[str, tuple[Observation, Reason, int | None]] = {
    "completed": (seen(Phase.ENDED, exit_code=0), R.COMPLETED, 0),
    "failed": (seen(Phase.ENDED, exit_code=3), R.PROCESS_FAILED, 3),
    "killed": (seen(Phase.ENDED, signal=11), R.KILLED_BY_SIGNAL, 139),
    "out of memory": (seen(Phase.ENDED, signal=9, oom=True), R.OUT_OF_MEMORY, 137),
    "not found": (seen(Phase.ENDED, exit_code=127, error="no such command"), R.COMMAND_NOT_FOUND, 127),
    "not executable": (seen(Phase.ENDED, exit_code=126, error="permission denied"), R.COMMAND_NOT_FOUND, 126),
    "127 of its own": (seen(Phase.ENDED, exit_code=127), R.PROCESS_FAILED, 127),
    "over time": (seen(Phase.ENDED, signal=15, timed_out=True), R.MAX_TIME_EXCEEDED, 143),
    "over time without tasks": (seen(Phase.ENDED, tasks=(), timed_out=True), R.MAX_TIME_EXCEEDED, None),
    "stopped": (seen(Phase.ENDED, signal=15, stopped=True), R.STOPPED, 143),
    "stopped, exit 0": (seen(Phase.ENDED, exit_code=0, stopped=True), R.COMPLETED, 0),
    "stopped before it began": (seen(Phase.ENDED, tasks=(), stopped=True), R.STOPPED, None),
    "without an exit code": (seen(Phase.ENDED), R.PROCESS_FAILED, None),
    "nothing is known": (seen(Phase.ENDED, tasks=()), R.RUNNER_LOST, None),
    "lost": (seen(Phase.LOST), R.RUNNER_LOST, None),
    "lost without tasks": (seen(Phase.LOST, tasks=()), R.RUNNER_LOST, None),
}
OBSERVATIONS: dict[str, Observation | None] = {
    "unseen": None,
    "starting": seen(Phase.STARTING),
    "running": seen(Phase.RUNNING),
    **{name: found for name, (found, _, _) in ENDS.items()},
}


def pair(
    job_state: JobState, attempt_state: AttemptState, desired: Desired = Desired.RUN, **job: Any
) -> tuple[Job, Attempt]:
    made = make_job(state=job_state, reason=None, desired=desired, attempts=1, **job)
    return made, make_attempt(made, state=attempt_state, started_at=NOW if attempt_state is A.RUNNING else None)


def apply(job: Job, attempt: Attempt, decision: Decision) -> tuple[Job, Attempt]:
    """Stores a decision: each record follows the one before by a move of its table."""
    for old, records in ((job, decision.jobs), (attempt, decision.attempts)):
        for new in records:
            assert new.id == old.id
            assert new.version == old.version + 1
            assert new.state in old.MOVES[old.state] or (new.state, new.reason) == (old.state, old.reason)
            assert new.updated_at >= old.updated_at
            old = new
    return (decision.jobs or (job,))[-1], (decision.attempts or (attempt,))[-1]


COMBINATIONS = [
    (job, attempt, desired, name)
    for (job, attempt), desired, name in itertools.product(PAIRS, Desired, OBSERVATIONS)
    if not (job is J.STOPPING and desired is Desired.RUN)
]


@pytest.mark.parametrize(("job_state", "attempt_state", "desired", "name"), COMBINATIONS)
def test_every_combination(job_state: JobState, attempt_state: AttemptState, desired: Desired, name: str) -> None:
    job, attempt = pair(job_state, attempt_state, desired)
    decision = decide(job, attempt, OBSERVATIONS[name], LATER)
    after_job, after_attempt = apply(job, attempt, decision)
    stopping = desired is Desired.STOP
    if name == "unseen" and attempt_state in (A.PLACED, A.LAUNCHING):
        expected = (J.CANCELLED, A.ENDED) if stopping else (J.STARTING, A.LAUNCHING)
        action = Action.STOP if stopping else Action.LAUNCH
    elif name == "starting":
        expected = (J.STOPPING, A.ENDING) if stopping else (max_state(job_state), max_attempt(attempt_state))
        action = Action.STOP if stopping else Action.NOTHING
    elif name == "running":
        expected = (J.STOPPING, A.ENDING) if stopping else (J.RUNNING, A.RUNNING)
        action = Action.STOP if stopping else Action.NOTHING
    else:
        reason = R.RUNNER_LOST if name == "unseen" else ENDS[name][1]
        expected = (ended_job(reason, stopping), A.ENDED)
        action = Action.NOTHING
        assert after_attempt.reason is reason
    assert (after_job.state, after_attempt.state) == expected
    assert decision.action is action
    if not after_job.live:
        assert after_job.ended_at is not None
        assert (after_job.exit_code == 0) == (after_job.state is J.SUCCEEDED) or after_job.exit_code is None
    assert decide_again_is_harmless(after_job, after_attempt, OBSERVATIONS[name])


def max_state(state: JobState) -> JobState:
    return J.STARTING if state is J.ADMITTED else state


def max_attempt(state: AttemptState) -> AttemptState:
    return A.LAUNCHING if state is A.PLACED else state


def ended_job(reason: Reason, stopping: bool) -> JobState:
    if reason is R.COMPLETED:
        return J.SUCCEEDED
    if stopping:
        return J.CANCELLED if reason in LOST | {R.STOPPED} else J.FAILED
    return J.QUEUED if reason in LOST else J.FAILED


def decide_again_is_harmless(job: Job, attempt: Attempt, found: Observation | None) -> bool:
    """What was decided is not decided again: nobody looks at an ended attempt, and a live one stays as it is."""
    if attempt.state is A.ENDED:
        return True
    again = decide(job, attempt, found, LATER)
    return not again.jobs and not again.attempts


@pytest.mark.parametrize("name", ENDS)
def test_how_it_ended(name: str) -> None:
    found, reason, code = ENDS[name]
    said, words, exit_code = verdict(found, make_job())
    assert (said, exit_code) == (reason, code)
    assert reason in (R.COMPLETED, R.STOPPED) or words


def test_the_first_task_that_failed_decides() -> None:
    tasks = (
        make_task(role="worker", index=0, rank=0, signal=15, ended_at=NOW + 3, stopped=True),
        make_task(role="worker", index=1, rank=1, exit_code=3, ended_at=NOW + 4, last_lines="bad"),
        make_task(role="worker", index=2, rank=2, exit_code=0, ended_at=NOW + 1),
    )
    job = make_job(spec={"roles": {"worker": {"replicas": 3}}, "framework": "none"})
    said = "worker-1 (rank 1): exit code 3; the last that it wrote:\nbad"
    assert verdict(seen(Phase.ENDED, tasks=tasks), job) == (R.PROCESS_FAILED, said, 3)


def test_what_is_seen_is_kept() -> None:
    job, attempt = pair(J.STARTING, A.LAUNCHING)
    found = seen(Phase.RUNNING, limits=("cpu",), resumed_from="step-1")
    after_job, after_attempt = apply(job, attempt, decide(job, attempt, found, LATER))
    assert (after_attempt.started_at, after_attempt.limits, after_attempt.resumed_from) == (NOW + 1, ("cpu",), "step-1")
    assert after_job.started_at == NOW + 1
    over = seen(Phase.ENDED, exit_code=0, started_at=None, tasks=(make_task(exit_code=0, cpu_ns=7),))
    last_job, last = apply(after_job, after_attempt, decide(after_job, after_attempt, over, LATER))
    assert (last.started_at, last.limits, last.resumed_from, last.ended_at) == (NOW + 1, ("cpu",), "step-1", LATER)
    assert (last_job.started_at, last_job.ended_at, last_job.exit_code) == (NOW + 1, LATER, 0)
    assert last.tasks[0].cpu_ns == 7
    assert not last.collected


def test_when_it_began_is_what_was_told_first() -> None:
    job, attempt = pair(J.STARTING, A.LAUNCHING)
    job, attempt = apply(job, attempt, decide(job, attempt, seen(Phase.RUNNING), LATER))
    for phase in (Phase.RUNNING, Phase.ENDED):
        other = seen(phase, started_at=NOW + 9, tasks=(make_task(started_at=NOW + 9, exit_code=0, restarts=1),))
        job, attempt = apply(job, attempt, decide(job, attempt, other, LATER + SECOND))
        assert (attempt.started_at, attempt.tasks[0].started_at) == (NOW + 1, NOW + 1)
        assert attempt.tasks[0].restarts == 1


def test_who_was_not_asked_has_not_made_way() -> None:
    job, attempt = pair(J.RUNNING, A.RUNNING)
    job, attempt = apply(job, attempt, decide(job, attempt, WAYS["failed while it saved"][0], LATER))
    assert (job.state, attempt.reason) == (J.FAILED, R.PROCESS_FAILED)


def lives(job: Job, ends: list[str]) -> Job:
    """Runs a job's attempts, each of which ends as named; returns what became of the job."""
    for name in ends:
        assert job.live, f"{name} came after the end"
        number = job.attempts + 1
        job = job.model_copy(update={"state": J.RUNNING, "attempts": number, "version": job.version + 1})
        attempt = make_attempt(job, number, state=A.RUNNING)
        job, _ = apply(job, attempt, decide(job, attempt, OBSERVATIONS[name], LATER))
    return job


@pytest.mark.parametrize("attempts", [1, 2, 5])
def test_failures_are_repeated_as_often_as_was_asked(attempts: int) -> None:
    job = lives(make_job(spec={"retry": {"attempts": attempts}}), ["failed"] * attempts)
    assert (job.state, job.reason, job.failures, job.exit_code) == (J.FAILED, R.PROCESS_FAILED, attempts, 3)
    job = lives(make_job(spec={"retry": {"attempts": attempts + 1}}), ["failed"] * attempts + ["completed"])
    assert (job.state, job.failures, job.exit_code) == (J.SUCCEEDED, attempts, 0)


def test_losses_are_outside_the_budget_and_bounded() -> None:
    job = make_job(spec={"retry": {"attempts": 2}})
    survived = lives(job, ["lost", "failed", "unseen", "lost"])
    assert (survived.state, survived.failures, survived.losses, survived.reason) == (J.QUEUED, 1, 3, R.RUNNER_LOST)
    assert lives(survived, ["failed"]).state is J.FAILED
    assert lives(job, ["lost"] * INFRASTRUCTURE_ATTEMPTS).state is J.QUEUED
    given_up = lives(job, ["lost"] * (INFRASTRUCTURE_ATTEMPTS + 1))
    assert (given_up.state, given_up.reason, given_up.failures) == (J.FAILED, R.RUNNER_LOST, 0)


@pytest.mark.parametrize("name", ["not found", "over time"])
def test_what_would_end_the_same_way_is_not_repeated(name: str) -> None:
    assert ENDS[name][1] in NEVER_RETRIED
    assert lives(make_job(spec={"retry": {"attempts": 9}}), [name]).state is J.FAILED


def test_a_repetition_waits_for_its_backoff() -> None:
    job = lives(make_job(spec={"retry": {"attempts": 2, "backoff": "30s"}}), ["failed"])
    assert (job.state, job.reason, job.queued_at, job.not_before) == (
        J.QUEUED,
        R.ATTEMPT_FAILED,
        LATER,
        LATER + 30 * SECOND,
    )
    assert job.message == "attempt 1: ProcessFailed, exit code 3"
    assert job.ended_at is None
    lost = lives(make_job(spec={"retry": {"attempts": 2, "backoff": "30s"}}), ["lost"])
    assert lost.not_before == 0, "what was not the code's fault is repeated at once"


@pytest.mark.parametrize("desired", Desired)
@pytest.mark.parametrize(("job_state", "attempt_state"), PAIRS[:2])
def test_a_refused_launch_ends_the_job(job_state: JobState, attempt_state: AttemptState, desired: Desired) -> None:
    job, attempt = pair(job_state, attempt_state, desired)
    after_job, after_attempt = apply(
        job, attempt, rejected(job, attempt, R.LAUNCH_REJECTED, "no such interpreter", LATER)
    )
    assert (after_job.state, after_job.reason, after_job.message) == (
        J.FAILED,
        R.LAUNCH_REJECTED,
        "no such interpreter",
    )
    assert (after_attempt.state, after_attempt.collected) == (A.ENDED, True)


@pytest.mark.parametrize("job_state", [J.SUCCEEDED, J.FAILED, J.CANCELLED, J.QUEUED])
@pytest.mark.parametrize("name", ["unseen", *ENDS])
def test_a_job_never_ends_twice(job_state: JobState, name: str) -> None:
    """An attempt that is left of a job which has ended, or waits again, ends alone."""
    job, attempt = pair(job_state, A.RUNNING)
    decision = decide(job, attempt, OBSERVATIONS[name], LATER)
    assert decision.jobs == ()
    assert decision.attempts[-1].state is A.ENDED


@pytest.mark.parametrize("name", ["unseen", *ENDS])
def test_an_older_attempt_says_nothing_about_its_job(name: str) -> None:
    job, attempt = pair(J.RUNNING, A.RUNNING)
    newer = job.model_copy(update={"attempts": 2})
    assert decide(newer, attempt, OBSERVATIONS[name], LATER).jobs == ()


def test_an_accepted_stop_is_never_lost_to_a_retry() -> None:
    for name in ENDS:
        job, attempt = pair(J.RUNNING, A.RUNNING, Desired.STOP, spec={"retry": {"attempts": 9}})
        after_job, _ = apply(job, attempt, decide(job, attempt, OBSERVATIONS[name], LATER))
        assert not after_job.live


def test_time_never_runs_backwards() -> None:
    job, attempt = pair(J.RUNNING, A.RUNNING)
    after_job, after_attempt = apply(job, attempt, decide(job, attempt, ENDS["completed"][0], NOW - 5 * SECOND))
    assert after_job.updated_at == NOW
    assert after_attempt.updated_at == NOW


# a gang while it runs


def gang_of(*tasks: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(make_task(role="worker", index=index, rank=index, **task) for index, task in enumerate(tasks))


@pytest.mark.parametrize("state", [(J.RUNNING, A.RUNNING), (J.STOPPING, A.ENDING)])
def test_what_becomes_of_a_live_gangs_tasks_is_stored(state: tuple[JobState, AttemptState]) -> None:
    stopping = state[0] is J.STOPPING
    job, attempt = pair(*state, Desired.STOP if stopping else Desired.RUN)
    began = gang_of({"started_at": NOW + 1}, {})
    attempt = attempt.model_copy(update={"tasks": began})
    found = seen(Phase.RUNNING, tasks=began)
    assert decide(job, attempt, found, LATER).attempts == ()
    later = gang_of(
        {"started_at": NOW + 1, "ended_at": NOW + 5, "exit_code": 0}, {"started_at": NOW + 2, "restarts": 1}
    )
    decision = decide(job, attempt, seen(Phase.RUNNING, tasks=later), LATER)
    assert [one.tasks for one in decision.attempts] == [later]
    assert (decision.attempts[0].state, decision.attempts[0].reason) == (attempt.state, attempt.reason)
    assert decision.jobs == ()


def test_a_large_gangs_tasks_are_not_stored_at_every_look() -> None:
    job, attempt = pair(J.RUNNING, A.RUNNING)
    tasks = gang_of(*({"started_at": NOW} for _ in range(1000)))
    stored = attempt.model_copy(update={"tasks": gang_of(*({} for _ in range(1000))), "updated_at": NOW})
    found = seen(Phase.RUNNING, tasks=tasks)
    assert decide(job, stored, found, NOW + SECOND // 2).attempts == ()
    assert [one.tasks for one in decide(job, stored, found, NOW + SECOND).attempts] == [tasks]
    assert decide(job, stored, found, NOW - SECOND).attempts != ()  # the clock was wrong before


def test_a_taken_port_is_named_with_the_task_that_it_was_leased_to() -> None:
    first = make_task(role="a", ports=(20_001,), exit_code=1, port_taken=20_002)
    second = make_task(role="b", rank=1, ports=(20_002,), exit_code=0, stopped=True)
    made = make_job(state=J.RUNNING, reason=None, attempts=1)
    reason, words, _ = verdict(seen(Phase.ENDED, tasks=(first, second)), made)
    assert reason is R.PORT_TAKEN
    assert words == ("a-0 (rank 0): another program of the machine listens on port 20002 that was leased to b-0")
    _, words, _ = verdict(seen(Phase.ENDED, tasks=(first.model_copy(update={"port_taken": 20_001}), second)), made)
    assert "port 20001 that was leased to it" in words


# making way

PREEMPTION = Preemption(
    at=NOW + 50 * SECOND, deadline=NOW + 80 * SECOND, for_job="other", for_project="default", for_name="big",
    why="its guarantee", lost_s=4.0,
)  # fmt: skip
WAYS: dict[str, tuple[Observation, Reason, int | None]] = {
    "heeded": (seen(Phase.ENDED, exit_code=0, preempted=True), R.PREEMPTED, 0),
    "ended by SIGTERM": (seen(Phase.ENDED, signal=15, preempted=True), R.PREEMPTED, 143),
    "ended as by SIGTERM": (seen(Phase.ENDED, exit_code=143, preempted=True), R.PREEMPTED, 143),
    "killed at the deadline": (seen(Phase.ENDED, signal=9, preempted=True), R.PREEMPTED, 137),
    "failed while it saved": (seen(Phase.ENDED, exit_code=1, preempted=True), R.PREEMPTED, 1),
    "told before it began": (seen(Phase.ENDED, tasks=(), preempted=True), R.PREEMPTED, None),
    "stopped during the notice": (seen(Phase.ENDED, signal=15, preempted=True, stopped=True), R.STOPPED, 143),
    "lost during the notice": (seen(Phase.LOST), R.PREEMPTED, None),
    "gone during the notice": (seen(Phase.LOST, tasks=()), R.PREEMPTED, None),
    "completed before the notice": (seen(Phase.ENDED, exit_code=0), R.COMPLETED, 0),
    "failed before the notice": (seen(Phase.ENDED, exit_code=3), R.PROCESS_FAILED, 3),
    "over time before the notice": (seen(Phase.ENDED, signal=15, timed_out=True), R.MAX_TIME_EXCEEDED, 143),
}
WAY_OBSERVATIONS: dict[str, Observation | None] = {
    "unseen": None,
    "starting": seen(Phase.STARTING),
    "running": seen(Phase.RUNNING),
    **{name: found for name, (found, _, _) in WAYS.items()},
}
WAY_PAIRS = [*PAIRS[:3], (J.STARTING, A.ENDING), (J.RUNNING, A.ENDING), (J.STOPPING, A.ENDING)]


def making_way(job_state: JobState, attempt_state: AttemptState, desired: Desired = Desired.RUN) -> tuple[Job, Attempt]:
    job, attempt = pair(job_state, attempt_state, desired, queued_at=NOW - SECOND)
    return job, attempt.model_copy(update={"preemption": PREEMPTION})


@pytest.mark.parametrize(
    ("job_state", "attempt_state", "desired", "name"),
    [
        (job, attempt, desired, name)
        for (job, attempt), desired, name in itertools.product(WAY_PAIRS, Desired, WAY_OBSERVATIONS)
        if not (job is J.STOPPING and desired is Desired.RUN)
    ],
)
def test_every_combination_of_making_way(
    job_state: JobState, attempt_state: AttemptState, desired: Desired, name: str
) -> None:
    job, attempt = making_way(job_state, attempt_state, desired)
    decision = decide(job, attempt, WAY_OBSERVATIONS[name], LATER)
    last_job, last = (decision.jobs or (job,))[-1], (decision.attempts or (attempt,))[-1]
    stopping = desired is Desired.STOP
    if name in ("starting", "running"):
        assert last.state is A.ENDING
        assert decision.action is (Action.STOP if stopping else Action.GIVE_WAY)
        assert (last_job.state is J.STOPPING) == stopping
        again = decide(last_job, last, WAY_OBSERVATIONS[name], LATER)
        assert (again.action, again.jobs, again.attempts) == (decision.action, (), ())
        if not stopping and attempt_state is not A.ENDING:
            assert last_job.reason is last.reason is R.PREEMPTED
            assert last.message == "it makes way for job big, and has 30 s to save: its guarantee"
        return
    assert last.state is A.ENDED
    if name == "unseen":
        never_began = attempt_state in (A.PLACED, A.LAUNCHING)
        reason = R.STOPPED if stopping and never_began else R.PREEMPTED
        assert decision.action is (Action.STOP if never_began else Action.NOTHING)
        assert last.collected == never_began
    else:
        reason = WAYS[name][1]
        assert decision.action is Action.NOTHING
        assert last.exit_code == WAYS[name][2]
    assert last.reason is reason
    assert last_job.attained == 1000 * ((last.ended_at or 0) - last.created_at)
    if reason is R.COMPLETED:
        assert last_job.state is J.SUCCEEDED
    elif stopping:
        assert last_job.state is (J.CANCELLED if reason in LOST | {R.STOPPED} else J.FAILED)
    elif reason is R.PREEMPTED:
        assert (last_job.state, last_job.reason) == (J.QUEUED, R.PREEMPTED)
        assert (last_job.preemptions, last_job.losses, last_job.failures) == (1, 0, 0)
        assert (last_job.not_before, last_job.queued_at, last_job.preempted_at) == (0, NOW - SECOND, LATER)
        assert "it made way for job big: its guarantee; lost: " in last_job.message
    else:
        assert last_job.preemptions == 0


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        ({}, "lost: all of it, 1 min 39 s: it has no checkpoint"),
        ({"saved_at": NOW - 9 * SECOND, "saved_as": "step-3"}, "lost: 1 min 39 s of work since the checkpoint step-3"),
        ({"saved_at": NOW + 40 * SECOND, "saved_as": "step-4"}, "lost: 1 min of work since the checkpoint step-4"),
        ({"saved_at": NOW + 51 * SECOND, "saved_as": "step-5"}, "lost: nothing: it wrote a checkpoint at the notice"),
    ],
)
def test_what_was_lost_is_told(saved: dict[str, Any], words: str) -> None:
    job, attempt = making_way(J.RUNNING, A.ENDING)
    found = seen(Phase.ENDED, signal=15, preempted=True, started_at=NOW + SECOND, ended_at=NOW + 100 * SECOND)
    found = found.model_copy(update={"ended_at": NOW + 100 * SECOND, **saved})
    _, ended = apply(job, attempt, decide(job, attempt, found, LATER))
    assert ended.message.endswith(words)


def test_preemptions_are_without_end_and_keep_what_was_attained() -> None:
    job = make_job(spec={"retry": {"attempts": 1}}, queued_at=NOW - 7)
    for number in range(1, INFRASTRUCTURE_ATTEMPTS + 5):
        job = job.model_copy(update={"state": J.RUNNING, "attempts": number, "version": job.version + 1})
        attempt = make_attempt(job, number, state=A.RUNNING, preemption=PREEMPTION)
        job = decide(job, attempt, WAYS["heeded"][0], LATER).jobs[-1]
        assert (job.state, job.preemptions, job.losses, job.failures) == (J.QUEUED, number, 0, 0)
        assert (job.queued_at, job.attained) == (NOW - 7, number * 100 * SECOND * 1000)
    job = lives(job, ["failed"])
    assert (job.state, job.preemptions) == (J.FAILED, INFRASTRUCTURE_ATTEMPTS + 4)


def test_service_is_counted_by_gpus() -> None:
    resources = [Resources(cpu_milli=4000, gpus=2), Resources(cpu_milli=500)]
    tasks = tuple(make_task(rank=rank, resources=each) for rank, each in enumerate(resources))
    ended = make_attempt(make_job(), state=A.ENDED, tasks=tasks, ended_at=NOW + 3 * SECOND)
    assert service(ended) == 2000 * 3 * SECOND
    assert service(ended.model_copy(update={"tasks": tasks[1:]})) == 500 * 3 * SECOND
    assert service(ended.model_copy(update={"ended_at": NOW - 1})) == 0


def test_a_newer_checkpoint_is_stored_now_and_then() -> None:
    job, attempt = pair(J.RUNNING, A.RUNNING)
    attempt = attempt.model_copy(update={"tasks": (make_task(started_at=NOW + 1),)})
    found = seen(Phase.RUNNING, saved_at=NOW + SECOND, saved_as="step-1")
    assert not decide(job, attempt, found, NOW + SAVED_PAUSE_NS - 1).attempts
    (stored,) = decide(job, attempt, found, NOW + SAVED_PAUSE_NS).attempts
    assert (stored.saved_at, stored.saved_as) == (NOW + SECOND, "step-1")
    assert not decide(job, stored, found, NOW + 3 * SAVED_PAUSE_NS).attempts
    _, ended = apply(job, stored, decide(job, stored, seen(Phase.LOST), LATER))
    assert ended.saved_as == "step-1", "what a lost runner can no longer tell is not forgotten"


def test_a_notice_never_gives_more_time_than_was_asked_for() -> None:
    job = make_job(spec={"notice": "20s", "notice_signal": "USR1"})
    for now, within_s in ((NOW, 20.0), (NOW + 79 * SECOND, 1.0), (NOW + 90 * SECOND, 0.0)):
        told = notice_of(job, PREEMPTION, now)
        assert (told.within_s, told.signal, told.deadline) == (within_s, "USR1", PREEMPTION.deadline)
