"""Usage, prices and figures over the wire: exact numbers, refusals that tell what is wrong, who may see what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from danlu.database import ledger, queries
from danlu.database.engine import Database, Transaction
from danlu.database.records import ATTEMPTS
from danlu.domain.jobs import AttemptState, Reason
from tests.api.edge import Api
from tests.factories import NOW, SECOND

UNTIL = f"since={NOW}&until={NOW + 100 * SECOND}"


@pytest.fixture
def api(sqlite: Database, tmp_path: Path) -> Api:
    """The edge's attempt has held a core since NOW; it ends 10 s later, of which it used 8."""
    made = Api(sqlite, tmp_path)

    def end(tx: Transaction) -> None:
        attempt = ATTEMPTS.require(tx, made.ids["attempt"])
        tasks = (attempt.tasks[0].model_copy(update={"started_at": NOW + SECOND, "ended_at": NOW + 9 * SECOND + 1}),)
        over = attempt.moved(
            AttemptState.ENDED, now=NOW + 10 * SECOND, reason=Reason.COMPLETED, tasks=tasks, started_at=NOW + SECOND,
            ended_at=NOW + 9 * SECOND + 1,
        )  # fmt: skip
        ATTEMPTS.put(tx, attempt, over)

    sqlite.write(end)
    return made


def usage(api: Api, query: str = "", actor: str = "viewer") -> Any:
    answer = api.call("usage.report", actor=actor, query=f"?{UNTIL}{query}")
    assert answer.status == 200, answer.content
    return answer.json()


def test_numbers_are_exact_texts(api: Api) -> None:
    (line,) = usage(api)["lines"]
    assert line["name"] == "default"
    assert line["cpu_core_seconds"] == {"used": "8.000000001", "idle": "0", "platform": "1.999999999"}


def test_a_project_sees_its_own_and_an_administrator_all(api: Api) -> None:
    assert usage(api, actor="foreign", query="&by=user")["lines"] == []
    answer = api.call("usage.report", actor="manager", query=f"?{UNTIL}&platform=true")
    assert (answer.status, answer.json()["code"]) == (403, "NotAllowed")
    assert "--project" in answer.json()["next_step"]
    assert [line["name"] for line in usage(api, "&platform=true&by=user", "admin")["lines"]] == ["admin"]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("&by=node", "by"),
        ("&limit=0", "limit"),
        (f"&until={NOW}", "since 2023-11-14T22:13:20 is not before until 2023-"),
        ("&since=-1", "since"),
    ],
)
def test_what_cannot_be_reported_is_refused(api: Api, query: str, said: str) -> None:
    answer = api.send("GET", f"/v1/usage?since={NOW}{query}")
    assert answer.status == 422 or answer.status == 400
    assert said in answer.json()["detail"]


def set_price(api: Api, actor: str = "admin", **fields: Any) -> Any:
    return api.call("prices.set", actor=actor, data={"resource": "cpu", "per_hour": "3600", **fields})


def test_a_price_is_told_in_the_audit_and_costs(api: Api) -> None:
    mixed = set_price(api, currency="EUR")
    assert (mixed.status, "in EUR (at any time) beside that of memory in USD" in mixed.json()["detail"]) == (409, True)
    api.call("prices.remove", price=api.call("prices.list").json()["items"][0]["id"])
    assert set_price(api, currency="EUR", valid_until=NOW + 5 * SECOND).status == 201
    assert usage(api)["lines"][0]["cost"] == {"EUR": "4.000000"}
    calls = api.database.read(lambda tx: queries.events_after(tx, 0, queries.Chosen(kind="call"), limit=100))
    assert calls[-1].message == f"resource=cpu per_hour=3600 currency=EUR valid_from=0 valid_until={NOW + 5 * SECOND}"
    two = set_price(api, valid_from=NOW)
    assert (two.status, two.json()["code"]) == (409, "Conflict")
    assert "cpu would have two prices at once" in two.json()["detail"]
    found = api.call("prices.list", actor="viewer").json()["items"]
    assert [(one["resource"], one["per_hour"]) for one in found] == [("cpu", "3600")]
    removed = api.call("prices.remove", price=found[0]["id"]).json()["message"]
    assert removed == "the price of cpu, 3600 EUR until 2023-11-14T22:13:25, is removed"
    assert usage(api)["lines"][0]["cost"] == {}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"per_hour": 2.5}, "is not a price"), ({"per_hour": "1e9"}, "is not a price"),
        ({"per_hour": "-1"}, "is not a price"),
        ({"resource": "disk"}, "has no price"), ({"resource": "gpu/H 100"}, "has no price"),
        ({"currency": "dollar"}, "'dollar' is no currency"), ({"currency": "usd"}, "'usd' is no currency"),
        ({"valid_from": 5, "valid_until": 5}, "before it begins"), ({"valid_until": 2**63}, "valid_until"),
    ],
)  # fmt: skip
def test_what_is_no_price_is_refused(api: Api, fields: dict[str, Any], said: str) -> None:
    answer = set_price(api, **fields)
    assert answer.status in (400, 422), answer.content
    assert said in answer.json()["detail"]


def test_a_time_that_is_to_come_has_no_usage(api: Api) -> None:
    answer = api.call("usage.report", query=f"?since={2**61}")
    assert (answer.status, answer.json()["detail"]) == (400, "since 2043-01-25T23:56:49 is not before now")


def test_a_job_is_told_with_whose_it_is(api: Api) -> None:
    (line,) = usage(api, "&by=job")["lines"]
    assert (line["project"], line["user"]) == ("default", "admin")


def test_prometheus_can_read_it(api: Api) -> None:
    answer = api.call("prometheus.get")
    families = {family.name: family for family in text_string_to_metric_families(answer.content.decode())}
    seconds = {
        s.labels["account"]: s.value
        for s in families["danlu_resource_seconds"].samples
        if s.labels["resource"] == "cpu"
    }
    assert seconds == {"used": 8.000000001, "platform": 1.999999999}
    assert {s.labels["project"] for s in families["danlu_resource_seconds"].samples} == {"default"}
    capacity = {(s.labels["node"], s.labels["resource"]): s.value for s in families["danlu_capacity"].samples}
    assert capacity == {("node-1", "cpu"): 4, ("node-1", "memory"): 32 * 2**30, ("node-1", "gpu/gpu"): 2}
    jobs = {(s.labels["project"], s.labels["state"]): s.value for s in families["danlu_jobs"].samples}
    assert jobs == {("default", "running"): 1, ("default", "cancelled"): 1}


def test_a_doctor_says_that_nothing_is_charged_as_the_clock_was_ahead(api: Api) -> None:
    def checks() -> list[Any]:
        return [
            one for one in api.call("platform.doctor", query="?index=false").json()["checks"] if one["name"] == "ledger"
        ]

    assert checks() == []
    api.database.write(lambda tx: ledger._advance(tx, 4_070_908_800 * SECOND))
    (found,) = checks()
    assert (found["verdict"], found["value"][:34]) == ("warn", "its newest entry is of 2099-01-01:")
