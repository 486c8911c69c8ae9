"""Jobs by the API: what is right is stored, what is wrong is refused with the field, the value and the next step."""

from __future__ import annotations

import base64
import dataclasses
from typing import Any

import pytest

from danlu.database.records import ATTEMPTS, JOBS
from danlu.domain.jobs import Desired
from tests.api.edge import Api

WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"comand": "x"}, "comand is not a field", "did you mean command?"),
    ({"command": []}, "command", ""),
    ({"command": ["a\0b"]}, "NUL", ""),
    ({"cpu": -1}, "cpu", ""),
    ({"cpu": "many"}, "'many' is not an amount of CPU", ""),
    ({"cpu": 1e308}, "cpu", ""),
    ({"memory": "-5GiB"}, "not an amount of memory", ""),
    ({"memory": "4 potatoes"}, "not an amount of memory", ""),
    ({"gpu": 1.5}, "gpu", ""),
    ({"gpu": -1}, "gpu", ""),
    ({"gpu": True}, "gpu", ""),
    ({"gpu": "8..2"}, "write 2..8", ""),
    ({"gpu": "0..4"}, "write 1..4", ""),
    ({"gpu": "..8"}, "is not a range of GPUs", ""),
    ({"gpu": "2..8", "gpu_min": 3}, "two answers", ""),
    ({"gpu_min": 2}, "gpu_min is 2 and gpu is 0", ""),
    ({"gpu": "1..4096"}, "more than 64 sizes", ""),
    ({"gpu": "1..2", "roles": {"worker": {"gpu": 2}}}, "leave roles.worker.gpu out", ""),
    ({"gpu": "1..2", "roles": {"worker": {"gpu": 0}}}, "no task of its roles has a GPU", ""),
    ({"gpu": "3..8"}, "never fit", "--gpu 2"),
    ({"gpu": 64}, "never fit", "danlu nodes"),
    ({"cpu": 5}, "never fit", "danlu nodes"),
    ({"memory": "1TiB"}, "never fit", "danlu nodes"),
    ({"gpu": 1, "gpu_kind": "h100"}, "never fit", "danlu nodes"),
    ({"gpu_kind": "h100"}, "gpu_kind is set but gpu is 0", ""),
    (
        {"roles": {"worker": {"replicas": 3}}, "cpu": 2},
        "3 workers of 2 cpu need 6 cpu; this machine has 4 cpu",
        "--cpu 1.3",
    ),
    (
        {"roles": {"worker": {"replicas": 2}, "ps": {"cpu": 3}}},
        "2 workers + 1 ps need 5 cpu; this machine has",
        "fewer workers",
    ),
    ({"roles": {"chief": {"replicas": 2}}}, "exactly one chief", ""),
    ({"roles": {"evaluator": {}}}, "evaluator alone", ""),
    ({"roles": {"worker": {"gpus": 1}}}, "roles.worker.gpus is not a field", "did you mean gpu?"),
    ({"command": None, "roles": {"worker": {}}}, "roles.worker.command is missing", ""),
    ({"framework": "tensorflo", "roles": {"worker": {}}}, "'tensorflo' is not known", ""),
    ({"env": "pythn"}, "pythn", "did you mean python?"),
    ({"env": "tensorflow1"}, "tensorflow1", "did you mean tensorflow-1?"),
    ({"env": "sklearn", "requirements": "numpy"}, "exclude each other", ""),
    ({"env": "host"}, "interpreter", ""),
    ({"image": "No Image"}, "is no image's name", ""),
    ({"image": "python", "env": "sklearn"}, "exclude each other", ""),
    ({"image": "python"}, "this platform runs no container images", "apt-get install podman"),
    ({"interpreter": "/usr/bin/python3"}, "interpreter belongs to env: host", ""),
    ({"name": "Not A Name"}, "name", ""),
    ({"variables": {"DANLU_URL": "x"}}, "DANLU_URL is set by the platform", ""),
    ({"variables": {"a b": "x"}}, "cannot be a variable", ""),
    ({"retry": {"attempts": 0}}, "retry.attempts", ""),
    ({"retry": {"atempts": 2}}, "retry.atempts is not a field", "did you mean attempts?"),
    ({"max_time": "soon"}, "not a duration", ""),
    ({"priority": 10**6}, "priority", ""),
    ({"priority": "hihg"}, "'hihg' is not a priority", "did you mean high?"),
    ({"code": "sha256:" + "0" * 64}, "was not uploaded", ""),
    ({"code": "latest"}, "code", ""),
    ({"labels": {"Bad Key": "x"}}, "labels", ""),
]


@pytest.mark.parametrize(("fields", "said", "step"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_field_is_named(api: Api, fields: dict[str, Any], said: str, step: str) -> None:
    before = api.call("jobs.list").json()["items"]
    answer = api.submit(**fields)
    assert answer.status == 422, answer.content
    problem = answer.json()
    assert said in problem["detail"]
    assert step in problem["next_step"]
    assert answer.headers["content-type"] == "application/problem+json"
    assert api.call("jobs.list").json()["items"] == before


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"command": "x", "priority": ' + b"9" * 5000 + b"}"],
)
def test_a_body_that_is_no_job_is_refused(api: Api, body: bytes) -> None:
    answer = api.send("PUT", f"/v1/jobs/{api.new_id('j')}", data=body, headers={"Content-Type": "application/json"})
    assert answer.status in (400, 422)
    assert answer.json()["code"] in ("InvalidRequest", "InvalidSpec")


def test_a_body_too_large_is_refused(api: Api) -> None:
    answer = api.submit(variables={"A": "x" * (5 * 2**20)})
    assert (answer.status, answer.json()["code"]) == (413, "TooLarge")


def test_submitting_twice_is_once(api: Api) -> None:
    job_id, body = api.new_id("j"), {"command": ["python", "train.py"]}
    first = api.call("jobs.submit", job=job_id, data=body)
    second = api.call("jobs.submit", job=job_id, data=body)
    assert (first.status, second.status) == (201, 201)
    assert first.json() == second.json()
    other = api.call("jobs.submit", job=job_id, data={"command": ["other"]})
    assert (other.status, other.json()["code"]) == (409, "Conflict")


def test_an_id_is_made_by_the_rule(api: Api) -> None:
    for wrong in ("x", "j" + "w" * 26, api.new_id("t")):
        answer = api.call("jobs.submit", job=wrong, data={"command": "true"})
        assert (answer.status, answer.json()["code"]) == (400, "InvalidRequest")


def test_names_are_unique_among_the_living(api: Api) -> None:
    assert api.submit(name="mine").status == 201
    taken = api.submit(name="mine")
    assert (taken.status, taken.json()["code"]) == (409, "NameTaken")
    assert "'mine'" in taken.json()["detail"]
    assert api.submit(name="over").status == 201


def test_names_are_made_up_from_commands(api: Api) -> None:
    names = [api.submit().json()["name"] for _ in range(3)]
    assert names == ["train-1", "train-2", "train-3"]


def test_a_job_is_found_by_id_and_name(api: Api) -> None:
    assert api.call("jobs.get", job="train").json()["id"] == api.ids["job"]
    missing = api.call("jobs.get", job="nothing")
    assert (missing.status, missing.json()["code"]) == (404, "NotFound")
    assert missing.json()["next_step"]


def test_jobs_come_in_pages(api: Api) -> None:
    made = [api.submit().json()["id"] for _ in range(5)]
    seen, cursor = [], ""
    while True:
        page = api.call("jobs.list", query=f"?limit=2{cursor}").json()
        seen += [job["id"] for job in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert seen == sorted([*made, api.ids["job"], api.ids["ended"]], reverse=True)
    assert len(api.call("jobs.list", query="?state=queued").json()["items"]) == 5
    for wrong in ("?limit=0", "?limit=501", "?state=lost", "?colour=red"):
        assert api.call("jobs.list", query=wrong).status == 422


def test_stop_is_an_intent(api: Api) -> None:
    answer = api.call("jobs.stop", job="train", data={"grace": "5s"})
    assert answer.status == 202
    job = api.job(api.ids["job"])
    assert (job.desired, job.stop_grace_s, str(job.state)) == (Desired.STOP, 5.0, "running")
    assert api.call("jobs.stop", job="train", data={}).status == 202
    assert api.job(api.ids["job"]) == job
    assert api.call("jobs.stop", job="over", data={}).json()["state"] == "cancelled"


def test_a_retry_goes_on_from_the_checkpoints(api: Api) -> None:
    live = api.call("jobs.retry", job="train", data={"id": api.new_id("j")})
    assert (live.status, live.json()["code"]) == (409, "Conflict")
    again = api.call("jobs.retry", job="over", data={"id": api.new_id("j"), "changes": {"cpu": 2}})
    assert again.status == 201
    found = again.json()
    assert (found["name"], found["checkpoint_owner"], found["retry_of"]) == ("over", api.ids["ended"], api.ids["ended"])
    assert found["spec"]["cpu"] == 2
    wrong = api.call("jobs.retry", job=api.ids["ended"], data={"id": api.new_id("j"), "changes": {"cpus": 2}})
    assert (wrong.status, wrong.json()["next_step"]) == (422, "did you mean cpu?")


def test_why_counts_who_is_ahead(api: Api) -> None:
    host = {"env": "host", "interpreter": "/usr/bin/python3"}
    first = api.submit(name="first", **host).json()["id"]
    api.submit(name="second", **host)
    api.submit(name="urgent", priority=9, **host)
    why = api.call("jobs.why", job="second").json()
    assert (why["position"], why["of"]) == (3, 3)
    assert [(one["name"], one["why"]) for one in why["ahead"]] == [("urgent", "Priority"), ("first", "AskedBefore")]
    assert why["nodes"][0]["free"]["cpu_milli"] == 3000
    assert api.call("jobs.why", job=first).json()["position"] == 2


def test_logs_are_read_from_the_streams(api: Api) -> None:
    piece = b"".join(b"%d o. line %d\n" % (1_700_000_000_000_000_000 + n, n) for n in range(10))
    put = api.call("attempts.append", actor="attempt", data=piece + b"17000")
    assert put.json()["offset"] == len(piece) + 5
    again = api.call("attempts.append", actor="attempt", data=piece, query="?offset=0")
    assert again.json()["offset"] == len(piece) + 5
    gap = api.call("attempts.append", actor="attempt", data=piece, query="?offset=100000")
    assert (gap.status, gap.json()["code"]) == (409, "Conflict")
    page = api.call("jobs.logs", job="train").json()
    assert page["chunks"] == [{"attempt": 1, "task": "main-0", "data": piece.decode()}]
    assert not page["done"]
    following = api.call("jobs.logs", job="train", query=f"?cursor={page['cursor']}").json()
    assert following["chunks"] == []
    tail = api.call("jobs.logs", job="train", query="?tail=2").json()
    assert tail["chunks"][0]["data"].count("\n") == 2  # a torn line at the end is not shown yet
    since = api.call("jobs.logs", job="train", query="?since=1700000000000000007").json()
    assert since["chunks"][0]["data"].count("\n") == 3
    assert api.call("jobs.logs", job="train", query="?attempt=9").status == 404
    forged = base64.urlsafe_b64encode(b'[1,{"main-0":-5}]').decode()
    for cursor in ("x", "%00", forged):
        assert api.call("jobs.logs", job="train", query=f"?cursor={cursor}").status == 400


def test_another_attempt_cannot_write_here(api: Api) -> None:
    job_id = api.submit().json()["id"]
    answer = api.call("attempts.append", actor="attempt", data=b"x", attempt=f"{job_id}-1")
    assert answer.status == 403
    for task, stream in (("main-9", "log"), ("main-0", "secrets"), ("..", "log")):
        answer = api.call("attempts.append", actor="attempt", data=b"x", task=task, stream=stream)
        assert answer.status in (400, 404)


def test_an_attempt_that_was_replaced_is_stale(api: Api) -> None:
    def work(tx: Any) -> None:
        job = JOBS.require(tx, api.ids["job"])
        JOBS.put(tx, job, job.evolved(now=job.updated_at, attempts=2))
        assert ATTEMPTS.get(tx, api.ids["attempt"]) is not None

    api.database.write(work)
    answer = api.call("attempts.append", actor="attempt", data=b"x")
    assert (answer.status, answer.json()["code"]) == (409, "StaleAttempt")


def test_metrics_keep_their_peaks(api: Api) -> None:
    lines = "".join(f'{{"t":{n},"s":{n},"m":{{"loss":{1000 if n == 777 else n / 1000}}}}}\n' for n in range(2000))
    api.call("attempts.append", actor="attempt", data=lines.encode(), stream="metrics")
    (series,) = api.call("jobs.metrics", job="train", query="?points=50").json()["series"]
    assert (series["name"], series["count"], series["largest"]) == ("loss", 2000, 1000)
    assert len(series["values"]) <= 50
    assert 1000 in series["values"]
    assert api.call("jobs.metrics", job="train", query="?name=other").json()["series"] == []


def test_a_stream_goes_on_from_its_last_id(api: Api) -> None:
    answer = api.send("GET", f"/v1/jobs/{api.ids['ended']}/logs/stream")
    assert answer.status == 200
    assert b'"done":true' in answer.content
    event_id = answer.content.split(b"\n")[0].removeprefix(b"id: ").decode()
    again = api.send("GET", f"/v1/jobs/{api.ids['ended']}/logs/stream", headers={"Last-Event-ID": event_id})
    assert b'"done":true' in again.content
    assert api.send("GET", "/v1/jobs/nothing/logs/stream").status == 404


def test_tokens_open_their_own_project_and_no_longer_than_they_may(api: Api) -> None:
    made = api.call("tokens.make", data={"name": "ci", "valid_for": "1h"}).json()
    assert made["token"]["digest"] == ""
    api.tokens["ci"] = made["secret"]
    assert api.call("jobs.list", actor="ci").status == 200
    assert made["secret"] not in api.call("tokens.list").content.decode()
    assert api.call("tokens.revoke", token=made["token"]["id"]).status == 200
    assert api.call("jobs.list", actor="ci").status == 401
    assert api.call("tokens.revoke", token=made["token"]["id"]).status == 404
    short = api.call("tokens.make", data={"name": "short", "valid_for": "1ms"}).json()
    api.tokens["short"] = short["secret"]
    assert api.call("jobs.list", actor="short").status == 401


def test_events_tell_what_happened_in_order(api: Api) -> None:
    job_id = api.submit(name="seen").json()["id"]
    api.call("jobs.stop", job="seen", data={})
    found = api.call("events.list", query=f"?object_id={job_id}").json()["items"]
    assert [(event["state"], event["reason"]) for event in found] == [
        ("queued", "PendingEvaluation"),
        ("queued", "DesiredStop"),
    ]
    assert all(event["actor"] == "admin" for event in found)
    assert api.call("events.list", query=f"?after={found[-1]['seq']}").json()["items"] == []


def test_the_platform_tells_of_itself(api: Api) -> None:
    found = api.call("platform.get").json()
    assert found["jobs"] == {"running": 1, "cancelled": 1}
    assert (found["url"], found["database"]) == ("http://danlu", "sqlite")
    assert found["nodes"][0]["used"]["cpu_milli"] == 1000


@pytest.mark.parametrize("cursor", ["\u00b2", "x", "-1", "9" * 30])
def test_a_cursor_that_is_none_is_refused(api: Api, cursor: str) -> None:
    assert api.call("jobs.attempts", job="train", query=f"?cursor={cursor}").status == 400


def test_a_strange_last_event_id_is_no_fault(api: Api) -> None:
    answer = api.send("GET", f"/v1/jobs/{api.ids['ended']}/logs/stream", headers={"Last-Event-ID": "12"})
    assert answer.status in (200, 400)


def test_what_is_no_metric_is_passed_over(api: Api) -> None:
    lines = b'not json\n{"t":1}\n{"t":1,"s":null,"m":{"loss":0.5}}\n{"t":1,"s":1,"m":{"loss":"x"}}\n[1]\n'
    api.call("attempts.append", actor="attempt", data=lines, stream="metrics")
    (series,) = api.call("jobs.metrics", job="train").json()["series"]
    assert series["values"] == [0.5]


def test_env_host_is_for_administrators_where_users_are_kept_apart(api: Api) -> None:
    fields = {"env": "host", "interpreter": "/usr/bin/python3"}
    assert api.submit(actor="member", **fields).status == 201
    api.platform.facts = dataclasses.replace(api.platform.facts, separate_users=True)
    refused = api.submit(actor="member", **fields)
    assert (refused.status, refused.json()["code"]) == (422, "InvalidSpec")
    assert api.submit(actor="admin", **fields).status == 201


def test_a_member_is_told_of_its_own_project_only(api: Api) -> None:
    found = api.call("platform.get", actor="foreign").json()
    assert (found["jobs"], found["home"]) == ({}, "")
