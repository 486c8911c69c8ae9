"""The folders that all users of a machine share, where they are not what they are nearly everywhere: links, no mounts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from danlu.domain.isolation import Layer
from danlu.executors.local import isolation, launcher
from tests.conftest import cannot_run
from tests.process import escapes

UID = isolation.UID_BASE + 7
PACKAGES = Path(launcher.__file__).parents[3]
INSIDE = r"""
import errno, json, os, sys
from danlu.executors.local import launcher
from danlu.runner import sandbox
asked = json.loads(sys.argv[1])
sandbox.TEMPORARY, sandbox.SHARED_MEMORY = tuple(asked["temporary"]), asked["memory"]
sandbox.EVERYBODYS = (*sandbox.TEMPORARY, sandbox.SHARED_MEMORY)
box = launcher.prepare(asked["config"])
found = {}
for place in asked["look"]:
    for name in ("stranger", "mine"):
        path = os.path.join(place, name)
        try:
            if name == "mine":
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
            else:
                open(path).close()
            found[path] = "done"
        except OSError as error:
            found[path] = errno.errorcode[error.errno]
print(json.dumps({"force": box.force, "missing": box.missing, "found": found}))
"""


class Machine:
    """A machine on which the folders for all are in ``folder``, as a test makes them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.temporary, self.memory = folder / "tmp", folder / "shm"
        self.home, self.private = folder / "home", folder / "private"
        for made in (self.home, self.private):
            made.mkdir()
        self.private.chmod(0o1777)

    def shared(self, path: Path) -> Path:
        """Makes a folder for every user, with a file of a stranger in it."""
        path.mkdir(parents=True)
        path.chmod(0o1777)
        (path / "stranger").write_text("secret")
        (path / "stranger").chmod(0o644)
        return path

    def inside(self, *look: Path, missing: dict[str, str] | None = None) -> dict[str, Any]:
        """Returns what a job finds in there: the layers, and what came of reading and writing in some folders."""
        needed = [{"path": path, "write": False} for path in {sys.base_prefix, sys.prefix, str(PACKAGES)}]
        config = {
            "uid": UID, "limits": [], "overlay": None, "cgroup_procs": [], "needed": needed,
            "sandbox": isolation.sandbox(self.home, self.private, tenants=True, missing=missing or {}),
        }  # fmt: skip
        asked = {
            "temporary": [str(self.temporary)],
            "memory": str(self.memory),
            "look": [*map(str, look)],
            "config": config,
        }
        ran = subprocess.run(
            [sys.executable, "-c", INSIDE, json.dumps(asked)], capture_output=True, text=True, check=False, cwd=PACKAGES,
            env={"PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        found: dict[str, Any] = json.loads(ran.stdout)
        return found


@pytest.fixture
def machine() -> Iterator[Machine]:
    if os.geteuid() != 0:
        cannot_run("only root can run jobs as other users")
    found = isolation.offered(isolation.UID_BASE)
    for layer in (Layer.PRIVATE_TMP, Layer.LANDLOCK):
        if layer not in found.layers:
            cannot_run(f"this machine has no {layer}: {found.missing[layer]}")
    with escapes.public_folder() as folder:
        folder.chmod(0o755)
        yield Machine(folder)


def memory_is_no_mount(machine: Machine) -> list[Path]:
    return [machine.shared(machine.temporary), machine.shared(machine.memory)]


def tmp_is_a_link(machine: Machine) -> list[Path]:
    machine.temporary.symlink_to(machine.shared(machine.folder / "large" / "tmp"))
    return [machine.temporary, machine.folder / "large" / "tmp", machine.shared(machine.memory)]


def memory_is_a_link(machine: Machine) -> list[Path]:
    machine.memory.symlink_to(machine.shared(machine.folder / "run" / "shm"))
    return [machine.shared(machine.temporary), machine.memory, machine.folder / "run" / "shm"]


def tmp_is_memory(machine: Machine) -> list[Path]:
    machine.temporary.symlink_to(machine.shared(machine.memory))
    return [machine.temporary, machine.memory]


def tmp_is_in_memory(machine: Machine) -> list[Path]:
    machine.shared(machine.memory)
    machine.temporary.symlink_to(machine.shared(machine.memory / "below" / "tmp"))
    return [machine.temporary, machine.memory]


@pytest.mark.parametrize(
    "lay_out", [memory_is_no_mount, tmp_is_a_link, memory_is_a_link, tmp_is_memory, tmp_is_in_memory]
)
def test_what_all_share_is_each_ones_own(machine: Machine, lay_out: Callable[[Machine], list[Path]]) -> None:
    places = lay_out(machine)
    found = machine.inside(*places)
    assert {Layer.PRIVATE_TMP, Layer.LANDLOCK} <= {*found["force"]}, found["missing"]
    assert found["found"] == {
        **{f"{place}/stranger": "ENOENT" for place in places}, **{f"{place}/mine": "done" for place in places},
    }  # fmt: skip
    assert not [path for path in machine.folder.rglob("mine") if machine.private not in path.parents]


def leads_to_the_top(machine: Machine) -> str:
    machine.temporary.symlink_to("/")
    return "/"


def leads_nowhere(machine: Machine) -> str:
    machine.temporary.symlink_to(machine.folder / "not yet")
    return f"{machine.folder}/not yet"


@pytest.mark.parametrize("lay_out", [leads_to_the_top, leads_nowhere])
def test_what_cannot_be_covered_is_not_claimed(machine: Machine, lay_out: Callable[[Machine], str]) -> None:
    where = lay_out(machine)
    machine.shared(machine.memory)
    found = machine.inside(machine.memory)
    assert not {Layer.PRIVATE_TMP, Layer.LANDLOCK} & {*found["force"]}
    assert found["missing"] == {
        Layer.PRIVATE_TMP: f"{machine.temporary}, which leads to {where}, cannot be covered",
        Layer.LANDLOCK: f"{machine.temporary} leads to {where}, which is not the attempt's own",
    }
    assert found["found"] == {f"{machine.memory}/stranger": "ENOENT", f"{machine.memory}/mine": "done"}


def test_where_a_link_leads_may_not_be_written_unclaimed(machine: Machine) -> None:
    """Without mounts of its own, a job may write where the machine's /tmp leads; no layer says then that it may not."""
    places = tmp_is_a_link(machine)
    found = machine.inside(*places, missing={"private-tmp": "left out"})
    assert Layer.LANDLOCK not in found["force"]
    assert found["found"][f"{places[1]}/mine"] == "done"
