"""What a project is told of its job's having to make way."""

from __future__ import annotations

import pytest

from danlu.database.engine import Transaction
from danlu.database.records import ATTEMPTS, JOBS
from danlu.domain.jobs import AttemptState, JobState, Preemption, Reason
from danlu.domain.resources import Resources
from tests.api.edge import Api
from tests.factories import NOW, make_attempt, make_job, make_task


def made_way(api: Api, for_project: str) -> None:
    """Has the running job's attempt make way, and the job wait again."""
    name = "big" if for_project == "default" else ""
    preemption = Preemption(
        at=NOW, deadline=NOW, for_job="j-theirs", for_project=for_project, for_name=name, why="older"
    )

    def work(tx: Transaction) -> None:
        attempt, job = ATTEMPTS.require(tx, api.ids["attempt"]), JOBS.require(tx, api.ids["job"])
        told = attempt.evolved(now=NOW, preemption=preemption)
        ATTEMPTS.put(tx, attempt, told)
        ended = told.moved(AttemptState.ENDED, now=NOW, reason=Reason.PREEMPTED, message="it made way; lost: nothing")
        ATTEMPTS.put(tx, told, ended)
        waits = job.moved(
            JobState.QUEUED, now=NOW, reason=Reason.PREEMPTED, message="attempt 1: Preempted", preemptions=1,
            preempted_at=NOW,
        )  # fmt: skip
        JOBS.put(tx, job, waits)

    api.database.write(work)


@pytest.mark.parametrize(
    ("project", "told"), [("default", ("j-theirs", "default", "big")), ("secret-project", ("", "", ""))]
)
def test_another_projects_job_is_not_named(api: Api, project: str, told: tuple[str, str, str]) -> None:
    made_way(api, project)
    answer = api.call("jobs.attempts", job=api.ids["job"])
    said = answer.json()["items"][0]["preemption"]
    assert (said["for_job"], said["for_project"], said["for_name"], said["why"]) == (*told, "older")
    assert b"secret-project" not in answer.content
    job = api.call("jobs.get", job=api.ids["job"]).json()
    assert (job["reason"], job["preemptions"]) == ("Preempted", 1)


def test_why_tells_the_numbers_and_that_it_made_way(api: Api) -> None:
    made_way(api, "default")

    def work(tx: Transaction) -> None:
        job = JOBS.require(tx, api.ids["job"])
        JOBS.put(tx, job, job.moved(JobState.QUEUED, now=NOW, reason=Reason.WAITING_FOR_RESOURCES, message="short"))

    api.database.write(work)
    lines = api.call("jobs.why", job=api.ids["job"]).json()["explanation"]
    assert lines[1:] == ["it made way; lost: nothing"]


def test_who_has_just_begun_is_told_to_be_asked_later(api: Api) -> None:
    now = api.platform.clock.now()

    def work(tx: Transaction) -> None:
        for device, (name, project) in enumerate((("mine", "default"), ("theirs", "other"))):
            job = make_job(api.new_id("j"), project=project, name=name)
            JOBS.add(tx, job)
            task = make_task(resources=Resources(gpus=1), devices=(device,))
            ATTEMPTS.add(tx, make_attempt(job, now=now + device, tasks=(task,)))

    api.database.write(work)
    urgent = {"name": "urgent", "priority": 9, "env": "host", "interpreter": "/usr/bin/python3", "cpu": 0.1}
    api.submit(**urgent, gpu=2)
    answer = api.call("jobs.why", job="urgent")
    later = answer.json()["asked_later"]
    assert later == {"at": now + 1 + 300 * 10**9, "names": ["mine"], "count": 2, "least_run_s": 300.0}
    assert b"theirs" not in answer.content
    api.submit(**urgent | {"name": "late", "priority": -9}, gpu=2)
    assert api.call("jobs.why", job="late").json()["asked_later"] is None
