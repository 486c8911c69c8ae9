"""Folders put together from below must be judged as a walk from above judges them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.domain import summaries
from danlu.domain.summaries import Summary, summarize
from danlu.domain.trees import MAX_PATH_BYTES, Entry, address_of, decode, encode, totals, walk
from danlu.errors import InvalidRequest

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=6).filter(
    lambda name: name not in (".", "..")
)
LINKS = st.builds(lambda ups, end: "../" * ups + end, st.integers(0, 4), st.sampled_from(["a", "b/c", "."]))
LEAVES = st.one_of(st.tuples(st.just("file"), st.integers(0, 100)), st.tuples(st.just("link"), LINKS))
FOLDERS = st.recursive(
    st.dictionaries(NAMES, LEAVES, max_size=3),
    lambda inner: st.dictionaries(NAMES, LEAVES | st.tuples(st.just("dir"), inner), max_size=3),
    max_leaves=12,
)


def build(folder: dict[str, Any], nodes: dict[str, bytes], lie: str = "") -> str:
    """Stores a folder's nodes; a folder named ``lie`` is said to be larger than it is."""
    entries = []
    for name, (kind, value) in folder.items():
        if kind == "dir":
            address = build(value, nodes, lie)
            size, files = totals(decode(nodes[address]))
            entries.append(Entry(name, "dir", address, size=size + (name == lie), files=files))
        elif kind == "link":
            entries.append(Entry(name, "link", target=value))
        else:
            entries.append(Entry(name, "file", address_of(name.encode()), 0o644, value))
    node = encode(entries)
    nodes[address_of(node)] = node
    return address_of(node)


def from_below(root: str, nodes: dict[str, bytes]) -> Summary:
    entries = decode(nodes[root])
    return summarize(entries, {e.address: from_below(e.address, nodes) for e in entries if e.kind == "dir"})


def accepted_by_walk(root: str, nodes: dict[str, bytes]) -> bool:
    try:
        list(walk(root, nodes.__getitem__))
    except InvalidRequest:
        return False
    return True


@given(FOLDERS, st.one_of(st.just(""), NAMES))
def test_both_say_the_same_of_every_folder(folder: dict[str, Any], lie: str) -> None:
    nodes: dict[str, bytes] = {}
    root = build(folder, nodes, lie)
    try:
        said = not from_below(root, nodes).wrong()
    except InvalidRequest:
        said = False
    assert said == accepted_by_walk(root, nodes)


@given(FOLDERS)
def test_it_counts_what_is_there(folder: dict[str, Any]) -> None:
    nodes: dict[str, bytes] = {}
    root = build({"a": ("dir", folder)}, nodes)
    summary = from_below(root, nodes)
    found = [(path, entry) for path, entries in _walked(root, nodes) for entry in entries]
    assert summary.entries == len(found)
    assert summary.files == sum(entry.kind == "file" for _, entry in found)
    assert summary.size_bytes == sum(entry.size for _, entry in found if entry.kind == "file")
    assert summary.height == max(len(path) for path, _ in _walked(root, nodes))
    assert summary.path_bytes == max(len("/".join((*path, entry.name)).encode()) + 1 for path, entry in found)


def _walked(root: str, nodes: dict[str, bytes], path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    entries = decode(nodes[root])
    below = [found for e in entries if e.kind == "dir" for found in _walked(e.address, nodes, (*path, e.name))]
    return [(path, entries), *below]


@pytest.mark.parametrize(("bound", "most"), [("MAX_DEPTH", 64), ("MAX_TREE_ENTRIES", 1_000_000)])
def test_the_bounds_are_those_of_a_walk(bound: str, most: int) -> None:
    assert getattr(summaries, bound) == most
    field = {"MAX_DEPTH": "height", "MAX_TREE_ENTRIES": "entries"}[bound]
    assert not Summary(**{field: most}).wrong()
    assert "more than" in Summary(**{field: most + 1}).wrong()
    assert "path" in Summary(path_bytes=MAX_PATH_BYTES + 1).wrong()
    assert "link" in Summary(climb=1).wrong()


def test_a_few_folders_that_name_each_other_twice_are_counted_not_walked() -> None:
    entries: list[Entry] = []
    known: dict[str, Summary] = {}
    for _ in range(60):
        node = encode(entries)
        summary = summarize(entries, known)
        known[address_of(node)] = summary
        entries = [
            Entry(name, "dir", address_of(node), size=summary.size_bytes, files=summary.files) for name in ("a", "b")
        ]
    assert summarize(entries, known).entries == 2**61 - 2
    assert "more than" in summarize(entries, known).wrong()
