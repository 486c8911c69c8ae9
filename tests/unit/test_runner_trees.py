"""Trees as a runner makes them: the same, byte for byte, as the platform's; and as little is believed of one."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.blobs.folders import scan
from danlu.domain import trees as platform
from danlu.errors import InvalidRequest
from danlu.runner import trees
from danlu.runner.trees import Blob, Changed, Reading, TreeError
from tests.factories import NOW, write_files
from tests.unit.test_folders import lay_out, layouts
from tests.unit.test_trees import folders, node

NOBODY = 65_534


def theirs(entry: platform.Entry) -> trees.Entry:
    return trees.Entry(entry.name, entry.kind, entry.address, entry.mode, entry.size, entry.files, entry.target)


def read(root: Path, **options: Any) -> tuple[trees.Entry, dict[str, Blob], list[str]]:
    """Returns what is read of a folder: its entry, the blobs by address, what was left out."""
    found: list[Blob] = []
    reading = Reading(str(root), found.append, **options)
    whole = reading.run()
    return whole, {blob.address: blob for blob in found}, reading.skipped


@pytest.mark.parametrize(
    "name", ["MAX_NODE_BYTES", "MAX_ENTRIES", "MAX_DEPTH", "MAX_NAME_BYTES", "MAX_PATH_BYTES", "MAX_TARGET_BYTES",
             "MAX_TREE_ENTRIES", "MODES"],
)  # fmt: skip
def test_the_bounds_are_the_platforms(name: str) -> None:
    assert getattr(trees, name) == getattr(platform, name)


@given(folders)
def test_a_node_is_written_as_the_platform_writes_it(found: list[platform.Entry]) -> None:
    data = platform.encode(found)
    assert trees.encode(map(theirs, found)) == data
    assert trees.decode(data) == tuple(map(theirs, platform.decode(data)))
    assert trees.totals(map(theirs, found)) == platform.totals(found)


rows = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["a", "", "..", "a/b", "x" * 256, "\0", 3]),
        "address": st.just(platform.address_of(b"")) | st.text(max_size=3),
        "kind": st.sampled_from(["file", "dir", "link", "pipe", 1]), "mode": st.sampled_from([420, 493, 511, True]),
        "size": st.integers(-1, 2**64), "files": st.integers(-1, 3),
        "target": st.sampled_from(["b", "../b", "/b", "a/../b", "", 7, "x" * 5000, "../" * 65 + "a"]),
    },
)  # fmt: skip


@settings(max_examples=300)
@given(st.binary(max_size=60) | st.lists(rows, max_size=3).map(lambda found: node(*found)))
def test_what_the_platform_refuses_is_refused(data: bytes) -> None:
    try:
        wanted = tuple(map(theirs, platform.decode(data)))
    except InvalidRequest:
        with pytest.raises(TreeError):
            trees.decode(data)
    else:
        assert trees.decode(data) == wanted


@given(st.integers(0, 3), st.lists(st.sampled_from(["..", ".", "a", "", "C:", "\\"]), max_size=5).map("/".join))
def test_a_link_leaves_where_the_platform_says_so(depth: int, target: str) -> None:
    assert trees.link_stays_inside(depth, target) == platform.link_stays_inside(depth, target)


@settings(max_examples=50)
@given(layouts)
def test_a_folder_is_the_same_tree(layout: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "a"
        lay_out(root, layout)
        wanted = scan(root, code=False, now=NOW)
        whole, blobs, skipped = read(root)
        assert (whole.address, whole.size, whole.files) == (wanted.root, wanted.size_bytes, wanted.count)
        assert {address: blob.node for address, blob in blobs.items() if not blob.path} == wanted.nodes
        assert {blob.address for blob in blobs.values() if blob.path} == set(wanted.files)
        assert skipped == wanted.skipped == []


def test_what_is_no_file_is_left_out_as_the_platform_does(tmp_path: Path) -> None:
    root = write_files(tmp_path / "a", {"run.sh": "x", "lib/a": "1", "deep/er/b": "2"})
    (root / "run.sh").chmod(0o777)
    for name, target in {
        "in": "lib/a",
        "lib/up": "../run.sh",
        "out": "../b",
        "lib/far": "../../x",
        "abs": "/etc",
    }.items():
        (root / name).symlink_to(target)
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "socket"))
    (Path(os.fsdecode(os.fsencode(root) + b"/no\xffname"))).write_bytes(b"")
    wanted = scan(root, code=False, now=NOW)
    whole, _, skipped = read(root)
    assert whole.address == wanted.root
    assert len(skipped) == 6
    assert sorted(one.partition(":")[0] for one in skipped) == sorted(one.partition(":")[0] for one in wanted.skipped)


def test_a_folder_too_deep_is_cut_where_the_platform_cuts_it(tmp_path: Path) -> None:
    write_files(tmp_path / "a", {"d/" * 66 + "x": "1"})
    wanted = scan(tmp_path / "a", code=False, now=NOW)
    whole, _, skipped = read(tmp_path / "a")
    assert (whole.address, len(skipped)) == (wanted.root, 1)
    with pytest.raises(Changed, match="deep"):
        read(tmp_path / "a", strict=True)


def test_only_what_is_wanted_is_read(tmp_path: Path) -> None:
    root = write_files(tmp_path / "a", {"m.index": "i", "m.data": "d", "other": "o", "dir/m.index": "x"})
    whole, blobs, _ = read(root, only=("m.index", "m.data"))
    assert [entry.name for entry in trees.decode(blobs[whole.address].node)] == ["m.data", "m.index"]
    assert len(blobs) == 3


def test_a_file_with_holes_is_not_sent_as_zeros(tmp_path: Path) -> None:
    root = write_files(tmp_path / "a", {"small": "1"})
    with (root / "huge").open("wb") as file:
        file.truncate(trees.MAX_HOLE_BYTES + 1)
    whole, blobs, skipped = read(root)
    assert [entry.name for entry in trees.decode(blobs[whole.address].node)] == ["small"]
    assert len(skipped) == 1
    with pytest.raises(Changed, match="holes"):
        read(root, strict=True)


def test_what_is_closed_is_left_out() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        root = write_files(Path(folder) / "a", {"open": "1", "closed": "2"})
        (root / "closed").chmod(0)
        was = os.geteuid()
        if was == 0:
            os.seteuid(NOBODY)  # root reads everything
        try:
            assert "closed" in read(root)[2][0]
            with pytest.raises(Changed):
                read(root, strict=True)
        finally:
            os.seteuid(was)
