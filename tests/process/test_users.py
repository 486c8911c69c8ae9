"""Projects, users, members, keys and tokens by the command line, as an administrator types it."""

from __future__ import annotations

import json
import stat
import time
from pathlib import Path

import pytest

from danlu.api.bodies import KeyExpiry
from danlu.client import rotating
from danlu.client.connection import KEY_FILE
from tests.process.commands import Person
from tests.process.platform import Server


@pytest.fixture
def admin(server: Server, tmp_path: Path) -> Person:
    return Person(tmp_path, {"DANLU_HOME": str(server.home)})


@pytest.fixture
def ada(server: Server, admin: Person, tmp_path: Path) -> Person:
    """A user with her first key, and nothing else."""
    made = admin.json("user", "create", "ada")
    return Person(
        tmp_path / "ada",
        {
            "DANLU_URL": server.url,
            "DANLU_ACCESS_KEY_ID": made["key"]["id"],
            "DANLU_SECRET_ACCESS_KEY": made["secret"],
        },
    )


def test_a_user_works_in_the_project_that_it_is_a_member_of(admin: Person, ada: Person) -> None:
    assert admin.danlu("project", "create", "vision") == "project/vision\n"
    admin.danlu("project", "create", "speech")
    ada.danlu("get", "jobs", "--project", "vision", code=1)
    assert admin.danlu("member", "add", "ada", "--project", "vision", "--role", "viewer") == "member/ada\n"
    assert json.loads(ada.danlu("get", "jobs", "-o", "json"))["items"] == []  # her only project needs no name
    assert ada.danlu("project", "ls", "-o", "name") == "project/vision\n"
    assert ada.json("whoami")["projects"] == [{"project": "vision", "role": "viewer"}]
    ada.danlu("get", "jobs", "--project", "speech", code=1)
    ada.danlu("member", "add", "ada", "--role", "admin", code=1)
    assert "ada is viewer in project vision; this is for admin or administrator" in ada.said
    assert "danlu member ls --project vision" in ada.said
    ada.danlu("user", "ls", code=1)
    assert "ask an administrator of the platform" in ada.said
    ada.danlu("get", "projects", code=2)
    assert "danlu project ls" in ada.said
    admin.danlu("member", "rm", "ada", "--project", "vision")
    ada.danlu("get", "jobs", "--project", "vision", code=1)
    assert admin.danlu("member", "ls", "-o", "name", "--project", "vision") == ""
    admin.danlu("user", "rm", "ada")
    ada.danlu("whoami", code=1)
    assert f"access key {ada.variables['DANLU_ACCESS_KEY_ID']} of DANLU_ACCESS_KEY_ID" in ada.said
    assert "ada" in admin.danlu("user", "ls")


def test_a_user_is_made_once_and_its_secret_is_shown_once(admin: Person) -> None:
    shown = admin.danlu("user", "create", "bob")
    assert "danlu_sk_" in shown
    assert "danlu login http" in admin.said
    assert "danlu_sk_" not in admin.said
    assert "danlu_sk_" not in admin.danlu("user", "create", "bob")
    assert len(admin.json("key", "ls", "--user", "bob")["items"]) == 1
    assert admin.danlu("user", "create", "eve", "--no-key") == "user/eve\n"
    assert admin.json("key", "ls", "--user", "eve")["items"] == []
    admin.danlu("user", "create", "dan", "-o", "name", code=2)
    assert "--no-key" in admin.said
    admin.danlu("user", "set", "bob", code=2)
    assert "--administrator" in admin.said
    assert admin.json("user", "set", "bob", "--administrator")["administrator"] is True
    assert admin.json("user", "set", "bob", "--no-administrator")["administrator"] is False
    admin.danlu("user", "set", "admin", "--no-administrator", code=1)
    assert "last administrator" in admin.said


def test_keys_and_tokens_are_made_and_revoked(admin: Person, ada: Person) -> None:
    made = ada.json("key", "create", "--name", "ci", "--valid-for", "90d")
    assert made["key"]["expires_at"] > made["key"]["created_at"]
    other = Person(ada.folder, {**ada.variables, "DANLU_ACCESS_KEY_ID": made["key"]["id"],
                                "DANLU_SECRET_ACCESS_KEY": made["secret"]})  # fmt: skip
    assert other.json("whoami")["by"] == made["key"]["id"]
    ada.danlu("key", "rm", made["key"]["id"])
    other.danlu("whoami", code=1)
    ada.danlu("key", "rm", made["key"]["id"], code=1)
    ada.danlu("key", "create", "--valid-for", "soon", code=2)
    assert "--valid-for: " in ada.said
    assert "valid_for" not in ada.said
    ada.danlu("key", "rotate", "--overlap", "0", code=2)
    assert "--overlap: " in ada.said
    assert "danlu key rm" in ada.said
    secret = ada.danlu("token", "create", "mlflow").strip()
    shower = Person(ada.folder, {"DANLU_URL": ada.variables["DANLU_URL"], "DANLU_TOKEN": secret})
    assert shower.json("whoami")["name"] == "ada"
    shower.danlu("key", "rotate", code=2)
    (token,) = ada.json("token", "ls")["items"]
    ada.danlu("token", "rm", token["id"])
    shower.danlu("whoami", code=1)


def test_a_key_with_an_end_is_rotated_for_as_long_again(server: Server, admin: Person, tmp_path: Path) -> None:
    made = admin.json("key", "create", "--name", "ci", "--valid-for", "90d")
    signs = {"DANLU_ACCESS_KEY_ID": made["key"]["id"], "DANLU_SECRET_ACCESS_KEY": made["secret"]}
    ci = Person(tmp_path / "ci", {"DANLU_URL": server.url, **signs})
    ends = made["key"]["expires_at"]
    assert ci.json("key", "create")["key"]["expires_at"] == ends
    ci.danlu("key", "create", "--valid-for", "91d", code=2)
    assert "leave it out" in ci.said
    told = ci.json("key", "rotate", "--overlap", "1h")["key"]
    assert (told["name"], told["replaces"]) == ("ci", made["key"]["id"])
    assert told["expires_at"] - told["created_at"] == ends - made["key"]["created_at"]
    ci.danlu("key", "rotate", code=1)
    assert f"danlu key rm {told['id']}" in ci.said


def test_who_is_killed_before_the_new_key_is_stored_leaves_no_old_one_for_ever(
    server: Server, admin: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rotating, "write_bootstrap", killed)
    for overlap, most_s in (("1d", 86_400), ("1ms", 60)):
        with server.client() as client:
            with pytest.raises(KeyboardInterrupt):
                rotating.rotate(client, KeyExpiry.model_validate({"after": overlap}))
            new, *_, old = admin.json("key", "ls")["items"]
            assert new["replaces"] == old["id"] == client.connection.credentials.key_id
            assert 0 < old["expires_at"] - time.time_ns() <= most_s * 1_000_000_000
        admin.danlu("key", "rm", new["id"])  # as the next try says
    monkeypatch.undo()
    told = admin.json("key", "rotate")["key"]
    assert told["expires_at"] is None
    assert admin.json("whoami")["by"] == told["id"]


def test_what_a_stolen_key_has_made_is_named_when_it_is_revoked(admin: Person, ada: Person) -> None:
    made = ada.json("key", "create", "--name", "stolen")
    thief = Person(ada.folder, {**ada.variables, "DANLU_ACCESS_KEY_ID": made["key"]["id"],
                                "DANLU_SECRET_ACCESS_KEY": made["secret"]})  # fmt: skip
    thief.danlu("token", "create", "hidden")
    (token,) = ada.json("token", "ls")["items"]
    assert token["made_by"] == made["key"]["id"]
    assert ada.danlu("key", "rm", made["key"]["id"]) == f"key/{made['key']['id']}\n"
    assert f"and what was made by it: {token['id']}" in ada.said
    assert ada.json("token", "ls")["items"] == []
    mine = ada.variables["DANLU_ACCESS_KEY_ID"]
    assert admin.json("key", "rm", admin.json("whoami")["by"])["left"] == [mine]


def test_the_key_of_the_platform_here_is_rotated_where_it_lies(server: Server, admin: Person) -> None:
    before = admin.json("whoami")["by"]
    told = admin.json("key", "rotate", "--overlap", "1ms")
    assert told["stored"] == str(server.home / KEY_FILE)
    assert "secret" not in told
    assert stat.S_IMODE((server.home / KEY_FILE).stat().st_mode) == 0o600
    after = admin.json("whoami")["by"]
    assert after == told["key"]["id"] != before
    server.end()
    assert server.start().get("ready")  # the key is known again, and no other is made
    assert admin.json("whoami")["by"] == after
