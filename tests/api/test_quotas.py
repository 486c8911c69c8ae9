"""Quotas by the API: who sees and sets them, what is refused, what a job that is too large is told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from danlu.database.queries import Chosen, events_after, next_number
from danlu.database.records import ATTEMPTS, JOBS, QUOTAS
from danlu.domain.jobs import Job
from danlu.domain.trees import address_of, frames
from tests.api.edge import Answer, Api
from tests.factories import GIB, make_attempt, make_job, make_task


def put(api: Api, name: str, actor: str = "admin", **body: Any) -> Answer:
    return api.call("quotas.set", actor=actor, data=body, quota=name, signed=True)


def fine(answer: Answer) -> Any:
    assert answer.status == 200, answer.content
    return answer.json()


def hold(api: Api, project: str, gpus: int, name: str) -> Job:
    """Stores a job with an attempt that holds GPUs."""
    job = make_job(api.new_id("j"), project=project, name=name)
    task = make_task(resources={"cpu_milli": 500, "memory_bytes": GIB, "gpus": gpus}, devices=tuple(range(gpus)))

    def work(tx: Any) -> None:
        JOBS.add(tx, job)
        ATTEMPTS.add(tx, make_attempt(job, tasks=(task,)))

    api.database.write(work)
    return job


def test_what_is_set_is_seen_and_what_is_left_out_stays(api: Api) -> None:
    fine(put(api, "research", group=True, limit={"gpu": "16", "memory": "1TiB"}))
    set_ = fine(put(api, "other", parent="research", guarantee={"gpu": 2}, limit={"gpu": "8", "cpu": "64"}, weight=3))
    assert set_["quota"]["limit"] == {"gpu": 8, "cpu": 64_000}
    again = fine(put(api, "other", limit={"cpu": "unlimited", "jobs": 20}))["quota"]
    assert again["limit"] == {"gpu": 8, "jobs": 20}
    assert (again["guarantee"], again["weight"], again["parent"]) == ({"gpu": 2}, 3, "research")
    same = fine(put(api, "other", limit=again["limit"]))["quota"]
    assert same["version"] == again["version"] == 2
    assert fine(put(api, "other", parent="", guarantee={"gpu": 0}))["quota"]["guarantee"] == {}
    assert fine(api.call("quotas.get", quota="other"))["quota"]["parent"] is None


def test_a_member_sees_its_own_path_and_nobody_elses_name(api: Api) -> None:
    fine(put(api, "company", group=True, limit={"gpu": 16}))
    fine(put(api, "theirs", group=True, parent="company", limit={"gpu": 8}))
    fine(put(api, "ours", group=True, parent="company"))
    fine(put(api, "default", parent="ours", limit={"gpu": 4}))
    fine(put(api, "other", parent="theirs", limit={"gpu": 2}))
    hold(api, "other", 2, "secretly")
    listed = fine(api.call("quotas.list", actor="viewer"))["items"]
    assert sorted(one["quota"]["id"] for one in listed) == ["company", "default", "ours"]
    company = fine(api.call("quotas.get", actor="viewer", quota="company"))
    assert (company["used"]["gpu"], company["used"]["jobs"]) == (2, 2)  # one of each project
    told = json.dumps([listed, company, api.call("quotas.get", actor="viewer", quota="thiers").json()])
    assert "theirs" not in told
    assert '"other"' not in told
    assert "secretly" not in told
    hidden, none = (api.call("quotas.get", actor="viewer", quota=name) for name in ("other", "nowhere"))
    assert hidden.status == none.status == 404
    assert hidden.json()["detail"].replace("other", "?") == none.json()["detail"].replace("nowhere", "?")
    every = fine(api.call("quotas.list"))["items"]
    assert {one["quota"]["id"] for one in every} == {"company", "theirs", "ours", "default", "other"}
    page = fine(api.call("quotas.list", query="?limit=2"))
    assert len(page["items"]) == 2
    assert len(fine(api.call("quotas.list", query=f"?cursor={page['next_cursor']}"))["items"]) == 3


def test_what_is_held_is_counted_and_ends_nothing(api: Api) -> None:
    running = hold(api, "default", 2, "long")
    use = fine(put(api, "default", limit={"gpu": 1, "memory": "512MiB", "gpu/gpu": 8}))
    assert use["used"] == {"gpu": 2, "gpu/gpu": 2, "cpu": 1500, "memory": GIB, "jobs": 2}
    assert use["over"] == {"gpu": 1, "memory": GIB // 2}
    assert api.job(running.id).live


@pytest.mark.parametrize(
    ("name", "body", "status", "problem", "step"),
    [
        ("nowhere", {"limit": {"gpu": 1}}, 404, "there is no project nowhere", "danlu quota set nowhere --group"),
        ("defalt", {"limit": {"gpu": 1}}, 404, "there is no project defalt", "did you mean default?"),
        ("default", {"group": True}, 409, "is a project, no group", "otherwise"),
        ("other", {"group": True}, 409, "other is a project, and no group has a project's name", "--group"),
        ("Not-a-name", {"group": True}, 400, "no name for a project or a group", "small letters"),
        ("default", {"parent": "nobody"}, 409, "the group nobody above default does not exist", "danlu quota set nobody"),
        ("default", {"parent": "default"}, 409, "default above default is a project, no group", "--parent"),
        ("default", {"limit": {"gpus": 1}}, 422, "'gpus' is nothing that a quota can limit", "did you mean gpu?"),
        ("default", {"limit": {"memory": "4"}}, 422, "'4' has no unit and would be 4 B", "did you mean 4GiB?"),
        ("default", {"limit": {"endpoints": 2}}, 422, "'endpoints' is nothing that a quota can limit", ""),
        ("default", {"limit": {"storage": "much"}}, 422, "not an amount of storage", ""),
        ("default", {"guarantee": {"storage": "1TiB"}}, 422, "storage cannot be guaranteed, only limited", ""),
        ("default", {"limit": {"gpu": "0.5"}}, 422, "GPUs are given whole", ""),
        ("default", {"limit": {"gpu": -2}}, 422, "gpu=-2 is no amount", ""),
        ("default", {"limit": {"gpu": 1.5}}, 422, "gpu=1.5 is no amount", ""),
        ("default", {"limit": {"gpu": True}}, 422, "gpu=True is no amount", ""),
        ("default", {"limit": [1]}, 422, "must be names with values", ""),
        ("default", {"limit": {"memory": 2**61}}, 422, "more than 1024PiB", ""),
        ("default", {"guarantee": {"gpu": -1}}, 400, "guaranteed without limit", "--guarantee gpu=8"),
        ("default", {"weight": 0}, 422, "weight: must be at least 1", ""),
        ("default", {"guarantee": {"gpu": 3}, "limit": {"gpu": 2}}, 409, "guaranteed 3 GPUs, above its limit of 2 GPUs",
         "raise the limit, or lower the guarantee"),
    ],
)  # fmt: skip
def test_what_is_refused(api: Api, name: str, body: dict[str, Any], status: int, problem: str, step: str) -> None:
    before = api.database.read(lambda tx: QUOTAS.find(tx, limit=10))
    answer = put(api, name, **body)
    assert answer.status == status, answer.content
    assert problem in answer.json()["detail"]
    assert step in answer.json()["next_step"]
    assert api.database.read(lambda tx: QUOTAS.find(tx, limit=10)) == before


def test_what_a_group_above_does_not_give_is_told(api: Api) -> None:
    fine(put(api, "research", group=True, limit={"gpu": "2"}))
    use = fine(put(api, "default", parent="research", limit={"gpu": "8", "jobs": "3"}))
    assert (use["quota"]["limit"]["gpu"], use["effective"]) == (8, {"gpu": 2, "jobs": 3})
    assert "default never holds 8 GPUs: all projects below research together hold at most 2 GPUs" in use["warnings"]
    assert fine(api.call("quotas.get", actor="viewer", quota="default"))["effective"]["gpu"] == 2
    listed = fine(api.call("quotas.list", actor="viewer"))["items"]
    assert {one["quota"]["id"]: one["effective"]["gpu"] for one in listed} == {"default": 2, "research": 2}


def test_of_a_range_the_least_has_to_be_within_the_limit(api: Api) -> None:
    fine(put(api, "default", limit={"gpu": 1}))
    assert api.submit(gpu="1..2").status == 201
    refused = api.submit(gpu="2..2")
    assert (refused.status, "it asks for 2 GPUs in all, and the limit of default is 1 GPU" in refused.json()["detail"]) == (
        422, True,
    )  # fmt: skip
    fine(put(api, "default", limit={"gpu": 3}))
    gang = {"roles": {"worker": {"replicas": 2}}, "framework": "tensorflow", "cpu": 0.1}
    assert api.submit(**gang, gpu="1..2").status == 201  # 2 of 2..4
    fine(put(api, "default", limit={"gpu": 1}))
    assert api.submit(**gang, gpu="1..2").json()["code"] == "NeverFits"


def test_a_group_and_a_project_never_share_a_name(api: Api) -> None:
    api.database.write(lambda tx: next_number(tx, "", "projects"))  # of project other
    fine(put(api, "research", group=True))
    refused = api.call("projects.make", data={}, name="research")
    assert (refused.status, "group of quotas" in refused.json()["detail"]) == (409, True)
    fine(api.call("quotas.remove", quota="research"))
    assert api.call("projects.make", data={}, name="research").status == 201


def test_a_removed_quota_limits_nothing_and_a_group_goes_last(api: Api) -> None:
    fine(put(api, "research", group=True, limit={"gpu": 1}))
    fine(put(api, "default", parent="research"))
    assert api.submit(gpu=2).status == 422
    refused = api.call("quotas.remove", quota="research")
    assert (refused.status, refused.json()["detail"]) == (409, "research groups default")
    assert "nothing limits it" in fine(api.call("quotas.remove", quota="default"))["message"]
    assert fine(api.call("quotas.remove", quota="research"))["message"] == "group research is removed"
    assert api.call("quotas.remove", quota="research").status == 404
    assert api.submit(gpu=2).status == 201


def test_who_set_what_is_told(api: Api) -> None:
    fine(put(api, "default", limit={"gpu": 8, "memory": "1KiB"}, weight=2))
    assert put(api, "default", "manager", limit={"gpu": 100}).status == 403
    fine(api.call("quotas.remove", quota="default", signed=True))
    calls = api.database.read(lambda tx: events_after(tx, 0, Chosen(kind="call"), limit=100))
    assert [(one.reason, one.object_id, one.state, one.actor, one.message) for one in calls] == [
        ("quotas.set", "default", "done", "admin", "limit=gpu:8,memory:1024 weight=2"),
        ("quotas.set", "default", "NotAllowed", "manager", ""),
        ("quotas.remove", "default", "done", "admin", ""),
    ]


@pytest.mark.parametrize(
    ("spec", "limits", "problem", "step"),
    [
        ({"gpu": 2}, {"gpu": 1}, "it asks for 2 GPUs in all, and the limit of group research is 1 GPU",
         "--gpu 1   or have an administrator raise it: danlu quota set research gpu=2"),
        ({"cpu": 2, "memory": "2GiB"}, {"cpu": "1", "memory": "1GiB"}, "2GiB of memory", "--cpu 1 --memory 1GiB"),
        ({}, {"jobs": 0}, "the limit of group research is 0 jobs", "no job can run within that   or have an"),
        ({"cpu": 1, "gpu": 2}, {"gpu": 0, "cpu": "0.5"}, "2 GPUs and 1 core in all", "ask for less: --cpu 0.5 --gpu 0"),
        ({"memory": "1GiB"}, {"memory": 0}, "the limit of group research is no memory", "ask for no memory"),
        ({"gpu": 1, "gpu_kind": "gpu"}, {"gpu/gpu": 0}, "1 gpu GPU in all", "--gpu 0   or have an administrator"),
        ({"framework": "none", "roles": {"worker": {"replicas": 2, "gpu": 1}}}, {"gpu": 1}, "2 GPUs in all",
         "at most 1 GPU for all 2 tasks together"),
    ],
)  # fmt: skip
def test_a_job_above_a_limit_is_told_what_fits(
    api: Api, spec: dict[str, Any], limits: dict[str, Any], problem: str, step: str
) -> None:
    fine(put(api, "research", group=True, limit=limits))
    fine(put(api, "default", parent="research"))
    refused = api.submit("member", **spec)
    assert (refused.status, refused.json()["code"]) == (422, "NeverFits"), refused.content
    assert problem in refused.json()["detail"]
    assert step in refused.json()["next_step"]


def test_a_job_within_a_full_quota_is_taken(api: Api) -> None:
    fine(put(api, "default", limit={"gpu": 2}))
    hold(api, "default", 2, "long")
    assert api.submit("member", gpu=2).status == 201
    fine(put(api, "other", limit={"gpu": 0}))
    assert api.submit("member", gpu=2).status == 201  # it is another's limit


def test_guarantees_that_no_node_has_are_told_of(api: Api) -> None:
    assert fine(put(api, "default", guarantee={"gpu": 2, "cpu": "4"}))["warnings"] == []
    told = fine(put(api, "other", guarantee={"gpu": 1, "memory": "1GiB"}))["warnings"]
    assert told == ["3 GPUs are guaranteed in all, and the nodes have 2 GPUs: not every guarantee can be kept at once"]


def test_what_has_no_room_is_refused_before_it_is_stored(api: Api) -> None:
    new = b"n" * 1000
    fine(put(api, "default", limit={"storage": "1000B"}))
    for operation, path, data in (
        ("blobs.put", {"address": address_of(new + b"!")}, new + b"!"),
        ("blobs.pack", {}, b"".join(frames([new, b"!"]))),
    ):
        answer = api.call(operation, actor="member", data=data, signed=True, **path)
        assert (answer.status, answer.json()["code"]) == (403, "QuotaExceeded")
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["details"] == {
            "quota": "default", "resource": "storage", "limit": 1000, "used": 0, "asked": 1001,
        }  # fmt: skip
    assert api.platform.blobs.missing("default", [address_of(new)]) != ()
    assert api.call("blobs.put", actor="member", address=address_of(new), data=new).status == 201
    use = fine(api.call("quotas.get", actor="member", quota="default"))
    assert (use["used"]["storage"], use["over"]) == (1000, {})
    body = {"command": "true", "env": "host", "interpreter": "/usr/bin/python3"}
    answer = api.call("jobs.submit", data=body, job=api.new_id("j"))
    assert (answer.status, answer.json()["code"]) == (403, "QuotaExceeded")
    assert "no room for what a new job leaves: the limit of default is 1KB of storage" in answer.json()["detail"]
