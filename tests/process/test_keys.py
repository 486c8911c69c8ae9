"""The platform's own keys: lost, damaged or open to others, the server says so, starts nothing and harms nothing."""

from __future__ import annotations

import json
import secrets
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.process.commands import Person
from tests.process.platform import Server

MASTER = Path("keys", "master")


@pytest.fixture
def admin(home: Path, tmp_path: Path) -> Person:
    return Person(tmp_path, {"DANLU_HOME": str(home)})


@pytest.fixture
def ada(server: Server, admin: Person, tmp_path: Path) -> Person:
    """A user with a key that the master key has sealed; the server has ended."""
    made = admin.json("user", "create", "ada")
    admin.danlu("member", "add", "ada")
    found = Person(
        tmp_path / "ada",
        {"DANLU_ACCESS_KEY_ID": made["key"]["id"], "DANLU_SECRET_ACCESS_KEY": made["secret"]},
    )
    server.end()
    return found


def refused(server: Server) -> dict[str, Any]:
    """Returns why a server did not start."""
    error: dict[str, Any] = server.start()["error"]
    assert error["code"] == "PlatformError"
    assert error["next_step"]
    assert "Traceback" not in server.home.with_name(server.home.name + ".log").read_text()
    return error


def damage(file: Path, harm: str) -> None:
    """Does something to a key's file."""
    before = file.read_bytes()
    if harm == "open":
        file.chmod(0o640)
    elif harm == "damaged":
        file.write_bytes(before[:-10])
    elif harm == "binary":
        file.write_bytes(b"\xff\xfe" + before)
    else:
        file.unlink()
        file.mkdir()


@pytest.mark.parametrize("name", ["master", "attempts", "bootstrap"])
def test_a_key_that_cannot_be_used_is_named_and_left_as_it_is(server: Server, ada: Person, name: str) -> None:
    file = server.home / "keys" / name
    before, database = file.read_bytes(), (server.home / "danlu.db").read_bytes()
    for harm in ("open", "damaged", "binary", "folder"):
        damage(file, harm)
        error = refused(server)
        assert str(file) in error["detail"], harm
        assert ("chmod 600" in error["next_step"]) == (harm == "open")
        assert (server.home / "danlu.db").read_bytes() == database
        told = repr(error) + server.home.with_name(server.home.name + ".log").read_text()
        assert before.decode().strip()[:40] not in told
        if harm == "folder":
            file.rmdir()
        file.write_bytes(before)
        file.chmod(0o600)
    assert server.start().get("ready")
    assert Person(ada.folder, {**ada.variables, "DANLU_URL": server.url}).json("whoami")["name"] == "ada"


def test_a_lost_master_key_is_restored_or_given_up_in_so_many_words(server: Server, ada: Person, admin: Person) -> None:
    kept = (server.home / MASTER).read_text()
    assert server.start().get("ready")
    theirs = Person(ada.folder, {**ada.variables, "DANLU_URL": server.url})
    theirs.danlu("key", "create", "--name", "bootstrap")  # is a user's, whatever its name
    server.end()
    (server.home / MASTER).unlink()
    error = refused(server)
    assert "2 access keys were sealed by another one" in error["detail"]
    for way in ("restore keys/master", "DANLU_MASTER_KEY_FILE", "--new-master-key"):
        assert way in error["next_step"]
    (server.home / MASTER).write_text(kept)  # as from a backup
    assert server.start().get("ready")
    assert Person(ada.folder, {**ada.variables, "DANLU_URL": server.url}).json("whoami")["name"] == "ada"
    server.end()
    (server.home / MASTER).write_text(secrets.token_hex(32))
    admin.danlu("up", code=3)
    assert "--new-master-key" in admin.said
    try:
        url = admin.danlu("up", "--new-master-key", "--port", "0").strip()
        stranger = Person(ada.folder, {**ada.variables, "DANLU_URL": url})
        stranger.danlu("whoami", code=1)
        assert admin.json("member", "ls")["items"][0]["name"] == "ada"  # nothing but the keys is lost
        made = admin.json("key", "create", "--user", "ada")
        again = {"DANLU_ACCESS_KEY_ID": made["key"]["id"], "DANLU_SECRET_ACCESS_KEY": made["secret"]}
        assert Person(ada.folder, {**again, "DANLU_URL": url}).json("whoami")["name"] == "ada"
        admin.danlu("down")
        admin.danlu("up", "--port", "0")  # it is asked for once
    finally:
        admin.danlu("down")


def test_a_database_that_was_put_back_beside_a_newer_key_locks_nobody_out(server: Server, admin: Person) -> None:
    database, file = server.home / "danlu.db", server.home / "keys" / "bootstrap"
    admin.danlu("user", "create", "ada")
    server.end()
    older, old_key = database.read_bytes(), file.read_bytes()
    assert server.start().get("ready")
    rotated = admin.json("key", "rotate", "--overlap", "1ms")["key"]["id"]
    server.end()
    database.write_bytes(older)  # as from a backup
    assert server.start().get("ready")
    made = admin.json("whoami")["by"]
    assert made not in (rotated, json.loads(old_key)["access_key_id"])
    told = server.home.with_name(server.home.name + ".log").read_text()
    assert f"{rotated} in keys/bootstrap is not the database's" in told
    assert f"a new one, {made}, takes its place" in told
    assert json.loads((server.home / "platform.json").read_text())["warnings"] != []
    events = [json.loads(line) for line in admin.danlu("events", "--platform", "-o", "json").splitlines()]
    assert made in [event["object_id"] for event in events if event["reason"] == "BootstrapKeyReplaced"]
    server.end()
    file.write_bytes(old_key)  # and the other way: an older key beside a newer database
    file.chmod(0o600)
    assert server.start().get("ready")
    assert admin.json("whoami")["by"] not in (rotated, made)
    server.end()
    assert server.start().get("ready")
    assert json.loads((server.home / "platform.json").read_text())["warnings"] == []


def test_a_revoked_key_of_the_platform_stays_so_and_its_owner_gets_a_new_one(server: Server, admin: Person) -> None:
    file = server.home / "keys" / "bootstrap"
    first = admin.json("whoami")["by"]
    admin.danlu("key", "rm", first)
    for _ in range(2):
        admin.danlu("whoami", code=1)
        assert f"rm {file}" in admin.said
        server.end()
        assert server.start().get("ready")
        (told,) = json.loads((server.home / "platform.json").read_text())["warnings"]
        assert f"{first} in keys/bootstrap was revoked" in told
    admin.danlu("down")  # as the error says
    assert server.process is not None
    server.process.wait(30)
    file.unlink()
    assert server.start().get("ready")
    assert admin.json("whoami")["by"] != first


@pytest.mark.parametrize("how", ["demoted", "removed"])
def test_the_owner_gets_back_in_when_the_other_administrators_have_lost_their_keys(
    server: Server, admin: Person, ada: Person, how: str
) -> None:
    file, log = server.home / "keys" / "bootstrap", server.home.with_name(server.home.name + ".log")
    assert server.start().get("ready")
    admin.danlu("user", "set", "ada", "--administrator")
    ada.variables["DANLU_URL"] = server.url
    ada.danlu(*(("user", "rm", "admin") if how == "removed" else ("user", "set", "admin", "--no-administrator")))
    server.end()
    assert server.start().get("ready")  # which alone gives nothing back
    admin.danlu("user", "ls", code=1)
    server.end()
    file.unlink()
    assert server.start().get("ready")
    assert admin.json("user", "set", "ada", "--no-administrator")["administrator"] is False
    (told,) = json.loads((server.home / "platform.json").read_text())["warnings"]
    assert "user admin, who was" in told
    assert told in log.read_text()
    events = [json.loads(line) for line in admin.danlu("events", "--platform", "-o", "json").splitlines()]
    assert [event["kind"] for event in events if event["reason"] == "FirstUserRestored"] == ["user"]


def test_the_master_key_may_lie_elsewhere(home: Path, tmp_path: Path) -> None:
    key, file = secrets.token_hex(32), tmp_path / "master"
    file.touch(0o600)
    file.write_text(key)
    by_variable = Server(home, environ={"DANLU_MASTER_KEY": key})
    assert by_variable.start().get("ready")
    assert not (home / MASTER).exists()
    admin = Person(tmp_path / "admin", {"DANLU_HOME": str(home)})
    made = admin.json("user", "create", "ada")
    by_variable.end()
    by_file = Server(home, environ={"DANLU_MASTER_KEY_FILE": str(file)})
    assert by_file.start().get("ready")
    signs = {"DANLU_ACCESS_KEY_ID": made["key"]["id"], "DANLU_SECRET_ACCESS_KEY": made["secret"]}
    assert Person(tmp_path / "ada", {**signs, "DANLU_URL": by_file.url}).json("whoami")["name"] == "ada"
    by_file.end()
    file.chmod(0o644)
    assert "may be read by others" in refused(by_file)["detail"]
    file.unlink()
    assert str(file) in refused(by_file)["detail"]
    short = Server(home, environ={"DANLU_MASTER_KEY": key[:-2]})
    error = refused(short)
    assert "64 hexadecimal digits" in error["detail"]
    assert key[:-2] not in repr(error)
    assert stat.S_IMODE((home / "keys").stat().st_mode) == 0o700
