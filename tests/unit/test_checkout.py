"""Trees to folders: hostile, damaged and strange ones."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.blobs import folders
from danlu.blobs.folders import checkout, windows_refuses
from danlu.domain.trees import MAX_DEPTH, Entry, address_of, decode, encode
from danlu.errors import DanluError, DataDamaged, InvalidRequest, InvalidSpec
from tests.factories import Trees, write_files


class Memory:
    """Blobs in memory, as a reader for checkout."""

    def __init__(self, blobs: dict[str, bytes]) -> None:
        self.blobs = blobs

    def open(self, address: str) -> BinaryIO:
        return io.BytesIO(self.blobs[address])


def test_a_destination_is_empty(tmp_path: Path) -> None:
    write_files(tmp_path, {"a": ""})
    trees = Trees()
    with pytest.raises(InvalidSpec, match="not empty"):
        checkout(Memory(trees), trees.folder(), tmp_path)


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    trees = Trees()
    inner = trees.folder(trees.file("f", b"x"))
    root = trees.folder(Entry("a", "link", target="b"), Entry("b", "dir", inner, size=1, files=1))
    checkout(Memory(trees), root, tmp_path / "out")
    assert (tmp_path / "out/b/f").read_bytes() == b"x"
    assert (tmp_path / "out/a").is_symlink()


@pytest.mark.parametrize("target", ["/etc", "../..", "x/../../y", ".."])
def test_links_that_leave_the_tree_are_refused(tmp_path: Path, target: str) -> None:
    trees = Trees()
    node = b'{"format":1,"entries":[{"name":"l","kind":"link","target":"%s"}]}' % target.encode()
    trees[address_of(node)] = node
    with pytest.raises(InvalidRequest, match="leaves"):
        checkout(Memory(trees), address_of(node), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_tree_that_is_too_deep_is_refused(tmp_path: Path) -> None:
    trees = Trees()
    address = trees.folder()
    for _ in range(MAX_DEPTH + 1):
        address = trees.folder(Entry("a", "dir", address))
    with pytest.raises(InvalidRequest, match="64 levels"):
        checkout(Memory(trees), address, tmp_path / "out")


def test_damaged_or_wrong_files_do_not_stay(tmp_path: Path) -> None:
    trees = Trees()
    entry = trees.file("f", b"right")
    root = trees.folder(entry)
    longer = trees.folder(Entry("f", "file", entry.address, size=4))
    shorter = trees.folder(Entry("f", "file", entry.address, size=6))
    reader = Memory({**trees, entry.address: b"wrong"})
    for number, (blobs, tree) in enumerate([(reader, root), (Memory(trees), longer), (Memory(trees), shorter)]):
        out = tmp_path / str(number)
        with pytest.raises(DataDamaged, match="f is not what"):
            checkout(blobs, tree, out)
        assert list(out.iterdir()) == []
    with pytest.raises(DataDamaged):
        checkout(Memory({**trees, root: trees[root] + b" "}), root, tmp_path / "node")


class Sameness:
    """A reader that makes a file of the same name in another case first, as a system that cannot tell them does."""

    def __init__(self, trees: Trees, path: Path) -> None:
        self.trees, self.path = trees, path

    def open(self, address: str) -> BinaryIO:
        if not self.path.exists() and self.path.parent.exists() and self.trees[address] == b"x":
            self.path.write_text("first")
        return io.BytesIO(self.trees[address])


def test_a_name_that_the_system_takes_for_another_is_refused(tmp_path: Path) -> None:
    trees = Trees()
    root = trees.folder(trees.file("a", b"x"))
    with pytest.raises(InvalidSpec, match="takes for the same"):
        checkout(Sameness(trees, tmp_path / "out/a"), root, tmp_path / "out")
    assert (tmp_path / "out/a").read_text() == "first"


@pytest.mark.parametrize(
    "name",
    [
        "con",
        "NUL",
        "aux.txt",
        "COM1",
        "lpt9.tar.gz",
        "a\\b",
        "..\\x",
        "c:x",
        "a.",
        "a ",
        "a?",
        "a\x01",
        "nul .txt",
        "com¹",
    ],
)
def test_names_that_windows_takes_for_something_else(name: str) -> None:
    assert windows_refuses(name)


@pytest.mark.parametrize("name", ["a", ".git", "console", "comma", "a.b", " a", "com10", "model-é.pt", "aux2"])
def test_names_that_windows_takes(name: str) -> None:
    assert not windows_refuses(name)


@settings(max_examples=150)
@given(st.data())
def test_no_tree_writes_outside_its_destination(data: st.DataObject) -> None:
    """Random trees of folders, files and links named alike: what comes out stays inside, or the tree is refused."""
    trees = Trees()
    some_names = st.sampled_from(["a", "b", "c", ".."])
    targets = st.lists(st.sampled_from(["a", "b", "..", "."]), min_size=1, max_size=4).map("/".join)

    def folder(level: int) -> tuple[str, tuple[Entry, ...]]:
        entries: list[Entry] = []
        for name in data.draw(st.lists(some_names, unique=True, max_size=3)):
            kind = data.draw(st.sampled_from(["file", "dir", "link"]))
            if kind == "dir" and level < 3:
                address, inner = folder(level + 1)
                size, files = folders.totals(inner)
                entries.append(Entry(name, "dir", address, size=size, files=files))
            elif kind == "link":
                entries.append(Entry(name, "link", target=data.draw(targets)))
            else:
                entries.append(trees.file(name, b"x"))
        return trees.folder(*entries), tuple(entries)

    root, _ = folder(0)
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "deep" / "out"
        with contextlib.suppress(DanluError):
            checkout(Memory(trees), root, out)
        assert sorted(str(path.relative_to(temporary)) for path in Path(temporary).glob("*/*")) == ["deep/out"]
        for path in out.rglob("*"):
            resolved = os.path.realpath(path)
            assert resolved == str(out) or resolved.startswith(f"{out}/"), f"{path} leads to {resolved}"
    assert decode(encode(())) == ()
