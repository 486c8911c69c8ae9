"""The trace that a platform records, over the wire: when jobs came, what they had, how long; whose may be seen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from danlu.database.engine import Database, Transaction
from danlu.database.records import ATTEMPTS, JOBS
from danlu.domain.jobs import AttemptState, Job, JobState, Reason
from danlu.domain.resources import Resources
from danlu.services.trace import DECISIONS
from tests.api.edge import Api
from tests.factories import NOW, make_attempt, make_job

SECOND = 10**9


@pytest.fixture
def api(sqlite: Database, tmp_path: Path) -> Iterator[Api]:
    made = Api(sqlite, tmp_path)
    yield made
    made.edge.streams.end()
    made.opener.close()


def ended(api: Api, name: str, at: int, runs: tuple[tuple[int, int], ...], *, project: str = "default") -> str:
    """Stores a job that was submitted at a time and ran from then till then, more than once if need be; in seconds."""

    def work(tx: Transaction) -> str:
        job = make_job(api.new_id("j"), name=name, project=project, now=NOW + at * SECOND)
        JOBS.add(tx, job)
        for number, (begin, end) in enumerate(runs, 1):
            job = _ran(tx, job, number, NOW + begin * SECOND, NOW + end * SECOND, last=number == len(runs))
        return job.id

    return api.database.write(work)


def _ran(tx: Transaction, job: Job, number: int, begin: int, end: int, *, last: bool) -> Job:
    for state in (JobState.ADMITTED, JobState.STARTING, JobState.RUNNING):
        fields: dict[str, Any] = {"attempts": number} if state is JobState.STARTING else {}
        moved = job.moved(state, now=begin, reason=Reason.STARTED, **fields)
        JOBS.put(tx, job, moved)
        job = moved
    attempt = make_attempt(job, number=number)
    task = attempt.tasks[0].model_copy(update={"resources": Resources(cpu_milli=2000, memory_bytes=2**30, gpus=1)})
    attempt = attempt.model_copy(update={"created_at": begin, "updated_at": begin, "tasks": (task,)})
    ATTEMPTS.add(tx, attempt)
    for step in (AttemptState.LAUNCHING, AttemptState.RUNNING):
        following = attempt.moved(step, now=begin, reason=Reason.STARTED)
        ATTEMPTS.put(tx, attempt, following)
        attempt = following
    ATTEMPTS.put(tx, attempt, attempt.moved(AttemptState.ENDED, now=end, reason=Reason.PREEMPTED, ended_at=end))
    moved = (
        job.moved(JobState.SUCCEEDED, now=end, reason=Reason.COMPLETED, ended_at=end)
        if last
        else job.moved(JobState.QUEUED, now=end, reason=Reason.PREEMPTED, queued_at=end)
    )
    JOBS.put(tx, job, moved)
    return moved


def names(answer: Any) -> list[str]:
    return [item["id"] for item in answer.json()["items"]]


def test_a_job_is_told_with_what_its_attempts_had_and_how_long(api: Api) -> None:
    job = ended(api, "twice", 100, ((110, 140), (200, 260)))
    found = next(one for one in api.call("trace.get", actor="viewer").json()["items"] if one["id"] == job)
    assert found == {
        "id": job, "project": "default", "priority": 0, "submitted_at": NOW + 100 * SECOND,
        "first_started_at": NOW + 110 * SECOND, "ended_at": NOW + 260 * SECOND, "ran_ns": 90 * SECOND, "attempts": 2,
        "tasks": 1, "gpus": 1, "gpu_kind": None, "cpu_milli": 2000, "memory_bytes": 2**30, "declared_ns": None,
    }  # fmt: skip


def test_what_runs_has_no_end_and_what_never_ran_no_time(api: Api) -> None:
    found = {one["id"]: one for one in api.call("trace.get", actor="viewer").json()["items"]}
    running, over = found[api.ids["job"]], found[api.ids["ended"]]
    assert (running["ended_at"], running["ran_ns"], running["attempts"]) == (None, 0, 1)
    assert (over["ended_at"], over["ran_ns"], over["attempts"]) == (NOW, 0, 0)


def test_it_comes_in_pages_newest_first_and_ends_at_a_time(api: Api) -> None:
    jobs = [ended(api, f"job-{at}", 100 + at, ((200, 300),)) for at in range(5)]
    seen, cursor = [], None
    while True:
        query = f"limit=2&since={NOW + 102 * SECOND}" + (f"&cursor={cursor}" if cursor else "")
        answer = api.send("GET", f"/v1/trace?{query}", actor="member")
        seen += names(answer)
        cursor = answer.json()["next_cursor"]
        if cursor is None:
            break
    assert seen == jobs[:1:-1]


def test_a_job_of_a_client_whose_clock_is_wrong_hides_no_other(api: Api) -> None:
    """The client makes the id, in whose order they come."""
    asked_for = ended(api, "right", 200, ((200, 300),))
    ended(api, "ahead", 100, ((200, 300),))
    first = api.send("GET", f"/v1/trace?limit=1&since={NOW + 150 * SECOND}", actor="member").json()
    assert first["items"] == []
    following = f"limit=1&since={NOW + 150 * SECOND}&cursor={first['next_cursor']}"
    assert names(api.send("GET", f"/v1/trace?{following}", actor="member")) == [asked_for]


def test_others_jobs_are_for_administrators(api: Api) -> None:
    theirs = ended(api, "theirs", 100, ((110, 120),), project="other")
    assert theirs not in names(api.call("trace.get", actor="manager"))
    refused = api.send("GET", "/v1/trace?platform=true", actor="manager")
    assert (refused.status, refused.json()["code"]) == (403, "NotAllowed")
    assert "all projects is for administrators" in refused.json()["detail"]
    everybody = names(api.send("GET", "/v1/trace?platform=true", actor="admin"))
    assert {theirs, api.ids["job"]} <= set(everybody)


def test_decisions_come_as_whole_lines_however_long_and_are_for_administrators(api: Api) -> None:
    lines = [b'{"call":"a"}\n', b'{"call":"' + b"b" * (5 * 2**20) + b'"}\n', b'{"call":"c"}\n']
    for line in (*lines, b'{"call":"cut o'):
        api.platform.streams.append(DECISIONS, api.platform.streams.size(DECISIONS), line)
    told, offset, done = "", 0, False
    while not done:
        page = api.send("GET", f"/v1/trace/decisions?offset={offset}", actor="admin").json()
        assert page["text"].endswith("\n") or page["done"]
        told, offset, done = told + page["text"], page["offset"], page["done"]
    assert told.encode() == b"".join(lines)
    assert api.call("trace.decisions", actor="manager").status == 403
