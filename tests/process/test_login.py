"""Logging in to platforms elsewhere: keys are checked before they are kept, and go to their own platform only."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

import danlu
from danlu.errors import PlatformError
from tests.process.commands import Person
from tests.process.platform import Server


@pytest.fixture
def admin(server: Server, tmp_path: Path) -> Person:
    return Person(tmp_path, {"DANLU_HOME": str(server.home)})


@pytest.fixture
def ada(tmp_path: Path) -> Person:
    """Somebody without a platform on this machine."""
    return Person(tmp_path / "ada")


def test_a_key_is_checked_and_then_used_until_it_is_forgotten(server: Server, admin: Person, ada: Person) -> None:
    made = admin.json("user", "create", "ada")
    admin.danlu("project", "create", "vision")
    admin.danlu("member", "add", "ada", "--project", "vision")
    ada.danlu("whoami", code=3)
    key = ("--key-id", made["key"]["id"])
    ada.danlu("login", server.url, *key, stdin="danlu_sk_wrong\n", code=1)
    assert "does not accept this key" in ada.said
    assert not ada.profiles.exists()
    assert ada.danlu("login", server.url, *key, "--profile", "work", stdin=made["secret"]) == "profile/work\n"
    assert "you are ada" in ada.said
    assert stat.S_IMODE(ada.profiles.stat().st_mode) == 0o600
    assert ada.json("whoami")["name"] == "ada"
    assert made["secret"] not in ada.danlu("profile", "ls", "-o", "json") + ada.danlu("profile", "ls", "-o", "wide")
    told = ada.json("key", "rotate", "--overlap", "1ms")
    assert told["stored"] == "profile work"
    assert ada.json("whoami")["by"] == told["key"]["id"]
    ada.danlu("profile", "use", "local")
    ada.danlu("whoami", code=3)
    assert ada.json("whoami", "--profile", "work")["name"] == "ada"
    assert ada.json("whoami", "--url", server.url)["name"] == "ada"
    ada.danlu("whoami", "--url", server.url.replace("127.0.0.1", "localhost"), code=1)
    ada.profiles.chmod(0o644)
    ada.danlu("whoami", "--profile", "work", code=1)
    assert "chmod 600" in ada.said
    ada.profiles.chmod(0o600)
    assert ada.danlu("logout", "--profile", "work") == "profile/work\n"
    ada.danlu("whoami", "--profile", "work", code=2)


def test_a_token_is_a_way_to_log_in_too_and_a_project_may_be_meant(server: Server, admin: Person, ada: Person) -> None:
    admin.danlu("project", "create", "vision")
    secret = admin.danlu("token", "create", "ada")
    ada.danlu("login", server.url, "--token", "--project", "vision", "--profile", "work", stdin=secret)
    assert ada.json("member", "ls")["items"] == []
    assert 'project = "vision"' in ada.profiles.read_text()
    ada.danlu("login", server.url, stdin=secret, code=2)
    assert "--key-id" in ada.said
    ada.danlu("login", code=2)
    ada.danlu("login", "company", "--token", stdin=secret, code=2)
    ada.danlu("whoami", "--url", "company", code=2)


def test_a_project_that_is_named_is_one_in_which_one_may_act(server: Server, admin: Person, ada: Person) -> None:
    made = admin.json("user", "create", "ada")
    for name in ("vision", "speech", "sound"):
        admin.danlu("project", "create", name)
    for name in ("vision", "speech"):
        admin.danlu("member", "add", "ada", "--project", name)
    login = ("login", server.url, "--key-id", made["key"]["id"], "--profile", "work")
    ada.danlu(*login, "--project", "vison", stdin=made["secret"], code=1)
    assert "did you mean vision?" in ada.said
    assert "danlu project ls" in ada.said
    assert not ada.profiles.exists()
    ada.danlu(*login, "--project", "sound", stdin=made["secret"], code=1)
    ada.danlu(*login, "--project", "speech", stdin=made["secret"])
    ada.danlu("whoami", "--project", "vision")
    ada.danlu("whoami", "--project", "vison", code=1)
    assert "did you mean vision?" in ada.said
    admin.danlu("whoami", "--project", "sound")
    admin.danlu("whoami", "--project", "silence", code=1)
    ada.danlu(*login, stdin=made["secret"])
    assert "project speech, as before" in ada.said
    assert 'project = "speech"' in ada.profiles.read_text()
    admin.danlu("member", "rm", "ada", "--project", "speech")
    ada.danlu(*login, stdin=made["secret"])
    assert "project =" not in ada.profiles.read_text()


def test_a_program_finds_the_same_platform(
    server: Server, admin: Person, ada: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada.danlu("login", server.url, "--token", "--profile", "work", stdin=admin.danlu("token", "create", "ada"))
    for name in ("DANLU_HOME", "DANLU_URL", "DANLU_PROFILE", "DANLU_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(ada.folder))
    monkeypatch.setenv("XDG_DATA_HOME", str(ada.folder))
    for platform in (danlu.connect(), danlu.connect(profile="work"), danlu.connect(server.url)):
        with platform:
            assert platform.url == server.url
            assert platform.jobs() == []
    with pytest.raises(PlatformError, match="not running here"):
        danlu.connect(profile="local")


def test_a_platform_elsewhere_is_not_stopped_by_who_means_the_one_here(
    server: Server, admin: Person, ada: Person
) -> None:
    ada.danlu("login", server.url, "--token", "--profile", "work", stdin=admin.danlu("token", "create", "ada"))
    ada.danlu("down")
    assert "not running here" in ada.said
    assert admin.json("status")["running"] is True
