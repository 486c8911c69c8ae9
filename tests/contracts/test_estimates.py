"""What estimates of starts are learned from: the same on every database."""

from __future__ import annotations

from danlu.database import queries
from danlu.database.engine import Database, Transaction
from danlu.database.records import ATTEMPTS, JOBS
from danlu.domain.jobs import AttemptState, Estimate, Job, Reason
from tests.factories import NOW, Ids, make_attempt, make_job

SECOND = 10**9


def add(
    tx: Transaction, job_id: str, *, took: float | None, reason: Reason = Reason.COMPLETED, **fields: object
) -> Job:
    """Stores a job with one attempt that took so long; None: it runs on."""
    job = make_job(job_id, **fields)
    JOBS.add(tx, job)
    attempt = make_attempt(job, now=NOW + 90 * SECOND)
    ATTEMPTS.add(tx, attempt)
    launching = attempt.moved(AttemptState.LAUNCHING, now=NOW, reason=Reason.LAUNCHING)
    running = launching.moved(AttemptState.RUNNING, now=NOW, reason=Reason.STARTED, started_at=NOW + 100 * SECOND)
    ATTEMPTS.put(tx, attempt, launching)
    ATTEMPTS.put(tx, launching, running)
    if took is not None:
        end = running.started_at + round(took * SECOND)  # type: ignore[operator]
        ATTEMPTS.put(tx, running, running.moved(AttemptState.ENDED, now=end, reason=reason, ended_at=end))
    return job


def test_how_long_attempts_took_of_late(database: Database) -> None:
    new_id = Ids()

    def fill(tx: Transaction) -> None:
        add(tx, new_id(), took=9)
        add(tx, new_id(), took=30)
        add(tx, new_id(), took=20, reason=Reason.PROCESS_FAILED)
        add(tx, new_id(), took=5, reason=Reason.MAX_TIME_EXCEEDED, project="other")
        for cut_short in (Reason.PREEMPTED, Reason.STOPPED, Reason.NODE_LOST, Reason.COMMAND_NOT_FOUND):
            add(tx, new_id(), took=1, reason=cut_short)
        add(tx, new_id(), took=None)

    database.write(fill)
    found = database.read(lambda tx: queries.took_of_late(tx, 100))
    assert found == {"default": [9 * SECOND, 20 * SECOND, 30 * SECOND], "other": [5 * SECOND]}
    newest = database.read(lambda tx: queries.took_of_late(tx, 8))
    assert newest == {"default": [20 * SECOND, 30 * SECOND], "other": [5 * SECOND]}


def test_what_became_of_estimates(database: Database) -> None:
    new_id = Ids()
    told = Estimate(told_at=NOW, starts_at=NOW + 60 * SECOND)

    def fill(tx: Transaction) -> tuple[Job, Job]:
        first = add(tx, new_id(), took=9, estimate=told)
        add(tx, new_id(), took=9)
        second = add(tx, new_id(), took=None, estimate=told)
        JOBS.add(tx, make_job(new_id(), estimate=told))  # it has not started
        return first, second

    first, second = database.write(fill)
    began = NOW + 90 * SECOND
    assert database.read(lambda tx: queries.estimated_of_late(tx, 100, 100)) == [(second, began), (first, began)]
    assert database.read(lambda tx: queries.estimated_of_late(tx, 100, 1)) == [(second, began)]
    assert database.read(lambda tx: queries.estimated_of_late(tx, 3, 100)) == [(second, began)]
