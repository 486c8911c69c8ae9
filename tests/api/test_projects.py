"""Projects: what one requires of its jobs' isolation, and who may say so."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from danlu.database.engine import Database
from danlu.domain.isolation import Layer
from tests.api.edge import Api


@pytest.fixture
def api(sqlite: Database, tmp_path: Path) -> Iterator[Api]:
    made = Api(sqlite, tmp_path)
    made.platform.facts = dataclasses.replace(
        made.platform.facts, layers=(Layer.SECCOMP,), no_layers={"landlock": "it is not in this kernel"}
    )
    yield made
    made.edge.streams.end()
    made.opener.close()


def test_what_is_required_holds_for_the_project_alone(api: Api) -> None:
    changed = api.call("projects.change", actor="manager", data={"require": ["seccomp", "seccomp"]})
    assert (changed.status, changed.json()["require"]) == (200, ["seccomp"])
    assert api.call("projects.get", actor="viewer").json()["require"] == ["seccomp"]
    assert api.call("projects.get", actor="foreign").json()["require"] == []
    assert api.submit(actor="member").status == 201
    again = api.call("projects.change", actor="manager", data={"require": ["seccomp"]}).json()
    assert again["version"] == changed.json()["version"]
    assert api.call("projects.change", actor="admin", data={"require": []}).json()["require"] == []


@pytest.mark.parametrize("actor", ["viewer", "member"])
def test_only_who_manages_it_says_so(api: Api, actor: str) -> None:
    assert api.call("projects.change", actor=actor, data={"require": ["seccomp"]}).status == 403


@pytest.mark.parametrize(("layer", "status", "said"), [
    ("landlock", 422, "landlock: it is not in this kernel"),
    ("moat", 422, "moat"),
])  # fmt: skip
def test_what_cannot_be_had_is_refused_with_the_reason(api: Api, layer: str, status: int, said: str) -> None:
    answer = api.call("projects.change", actor="manager", data={"require": [layer]})
    assert (answer.status, said in answer.json()["detail"]) == (status, True), answer.json()


@pytest.mark.parametrize(("layer", "asked", "flag"), [
    ("memory-limit", {"memory": "200MiB"}, "--memory"), ("cpu-limit", {"cpu": 0.5}, "--cpu"),
])  # fmt: skip
def test_a_limit_that_is_required_has_to_be_asked_for(api: Api, layer: str, asked: dict[str, Any], flag: str) -> None:
    api.platform.facts = dataclasses.replace(api.platform.facts, layers=tuple(Layer))
    assert api.call("projects.change", actor="manager", data={"require": [layer]}).status == 200
    answer = api.submit(actor="member")
    assert (answer.status, answer.json()["code"]) == (422, "InvalidSpec"), answer.json()
    assert f"{layer}: it is in force only for a job that asks for {flag[2:]}, and this one" in answer.json()["detail"]
    assert flag in answer.json()["next_step"]
    some = api.submit(actor="member", roles={"chief": asked, "worker": {"replicas": 2}}, framework="none")
    assert "and task worker-0 asks for none" in some.json()["detail"]
    assert api.submit(actor="member", **asked).status == 201
    assert api.submit(actor="foreign").status == 201


def test_a_machine_that_lost_a_layer_runs_nothing_of_the_project(api: Api) -> None:
    """It is refused, and not run with less."""
    assert api.call("projects.change", actor="manager", data={"require": ["seccomp"]}).status == 200
    api.platform.facts = dataclasses.replace(api.platform.facts, layers=(), no_layers={"seccomp": "no longer"})
    answer = api.submit(actor="member")
    assert (answer.status, answer.json()["code"]) == (422, "NeverFits")
    assert "seccomp: no longer" in answer.json()["detail"]
    assert api.submit(actor="foreign").status == 201


def test_the_jobs_of_all_projects_are_those_of_ones_own(api: Api) -> None:
    for actor, name in (("member", "here"), ("foreign", "there"), ("member", "later")):
        assert (
            api.call("jobs.submit", actor=actor, data={"command": "x", "name": name}, job=api.new_id("j")).status == 201
        )

    def seen(actor: str, query: str = "", **headers: str) -> list[str]:
        answer = api.call("jobs.list_all", actor=actor, query=query, headers=headers)
        assert answer.status == 200, answer.content
        return [f"{job['project']}/{job['name']}" for job in answer.json()["items"] if job["state"] == "queued"]

    assert seen("admin") == ["default/later", "other/there", "default/here"]
    assert seen("viewer") == ["default/later", "default/here"]
    assert seen("foreign") == ["other/there"]
    assert seen("viewer", **{"Danlu-Project": "other"}) == seen("viewer")
    assert seen("admin", "?name=there") == ["other/there"]
    page = api.call("jobs.list_all", query="?state=queued&limit=2").json()
    rest = seen("admin", f"?state=queued&cursor={page['next_cursor']}")
    assert (len(page["items"]), rest) == (2, ["default/here"])
    made = api.call("tokens.make", actor="admin", data={"name": "ci", "valid_for": "1h", "project": "other"})
    api.tokens["ci"] = made.json()["secret"]
    assert seen("ci") == ["other/there"]
    nobody = api.call("jobs.list_all", actor="attempt")
    assert nobody.status in (403, 404)


def test_the_platform_stops_the_jobs_of_every_project(api: Api) -> None:
    theirs = api.new_id("j")
    assert api.call("jobs.submit", actor="foreign", data={"command": "x"}, job=theirs).status == 201
    assert api.call("platform.stop", data={"jobs": False}).status == 202
    assert {str(api.job(one).desired) for one in (theirs, api.ids["job"])} == {"run"}
    assert api.call("platform.stop", data={"jobs": True}).status == 202
    assert {str(api.job(one).desired) for one in (theirs, api.ids["job"])} == {"stop"}
