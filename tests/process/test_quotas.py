"""Quotas by the command line, as an administrator and as a member of a project types it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.process.commands import Person
from tests.process.platform import Server


@pytest.fixture
def admin(server: Server, tmp_path: Path) -> Person:
    return Person(tmp_path, {"DANLU_HOME": str(server.home)})


def test_a_limit_is_set_seen_met_and_taken_away(server: Server, admin: Person, tmp_path: Path) -> None:
    made = admin.json("user", "create", "ada")
    admin.danlu("project", "create", "vision")
    admin.danlu("project", "create", "speech")
    admin.danlu("member", "add", "ada", "--project", "vision")
    keys = {"DANLU_ACCESS_KEY_ID": made["key"]["id"], "DANLU_SECRET_ACCESS_KEY": made["secret"]}
    ada = Person(tmp_path / "ada", {"DANLU_URL": server.url, **keys})
    assert admin.danlu("quota", "get") == ""
    assert "nothing is limited; a new one: danlu quota set" in admin.said
    assert admin.danlu("quota", "set", "research", "--group", "memory=4GiB", "gpu/h100=4") == "quota/research\n"
    admin.danlu(
        "quota", "set", "vision", "memory=1GiB", "jobs=5", "--parent", "research", "--guarantee", "memory=512MiB"
    )
    assert "vision holds at most 4 h100 GPUs, 1GiB of memory and 5 jobs; guaranteed: 512MiB of memory" in admin.said
    admin.danlu("quota", "set", "speech", "--parent", "research", "--weight", "2")
    shown = admin.danlu("quota", "get")
    assert [line.split() for line in shown.splitlines()] == [
        ["NAME", "RESOURCE", "GUARANTEE", "LIMIT", "USED"],
        ["research", "gpu/h100", "-", "4", "0"],
        ["research", "memory", "-", "4GiB", "0"],
        ["speech", "-", "-", "-", "-"],
        ["vision", "memory", "512MiB", "1GiB", "0"],
        ["vision", "jobs", "-", "5", "0"],
    ]
    assert "\n  speech " in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert ada.danlu("quota", "get", "-o", "name") == "quota/research\nquota/vision\n"
    assert admin.danlu("quota", "ls", "-o", "name") == "quota/research\nquota/speech\nquota/vision\n"
    assert ada.json("quota", "get", "vision")["quota"]["limit"] == {"memory": 2**30, "jobs": 5}
    assert admin.danlu("__complete", "zsh", "quota", "rm", "") == "words\nvision\nspeech\nresearch\tgroup\n"
    assert admin.danlu("__complete", "zsh", "quota", "set", "v") == "words\nvision\n"
    assert "default" in admin.danlu("__complete", "zsh", "quota", "set", "")
    ada.danlu("quota", "get", "speech", code=1)
    assert "there is no quota 'speech' of project vision" in ada.said
    ada.danlu("quota", "set", "vision", "memory=9GiB", code=1)
    ada.danlu("run", "--no-code", "--detach", "--memory", "2GiB", "--", "true", code=2)
    assert "the limit of vision is 1GiB of memory" in ada.said
    assert "ask for less: --memory 1GiB" in ada.said
    admin.danlu("quota", "set", "vision", "memory=unlimited")
    ada.danlu("run", "--no-code", "--detach", "--memory", "1025MiB", "--", "true")
    assert "project vision has no quota any more" in (admin.danlu("quota", "rm", "vision") and admin.said)
    assert ada.danlu("quota", "get") == ""


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["default"], 2, "there is nothing to set"),
        (["default", "gpu"], 2, "'gpu' is not RESOURCE=AMOUNT"),
        (["default", "gpu=1", "gpu=2"], 2, "gpu is given twice: 1 and 2"),
        (["default", "gpus=1"], 2, "did you mean gpu?"),
        (["default", "gpu=0.5"], 2, "GPUs are given whole"),
        (["default", "--weight", "0"], 2, "weight: must be at least 1"),
        (["defalt", "gpu=1"], 1, "did you mean default?"),
        (["teams", "gpu=1"], 1, "danlu quota set teams --group"),
        (["default", "gpu=1", "--guarantee", "gpu=2"], 1, "guaranteed 2 GPUs, above its limit of 1 GPU"),
    ],
)
def test_what_cannot_be_is_told(admin: Person, words: list[str], code: int, said: str) -> None:
    admin.danlu("quota", "set", *words, code=code)
    assert said in admin.said


TRAINING = """
import os
from pathlib import Path

Path(os.environ["DANLU_OUTPUT_DIR"], "weights").write_bytes(b"w" * 300_000)
Path(os.environ["DANLU_CHECKPOINT_DIR"], "step-1").write_bytes(b"s" * 400_000)
"""


def test_what_is_stored_is_counted_limited_and_kept(server: Server, admin: Person) -> None:
    """Uploads are refused without room; what runs keeps all that it leaves, and the count outlives kill -9."""

    def used() -> int:
        return int(admin.json("quota", "get", "default")["used"].get("storage", 0))

    code = admin.folder / "code"
    code.mkdir()
    (code / "data.bin").write_bytes(b"d" * 100_000)
    (code / "train.py").write_text(TRAINING)
    run = ("run", "--name", "first", "--code", str(code), "--env", "host", "--", "python3", "train.py")
    admin.danlu("quota", "set", "default", "storage=90000B")
    admin.danlu(*run, code=1)
    assert "the limit of default is 90KB of storage, of which it has used 0" in admin.said
    assert used() == 0
    admin.danlu("quota", "set", "default", "storage=200KiB")
    admin.danlu(*run)
    server.wait("first")
    counted = used()
    names = counted - 100_000 - len(TRAINING) - 300_000 - 400_000
    assert 0 < names < 1000, "two folders' names"
    assert "  782.0KiB" in admin.danlu("quota", "get")
    admin.danlu("run", "--no-code", "--env", "host", "--", "true", code=1)
    assert "there is no room for what a new job leaves" in admin.said
    server.kill()
    server.start()
    assert used() == counted
    admin.danlu("quota", "set", "default", "storage=unlimited")
    admin.danlu("run", "--code", str(code), "--env", "host", "--", "python3", "-c", "pass")
    assert used() == counted, "nothing of it is new"
