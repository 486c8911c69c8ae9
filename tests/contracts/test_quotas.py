"""Quotas on each database: what several administrators set at the same time cannot contradict itself."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import pytest

from danlu.api.bodies import Paging, ProjectRequest, QuotaChange
from danlu.blobs.local import LocalBlobs
from danlu.blobs.local_streams import LocalStreams
from danlu.database.engine import Database, Transaction
from danlu.database.records import PROJECTS, QUOTAS
from danlu.domain.actors import Actor
from danlu.domain.projects import Project
from danlu.domain.quotas import Quota, contradictions
from danlu.domain.users import PLATFORM
from danlu.domain.views import QuotaUse
from danlu.errors import Conflict
from danlu.server.clock import SystemClock
from danlu.services import projects, quotas
from danlu.services.context import Call, Platform, PlatformFacts
from danlu.services.vault import Vault
from tests.databases import together
from tests.factories import NOW, make_project

TEAMS = 8


@pytest.fixture
def call(database: Database, tmp_path: Path) -> Call:
    """An administrator's call on a platform with a few projects."""

    def fill(tx: Transaction) -> None:
        for number in range(TEAMS):
            PROJECTS.add(tx, make_project(f"team-{number}", number))

    database.write(fill)
    platform = Platform(
        database=database, blobs=LocalBlobs(tmp_path / "blobs"), streams=LocalStreams(tmp_path / "blobs"),
        clock=SystemClock(), random_bits=secrets.randbits, attempt_key=b"k" * 32, vault=Vault(b"m" * 32, secrets.token_bytes),
        facts=PlatformFacts(home=str(tmp_path), started_at=NOW, isolation="one user", host_environment=True),
    )  # fmt: skip
    return Call(platform, Actor(id="k", name="admin", administrator=True), PLATFORM)


def set_quota(call: Call, name: str, **fields: Any) -> QuotaUse:
    return quotas.set(call, name, QuotaChange.model_validate(fields))


def stored(call: Call) -> dict[str, Quota]:
    return call.platform.database.read(quotas.every)


def test_guarantees_that_are_set_together_fit_together(call: Call) -> None:
    set_quota(call, "research", group=True, limit={"gpu": 8})
    for number in range(TEAMS):
        set_quota(call, f"team-{number}", parent="research")
    done = together(TEAMS, lambda n: set_quota(call, f"team-{n}", guarantee={"gpu": 3}))
    refused = [one for one in done if isinstance(one, Exception)]
    assert all(type(one) is Conflict and "together, above its limit of 8 GPUs" in str(one) for one in refused), refused
    assert len(done) - len(refused) == 2
    assert contradictions(stored(call)) == []


def test_two_groups_are_not_put_below_each_other(call: Call) -> None:
    for name in ("left", "right"):
        set_quota(call, name, group=True)
    other = {"left": "right", "right": "left"}
    done = together(2, lambda n: set_quota(call, [*other][n], parent=other[[*other][n]]))
    assert sum(isinstance(one, Conflict) for one in done) == 1, done
    assert contradictions(stored(call)) == []


def test_a_group_is_not_removed_while_another_is_put_below_it(call: Call) -> None:
    set_quota(call, "research", group=True)

    def work(number: int) -> object:
        if number:
            return set_quota(call, "team-0", parent="research")
        return quotas.remove(call, "research")

    done = together(2, work)
    assert sum(isinstance(one, Conflict) for one in done) == 1, done
    assert contradictions(stored(call)) == []


def test_a_name_becomes_a_project_or_a_group(call: Call) -> None:
    def work(number: int) -> object:
        if number:
            return projects.make(call, "new", ProjectRequest())
        return set_quota(call, "new", group=True)

    done = together(2, work)
    assert sum(isinstance(one, Conflict) for one in done) == 1, done
    made, group = call.platform.database.read(lambda tx: (PROJECTS.get(tx, "new"), QUOTAS.get(tx, "new")))
    assert (made is None) != (group is None)
    assert made is None or isinstance(made, Project)


def test_what_two_set_of_one_quota_is_all_there(call: Call) -> None:
    done = together(TEAMS, lambda n: set_quota(call, "team-0", limit={f"gpu/k{n}": n}))
    assert not [one for one in done if isinstance(one, Exception)], done
    assert stored(call)["team-0"].limit == {f"gpu/k{n}": n for n in range(TEAMS)}
    assert [one.quota.version for one in quotas.list(call, Paging()).items] == [TEAMS]
