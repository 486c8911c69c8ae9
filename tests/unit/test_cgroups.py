"""Control groups on recorded trees: where groups can be made, and that no limit is claimed that was not set."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from danlu.executors.local.cgroups import MAX_PROCESSES, Group, Tree, detect
from tests.conftest import cannot_run
from tests.factories import GIB, write_files

V1 = ("memory", "cpu", "cpuacct", "pids")
V1_FILES = {
    "memory": ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
    "cpu": ("cpu.cfs_period_us", "cpu.cfs_quota_us"),
    "cpuacct": ("cpuacct.usage",),
    "pids": ("pids.max",),
}
V2_FILES = ("memory.max", "memory.swap.max", "cpu.max", "pids.max")
OWN_V1 = "9:name=systemd:/\n8:pids:/docker/abc\n4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n0::/\n"


def make_v1(root: Path, *controllers: str, below: str = "docker/abc") -> Path:
    for controller in controllers:
        write_files(root, {f"{controller}/cgroup.procs": "1\n", f"{controller}/{below}/cgroup.procs": ""})
    return root


def make_v2(root: Path, *delegated: str, controllers: str = "cpuset cpu io memory pids") -> Path:
    """A unified tree whose folders in ``delegated`` have a control file."""
    write_files(root, {"cgroup.controllers": controllers, "cgroup.procs": ""})
    for path in delegated:
        write_files(root / path, {"cgroup.controllers": controllers, "cgroup.subtree_control": "", "cgroup.procs": ""})
    return root


def record_group(group: Group) -> Group:
    """Writes the files that the kernel shows in a new group's folders."""
    for controller, folder in group.folders.items():
        names = V2_FILES if group.version == 2 else V1_FILES[controller]
        write_files(folder, {"cgroup.procs": "", **dict.fromkeys(names, "max")})
    return group


def found(tree: Tree | None) -> Tree:
    assert tree is not None
    return tree


def test_version_1_is_found_where_this_process_is(tmp_path: Path) -> None:
    tree = found(detect(make_v1(tmp_path, *V1), OWN_V1))
    assert (tree.version, set(tree.bases)) == (1, set(V1))
    assert tree.bases["memory"] == tmp_path / "memory/docker/abc"


def test_a_path_of_another_namespace_falls_back_to_what_is_mounted(tmp_path: Path) -> None:
    tree = found(detect(make_v1(tmp_path, *V1), OWN_V1.replace("/docker/abc", "/not/here")))
    assert tree.bases["memory"] == tmp_path / "memory"


@pytest.mark.parametrize("own", ["", "garbage", "0::/\n", ":::::\n"])
def test_version_1_without_a_word_of_it_is_not_used(tmp_path: Path, own: str) -> None:
    assert detect(make_v1(tmp_path, *V1), own) is None


def test_without_memory_there_is_nothing_to_gain(tmp_path: Path) -> None:
    assert detect(make_v1(tmp_path, "cpu", "pids"), OWN_V1) is None


def test_hybrid_uses_what_version_1_has(tmp_path: Path) -> None:
    make_v1(tmp_path, *V1)
    make_v2(tmp_path / "unified", "")
    assert found(detect(tmp_path, OWN_V1)).version == 1


def test_a_machine_without_control_groups(tmp_path: Path) -> None:
    assert detect(tmp_path, OWN_V1) is None
    assert detect(tmp_path / "absent", "0::/\n") is None


def test_version_2_uses_the_highest_folder_that_is_handed_on(tmp_path: Path) -> None:
    make_v2(tmp_path, "system.slice/danlu.service", "system.slice/danlu.service/inner")
    tree = found(detect(tmp_path, "0::/system.slice/danlu.service/inner\n"))
    assert tree.version == 2
    assert set(tree.bases) == {"memory", "cpu", "pids"}
    assert set(tree.bases.values()) == {tmp_path / "system.slice/danlu.service"}


def test_version_2_that_is_not_handed_on(tmp_path: Path) -> None:
    write_files(make_v2(tmp_path), {"user.slice/cgroup.procs": ""})
    assert detect(tmp_path, "0::/user.slice\n") is None


def test_version_2_hands_on_what_it_has(tmp_path: Path) -> None:
    make_v2(tmp_path, "a", controllers="memory pids")
    assert set(found(detect(tmp_path, "0::/a\n")).bases) == {"memory", "pids"}
    assert detect(make_v2(tmp_path / "other", "a", controllers="cpu pids"), "0::/a\n") is None


def test_a_tree_that_is_read_only_is_not_used(tmp_path: Path, small_disk: Callable[[int], Path]) -> None:
    for make, own in ((lambda root: make_v1(root, *V1), OWN_V1), (lambda root: make_v2(root, "a"), "0::/a\n")):
        root = make(small_disk(4 * 2**20))
        assert detect(root, own) is not None
        if subprocess.run(["mount", "-o", "remount,ro", str(root)], capture_output=True, check=False).returncode:
            cannot_run("a file system cannot be made read-only here")
        assert detect(root, own) is None


def test_version_1_limits_are_written_and_claimed(tmp_path: Path) -> None:
    group = record_group(found(detect(make_v1(tmp_path, *V1), OWN_V1)).group("home/attempt"))
    assert group.create(memory_bytes=GIB, cpu_milli=1500) == ("memory", "cpu", "pids")
    assert {path.name: path.read_text() for folder in group.places for path in folder.iterdir() if path.is_file()} == {
        "cgroup.procs": "", "memory.limit_in_bytes": str(GIB), "memory.memsw.limit_in_bytes": str(GIB),
        "cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "150000", "cpuacct.usage": "max", "pids.max": str(MAX_PROCESSES),
    }  # fmt: skip
    assert group.counters() == {
        "version": 1,
        "memory": str(group.folders["memory"]),
        "cpu": str(group.folders["cpuacct"]),
    }


def test_version_2_limits_are_written_handed_on_and_claimed(tmp_path: Path) -> None:
    group = record_group(found(detect(make_v2(tmp_path, "a"), "0::/a\n")).group("home/attempt"))
    for parent in ("a/danlu", "a/danlu/home"):
        write_files(tmp_path / parent, {"cgroup.subtree_control": ""})
    assert group.create(memory_bytes=GIB, cpu_milli=500) == ("memory", "cpu", "pids")
    (folder,) = group.places
    assert folder == tmp_path / "a/danlu/home/attempt"
    assert [(folder / name).read_text() for name in V2_FILES] == [str(GIB), "0", "50000 100000", str(MAX_PROCESSES)]
    for parent in ("a", "a/danlu", "a/danlu/home"):
        assert (tmp_path / parent / "cgroup.subtree_control").read_text().startswith("+")
    assert group.counters() == {"version": 2, "memory": str(folder), "cpu": str(folder)}


def test_version_2_makes_the_folders_on_the_way(tmp_path: Path) -> None:
    group = found(detect(make_v2(tmp_path, "a"), "0::/a\n")).group("home/attempt")
    group.create(memory_bytes=None, cpu_milli=None)
    assert group.places[0].is_dir()


def test_a_limit_that_was_not_asked_for_is_not_claimed(tmp_path: Path) -> None:
    group = record_group(found(detect(make_v1(tmp_path, *V1), OWN_V1)).group("home/attempt"))
    assert group.create(memory_bytes=None, cpu_milli=None) == ("pids",)


@pytest.mark.parametrize(("controller", "files", "left"), [
    ("memory", ("memory.limit_in_bytes",), ("cpu", "pids")),
    ("cpu", ("cpu.cfs_quota_us",), ("memory", "pids")),
    ("pids", ("pids.max",), ("memory", "cpu")),
    ("memory", ("memory.memsw.limit_in_bytes",), ("memory", "cpu", "pids")),
])  # fmt: skip
def test_a_limit_that_could_not_be_set_is_not_claimed(
    tmp_path: Path, controller: str, files: tuple[str, ...], left: tuple[str, ...]
) -> None:
    group = record_group(found(detect(make_v1(tmp_path, *V1), OWN_V1)).group("home/attempt"))
    for name in files:
        (group.folders[controller] / name).unlink()
    assert group.create(memory_bytes=GIB, cpu_milli=1000) == left
    assert not any((group.folders[controller] / name).exists() for name in files)


def test_a_controller_that_is_not_there_is_not_claimed(tmp_path: Path) -> None:
    group = record_group(found(detect(make_v1(tmp_path, "memory"), OWN_V1)).group("home/attempt"))
    assert group.create(memory_bytes=GIB, cpu_milli=1000) == ("memory",)
    assert group.counters() == {"version": 1, "memory": str(group.folders["memory"]), "cpu": None}


def test_a_tiny_share_of_a_core_is_one_that_the_kernel_takes(tmp_path: Path) -> None:
    group = record_group(found(detect(make_v1(tmp_path, *V1), OWN_V1)).group("home/attempt"))
    group.create(memory_bytes=None, cpu_milli=1)
    assert int((group.folders["cpu"] / "cpu.cfs_quota_us").read_text()) >= 1000


def test_everything_in_a_group_is_killed_and_it_cannot_grow_meanwhile(tmp_path: Path) -> None:
    group = record_group(found(detect(make_v1(tmp_path, *V1), OWN_V1)).group("home/attempt"))
    with subprocess.Popen(["sleep", "1000"]) as child:
        procs = group.folders["memory"] / "cgroup.procs"
        procs.write_text(f"{child.pid}\n")
        assert group.processes() == {child.pid}
        assert not group.kill()  # a recorded tree does not let go of what has ended
        assert child.wait() == -signal.SIGKILL
        procs.write_text("")
        assert group.kill()
    assert (group.folders["pids"] / "pids.max").read_text() == "0"


def test_a_group_that_is_gone_is_empty(tmp_path: Path) -> None:
    group = found(detect(make_v1(tmp_path, *V1), OWN_V1)).group("home/attempt")
    assert group.processes() == set()
    assert group.kill()
    group.remove()
    for folder in group.places:
        folder.mkdir(parents=True)
    group.remove()
    assert not any(folder.exists() for folder in group.places)
