"""What runners in pods report, what is wished of them, and what they are handed."""

from __future__ import annotations

import itertools
import json
import threading
import time
from typing import Any

import anyio
import anyio.lowlevel
import httpx2
import pytest

from danlu.api import BY_ID
from danlu.database import reports
from danlu.database.engine import Transaction
from danlu.database.records import ATTEMPTS, JOBS
from danlu.domain.jobs import AttemptState, Desired, Preemption, Reason
from danlu.domain.notices import Wishes
from danlu.domain.reports import TaskReport
from danlu.domain.secrets import HandedSecrets
from danlu.domain.specs import JobSpec
from danlu.domain.trees import address_of, unpack
from danlu.services import reports as reports_service
from danlu.services import wishes
from tests.api.edge import FILE, Answer, Api
from tests.factories import NOW, SECOND

STARTED = {"event": "started", "at": NOW, "task": "main-0"}
ENDED_WELL = {"event": "exited", "at": NOW, "task": "main-0", "exit_code": 0}
FAILED = {**ENDED_WELL, "exit_code": 1}


def report(api: Api, *events: dict[str, Any], task: str = "main-0", saved: Any = None) -> Answer:
    return api.call("reports.put", actor="attempt", data={"events": events, "saved": saved}, task=task)


def wished(api: Api, known: str = "", timeout_s: float = 0) -> Wishes:
    answer = api.call("wishes.wait", actor="attempt", query=f"?known={known}&timeout_s={timeout_s}")
    assert answer.status == 200, answer.content
    return Wishes.model_validate_json(answer.content)


def change_job(api: Api, **fields: Any) -> None:
    def work(tx: Transaction) -> None:
        job = JOBS.require(tx, api.ids["job"])
        JOBS.put(tx, job, job.evolved(now=job.updated_at, **fields))

    api.database.write(work)


def change_attempt(api: Api, **fields: Any) -> None:
    def work(tx: Transaction) -> None:
        attempt = ATTEMPTS.require(tx, api.ids["attempt"])
        ATTEMPTS.put(tx, attempt, attempt.evolved(now=attempt.updated_at, **fields))

    api.database.write(work)


def gang(api: Api, ps: bool = False) -> None:
    """Makes the job one of two tasks, of which the second decides nothing where it is a parameter server."""
    roles = {"chief": {}, "ps": {}} if ps else {"worker": {"replicas": 2}}
    spec = JobSpec.model_validate({"command": ["python", "x.py"], "framework": "tensorflow", "roles": roles})
    change_job(api, spec=spec)

    def work(tx: Transaction) -> None:
        attempt = ATTEMPTS.require(tx, api.ids["attempt"])
        tasks = tuple(
            attempt.tasks[0].model_copy(update={"role": asked.role, "index": asked.index, "rank": rank})
            for rank, asked in enumerate(spec.tasks)
        )
        ATTEMPTS.put(tx, attempt, attempt.evolved(now=attempt.updated_at, tasks=tasks))

    api.database.write(work)


def test_a_report_is_kept_and_told(api: Api) -> None:
    counts = [api.platform.hub.count("attempts")]
    assert report(api, STARTED, saved={"name": "a", "at": 3}).status == 200
    counts.append(api.platform.hub.count("attempts"))
    kept = reports_service.seen(api.database)()[api.ids["attempt"]]["main-0"]
    assert (kept.events, kept.saved and kept.saved.name) == ((STARTED,), "a")
    assert kept.seen_at
    assert report(api, STARTED, saved={"name": "a", "at": 3}).status == 200
    counts.append(api.platform.hub.count("attempts"))
    assert reports_service.seen(api.database)()[api.ids["attempt"]]["main-0"] == kept
    report(api, STARTED, ENDED_WELL)
    counts.append(api.platform.hub.count("attempts"))
    assert reports_service.seen(api.database)()[api.ids["attempt"]]["main-0"].events == (STARTED, ENDED_WELL)
    assert [after - before for before, after in itertools.pairwise(counts)] == [1, 0, 1]


def test_a_report_that_comes_after_the_last_one_changes_nothing(api: Api) -> None:
    """A server that stood still while its runner asked another one goes on with what it had."""
    ended = {"event": "ended", "at": NOW + 1}
    assert report(api, STARTED, ENDED_WELL, ended).status == 200
    assert report(api, STARTED).status == 200
    kept = reports_service.seen(api.database)()[api.ids["attempt"]]["main-0"]
    assert kept.events == (STARTED, ENDED_WELL, ended)


def test_a_sign_of_life_is_stored_now_and_then(api: Api) -> None:
    report(api, STARTED)
    old = NOW
    kept = TaskReport(events=(STARTED,))
    api.database.write(lambda tx: reports.put(tx, api.ids["attempt"], "main-0", kept, old))
    report(api, STARTED)
    assert (reports_service.seen(api.database)()[api.ids["attempt"]]["main-0"].seen_at or 0) > old


@pytest.mark.parametrize(
    ("events", "why"),
    [
        ([{"event": "started"}], "a time"), ([{"event": 3, "at": 3}], "a text"), ([{"at": 3}], "a text"),
        ([{"event": "started", "at": -1}], "a time"), ([{"event": "started", "at": 2**63}], "a time"),
        ([{"event": "started", "at": True}], "a time"),
        ([{"event": "exited", "at": 1, "error": "x" * 300_000}], "at most"),
        ([{"event": "exited", "at": 1}] * 1001, "1000"),
    ],
)  # fmt: skip
def test_what_can_be_no_report_is_refused(api: Api, events: list[Any], why: str) -> None:
    answer = report(api, *events)
    assert answer.status in (400, 422)
    assert why in answer.content.decode()
    assert reports_service.seen(api.database)() == {}


def test_what_no_database_takes_is_replaced(api: Api) -> None:
    deep: Any = [[[[[["x"]]]]]]
    assert report(api, {**STARTED, "error": "a\0b", "large": 2**70, "deep": deep, "ok": [1, 2.5, None]}).status == 200
    (event,) = reports_service.seen(api.database)()[api.ids["attempt"]]["main-0"].events
    assert (event["error"], event["large"], event["ok"]) == ("a\ufffdb", None, [1, 2.5, None])
    assert "x" not in json.dumps(event["deep"])


def test_only_its_own_and_only_its_tasks(api: Api) -> None:
    assert report(api, STARTED, task="main-7").status == 400
    other = api.call("reports.put", actor="attempt", data={"events": []}, attempt=f"{api.new_id('j')}-1")
    assert other.status == 403
    for operation in ("wishes.wait", "handing.code", "handing.secrets"):
        assert api.call(operation, actor="attempt", attempt=f"{api.new_id('j')}-1").status == 403


def test_an_attempt_that_is_over_hears_so(api: Api) -> None:
    change_job(api, attempts=2)
    answers = [report(api, STARTED), *(api.call(one, actor="attempt") for one in ("wishes.wait", "handing.secrets"))]
    assert [(answer.status, answer.json()["code"]) for answer in answers] == 3 * [(409, "StaleAttempt")]


def test_nothing_is_wished_of_what_runs(api: Api) -> None:
    first = wished(api)
    assert first.stop is None
    assert wished(api, first.tag) == first
    assert Wishes.model_validate_json(report(api, STARTED).content) == first


def test_a_stop_is_wished_with_its_grace(api: Api) -> None:
    before = wished(api)
    change_job(api, desired=Desired.STOP)
    stop = wished(api, before.tag).stop
    assert stop is not None
    assert (stop.grace_s, stop.notice, stop.outcome) == (api.job(api.ids["job"]).spec.grace, None, "")
    change_job(api, stop_grace_s=0.5)
    sooner = Wishes.model_validate_json(report(api, STARTED).content)
    assert sooner.stop is not None
    assert sooner.stop.grace_s == 0.5


def test_a_notice_is_the_same_wish_while_its_time_passes(api: Api) -> None:
    now = api.platform.clock.now()
    asked = Preemption(at=now, deadline=now + 20 * SECOND, for_job="j", for_project="default", why="it is urgent")
    change_attempt(api, preemption=asked)
    first, second = wished(api), wished(api)
    assert first.tag == second.tag
    assert first.stop is not None
    assert first.stop.notice is not None
    assert (first.stop.notice.why, first.stop.notice.deadline) == ("it is urgent", asked.deadline)
    assert 0 < first.stop.notice.within_s <= 20


def test_what_was_given_up_has_no_time_left(api: Api) -> None:
    """Nothing of it may go on beside its successor, which is not there yet."""

    def work(tx: Transaction) -> None:
        attempt = ATTEMPTS.require(tx, api.ids["attempt"])
        lost = attempt.moved(AttemptState.ENDED, now=NOW, reason=Reason.NODE_LOST, ended_at=NOW)
        ATTEMPTS.put(tx, attempt, lost)

    api.database.write(work)
    stop = wished(api).stop
    assert stop is not None
    assert stop.grace_s == 0


@pytest.mark.parametrize(
    ("ps", "first", "second", "outcome"),
    [
        (False, FAILED, None, "badly"), (False, None, FAILED, "badly"), (False, ENDED_WELL, None, "well"),
        (False, None, ENDED_WELL, None),
        (False, ENDED_WELL, ENDED_WELL, None), (True, ENDED_WELL, None, "well"), (True, None, FAILED, "badly"),
        (True, None, ENDED_WELL, None), (True, FAILED, None, "badly"),
        (False, {**ENDED_WELL, "exit_code": None}, None, "badly"),
    ],
)  # fmt: skip
def test_a_gang_ends_by_the_runners_rule(api: Api, ps: bool, first: Any, second: Any, outcome: str | None) -> None:
    gang(api, ps)
    for name, event in zip(["chief-0", "ps-0"] if ps else ["worker-0", "worker-1"], (first, second), strict=True):
        if event is not None:
            assert report(api, STARTED, event, task=name).status == 200
    stop = wished(api).stop
    assert (None if stop is None else stop.outcome) == outcome


def test_who_waits_is_answered_at_once(api: Api) -> None:
    before = wished(api)
    threading.Timer(0.3, lambda: (change_job(api, desired=Desired.STOP), api.platform.hub.notify("jobs"))).start()
    began = time.monotonic()
    assert wished(api, before.tag, timeout_s=60).stop is not None
    assert time.monotonic() - began < 30


def test_who_waits_hears_that_it_is_over(api: Api) -> None:
    before = wished(api)
    threading.Timer(0.3, lambda: change_job(api, attempts=2)).start()
    answer = api.call("wishes.wait", actor="attempt", query=f"?known={before.tag}&timeout_s=60")
    assert (answer.status, answer.json()["code"]) == (409, "StaleAttempt")


def test_runners_that_wait_take_nobodys_turn(api: Api) -> None:
    api.limit(requests=2, waits=5)
    token = {"Authorization": f"Bearer {api.tokens['attempt']}"}
    path = api.path(BY_ID["wishes.wait"]) + f"?known={wished(api).tag}&timeout_s=3"
    body = {"events": [STARTED], "saved": None}
    answers: list[int] = []

    async def go() -> None:  # in one event loop, as a server has it
        transport = httpx2.ASGITransport(app=api.gate)
        async with httpx2.AsyncClient(transport=transport, base_url="http://danlu", headers=token) as client:

            async def wait() -> None:
                answers.append((await client.get(path, timeout=30)).status_code)

            with anyio.fail_after(30):
                async with anyio.create_task_group() as group:
                    for _ in range(5):
                        group.start_soon(wait)
                    while api.edge.streams.wishes._waiting.total() < 5:
                        await anyio.lowlevel.checkpoint()
                    told = await client.put(api.path(BY_ID["reports.put"], task="main-0"), json=body)
                    assert told.status_code == 200

    anyio.run(go)
    assert answers == [200] * 5


def test_many_are_looked_at_together(api: Api) -> None:
    found = wishes.Look().of(api.platform, [api.ids["attempt"], f"{api.new_id('j')}-1"])
    assert found[api.ids["attempt"]] == wished(api)
    assert list(found.values()).count(None) == 1


def test_code_comes_as_a_pack(api: Api) -> None:
    change_job(api, spec=JobSpec.model_validate({"command": ["x"], "code": address_of(api.node)}))
    answer = api.call("handing.code", actor="attempt")
    assert list(unpack(answer.content)) == [(address_of(api.node), api.node), (address_of(FILE), FILE)]


def test_code_that_is_not_there_any_more(api: Api) -> None:
    change_job(api, spec=JobSpec.model_validate({"command": ["x"], "code": address_of(b"gone")}))
    answer = api.call("handing.code", actor="attempt")
    assert (answer.status, answer.json()["code"]) == (404, "NotFound")


def test_secrets_are_handed_to_their_attempt(api: Api) -> None:
    change_job(api, spec=JobSpec.model_validate({"command": ["x"], "secrets": {"TOKEN": "HF_TOKEN"}}))
    answer = api.call("handing.secrets", actor="attempt")
    handed = HandedSecrets.model_validate_json(answer.content)
    assert [(one.variable, one.value, one.file) for one in handed.secrets] == [("TOKEN", "hf_0123456789", False)]
    assert answer.headers["cache-control"] == "no-store"
