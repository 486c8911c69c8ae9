"""Several trees as one: nothing of any of them is lost, whatever the tasks of a gang call their files."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.domain.trees import Entry, address_of, encode, walk
from danlu.domain.unions import Part, union
from danlu.errors import InvalidRequest
from tests.factories import Trees

Layout = dict[str, Any]
names = st.sampled_from(["a", "b", "a.worker-1", "x" * 255, "é" * 127])
layouts = st.recursive(st.binary(max_size=2), lambda inner: st.dictionaries(names, inner, max_size=4), max_leaves=8)
folders = layouts.filter(lambda found: isinstance(found, dict))


def stored(trees: Trees, layout: Layout) -> tuple[str, int, int]:
    """Returns a folder's (address, bytes, files)."""
    entries = []
    for name, inner in layout.items():
        if isinstance(inner, dict):
            address, size, files = stored(trees, inner)
            entries.append(Entry(name, "dir", address, size=size, files=files))
        else:
            entries.append(trees.file(name, inner))
    return trees.folder(*entries), sum(e.size for e in entries), sum(e.files or e.kind == "file" for e in entries)


def files(trees: dict[str, bytes], root: str) -> dict[tuple[str, ...], bytes]:
    """Returns what is in a tree, which must be one that could be checked out."""
    return {
        (*path, entry.name): trees[entry.address]
        for path, entries in walk(root, trees.__getitem__)
        for entry in entries
        if entry.kind == "file"
    }


def joined(*layouts: Layout) -> dict[tuple[str, ...], bytes]:
    trees = Trees()
    parts = [Part(f"worker-{n}", stored(trees, layout)[0]) for n, layout in enumerate(layouts)]
    found = union(parts, trees.__getitem__)
    trees.update(found.nodes)
    whole = files(trees, found.root)
    assert (found.files, found.size_bytes) == (len(whole), sum(map(len, whole.values())))
    return whole


@given(st.lists(folders, min_size=1, max_size=3))
def test_every_file_is_there(layouts: list[Layout]) -> None:
    trees, whole = Trees(), joined(*layouts)
    for number, layout in enumerate(layouts):
        for path, data in files(trees, stored(trees, layout)[0]).items():
            own = [found for at, found in whole.items() if len(at) == len(path)]
            assert data in own, path
            if number == 0:
                assert whole[path] == data, "the first keeps its names"


@given(folders)
def test_what_all_have_is_there_once(layout: Layout) -> None:
    assert joined(layout, layout) == joined(layout)


def test_the_first_keeps_the_name() -> None:
    found = joined(
        {"model": b"0", "logs": {"a": b"a"}, "same": b"s", "thing": b"file"},
        {"model": b"1", "logs": {"b": b"b"}, "same": b"s", "thing": {"in": b"x"}},
        {"model": b"2", "model.worker-1": b"taken", "thing": {"in": b"y"}},
    )
    assert found == {
        ("model",): b"0", ("model.worker-1",): b"1", ("model.worker-2",): b"2", ("model.worker-1.worker-2",): b"taken",
        ("logs", "a"): b"a", ("logs", "b"): b"b", ("same",): b"s", ("thing",): b"file", ("thing.worker-1", "in"): b"x",
        ("thing.worker-2", "in"): b"y",
    }  # fmt: skip


def test_a_mode_or_a_target_makes_another_thing() -> None:
    trees = Trees()
    parts = [
        Part("a-0", trees.folder(trees.file("run", b"x"), Entry("l", "link", target="run"))),
        Part("a-1", trees.folder(trees.file("run", b"x", 0o755), Entry("l", "link", target="./run"))),
    ]
    found = union(parts, trees.__getitem__)
    named = [entry.name for _, entries in walk(found.root, {**trees, **found.nodes}.__getitem__) for entry in entries]
    assert named == ["l", "l.a-1", "run", "run.a-1"]


def test_what_is_no_tree_is_refused() -> None:
    wrong = b"{}"
    with pytest.raises(InvalidRequest, match="not a tree node"):
        union([Part("a-0", address_of(wrong))], {address_of(wrong): wrong}.__getitem__)


def test_more_than_a_folder_holds_is_refused() -> None:
    trees = Trees()
    parts = [
        Part(f"a-{n}", trees.folder(*(Entry(f"{n}-{m}", "link", target="x") for m in range(60_000)))) for n in (0, 1)
    ]
    with pytest.raises(InvalidRequest, match="120000"):
        union(parts, trees.__getitem__)
    assert encode([])
