"""What a job says while its pods do not run yet, and how one is told that was lost."""

from __future__ import annotations

import pytest

from danlu.controllers.decisions import Action, decide
from danlu.domain.jobs import LOST, AttemptState, Desired, Job, JobState, Reason
from danlu.executors.base import Observation, Phase
from tests.factories import NOW, SECOND, make_attempt, make_job

LATER = NOW + SECOND


def starting(reason: Reason = Reason.LAUNCHING, message: str = "") -> Job:
    return make_job(state=JobState.STARTING, reason=reason, message=message, attempts=1)


def told(job: Job, reason: Reason | None, message: str = "") -> list[tuple[Reason | None, str]]:
    attempt = make_attempt(job, state=AttemptState.LAUNCHING, reason=Reason.LAUNCHING)
    seen = Observation(attempt_id=attempt.id, phase=Phase.STARTING, reason=reason, message=message)
    return [(one.reason, one.message) for one in decide(job, attempt, seen, LATER).jobs]


def test_what_keeps_an_attempt_is_its_jobs_reason_at_once_and_said_once() -> None:
    words = "Kubernetes finds no node: 0/2 nodes are available"
    assert told(starting(), Reason.UNSCHEDULABLE, words) == [(Reason.UNSCHEDULABLE, words)]
    assert told(starting(Reason.UNSCHEDULABLE, words), Reason.UNSCHEDULABLE, words) == []
    assert told(starting(Reason.UNSCHEDULABLE, words), Reason.UNSCHEDULABLE, "0/3") == [(Reason.UNSCHEDULABLE, "0/3")]


def test_what_keeps_it_no_more_is_said_no_more() -> None:
    assert told(starting(Reason.UNSCHEDULABLE, "0/2"), None) == [(Reason.LAUNCHING, "")]
    assert told(starting(), None) == []


def test_why_a_launch_is_tried_again_stays() -> None:
    assert told(starting(message="it cannot be launched yet: the cluster does not answer"), None) == []


@pytest.mark.parametrize("reason", [Reason.EVICTED, Reason.POD_DELETED, Reason.NODE_LOST, Reason.START_TIMEOUT])
def test_what_was_lost_is_queued_again_with_the_executors_reason_and_is_no_failure(reason: Reason) -> None:
    job = starting()
    attempt = make_attempt(job, state=AttemptState.LAUNCHING, reason=Reason.LAUNCHING)
    seen = Observation(attempt_id=attempt.id, phase=Phase.LOST, reason=reason, message="so it was")
    found = decide(job, attempt, seen, LATER)
    assert (found.attempts[-1].reason, found.attempts[-1].message) == (reason, "so it was")
    assert (found.jobs[-1].state, found.jobs[-1].reason, found.jobs[-1].failures) == (JobState.QUEUED, reason, 0)
    assert reason in LOST


@pytest.mark.parametrize(
    ("desired", "action", "state"),
    [(Desired.RUN, Action.LAUNCH, AttemptState.LAUNCHING), (Desired.STOP, Action.STOP, AttemptState.ENDING)],
)
def test_a_launch_that_was_cut_short_is_done_again_or_ended_but_never_given_up_while_a_part_of_it_is_there(
    desired: Desired, action: Action, state: AttemptState
) -> None:
    job = starting().model_copy(update={"desired": desired})
    attempt = make_attempt(job, state=AttemptState.LAUNCHING, reason=Reason.LAUNCHING)
    seen = Observation(attempt_id=attempt.id, phase=Phase.STARTING, unfinished=True)
    found = decide(job, attempt, seen, LATER)
    assert (found.action, (found.attempts or (attempt,))[-1].state) == (action, state)
