"""Admission on both databases: what a quota has left is given away once, however many ask and however many servers decide."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine, event

from danlu.controllers.scheduling import SchedulingController
from danlu.database.engine import Database, Transaction
from danlu.database.records import ATTEMPTS, JOBS, NODES, PROJECTS, QUOTAS
from danlu.domain.jobs import AttemptState, Job, JobState, Reason
from danlu.domain.resources import Resources
from danlu.scheduler.cycle import Scheduler
from danlu.scheduler.model import Placement, Seat, Shape
from danlu.services.context import Hub
from danlu.services.queue import Feed
from tests.databases import together
from tests.factories import NOW, SECOND, Ids, make_attempt, make_job, make_node, make_project, make_quota, make_task

SUBMITS, LIMIT, SERVERS = 64, 8, 3
ONE_GPU = Resources(cpu_milli=1000, gpus=1)


class Fixed:
    """A clock that stands still."""

    def now(self) -> int:
        return NOW

    def wall(self) -> int:
        return NOW


def controller(database: Database) -> SchedulingController:
    return SchedulingController(database, Fixed(), Hub(), "simulated")


def jobs_in(database: Database, state: JobState) -> list[Job]:
    return database.read(lambda tx: JOBS.find(tx, state=state, limit=1000))


def filled(database: Database, used: int, **quota: Any) -> None:
    """A project that holds something, and as many jobs that wait as are submitted."""
    ids = Ids()

    def work(tx: Transaction) -> None:
        PROJECTS.add(tx, make_project())
        NODES.add(tx, make_node(cpu=1000, h100=64))
        QUOTAS.add(tx, make_quota(**quota))
        for number in range(used):
            job = make_job(ids(), state=JobState.RUNNING, reason=Reason.STARTED, attempts=1, spec={"gpu": 1})
            JOBS.add(tx, job)
            ATTEMPTS.add(
                tx,
                make_attempt(job, state=AttemptState.RUNNING, tasks=(make_task(devices=(number,), resources=ONE_GPU),)),
            )
        for _ in range(SUBMITS):
            JOBS.add(tx, make_job(ids(), spec={"gpu": 1}))

    database.write(work)


@pytest.mark.parametrize("resource", ["jobs", "gpu", "gpu/h100", "cpu"])
@pytest.mark.parametrize("whose", ["the project's", "its group's"])
def test_of_many_that_ask_for_the_last_one_gets_it(database: Database, resource: str, whose: str) -> None:
    limit = {resource: LIMIT * (1000 if resource == "cpu" else 1)}
    if whose == "its group's":
        database.write(lambda tx: QUOTAS.add(tx, make_quota("team", group=True, limit=limit)))
        filled(database, LIMIT - 1, parent="team")
    else:
        filled(database, LIMIT - 1, limit=limit)
    servers = [controller(database) for _ in range(SERVERS)]
    for found in together(SERVERS, lambda at: servers[at].step()):
        assert isinstance(found, float), found  # who loses a race looks again
    assert len(jobs_in(database, JobState.STARTING)) == 1
    for server in servers:
        server.step()
    waiting = jobs_in(database, JobState.QUEUED)
    assert len(waiting) == SUBMITS - 1
    assert {job.reason for job in waiting} == {Reason.WAITING_FOR_QUOTA}
    name = "team" if whose == "its group's" else "default"
    assert all(f"the limit of {name} is" in job.message for job in waiting)


@pytest.mark.parametrize("desired", ["run", "stop"])
def test_others_are_asked_for_at_once_only_where_somebody_was_asked(database: Database, desired: str) -> None:
    """Who is being stopped is asked for nothing, however long that takes: it is decided again when something changes."""
    ids = Ids()
    old = make_job(ids(), state=JobState.RUNNING, reason=Reason.STARTED, attempts=1, spec={"gpu": 1}, desired=desired)
    urgent = make_job(ids(), spec={"gpu": 1}, priority=10)
    tasks, began = (make_task(devices=(0,), resources=ONE_GPU),), NOW - 3600 * SECOND

    def work(tx: Transaction) -> None:
        PROJECTS.add(tx, make_project())
        NODES.add(tx, make_node(cpu=1000, h100=1))
        JOBS.add(tx, old)
        ATTEMPTS.add(tx, make_attempt(old, now=began, state=AttemptState.RUNNING, tasks=tasks))
        JOBS.add(tx, urgent)

    database.write(work)
    assert (controller(database).step() < 1) == (desired == "run")
    (attempt,) = database.read(lambda tx: ATTEMPTS.find(tx, limit=10))
    assert (attempt.preemption is not None) == (desired == "run")


def test_servers_that_place_different_jobs_at_once_break_no_limit(database: Database) -> None:
    """Each has decided by what it saw, and its placement alone is right: all but one are refused when they are stored."""
    filled(database, LIMIT - 1, limit={"gpu": LIMIT})
    for _ in range(10):
        assert placed_by_each(database) == [0, 0, 1]
        database.write(ended)


def placed_by_each(database: Database) -> list[int]:
    """Lets each server store a placement of its own at the same time; returns how many each has stored, sorted."""
    waiting = jobs_in(database, JobState.QUEUED)[:SERVERS]
    shape = Shape((ONE_GPU,))
    placements = [Placement(job.id, (Seat("node-1", (20 + at,)),), shape) for at, job in enumerate(waiting)]
    servers = [controller(database) for _ in waiting]
    return sorted(
        together(SERVERS, lambda at: database.write(lambda tx: servers[at]._place(tx, placements[at : at + 1])))
    )


def ended(tx: Transaction) -> None:
    """Ends what was placed."""
    for attempt in ATTEMPTS.find(tx, state=AttemptState.LAUNCHING, limit=10):
        over = attempt.moved(AttemptState.ENDED, now=NOW, reason=Reason.COMPLETED, ended_at=NOW)
        ATTEMPTS.put(tx, attempt, over)


def test_a_limit_that_is_lowered_ends_nothing_and_lets_nothing_begin(database: Database) -> None:
    filled(database, LIMIT, limit={"gpu": LIMIT + 1})

    def lower(tx: Transaction) -> None:
        old = QUOTAS.require(tx, "default")
        QUOTAS.put(tx, old, old.evolved(now=NOW, limit={"gpu": 2}))

    server = controller(database)
    database.write(lower)
    server.step()
    assert len(jobs_in(database, JobState.RUNNING)) == LIMIT
    assert jobs_in(database, JobState.STARTING) == []
    assert all(
        job.message == "asks 1 GPU; the limit of default is 2 GPUs, used 8"
        for job in jobs_in(database, JobState.QUEUED)
    )


def test_what_a_project_held_before_a_restart_counts_after_it(database: Database) -> None:
    def work(tx: Transaction) -> None:
        PROJECTS.add(tx, make_project())
        NODES.add(tx, make_node(cpu=8, h100=4))
        job = make_job(state=JobState.RUNNING, reason=Reason.STARTED, attempts=1)
        JOBS.add(tx, job)
        attempt = make_attempt(
            job,
            state=AttemptState.RUNNING,
            started_at=NOW,
            tasks=(make_task(devices=(0, 1), resources=Resources(cpu_milli=1000, gpus=2)),),
        )
        ATTEMPTS.add(tx, attempt)
        later = NOW + 7200 * SECOND
        ended = attempt.moved(AttemptState.ENDED, now=later, reason=Reason.COMPLETED, ended_at=later)
        ATTEMPTS.put(tx, attempt, ended)
        JOBS.put(tx, job, job.moved(JobState.SUCCEEDED, now=later, reason=Reason.COMPLETED, ended_at=later))

    database.write(work)
    feed = Feed(Scheduler())
    now = NOW + 7200 * SECOND
    feed.tell(database.read(feed.look), now)
    half_life = feed.scheduler.policy.half_life
    expected = 0.5 * (1 - 2 ** (-7200 * SECOND / half_life))
    assert feed.scheduler.shares.lately("default", now) == pytest.approx(expected, rel=1e-6)
    assert feed.scheduler.shares.lately("other", now) == 0
    feed.tell(database.read(feed.look), now)  # once
    assert feed.scheduler.shares.lately("default", now) == pytest.approx(expected, rel=1e-6)


def test_a_job_tells_how_many_gpus_of_its_range_it_got(database: Database) -> None:
    job = make_job(Ids()(), spec={"gpu": "1..8"})

    def work(tx: Transaction) -> None:
        PROJECTS.add(tx, make_project())
        NODES.add(tx, make_node(cpu=8, h100=3))
        JOBS.add(tx, job)

    database.write(work)
    controller(database).step()
    (started,) = jobs_in(database, JobState.STARTING)
    (attempt,) = database.read(lambda tx: ATTEMPTS.find(tx, job_id=job.id, limit=2))
    assert (started.gpus, len(attempt.tasks[0].devices)) == (3, 3)


@pytest.mark.parametrize("gpus", [1, 9])
def test_who_changes_a_job_while_it_is_decided_about_has_it_decided_anew(postgresql: Database, gpus: int) -> None:
    """One that would be placed, and one that is told why it waits."""
    ids = Ids()
    held, other = (make_job(ids(), spec={"gpu": gpus}) for _ in range(2))

    def fill(tx: Transaction) -> None:
        PROJECTS.add(tx, make_project())
        NODES.add(tx, make_node(cpu=100, h100=8))
        JOBS.add_all(tx, [held, other])

    postgresql.write(fill)
    meddled: list[str] = []

    def heard(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("UPDATE jobs") and not meddled:
            meddled.append(statement)
            postgresql.write(lambda tx: JOBS.put(tx, held, held.with_hold(True, now=NOW)))

    event.listen(Engine, "before_cursor_execute", heard)
    try:
        controller(postgresql).step()
    finally:
        event.remove(Engine, "before_cursor_execute", heard)
    found = {job.id: job for job in postgresql.read(lambda tx: JOBS.find(tx, limit=10))}
    assert (found[held.id].held, found[held.id].state) == (True, JobState.QUEUED)
    if gpus == 1:
        assert found[other.id].state is JobState.STARTING
    else:
        assert found[other.id].reason is not Reason.PENDING_EVALUATION
