"""Arrays, dependencies and holds by the API: one submission makes them all, and what could wait for ever is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine, event

from danlu.database.engine import Transaction
from danlu.database.records import JOBS
from danlu.domain.actors import Actor
from danlu.domain.arrays import array_id, element_id
from danlu.domain.ids import is_id
from danlu.domain.jobs import Desired, Job, JobState, Reason
from danlu.domain.specs import JobSpec
from danlu.errors import NameTaken
from danlu.services import jobs
from danlu.services.context import Call
from tests.api.edge import Api
from tests.simulation.wishes import Cut, CutDatabase

ADMIN = Actor(id="k", name="admin", administrator=True)
SIZE = 120
"""More than are made in two transactions."""


def elements(api: Api, array: str) -> list[Job]:
    found = api.database.read(lambda tx: JOBS.find(tx, array_id=array, limit=20_000))
    return sorted(found, key=lambda job: job.array.index if job.array else -1)


def end(api: Api, job_id: str, state: JobState = JobState.FAILED) -> None:
    def work(tx: Transaction) -> None:
        job = JOBS.require(tx, job_id)
        if state is not JobState.CANCELLED:
            for following in (JobState.ADMITTED, JobState.STARTING):
                new = job.moved(following, now=job.updated_at, reason=Reason.PLACED)
                JOBS.put(tx, job, new)
                job = new
        JOBS.put(tx, job, job.moved(state, now=job.updated_at, reason=Reason.PROCESS_FAILED, ended_at=job.updated_at))

    api.database.write(work)


def made(api: Api, **spec: Any) -> str:
    answer = api.submit(**spec)
    assert answer.status == 201, answer.content
    return str(answer.json()["id"])


def once(api: Api, do: Callable[[], Any]) -> None:
    """Lets somebody do something as soon as the first jobs are there."""

    def heard(_topic: str) -> None:
        leave()
        do()

    leave = api.platform.hub.listen(heard)


def test_one_submission_makes_every_element(api: Api) -> None:
    first = made(api, name="many", array=f"0-{SIZE - 1}%7", cpu=2)
    found = elements(api, array_id(first))
    assert [job.name for job in found] == [f"many-{index}" for index in range(SIZE)]
    assert [job.id for job in found] == [element_id(first, at, at) for at in range(SIZE)]
    assert all(is_id(job.id, "j") and job.id[:9] == first[:9] for job in found)
    assert len({job.id for job in found}) == SIZE
    assert {(job.array.size, job.array.parallel) for job in found if job.array} == {(SIZE, 7)}
    assert sorted(found, key=lambda job: job.queued_at) == found  # they are served in this order
    state = api.call("arrays.get", array="many").json()
    assert state["counts"] == {"queued": SIZE}
    assert (state["array"]["id"], state["array"]["stored"]) == (array_id(first), SIZE)


def test_the_same_submission_completes_what_a_crash_left(api: Api) -> None:
    job_id, spec = api.new_id("j"), JobSpec.model_validate({"command": "x", "name": "cut", "array": f"1-{SIZE}"})
    call = Call(api.platform, ADMIN, "default")
    cut: Any = CutDatabase(api.database, 3)
    with pytest.raises(Cut):
        jobs.submit(replace(call, platform=replace(api.platform, database=cut)), job_id, spec)
    left = elements(api, array_id(job_id))
    assert 0 < len(left) < SIZE
    assert jobs.submit(call, job_id, spec).id == job_id
    found = elements(api, array_id(job_id))
    assert [job.array.index for job in found if job.array] == list(range(1, SIZE + 1))
    assert [job for job in found if job.id in {one.id for one in left}] == left
    assert jobs.submit(call, job_id, spec).id == job_id
    assert elements(api, array_id(job_id)) == found


def test_two_who_submit_it_at_once_make_it_once(api: Api) -> None:
    job_id, spec = api.new_id("j"), JobSpec.model_validate({"command": "x", "name": "twice", "array": f"0-{SIZE - 1}"})
    wrong: list[BaseException] = []

    def submit() -> None:
        try:
            jobs.submit(Call(api.platform, ADMIN, "default"), job_id, spec)
        except BaseException as error:  # noqa: BLE001 - it is looked at below
            wrong.append(error)

    threads = [threading.Thread(target=submit) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert wrong == []
    assert [job.name for job in elements(api, array_id(job_id))] == [f"twice-{index}" for index in range(SIZE)]


def test_a_name_that_is_taken_is_refused_before_anything_is_made(api: Api) -> None:
    made(api, name="mine-77")
    answer = api.submit(name="mine", array="0-99")
    assert (answer.status, answer.json()["code"]) == (409, "NameTaken")
    assert "'mine-77'" in answer.json()["detail"]
    assert api.call("arrays.get", array="mine").status == 404
    assert made(api, name="mine", array="0-50")  # beside it


def test_a_name_that_is_taken_meanwhile_stops_the_array(api: Api) -> None:
    job_id, spec = api.new_id("j"), JobSpec.model_validate({"command": "x", "name": "race", "array": f"0-{SIZE - 1}"})
    once(api, lambda: made(api, name=f"race-{SIZE - 1}"))
    with pytest.raises(NameTaken, match=f"'race-{SIZE - 1}'"):
        jobs.submit(Call(api.platform, ADMIN, "default"), job_id, spec)
    found = elements(api, array_id(job_id))
    assert 0 < len(found) < SIZE
    assert all(job.desired is Desired.STOP for job in found)


def test_what_is_made_after_a_stop_is_stopped(api: Api) -> None:
    job_id, spec = api.new_id("j"), JobSpec.model_validate({"command": "x", "name": "ended", "array": f"0-{SIZE - 1}"})
    once(api, lambda: api.call("arrays.stop", array="ended", data={}))
    jobs.submit(Call(api.platform, ADMIN, "default"), job_id, spec)
    found = elements(api, array_id(job_id))
    assert len(found) == SIZE
    assert all(job.desired is Desired.STOP for job in found)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        ("", "is no index"), ("x", "is no index"), ("3-1", "write 1-3"), ("0-9:0", "steps of 0"), ("-1", "is no index"),
        ("0-10000", "at most 10,000"), ("0-9%0", "parallel"), ("0-9%x", "parallel"), ("9999999", "is no index"),
        ({}, "array.indexes"),
        ({"indexes": "0-9%3"}, "write that as parallel"), ({"indexes": "0-9", "paralel": 3}, "array.paralel is not a field"),
    ],
)  # fmt: skip
def test_a_wrong_array_is_refused(api: Api, array: Any, said: str) -> None:
    answer = api.submit(array=array)
    assert answer.status == 422, answer.content
    assert said in answer.json()["detail"]


def test_names_that_would_be_too_long_are_refused(api: Api) -> None:
    answer = api.submit(name="n" * 60, array="0-999")
    assert (answer.status, answer.json()["code"]) == (422, "InvalidSpec")
    assert "longer than 63" in answer.json()["detail"]


def test_who_waits_for_an_array_reads_all_of_it_once(api: Api) -> None:
    """It looks whenever any job changes: of 10,000 elements each look would take 40 ms."""
    first = made(api, name="long", array="0-2")
    asked: list[str] = []

    def heard(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        asked.append(statement)

    event.listen(Engine, "before_cursor_execute", heard)
    try:
        waited = api.call("arrays.wait", array="long", query="?timeout_s=0.3")
    finally:
        event.remove(Engine, "before_cursor_execute", heard)
    assert waited.json()["counts"] == {"queued": 3}
    looks = [one for one in asked if "jobs.array_id = " in one]
    assert [one for one in looks if "LIMIT" not in one] == looks[-1:]
    for job in elements(api, array_id(first)):
        end(api, job.id)
    assert api.call("arrays.wait", array="long", query="?timeout_s=30").json()["counts"] == {"failed": 3}


def test_it_is_held_released_listed_and_stopped_as_one(api: Api) -> None:
    first = made(api, name="grid", array="0-4", hold=True)
    assert all(job.held for job in elements(api, array_id(first)))
    assert api.call("arrays.release", array="grid").json()["array"]["held"] is False
    assert not any(job.held for job in elements(api, array_id(first)))
    end(api, first)
    assert api.call("arrays.hold", array="grid").status == 200
    assert [job.held for job in elements(api, array_id(first))] == [False, True, True, True, True]
    listed = api.call("jobs.list", query="?array=grid&state=queued").json()["items"]
    assert len(listed) == 4
    assert api.call("jobs.list", query="?array=none").status == 404
    state = api.call("arrays.stop", array="grid", data={"grace": "3s"}).json()
    assert state["unsuccessful"] == ["grid-0"]
    assert [job.desired for job in elements(api, array_id(first))] == [Desired.RUN] + [Desired.STOP] * 4
    again = api.call("arrays.get", array="gird")
    assert (again.status, again.json()["next_step"].partition("   ")[0]) == (404, "did you mean grid?")


def test_why_it_waits_is_told_of_the_next_to_start(api: Api) -> None:
    first = made(api, name="steps", array="3-5", cpu=4, hold=True)
    said = api.call("arrays.why", array="steps").json()
    assert (said["state"]["counts"], said["state"]["held"]) == ({"queued": 3}, 3)
    assert (said["next"]["job"]["name"], said["next"]["explanation"]) == (
        "steps-3", ["it is held; danlu release lets it go"],
    )  # fmt: skip
    api.call("jobs.release", job="steps-5")
    said = api.call("arrays.why", array="steps").json()
    assert (said["state"]["held"], said["next"]["job"]["name"]) == (2, "steps-5")  # the others start later
    assert said["next"]["explanation"] == ["environment python is being built"]
    assert api.call("arrays.stop", array="steps", data={}).status == 202
    for one in elements(api, array_id(first)):
        end(api, one.id, JobState.CANCELLED)
    said = api.call("arrays.why", array="steps").json()
    assert (said["state"]["counts"], said["state"]["held"], said["next"]) == ({"cancelled": 3}, 0, None)
    assert api.call("arrays.why", array="none").status == 404


def test_the_name_of_an_array_where_a_job_is_wanted(api: Api) -> None:
    made(api, name="many", array="7-9")
    answer = api.call("jobs.get", job="many")
    assert (answer.status, answer.json()["next_step"]) == (
        404, "many is a job array: name one of its elements, such as many-7   all: danlu get jobs --array many",
    )  # fmt: skip


def test_where_there_is_none_those_of_the_same_project_are_named(api: Api) -> None:
    for kind in ("job", "array"):
        answer = api.call(f"{kind}s.get", **{kind: "none"})
        assert (answer.status, answer.json()["next_step"].rpartition(": ")[2]) == (
            404, "danlu get jobs --project default",
        )  # fmt: skip


def test_a_repeated_element_has_its_place(api: Api) -> None:
    first = made(api, name="part", array="3,5")
    end(api, first)
    again = api.call("jobs.retry", job="part-3", data={"id": api.new_id("j")}).json()
    assert (again["name"], again["array"]["index"], again["array_id"]) == ("part-3", 3, array_id(first))
    assert api.call("arrays.get", array="part").json()["counts"] == {"queued": 2}
    whole = api.call("jobs.retry", job=first, data={"id": api.new_id("j"), "changes": {"array": "0-9"}})
    assert (whole.status, whole.json()["code"]) == (422, "InvalidSpec")


def test_what_failed_of_it_is_repeated_once(api: Api) -> None:
    first = made(api, name="shaky", array="0-3")
    end(api, element_id(first, 1, 1))
    end(api, element_id(first, 2, 2), JobState.CANCELLED)
    body = {"id": api.new_id("j"), "changes": {"memory": "1GiB"}}
    answer = api.call("arrays.retry", array="shaky", data=body)
    assert (answer.status, answer.json()["counts"]) == (201, {"queued": 4})
    found = elements(api, array_id(first))
    assert [(job.array.index, job.spec.memory) for job in found if job.retry_of and job.array] == [
        (1, 2**30),
        (2, 2**30),
    ]
    for job in found:
        if job.retry_of:
            end(api, job.id)
    assert api.call("arrays.retry", array="shaky", data=body).json()["counts"] == {"queued": 2, "failed": 2}
    assert len(elements(api, array_id(first))) == 6  # the same request repeats none twice
    assert api.call("arrays.retry", array="shaky", data={"id": "x"}).status == 400


# --- holds


def test_only_what_waits_can_be_held(api: Api) -> None:
    refused = api.call("jobs.hold", job="train")
    assert (refused.status, refused.json()["code"]) == (409, "Conflict")
    assert "is running: only a job that waits can be held" in refused.json()["detail"]
    assert "danlu stop train" in refused.json()["next_step"]
    assert api.call("jobs.release", job="train").status == 200
    waits = made(api, hold=True)
    assert api.job(waits).held
    assert api.call("jobs.hold", job=waits).json()["version"] == api.job(waits).version
    assert api.call("jobs.release", job=waits).json()["held"] is False


# --- dependencies


def test_names_are_found_when_it_is_submitted(api: Api) -> None:
    prepare = made(api, name="prepare")
    job = made(api, after=["prepare", f"{prepare}:any", "over:failed"])
    after = api.job(job).after
    assert [(one.id, one.name, one.condition) for one in after] == [
        (prepare, "prepare", "succeeded"), (prepare, "prepare", "any"), (api.ids["ended"], "over", "failed"),
    ]  # fmt: skip
    end(api, prepare)
    other = made(api, name="prepare")
    assert api.job(job).after == after
    end(api, job)
    again = api.call("jobs.retry", job=job, data={"id": api.new_id("j")}).json()
    assert [one["id"] for one in again["after"]] == [one.id for one in after]  # the old ones, whoever has the name now
    end(api, again["id"])
    changed = api.call("jobs.retry", job=job, data={"id": api.new_id("j"), "changes": {"after": ["prepare"]}}).json()
    assert [one["id"] for one in changed["after"]] == [other]


def test_a_repeated_job_waits_for_the_repetition_of_what_had_failed(api: Api) -> None:
    prepare = made(api, name="prepare")
    train = made(api, name="learn", after=["prepare", "over:any"])
    end(api, prepare)
    end(api, train, JobState.CANCELLED)
    again = api.call("jobs.retry", job="prepare", data={"id": api.new_id("j")}).json()["id"]
    body = {"id": api.new_id("j"), "changes": {"memory": "1GiB"}}
    after = api.call("jobs.retry", job="learn", data=body).json()["after"]
    assert [one["id"] for one in after] == [again, api.ids["ended"]]


def test_an_array_is_something_to_wait_for(api: Api) -> None:
    first = made(api, name="shards", array="0-2")
    assert [one.id for one in api.job(made(api, after="shards")).after] == [array_id(first)]
    assert [one.id for one in api.job(made(api, after="shards-1:failed")).after] == [element_id(first, 1, 1)]


def test_what_cannot_be_waited_for_is_refused(api: Api) -> None:
    made(api, name="prepare")
    unknown = api.submit(after=["prepar"])
    assert (unknown.status, unknown.json()["code"]) == (422, "InvalidSpec")
    assert "no job or array 'prepar'" in unknown.json()["detail"]
    assert "did you mean prepare?" in unknown.json()["next_step"]
    theirs = api.submit(after=[made_in_other(api)])
    assert theirs.status == 422
    assert api.submit(after=["prepare:done"]).status == 422
    assert api.submit(after=["prepare"] * 101).status == 422


@pytest.mark.parametrize("own", [str, array_id], ids=["job", "array"])
def test_a_job_cannot_wait_for_itself(api: Api, own: Any) -> None:
    job_id = api.new_id("j")
    body = {"command": "x", "after": [own(job_id)], "array": "0-3"}
    answer = api.call("jobs.submit", job=job_id, data=body)
    assert (answer.status, answer.json()["code"]) == (422, "InvalidSpec")
    assert "is the job itself" in answer.json()["detail"]
    later = api.call("jobs.submit", job=job_id, data={**body, "after": [element_id(job_id, 2, 2)]})
    assert later.status == 422  # nor for an element that is not there yet, whose id can be known


def made_in_other(api: Api) -> str:
    job_id = api.new_id("j")
    answer = api.call("jobs.submit", job=job_id, actor="foreign", data={"command": "x"})
    assert answer.status == 201
    return job_id
