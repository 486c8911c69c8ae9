"""What cannot be taken back is asked for on a terminal, and only there; a role is never changed unasked."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.process.commands import Person
from tests.process.platform import Server
from tests.process.terminal import terminal


def test_a_person_is_asked_before_what_is_final(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin, ada = Person(tmp_path, {"DANLU_HOME": str(server.home)}), Person(tmp_path / "ada")
    made = admin.json("user", "create", "ada")
    admin.danlu("project", "create", "vision")
    admin.danlu("member", "add", "ada", "--project", "vision", "--role", "admin")
    admin.danlu("member", "add", "ada", "--project", "vision", code=2)
    assert "ada is admin of vision already" in admin.said
    assert "danlu member add ada --role developer --project vision" in admin.said
    key = made["key"]["id"]
    ada.danlu("login", server.url, "--key-id", key, "--profile", "work", stdin=made["secret"])
    monkeypatch.setenv("XDG_CONFIG_HOME", str(ada.folder))

    def asked(*words: str, shows: str, answer: str = "\n", code: int = 1) -> None:
        with terminal(server.home, *words) as shell:
            shell.shows("go on? [y/N]")
            assert shows in shell.shown
            shell.types(answer)
            assert shell.ends() == code

    mine = ("--profile", "work")
    asked("member", "add", "ada", "--role", "viewer", *mine, shows="only admin of vision")
    asked("member", "rm", "ada", *mine, shows="only admin of vision")
    asked("key", "rm", key, *mine, shows="the key by which you call")
    asked("user", "rm", "ada", shows="never free again")
    assert ada.json("whoami")["projects"] == [{"project": "vision", "role": "admin"}]
    other = ada.json("key", "create")["key"]["id"]
    with terminal(server.home, "key", "rm", other, *mine) as shell:
        assert shell.ends() == 0
    with terminal(server.home, "member", "add", "ada", "--role", "viewer", "--yes", *mine) as shell:
        assert shell.ends() == 0
    assert ada.json("whoami")["projects"] == [{"project": "vision", "role": "viewer"}]
    asked("user", "rm", "ada", shows="never free again", answer="y\n", code=0)
    ada.danlu("whoami", code=1)
