"""Secrets by the API: kept sealed, listed by name alone, handed to what needs them, forgotten when nobody does."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from danlu.database.queries import Chosen, events_after
from danlu.database.records import ATTEMPTS, JOBS, SECRETS
from danlu.domain.jobs import Job
from danlu.domain.secrets import MAX_LINES, MAX_LINES_OF_AN_ATTEMPT, Secret
from danlu.errors import SecretUnavailable, VaultLocked
from danlu.services.secrets import MAX_OLD, MAX_SECRETS, forget_replaced, handed, printable
from danlu.services.vault import Vault
from tests.api.edge import Api

CANARY = "canary_0123456789"


def stored(api: Api, name: str = "") -> list[Secret]:
    found = api.database.read(lambda tx: SECRETS.find(tx, project="default", limit=1000))
    return [secret for secret in found if name in ("", secret.name)]


def values(api: Api, job: Job) -> dict[str, str]:
    found = handed(api.database, api.platform.vault, job)
    return {one.variable: one.value for one in found}


def submitted(api: Api, **spec: Any) -> Job:
    answer = api.submit(**spec)
    assert answer.status == 201, answer.content
    return api.job(answer.json()["id"])


def test_a_value_is_told_to_nobody(api: Api, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        answers = [
            api.call("secrets.set", actor="member", data={"value": CANARY}, secret="NEW", signed=True),
            api.call("secrets.set", actor="viewer", data={"value": CANARY}, secret="NEW"),
            api.call("secrets.set", actor="foreign", data={"value": CANARY}, secret="NEW"),
            api.call("secrets.set", data={"value": [CANARY]}, secret="NEW"),
            api.call("secrets.set", data={"value": CANARY + "\0"}, secret="NEW"),
            api.call("secrets.set", data={"value": CANARY * 10_000}, secret="NEW"),
            api.call("secrets.set", data={"value": CANARY, "file": CANARY}, secret="NEW"),
            api.call("secrets.set", data=[CANARY], secret="NEW"),
            api.call("secrets.set", data=CANARY, secret="NEW"),
            api.call("secrets.set", data={"value": CANARY}, secret="no-name"),
            api.send(
                "PUT",
                "/v1/secrets/NEW",
                data=f'{{"value": "{CANARY}'.encode(),
                headers={"Content-Type": "application/json"},
            ),
            api.call("secrets.list"),
            api.send("GET", "/v1/openapi.json"),
            api.submit(secrets=["NEW"]),
            api.call("events.list", query="?kind=call"),
            api.call("events.list"),
        ]
    assert [answer.status for answer in answers] == [
        200, 403, 200, 422, 422, 422, 422, 422, 422, 400, 400, 200, 200, 201, 200, 200
    ]  # fmt: skip
    assert not any(CANARY.encode() in answer.content for answer in answers)
    assert CANARY not in caplog.text
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or CANARY.encode() not in file.read_bytes(), file


def test_what_is_listed(api: Api) -> None:
    for name, value in (("ONE", "first value"), ("TWO", "second value"), ("ONE", "third value")):
        answer = api.call("secrets.set", actor="member", data={"value": value}, secret=name)
        assert answer.status == 200
        assert (answer.json()["name"], answer.json()["sealed"], answer.json()["created_by"]) == (name, None, "member")
    listed = api.call("secrets.list", actor="viewer").json()["items"]
    assert sorted(secret["name"] for secret in listed) == ["HF_TOKEN", "ONE", "TWO"]
    assert all(secret["sealed"] is None for secret in listed)


def test_a_job_gets_what_it_names(api: Api) -> None:
    api.call("secrets.set", data={"value": "line 1\nline 2\n"}, secret="deploy_key")
    job = submitted(api, secrets={"HF": "HF_TOKEN", "KEY": {"secret": "deploy_key", "file": True}})
    found = handed(api.database, api.platform.vault, job)
    assert [(one.variable, one.value, one.file) for one in found] == [
        ("HF", "hf_0123456789", False), ("KEY", "line 1\nline 2\n", True)
    ]  # fmt: skip
    assert "hf_0123456789" not in repr(found)
    assert values(api, submitted(api, secrets=["HF_TOKEN"])) == {"HF_TOKEN": "hf_0123456789"}
    assert values(api, submitted(api)) == {}


@pytest.mark.parametrize(
    ("spec", "problem", "step"),
    [
        ({"secrets": ["HF_TOKN"]}, "there is no secret 'HF_TOKN' in project default", "did you mean HF_TOKEN?"),
        ({"secrets": {"A": "missing"}}, "secrets.A: there is no secret 'missing'", "danlu secret set"),
        ({"secrets": {"DANLU_TOKEN": "HF_TOKEN"}}, "DANLU_TOKEN is set by the platform", ""),
        ({"secrets": {"PATH": "HF_TOKEN"}}, "PATH is set by the platform", ""),
        ({"secrets": ["HF_TOKEN"], "variables": {"HF_TOKEN": "x"}}, "HF_TOKEN is among the variables too", ""),
        ({"secrets": ["HF_TOKEN"], "roles": {"worker": {"variables": {"HF_TOKEN": "x"}}}}, "among the variables", ""),
        ({"secrets": {"A-B": "HF_TOKEN"}}, "a secret's name has at most 63 letters", ""),
        ({"secrets": {"A": {"secret": "HF_TOKEN", "path": "/x"}}}, "secrets.A.path is not a field", ""),
        ({"secrets": {"A": 3}}, "secrets.A", ""),
        ({"secrets": [3]}, "a list holds names of secrets", ""),
        ({"secrets": {f"A{n}": "HF_TOKEN" for n in range(51)}}, "at most 50 entries", ""),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_at_submit(api: Api, spec: dict[str, Any], problem: str, step: str) -> None:
    answer = api.submit(**spec)
    assert answer.status == 422, answer.content
    assert problem in answer.json()["detail"]
    assert step in answer.json()["next_step"]


def test_another_projects_secret_is_none(api: Api) -> None:
    answer = api.submit("foreign", secrets=["HF_TOKEN"])
    assert (answer.status, answer.json()["detail"]) == (
        422,
        "secrets.HF_TOKEN: there is no secret 'HF_TOKEN' in project other",
    )
    assert "did you mean" not in answer.json()["next_step"]
    assert api.call("secrets.list", actor="foreign").json()["items"] == []


def test_a_removed_one_fails_what_starts_later(api: Api) -> None:
    job = submitted(api, name="needs-it", secrets=["HF_TOKEN"])
    answer = api.call("secrets.remove", actor="member")
    assert answer.status == 200
    assert "it is needed by needs-it" in answer.json()["message"]
    with pytest.raises(SecretUnavailable, match=r"HF_TOKEN was removed after.*danlu secret set HF_TOKEN"):
        values(api, job)
    again = api.call("secrets.remove", actor="member")
    assert (again.status, again.json()["code"]) == (404, "NotFound")
    api.call("secrets.set", data={"value": "hf_new_value"})
    assert values(api, job) == {"HF_TOKEN": "hf_new_value"}


def test_a_lost_master_key_is_told_with_the_secret(api: Api) -> None:
    job = submitted(api, secrets=["HF_TOKEN"])
    other = Vault(b"x" * 32, lambda count: b"r" * count)
    with pytest.raises(SecretUnavailable, match=r"HF_TOKEN cannot be opened.*master key"):
        handed(api.database, other, job)
    with pytest.raises(VaultLocked):
        printable(api.database, other, f"{job.id}-1")


def test_older_values_are_kept_for_attempts_that_may_have_them(api: Api) -> None:
    attempt = api.database.read(lambda tx: ATTEMPTS.require(tx, api.ids["attempt"]))
    running = api.job(api.ids["job"])
    needing = running.spec.model_copy(update={"secrets": submitted(api, secrets=["HF_TOKEN"]).spec.secrets})
    new = running.evolved(now=running.updated_at, spec=needing)
    api.database.write(lambda tx: JOBS.put(tx, running, new))
    for value in ("hf_second_one", "hf_third_one", "hf_third_one"):
        assert api.call("secrets.set", data={"value": value}).status == 200
    assert len(stored(api, "HF_TOKEN")) == 3, "the same value again is no new one"
    assert sorted(printable(api.database, api.platform.vault, attempt.id)) == [
        "hf_0123456789", "hf_second_one", "hf_third_one"
    ]  # fmt: skip
    api.call("secrets.remove")
    assert len(printable(api.database, api.platform.vault, attempt.id)) == 3
    over = attempt.evolved(now=attempt.updated_at, collected=True)
    api.database.write(lambda tx: (ATTEMPTS.put(tx, attempt, over), forget_replaced(tx, "default")))
    assert stored(api) == []


def test_older_values_are_bounded(api: Api) -> None:
    answers = [api.call("secrets.set", data={"value": f"value number {n}"}) for n in range(MAX_OLD + 1)]
    assert [answer.status for answer in answers] == [200] * MAX_OLD + [409]
    assert "wait until they have ended" in answers[-1].json()["next_step"]
    assert values(api, submitted(api, secrets=["HF_TOKEN"])) == {"HF_TOKEN": f"value number {MAX_OLD - 1}"}


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\n\n"])
def test_lines_of_a_value_are_bounded(api: Api, end: str) -> None:
    lines = [f"line {n} of it{end}" for n in range(MAX_LINES + 1)]
    assert api.call("secrets.set", data={"value": "".join(lines[:-1])}, secret="LONG").status == 200
    answer = api.call("secrets.set", data={"value": "".join(lines)}, secret="LONG")
    assert answer.status == 422
    assert "the value has 201 lines; 200 is the most" in answer.json()["detail"]


def test_lines_of_a_jobs_secrets_are_bounded(api: Api) -> None:
    names = [f"S{n}" for n in range(MAX_LINES_OF_AN_ATTEMPT // MAX_LINES + 1)]
    for name in names:
        value = "".join(f"line {n} of {name}\n" for n in range(MAX_LINES))
        assert api.call("secrets.set", data={"value": value}, secret=name).status == 200
    assert len(values(api, submitted(api, secrets=names[:-1]))) == len(names) - 1
    with pytest.raises(SecretUnavailable, match=r"have 5,200 lines, of which 5,000 .*danlu retry"):
        values(api, submitted(api, secrets=names))


def test_secrets_are_bounded(api: Api) -> None:
    def fill(tx: Any) -> None:
        known = stored(api, "HF_TOKEN")[0]
        for n in range(MAX_SECRETS - 1):
            SECRETS.add(tx, known.model_copy(update={"id": api.new_id("s"), "name": f"S{n}"}))

    api.database.write(fill)
    answer = api.call("secrets.set", data={"value": "one too many"}, secret="MORE")
    assert answer.status == 409
    assert "danlu secret rm" in answer.json()["next_step"]
    assert api.call("secrets.set", data={"value": "hf_another_one"}).status == 200, "another value is no other secret"


def test_who_changed_it_is_an_event_without_its_value(api: Api) -> None:
    api.call("secrets.set", actor="member", data={"value": CANARY}, secret="NEW")
    api.call("secrets.remove", actor="manager", secret="NEW")
    calls = api.database.read(lambda tx: events_after(tx, 0, Chosen(kind="call"), limit=100))
    assert [(one.actor, one.reason, one.object_id) for one in calls] == [
        ("member", "secrets.set", "NEW"), ("manager", "secrets.remove", "NEW")
    ]  # fmt: skip
    every = api.database.read(lambda tx: events_after(tx, 0, limit=1000)) + calls
    assert CANARY not in json.dumps([one.model_dump(mode="json") for one in every])
