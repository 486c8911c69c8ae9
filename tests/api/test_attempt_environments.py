"""The archive of an attempt's environment over the API: its own, from any byte, and asked for again where it is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from danlu.database.engine import Transaction
from danlu.database.records import ENVIRONMENTS, JOBS
from danlu.domain.environments import Environment, EnvironmentReason, EnvironmentState
from danlu.domain.trees import address_of
from tests.api.edge import FILE, Answer, Api


def fetch(api: Api, *, offset: int = 0, actor: str = "attempt", **ids: str) -> Answer:
    return api.call("attempts.environment", actor=actor, query=f"?offset={offset}", **ids)


def packed(api: Api) -> Environment:
    return api.database.read(lambda tx: ENVIRONMENTS.require(tx, api.ids["packed"]))


@pytest.mark.parametrize("offset", [0, 1, len(FILE) - 1, len(FILE)])
def test_it_comes_from_any_byte(api: Api, offset: int) -> None:
    answer = fetch(api, offset=offset)
    assert (answer.status, answer.content) == (200, FILE[offset:])


def test_another_attempts_is_not_to_be_had(api: Api) -> None:
    assert fetch(api, attempt=f"{api.new_id('j')}-1").status == 403
    assert fetch(api, actor="member").status == 403


def test_a_job_without_one_has_none(api: Api) -> None:
    def work(tx: Transaction) -> None:
        job = JOBS.require(tx, api.ids["job"])
        JOBS.put(tx, job, job.evolved(now=job.updated_at, environment_id=api.ids["environment"]))
        old = ENVIRONMENTS.require(tx, api.ids["environment"])
        ENVIRONMENTS.put(tx, old, old.moved(EnvironmentState.READY, now=old.updated_at, reason=EnvironmentReason.BUILT))

    api.database.write(work)
    assert fetch(api).status == 404


def test_what_is_lost_is_asked_for_again(api: Api, tmp_path: Path) -> None:
    digest = address_of(FILE).removeprefix("sha256:")
    next(tmp_path.rglob(f"{digest[:2]}/{digest[2:]}")).unlink()
    answer = fetch(api)
    assert answer.status == 503
    assert "packed again" in answer.json()["detail"]
    assert (packed(api).state, packed(api).reason) == (EnvironmentState.WANTED, EnvironmentReason.REBUILD)
    assert fetch(api).status == 503, "until it is there again"
    api.platform.blobs.put_many("default", [(address_of(FILE), FILE)])
    assert fetch(api).content == FILE


def test_what_is_given_up_keeps_no_archive(api: Api) -> None:
    """Its blob is referred to by nobody then."""
    assert api.call("environments.remove", environment=api.ids["packed"]).status == 409, "a job runs in it"
    job = api.job(api.ids["job"])
    api.database.write(lambda tx: JOBS.put(tx, job, job.evolved(now=job.updated_at, environment_id=None)))
    assert api.call("environments.remove", environment=api.ids["packed"]).status == 200
    assert packed(api).archive is None
