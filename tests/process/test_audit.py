"""Who did what to which thing, from where, with what outcome: for those who may see it, and never with a secret."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from danlu.api.bodies import MAX_PAGE, MemberRequest
from danlu.client.connection import Connection
from danlu.client.credentials import Credentials
from danlu.client.transport import Client
from danlu.domain.actors import Role
from danlu.errors import NotAuthenticated
from tests.process.commands import Person
from tests.process.platform import Server


@pytest.fixture
def admin(server: Server, tmp_path: Path) -> Person:
    return Person(tmp_path, {"DANLU_HOME": str(server.home)})


@pytest.fixture
def ada(server: Server, admin: Person, tmp_path: Path) -> Person:
    """An admin of the project vision."""
    made = admin.json("user", "create", "ada")
    admin.danlu("project", "create", "vision")
    admin.danlu("member", "add", "ada", "--project", "vision", "--role", "admin")
    key = {"DANLU_ACCESS_KEY_ID": made["key"]["id"], "DANLU_SECRET_ACCESS_KEY": made["secret"]}
    return Person(tmp_path / "ada", {"DANLU_URL": server.url, **key})


def lines(person: Person, *words: str) -> list[dict[str, Any]]:
    """Returns what ``danlu events -o json`` tells, one object a line."""
    return [json.loads(line) for line in person.danlu("events", *words, "-o", "json").splitlines()]


def test_it_tells_who_did_what_to_which_thing_from_where_and_how_it_went(admin: Person, ada: Person) -> None:
    ada.danlu("stop", "nothing", code=1)
    ada.danlu("member", "add", "admin", "--role", "viewer")
    found = [(e["actor"], e["reason"], e["object_id"], e["state"], e["source"]) for e in lines(ada, "--calls")]
    assert ("admin", "members.set", "ada", "done", "127.0.0.1") in found
    assert ("ada", "members.set", "admin", "done", "127.0.0.1") in found
    assert ("ada", "jobs.stop", "nothing", "NotFound", "127.0.0.1") in found
    assert {one[0] for one in found} == {"ada", "admin"}
    assert {e["actor"] for e in lines(ada, "--calls", "--actor", "ada")} == {"ada"}
    assert [e["reason"] for e in lines(ada, "--calls", "--object", "nothing")] == ["jobs.stop"]
    assert lines(ada, "--calls", "--since", "1ms") == []
    assert "jobs.stop" in ada.danlu("events", "--calls", "-o", "wide")
    platform = [(e["reason"], e["object_id"]) for e in lines(admin, "--calls", "--platform")]
    assert ("users.make", "ada") in platform
    assert ("keys.make", "") in platform
    ada.danlu("events", "--platform", code=1)
    ada.danlu("events", "--calls", "--kind", "job", code=2)
    ada.danlu("events", "--since", "yesterday", code=2)
    assert all(e["kind"] == "member" for e in lines(ada, "--kind", "member"))


def test_who_does_not_manage_the_project_sees_no_calls(admin: Person, ada: Person) -> None:
    admin.danlu("member", "add", "ada", "--project", "vision", "--role", "developer")
    ada.danlu("events")
    ada.danlu("events", "--calls", code=1)
    assert "for those who manage the project" in ada.said
    ada.danlu("events", "--calls", "--project", "default", code=1)


def test_all_of_it_is_exported_however_much_it_is(server: Server, admin: Person, ada: Person) -> None:
    key = Credentials(ada.variables["DANLU_SECRET_ACCESS_KEY"], ada.variables["DANLU_ACCESS_KEY_ID"])
    with Client(Connection(server.url, key), project="vision") as client:
        for number in range(MAX_PAGE + 20):
            role = Role.VIEWER if number % 2 else Role.DEVELOPER
            client.call("members.set", {"user": "admin"}, body=MemberRequest(role=role))
    found = lines(ada, "--calls", "--actor", "ada")
    assert len(found) == MAX_PAGE + 20
    assert [e["seq"] for e in found] == sorted(e["seq"] for e in found)
    assert len(lines(ada, "--calls", "--limit", "7")) == 7
    assert lines(ada, "--calls", "--limit", "7") == lines(ada, "--calls")[-7:]


def test_what_happens_is_followed(server: Server, ada: Person) -> None:
    following = subprocess.Popen(
        [sys.executable, "-m", "danlu.cli.main", "events", "--calls", "-w", "-o", "json"],
        env={"PATH": "/usr/bin:/bin", **ada.variables}, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert following.stdout is not None
        assert json.loads(following.stdout.readline())["object_id"] == "ada"
        ada.danlu("stop", "later", code=1)
        assert json.loads(following.stdout.readline())["object_id"] == "later"
    finally:
        following.kill()
        following.communicate()


def test_it_never_holds_a_secret(server: Server, admin: Person, ada: Person) -> None:
    """Keys' secrets are in the database, but sealed; tokens' are nowhere. What a job is given stays with the job."""
    key, token = ada.json("key", "create"), ada.json("token", "create", "ci")
    wrong, variable = "danlu_sk_" + "5" * 64, "v4riable-of-the-job"
    for credentials in (Credentials(wrong, key["key"]["id"]), Credentials(wrong)):
        with Client(Connection(server.url, credentials)) as client, pytest.raises(NotAuthenticated):
            client.call("access.whoami")
    ada.json("key", "rotate")
    job = server.submit("true", variables={"PASSWORD": variable}, gpu=0)
    server.wait(job.id)
    ada.danlu("token", "rm", token["token"]["id"])
    ada.danlu("key", "rm", key["key"]["id"])
    told = b"".join(
        json.dumps(lines(admin, *words)).encode()
        for words in ((), ("--calls",), ("--platform",), ("--platform", "--calls"), ("--project", "vision", "--calls"))
    )
    log = server.home.with_name(server.home.name + ".log").read_bytes()
    files = {path: path.read_bytes() for path in server.home.glob("danlu.db*")}
    assert any(path.name.endswith("-wal") for path in files)
    secrets = (ada.variables["DANLU_SECRET_ACCESS_KEY"], key["secret"], token["secret"], wrong)
    for secret in secrets:
        for where, content in {"events": told, "log": log, **files}.items():
            assert secret.encode() not in content, (secret, where)
            assert secret.removeprefix("danlu_").removeprefix("sk_").encode() not in content, (secret, where)
    assert variable.encode() not in told + log
    bootstrap = json.loads((server.home / "keys" / "bootstrap").read_text())["secret"]
    assert all(bootstrap.encode() not in content for content in (told, log, *files.values()))
    assert key["key"]["id"].encode() in b"".join(files.values())  # what is looked through is what is written
