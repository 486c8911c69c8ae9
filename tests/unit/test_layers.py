"""Kept trees of code: who stands on them, which are removed, which become others."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from danlu.blobs.code import Code
from danlu.blobs.local import LocalBlobs
from danlu.domain.trees import Entry, address_of, encode
from danlu.errors import NotFound
from danlu.executors.local import layers
from danlu.executors.local.layers import COPIED_FILES, KEPT_TREES, Layers


class Trees:
    """A project's code with many files, of which one differs."""

    def __init__(self, folder: Path, *, possible: bool = True) -> None:
        self.blobs = LocalBlobs(folder / "blobs")
        self.asked = 0
        self.possible = possible
        self.root = folder / "code"
        self.layers = self.open()
        self.layers.start(set())

    def open(self) -> Layers:
        return Layers(self.root, Code(self.blobs), self._ask)

    def _ask(self) -> bool:
        self.asked += 1
        return self.possible

    def store(self, special: str, *, count: int = COPIED_FILES + 1, prefix: str = "file") -> str:
        texts = {f"{prefix}-{n}": f"{prefix}{n}" for n in range(count)} | {"special": special}
        found = {name: text.encode() for name, text in texts.items()}
        node = encode([Entry(name, "file", address_of(data), 0o644, len(data)) for name, data in found.items()])
        self.blobs.put_many("p", [*((address_of(data), data) for data in found.values()), (address_of(node), node)])
        return address_of(node)

    def take(self, attempt: str, special: str, **fields: str) -> Path:
        found = self.layers.take(attempt, "p", self.store(special, **fields), None)  # type: ignore[arg-type]
        assert found is not None
        assert (found / "special").read_text() == special
        return found

    def trees(self) -> set[str]:
        return {path.name for path in (self.root / "projects" / "p" / "trees").iterdir()}

    def kept(self) -> int:
        return sum(path.is_file() for path in (self.root / "projects" / "p" / "files").rglob("*"))


@pytest.fixture
def trees(tmp_path: Path) -> Trees:
    return Trees(tmp_path)


@pytest.fixture
def settled(trees: Trees) -> Callable[[], None]:
    """Waits until what is removed beside is removed."""
    return lambda: trees.layers.settle()


def test_what_is_small_is_copied(trees: Trees) -> None:
    assert trees.layers.take("a-1", "p", trees.store("x", count=COPIED_FILES - 1), None) is None
    assert trees.asked == 0  # nobody needs to know
    assert trees.layers.of("a-1") is None
    trees.layers.leave("a-1")


def test_where_nothing_can_be_mounted_all_is_copied(tmp_path: Path) -> None:
    trees = Trees(tmp_path, possible=False)
    assert trees.layers.take("a-1", "p", trees.store("x"), None) is None
    assert trees.layers.take("a-2", "p", trees.store("x"), None) is None
    assert trees.asked == 1


def test_a_mount_that_is_refused_is_not_tried_again(trees: Trees) -> None:
    trees.take("a-1", "x")
    trees.layers.refused()
    assert trees.layers.take("a-2", "p", trees.store("x"), None) is None


def test_attempts_stand_on_the_same_tree(trees: Trees) -> None:
    one, two = trees.take("a-1", "x"), trees.take("a-2", "x")
    assert one == two == trees.layers.of("a-1") == trees.open().of("a-2")
    assert trees.root.stat().st_mode & 0o777 == 0o700


def test_a_tree_is_changed_only_when_nobody_stands_on_it(trees: Trees, settled: Callable[[], None]) -> None:
    first = trees.take("a-1", "x")
    inode = first.stat().st_ino
    second = trees.take("a-2", "y")
    assert second.stat().st_ino != inode
    assert (first / "special").read_text() == "x"
    trees.layers.leave("a-1")
    settled()
    third = trees.take("a-3", "z")  # made of the first
    assert third.stat().st_ino == inode
    assert not first.exists()
    assert (second / "special").read_text() == "y"
    assert (third / "file-7").stat().st_ino == (second / "file-7").stat().st_ino


def test_a_tree_of_other_code_is_left_alone(trees: Trees, settled: Callable[[], None]) -> None:
    first = trees.take("a-1", "x")
    trees.layers.leave("a-1")
    settled()
    trees.take("a-2", "x", prefix="other")
    assert first.exists()


def test_a_tree_that_cannot_be_changed_is_made_anew(trees: Trees, settled: Callable[[], None]) -> None:
    first = trees.take("a-1", "x")
    trees.layers.leave("a-1")
    settled()
    (first / "special").unlink()  # somebody was there
    assert trees.take("a-2", "y").is_dir()


def test_the_newest_trees_stay(trees: Trees, settled: Callable[[], None]) -> None:
    for number in range(KEPT_TREES + 3):
        tree = trees.take(f"a-{number}", "x", prefix=f"code{number}")
        os.utime(tree, (number, number))
    for number in range(KEPT_TREES + 3):
        trees.layers.leave(f"a-{number}")
    settled()
    assert len(trees.trees()) == KEPT_TREES
    assert trees.kept() == KEPT_TREES * (COPIED_FILES + 1) + 1  # files that no tree names are gone


def test_too_many_bytes_are_too_much(
    trees: Trees, settled: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(vars(layers), "KEPT_BYTES", 1)
    trees.take("a-1", "x")
    trees.take("a-2", "y")
    trees.layers.leave("a-1")
    settled()
    assert len(trees.trees()) == 1  # somebody stands on the other
    trees.take("a-3", "y", prefix="other")
    trees.layers.leave("a-2")
    trees.layers.leave("a-3")
    settled()
    assert trees.trees() == set()
    assert trees.kept() == 0


def test_after_a_kill_only_what_lives_is_used(trees: Trees) -> None:
    trees.take("a-1", "x")
    kept = trees.take("a-2", "y")
    project = trees.root / "projects" / "p"
    (project / "trees" / ".half").mkdir()
    (project / "files" / "00").mkdir(exist_ok=True)
    (project / "files" / "00" / ".half").touch()
    after = trees.open()
    after.start({"a-2"})
    after.settle()
    assert (after.of("a-1"), after.of("a-2")) == (None, kept)
    assert list(project.rglob(".*")) == []


def test_an_attempt_whose_code_is_gone_gets_nothing(trees: Trees) -> None:
    with pytest.raises(NotFound):
        trees.layers.take("a-1", "p", address_of(b"nothing"), None)
