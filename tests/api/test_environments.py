"""Environments over the API: by name or id, what is in them, as files, given up and asked for again."""

from __future__ import annotations

from danlu.database.records import ENVIRONMENTS
from danlu.domain.environments import EnvironmentReason, EnvironmentSource, EnvironmentState
from danlu.environments.catalogue import CATALOGUE
from tests.api.edge import Api
from tests.factories import make_environment


def test_a_name_of_the_catalogue_is_shown_before_it_is_built(api: Api) -> None:
    found = api.call("environments.show", environment="tensorflow-1").json()
    assert found["environment"] is None
    assert found["python"] == "3.11"
    assert "tensorflow==2.15.1" in found["packages"]
    assert found["variables"] == {"TF_CPP_MIN_LOG_LEVEL": "1"}
    assert found["frameworks"] == ["tensorflow"]
    assert "TF_*" in found["read_at_import"]
    assert found["preload"] == ["tensorflow"]
    assert "assert losses[-1] < losses[0]" in found["program"]
    assert (found["folder"], found["used_by"], found["last_asked_at"]) == ("", [], None)


def test_an_id_and_a_name_mean_the_same(api: Api) -> None:
    by_id = api.call("environments.show").json()
    assert by_id["environment"]["id"] == api.ids["environment"]
    assert api.call("environments.show", environment=by_id["name"]).json() == by_id


def test_unknown_names_get_the_nearest(api: Api) -> None:
    for operation in ("environments.show", "environments.lock", "environments.dockerfile", "environments.remove"):
        answer = api.call(operation, environment="pytorc")
        assert answer.status == 404
        assert "did you mean pytorch?" in answer.json()["next_step"]
    assert api.call("environments.lock", environment="host").status == 404


def test_locks_and_dockerfiles_of_all_entries(api: Api) -> None:
    for entry in CATALOGUE.values():
        if entry.buildable and entry.requirements:
            lock = api.call("environments.lock", environment=entry.name).json()
            recipe = api.call("environments.dockerfile", environment=entry.name).json()
            assert "--hash=sha256:" in lock["text"]
            assert f"FROM python:{lock['python']}-slim" in recipe["text"]


def test_requirements_have_no_lock_before_they_are_resolved(api: Api) -> None:
    made = api.call("environments.build", data={"requirements": "six"}).json()
    for operation in ("environments.lock", "environments.dockerfile"):
        answer = api.call(operation, environment=made["name"])
        assert answer.status == 409
        assert "resolved when it is built" in answer.json()["detail"]
    assert api.call("environments.show", environment=made["id"]).json()["packages"] == []


def test_what_is_given_up_is_gone_from_the_list_and_comes_again_when_asked_for(api: Api) -> None:
    made = api.call("environments.build", data={"requirements": "six"}).json()
    assert api.call("environments.remove", environment=made["id"]).json()["state"] == "removed"
    assert api.call("environments.remove", environment=made["name"]).json()["state"] == "removed"
    assert made["name"] not in {item["name"] for item in api.call("environments.list").json()["items"]}
    again = api.call("environments.build", data={"requirements": "six"}).json()
    assert (again["id"], again["state"], again["reason"]) == (made["id"], "wanted", "Requested")


def test_an_image_is_given_up_whether_it_could_be_had_or_not(api: Api) -> None:
    found = {}
    for name, digest in (("nope", None), ("there", "a" * 64)):
        source = {"image": f"docker.io/library/{name}:1"}
        made = make_environment(
            api.new_id("e"), name=source["image"], source=source, source_digest=name, lock_digest=digest
        )
        failed = made.moved(EnvironmentState.FAILED, now=made.created_at, reason=EnvironmentReason.PULL_FAILED)
        found[name] = failed.id
        api.database.write(lambda tx, made=made: ENVIRONMENTS.add(tx, made))
        api.database.write(lambda tx, made=made, failed=failed: ENVIRONMENTS.put(tx, made, failed))
    pruned = api.call("environments.prune", data={"unused_for": "1s", "dry_run": True}).json()
    assert {one["id"] for one in pruned["environments"]} == {*found.values()}
    for environment in found.values():
        assert api.call("environments.remove", environment=environment).json()["state"] == "removed"


def test_an_environment_of_a_live_job_is_not_given_up(api: Api) -> None:
    job = api.submit(requirements="six").json()
    answer = api.call("environments.remove", environment=job["environment_id"])
    assert answer.status == 409
    assert job["name"] in answer.json()["detail"]
    assert f"danlu stop {job['name']}" in answer.json()["next_step"]
    assert api.call("environments.show", environment=job["environment_id"]).json()["used_by"] == [job["name"]]


def test_an_image_is_meant_by_its_whole_name_and_as_it_was_typed(api: Api) -> None:
    name = "docker.io/library/python:3.12"
    made = make_environment(name=name, source=EnvironmentSource(image=name), source_digest="1" * 64)
    api.database.write(lambda tx: ENVIRONMENTS.add(tx, made))
    for meant in (made.id, name, "python:3.12", "docker.io/python:3.12"):
        shown = api.call("environments.show", environment=meant).json()
        assert (shown["environment"]["id"], shown["folder"]) == (made.id, "")
        assert api.call("environments.lock", environment=meant).status == 409
    assert api.call("environments.show", environment="python").json()["environment"]["id"] != made.id
    assert api.call("environments.get", environment="no/such/thing").status == 404
    assert api.call("environments.remove", environment=name).json()["state"] == "removed"


def test_never_built_is_nothing_to_remove(api: Api) -> None:
    answer = api.call("environments.remove", environment="chainer")
    assert answer.status == 404
    assert "never built" in answer.json()["detail"]


def test_all_of_2018_is_told(api: Api) -> None:
    assert len(api.call("environments.legacy").json()["items"]) == 13
