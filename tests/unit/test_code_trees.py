"""Trees of hard links: made, and changed into others, they hold what a private copy would hold."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.blobs.code import Code
from danlu.blobs.local import LocalBlobs
from danlu.domain.trees import Entry, address_of, decode, encode, totals
from danlu.errors import DanluError, DataDamaged, NotFound

FILES = st.tuples(st.just("file"), st.sampled_from(["", "a", "b", "longer text"]), st.sampled_from([0o644, 0o755]))
LINKS = st.tuples(st.just("link"), st.sampled_from(["a", "b/a", "."]), st.just(0))
NAMES = st.sampled_from(["a", "b", "c", "ä"])
FOLDERS = st.recursive(
    st.dictionaries(NAMES, FILES | LINKS, max_size=4),
    lambda inner: st.dictionaries(NAMES, FILES | LINKS | st.tuples(st.just("dir"), inner, st.just(0)), max_size=4),
    max_leaves=15,
)


def store(blobs: LocalBlobs, folder: dict[str, Any]) -> str:
    entries, found = [], []
    for name, (kind, value, mode) in folder.items():
        if kind == "dir":
            address = store(blobs, value)
            size, files = totals(decode(blobs.read("p", address)))
            entries.append(Entry(name, "dir", address, size=size, files=files))
        elif kind == "link":
            entries.append(Entry(name, "link", target=value))
        else:
            data = value.encode()
            found.append((address_of(data), data))
            entries.append(Entry(name, "file", address_of(data), mode, len(data)))
    node = encode(entries)
    blobs.put_many("p", [*found, (address_of(node), node)])
    return address_of(node)


def content(folder: Path) -> dict[str, Any]:
    """Returns everything in a folder: what it is, its mode, its bytes or target."""
    found: dict[str, Any] = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.is_dir():
            found[name] = None
        else:
            found[name] = path.stat().st_mode & 0o111, path.read_bytes()
    return found


@settings(max_examples=40)  # each writes and waits for the disk
@given(FOLDERS, FOLDERS)
def test_one_tree_becomes_another(tmp_path_factory: pytest.TempPathFactory, one: Any, other: Any) -> None:
    base = tmp_path_factory.mktemp("trees")
    blobs = LocalBlobs(base / "blobs")
    code = Code(blobs)
    old, new = store(blobs, one), store(blobs, other)
    code.link("p", old, base / "links", base / "files", None)
    code.copy("p", old, base / "old")
    assert content(base / "links") == content(base / "old")
    code.change("p", old, new, base / "links", base / "files", None)
    code.copy("p", new, base / "new")
    assert content(base / "links") == content(base / "new")


@pytest.fixture
def blobs(tmp_path: Path) -> LocalBlobs:
    return LocalBlobs(tmp_path / "blobs")


def test_a_file_is_kept_once_for_each_mode(blobs: LocalBlobs, tmp_path: Path) -> None:
    tree = store(blobs, {name: ("file", "same", mode) for name, mode in (("a", 0o644), ("b", 0o644), ("c", 0o755))})
    uid = os.geteuid() or 12345
    Code(blobs).link("p", tree, tmp_path / "one", tmp_path / "files", uid)
    Code(blobs).link("p", tree, tmp_path / "two", tmp_path / "files", uid)
    same = {(tmp_path / tree / name).stat().st_ino for tree in ("one", "two") for name in ("a", "b")}
    assert len(same) == 1
    assert (tmp_path / "one" / "c").stat().st_ino not in same
    assert {path.stat().st_uid for path in (tmp_path / "one", *(tmp_path / "one").iterdir())} == {uid}
    assert (tmp_path / "blobs").stat().st_uid == os.geteuid()  # the blobs' own files are others
    stored = (tmp_path / "blobs" / "p").rglob(address_of(b"same")[9:])
    assert all(path.stat().st_ino not in same for path in stored)


def test_a_file_with_too_many_names_is_stored_again(
    blobs: LocalBlobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = store(blobs, {"a": ("file", "x", 0o644), "b": ("file", "x", 0o644)})
    Code(blobs).link("p", tree, tmp_path / "one", tmp_path / "files", None)
    (kept,) = (path for path in (tmp_path / "files").rglob("*") if path.is_file())
    most = os.pathconf(tmp_path, "PC_LINK_MAX")
    if most > 100_000:
        most = 0  # this file system has no such limit that could be reached
    (tmp_path / "names").mkdir()
    for number in range(kept.stat().st_nlink, most):
        (tmp_path / "names" / str(number)).hardlink_to(kept)
    Code(blobs).link("p", tree, tmp_path / "two", tmp_path / "files", None)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    if most:
        assert (tmp_path / "two" / "a").stat().st_ino != (tmp_path / "one" / "a").stat().st_ino


def test_what_is_damaged_is_not_linked(blobs: LocalBlobs, tmp_path: Path) -> None:
    tree = store(blobs, {"a": ("file", "right", 0o644)})
    (stored,) = (tmp_path / "blobs" / "p").rglob(address_of(b"right")[9:])
    stored.write_bytes(b"wrong")
    with pytest.raises(DataDamaged):
        Code(blobs).link("p", tree, tmp_path / "one", tmp_path / "files", None)
    assert not any(path.is_file() for path in (tmp_path / "files").rglob("*"))


def test_a_size_that_is_a_lie_is_told(blobs: LocalBlobs, tmp_path: Path) -> None:
    tree = store(blobs, {"a": ("file", "right", 0o644)})
    Code(blobs).link("p", tree, tmp_path / "one", tmp_path / "files", None)
    node = encode([Entry("a", "file", address_of(b"right"), 0o644, 4)])
    blobs.put_many("p", [(address_of(node), node)])
    with pytest.raises(DataDamaged, match="another size"):
        Code(blobs).link("p", address_of(node), tmp_path / "two", tmp_path / "files", None)
    with pytest.raises(DataDamaged):
        Code(blobs).copy("p", address_of(node), tmp_path / "three")


def test_a_tree_that_is_not_whole_is_not_made(blobs: LocalBlobs, tmp_path: Path) -> None:
    tree = store(blobs, {"a": ("file", "x", 0o644)})
    lost = encode([Entry("a", "file", address_of(b"lost"), 0o644, 4)])
    blobs.put_many("p", [(address_of(lost), lost)])
    Code(blobs).link("p", tree, tmp_path / "one", tmp_path / "files", None)
    with pytest.raises(NotFound):
        Code(blobs).change("p", tree, address_of(lost), tmp_path / "one", tmp_path / "files", None)
    out = encode([Entry("up", "link", target="../x")])
    blobs.put_many("p", [(address_of(out), out)])
    with pytest.raises(DanluError):
        Code(blobs).change("p", tree, address_of(out), tmp_path / "one", tmp_path / "files", None)
    assert content(tmp_path / "one") == {"a": (0, b"x")}
