"""The door by which the scheduler has an attempt make way: once, only what can, and nothing of other projects is told."""

from __future__ import annotations

from typing import Any

import pytest

from danlu.controllers.preempting import preempt
from danlu.database import queries
from danlu.database.engine import Database
from danlu.database.records import ATTEMPTS, JOBS
from danlu.domain.jobs import Attempt, AttemptState, Desired, Job, JobState, Preemption
from danlu.errors import VersionConflict
from tests.factories import NOW, SECOND, Ids, make_attempt, make_job

IDS = Ids(6)


def running(database: Database, state: AttemptState = AttemptState.RUNNING, **fields: Any) -> Attempt:
    """Stores a job with an attempt, and returns that."""
    job = make_job(IDS(), **{"state": fields.pop("job_state", JobState.RUNNING), "attempts": 1, **fields})
    attempt = make_attempt(job, state=state)
    database.write(lambda tx: (JOBS.add(tx, job), ATTEMPTS.add(tx, attempt)))
    return attempt


def waiting(database: Database, project: str) -> Job:
    job = make_job(IDS(), project=project, name="big")
    database.write(lambda tx: JOBS.add(tx, job))
    return job


def preemption(job: Job) -> Preemption:
    return Preemption(
        at=NOW, deadline=NOW + 30 * SECOND, for_job=job.id, for_project=job.project, for_name="whatever is said",
        why="its guarantee",
    )  # fmt: skip


@pytest.mark.parametrize("state", [AttemptState.PLACED, AttemptState.LAUNCHING, AttemptState.RUNNING])
@pytest.mark.parametrize(("project", "whom"), [("default", "job big"), ("other", "a job of another project")])
def test_it_is_stored_once_and_names_its_own_project_alone(
    database: Database, state: AttemptState, project: str, whom: str
) -> None:
    attempt = running(database, state)
    said = preemption(waiting(database, project))
    stored = database.write(lambda tx: preempt(tx, attempt, said, NOW + 1))
    assert stored is not None
    assert stored.preemption is not None
    assert stored.preemption.whom == whom
    assert database.read(lambda tx: ATTEMPTS.require(tx, attempt.id)) == stored
    assert [a.preemption for a in database.read(queries.holding_attempts)] == [stored.preemption]
    assert database.write(lambda tx: preempt(tx, stored, said, NOW + 2)) is None


@pytest.mark.parametrize(
    ("state", "job"),
    [
        (AttemptState.ENDING, {}),
        (AttemptState.ENDED, {}),
        (AttemptState.RUNNING, {"desired": Desired.STOP}),
        (AttemptState.RUNNING, {"attempts": 2}),
        (AttemptState.RUNNING, {"job_state": JobState.SUCCEEDED}),
    ],
)
def test_who_ends_anyway_is_not_asked(database: Database, state: AttemptState, job: dict[str, Any]) -> None:
    attempt = running(database, state, **job)
    assert database.write(lambda tx: preempt(tx, attempt, preemption(make_job(IDS())), NOW)) is None
    assert database.read(lambda tx: ATTEMPTS.require(tx, attempt.id)) == attempt


def test_what_was_decided_on_an_older_state_does_not_hold(database: Database) -> None:
    attempt = running(database)
    newer = attempt.evolved(now=NOW + 1, saved_at=NOW)
    database.write(lambda tx: ATTEMPTS.put(tx, attempt, newer))
    with pytest.raises(VersionConflict):
        database.write(lambda tx: preempt(tx, attempt, preemption(make_job(IDS())), NOW + 2))
