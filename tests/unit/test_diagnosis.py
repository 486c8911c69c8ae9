"""What the doctor says: of file systems, keys, disks, limits, clocks, servers that ended, ports; and its exit code."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import socket
from pathlib import Path
from typing import Any

import pytest

from danlu import __version__
from danlu.cli.doctor import doctor
from danlu.client import diagnosis as here
from danlu.domain.diagnosis import Check, Verdict
from danlu.domain.nodes import Gpu
from danlu.environments import diagnosis as environments
from danlu.environments.builder import Builder
from danlu.executors.local import cgroups, machine
from danlu.executors.local import diagnosis as machine_checks
from danlu.runner.formats import boot_id
from danlu.server import diagnosis as folder
from tests.factories import make_environment

MOUNTS = (
    "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
    "30 22 0:26 / /home rw - nfs4 server:/home rw\n"
    "31 30 0:27 / /home/a\\040b rw - tmpfs tmpfs rw\n"
    "nonsense\n"
)


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/var/lib", "ext4"), ("/home", "nfs4"), ("/home/me/x", "nfs4"), ("/home/a b/c", "tmpfs"), ("/homework", "ext4")],
)
def test_the_file_system_of_a_folder(path: str, kind: str) -> None:
    assert folder.file_system(Path(path), MOUNTS) == kind


@pytest.mark.parametrize(
    ("kind", "sqlite", "verdict"),
    [("ext4", True, "ok"), ("xfs", False, "ok"), ("nfs4", True, "fail"), ("nfs4", False, "warn"), ("tmpfs", True, "warn"),
     ("", True, "ok"), ("fuse.sshfs", True, "fail")],
)  # fmt: skip
def test_where_the_data_may_lie(kind: str, sqlite: bool, verdict: str) -> None:
    check = folder.folder_kind(Path("/d"), kind, sqlite=sqlite)
    assert (check.verdict, bool(check.next_step)) == (verdict, verdict != "ok")


def test_keys_that_others_can_read(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    assert list(folder.keys(keys, os.geteuid())) == []
    keys.mkdir(mode=0o700)
    (keys / "bootstrap").touch(mode=0o600)
    assert [check.verdict for check in folder.keys(keys, os.geteuid())] == ["ok"]
    (keys / "bootstrap").chmod(0o640)
    (check,) = folder.keys(keys, os.geteuid())
    assert (check.verdict, check.next_step) == ("fail", f"chmod 600 {keys / 'bootstrap'}")
    (check,) = folder.keys(keys, os.geteuid() + 1)
    assert "belongs to user" in check.value


def test_a_full_disk(small_disk: Any) -> None:
    (check,) = folder.room(small_disk(2**20))
    assert (check.name, check.verdict) == ("disk", "fail")


def test_limits_that_can_and_cannot_be_set() -> None:
    assert machine_checks.limits(None).verdict == "warn"
    whole = cgroups.Tree(2, dict.fromkeys(("memory", "cpu", "pids"), Path("/x")))
    assert machine_checks.limits(whole).verdict == "ok"
    check = machine_checks.limits(cgroups.Tree(2, {"memory": Path("/x")}))
    assert (check.verdict, "not cpu, pids" in check.value) == ("warn", True)


def test_gpus(tmp_path: Path) -> None:
    assert machine_checks.devices((Gpu(index=0, declared=True),), tmp_path).value == "1 declared with --gpus"
    found = machine.capacity(None, name="n").gpus
    if not found:
        assert machine_checks.devices(None, tmp_path / "nothing").verdict == "ok"
        assert machine_checks.devices(None, tmp_path).verdict == "fail"  # the driver is there, and shows none


def test_open_files_and_watchers(tmp_path: Path) -> None:
    assert machine_checks.files(1024).verdict == "warn"
    assert machine_checks.files(65_536).verdict == "ok"
    assert machine_checks.files(resource.RLIM_INFINITY).verdict == "ok"
    assert list(machine_checks.watchers(tmp_path)) == []
    for name, number in (("max_user_instances", 16), ("max_user_watches", 100_000)):
        (tmp_path / name).write_text(f"{number}\n")
    (check,) = machine_checks.watchers(tmp_path)
    assert (check.verdict, "16 watchers" in check.value) == ("warn", True)


def test_an_environment_that_is_gone(tmp_path: Path) -> None:
    builder = Builder(tmp_path / "environments", tmp_path / "cache")
    assert list(environments.damaged(builder, ())) == []
    gone = make_environment("e" + "0" * 26, name="sklearn", lock_digest="0" * 64)
    (check,) = environments.damaged(builder, [gone])
    assert (check.verdict, "1 of 1 are gone or damaged: sklearn" in check.value) == ("warn", True)
    image = gone.source.model_copy(update={"catalogue": None, "python": None, "image": "busybox:1"})
    assert list(environments.damaged(builder, [gone.evolved(now=gone.updated_at, source=image)])) == []


@pytest.mark.parametrize(
    ("ahead_s", "unsure_s", "verdict"),
    [(0.0, 0.1, "ok"), (1.5, 0.0, "ok"), (-1.5, 0.0, "ok"), (3.0, 0.0, "warn"), (-3.0, 0.0, "warn"), (3.0, 2.0, "ok"),
     (90.0, 0.1, "fail"), (-90.0, 0.1, "fail")],
)  # fmt: skip
def test_clocks(ahead_s: float, unsure_s: float, verdict: str) -> None:
    check = here.skew(int(ahead_s * 1e9), unsure_s)
    assert check.verdict == verdict
    if verdict != "ok":
        assert ("ahead of" if ahead_s > 0 else "behind") in check.value


def test_versions() -> None:
    assert here.same_version(__version__).verdict == "ok"
    assert "9.9" in here.same_version("9.9").next_step


def test_a_key_file_of_the_users_own(tmp_path: Path) -> None:
    file = tmp_path / "token"
    assert list(here.key_file({})) == []
    assert [check.verdict for check in here.key_file({"DANLU_TOKEN_FILE": str(file)})] == ["fail"]
    file.touch(mode=0o600)
    assert [check.verdict for check in here.key_file({"DANLU_TOKEN_FILE": str(file)})] == ["ok"]
    file.chmod(0o644)
    assert [check.next_step for check in here.key_file({"DANLU_TOKEN_FILE": str(file)})] == [f"chmod 600 {file}"]


def test_a_server_that_ended_without_a_word(tmp_path: Path) -> None:
    (check,) = here.not_running(tmp_path)
    assert check.verdict == "ok"
    facts = {"url": "http://127.0.0.1:1", "pid": 2**22 + 1, "start_time": 1, "boot_id": boot_id()}
    (tmp_path / "platform.json").write_text(json.dumps(facts))
    (check,) = here.not_running(tmp_path)
    assert (check.verdict, "ended without a word" in check.value) == ("warn", True)
    (tmp_path / "platform.json").write_text("{")
    (check,) = here.not_running(tmp_path)
    assert (check.verdict, "is damaged" in check.value) == ("fail", True)


def test_a_server_that_holds_its_lock_but_does_not_answer(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    assert not here.locked(tmp_path / "lock")
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    (check,) = here.not_running(tmp_path)
    assert (check.verdict, "does not answer" in check.value) == ("warn", True)
    os.close(descriptor)


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        assert [check.verdict for check in here.port(number)] == ["warn"]
    assert [check.verdict for check in here.port(number)] == ["ok"]


def test_without_a_platform_the_machine_is_looked_at(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    for variable in ("DANLU_URL", "DANLU_TOKEN", "DANLU_TOKEN_FILE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("DANLU_HOME", str(tmp_path / "nothing"))
    code = doctor(index=False, output="json")
    found = [Check.model_validate(one) for one in json.loads(capsys.readouterr().out)["items"]]
    assert code == any(check.verdict is Verdict.FAIL for check in found)
    assert {"danlu", "platform", "port", "server", "data", "disk", "limits", "isolation", "gpus", "uv"} <= {
        check.name for check in found
    }
    assert all(check.next_step for check in found if check.verdict is not Verdict.OK)
    assert not (tmp_path / "nothing").exists()


def test_a_platform_that_cannot_be_reached_fails(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("DANLU_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("DANLU_TOKEN", "x")
    assert doctor() == 1
    said = capsys.readouterr().out
    assert "fail  platform" in said
    assert said.endswith("1 ok, 1 failure\n")
    assert doctor(output="name") == 1
    assert "fail/platform" in capsys.readouterr().out.splitlines()
