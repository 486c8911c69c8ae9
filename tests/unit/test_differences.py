"""What differs between trees, texts and records; that what is equal is not read; what is shown of it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from danlu.blobs.folders import scan
from danlu.cli.diff import _change
from danlu.client import comparing
from danlu.domain.differences import MAX_TEXT_BYTES, flat, text_difference, tree_changes, value_changes
from danlu.domain.specs import JobSpec
from danlu.domain.trees import Entry, address_of, encode
from danlu.errors import DataDamaged
from tests.factories import make_job

Files = dict[str, bytes]


class Store:
    """Blobs in memory, which counts what is read."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.read_addresses: list[str] = []

    def add(self, data: bytes) -> str:
        self.blobs[address_of(data)] = data
        return address_of(data)

    def tree(self, files: dict[str, Any]) -> str:
        """Stores a nested dict: a dict is a folder, bytes are a file, a text is a link."""
        entries = []
        for name, what in files.items():
            if isinstance(what, dict):
                entries.append(Entry(name, "dir", self.tree(what), size=_size(what), files=_count(what)))
            elif isinstance(what, str):
                entries.append(Entry(name, "link", target=what))
            else:
                entries.append(Entry(name, "file", self.add(what), 0o755 if name.endswith(".sh") else 0o644, len(what)))
        return self.add(encode(entries))

    def read(self, address: str) -> bytes:
        self.read_addresses.append(address)
        return self.blobs[address]

    def download(self, address: str, target: io.BytesIO) -> int:
        return target.write(self.read(address))


def _size(files: dict[str, Any]) -> int:
    return sum(
        _size(what) if isinstance(what, dict) else len(what) * isinstance(what, bytes) for what in files.values()
    )


def _count(files: dict[str, Any]) -> int:
    return sum(_count(what) if isinstance(what, dict) else isinstance(what, bytes) for what in files.values())


def test_trees() -> None:
    store = Store()
    same = {"x.py": b"x", "deep": {"y.py": b"y"}}
    old = store.tree(
        {"a.py": b"1", "b.py": b"2", "same": same, "lib": {"c.py": b"3", "d.py": b"4"}, "now": "a.py", "f": b"5"}
    )
    new = store.tree({"a.py": b"9", "same": same, "lib": {"c.py": b"3", "e.py": b"6"}, "new": {"g.py": b"7"}, "now": "e.py",
                      "f": {"h": b"5"}})  # fmt: skip
    found = [(change.kind, change.path) for change in tree_changes(old, new, store.read)]
    assert found == [
        ("changed", "a.py"), ("removed", "b.py"), ("changed", "f"), ("removed", "lib/d.py"), ("added", "lib/e.py"),
        ("added", "new"), ("changed", "now"),
    ]  # fmt: skip
    same_address = store.tree(same)
    assert same_address not in store.read_addresses, "what is equal is not read"


def test_a_mode_alone_and_an_empty_side() -> None:
    store = Store()
    entry = Entry("run", "file", store.add(b"x"), 0o644, 1)
    old, new = store.add(encode([entry])), store.add(encode([Entry("run", "file", entry.address, 0o755, 1)]))
    assert [(change.kind, change.path) for change in tree_changes(old, new, store.read)] == [("mode", "run")]
    assert [change.kind for change in tree_changes(None, new, store.read)] == ["added"]
    assert [change.kind for change in tree_changes(new, None, store.read)] == ["removed"]
    assert list(tree_changes(None, None, store.read)) == []


NAMES = st.sampled_from(["a", "b", "c"])
TREES = st.recursive(
    st.binary(max_size=2), lambda inner: st.dictionaries(NAMES, inner, max_size=3), max_leaves=8
).filter(lambda tree: isinstance(tree, dict))


def leaves(files: dict[str, Any], path: str = "") -> Files:
    found: Files = {}
    for name, what in files.items():
        found |= leaves(what, f"{path}{name}/") if isinstance(what, dict) else {path + name: what}
    return found


@given(TREES, TREES)
def test_nothing_is_left_out(old: Any, new: Any) -> None:
    """Every file that differs lies at a change, or below one; equal trees have none."""
    store = Store()
    changes = list(tree_changes(store.tree(old), store.tree(new), store.read))
    before, after = leaves(old), leaves(new)
    for path in {*before, *after}:
        if before.get(path) != after.get(path):
            assert any(path == change.path or path.startswith(f"{change.path}/") for change in changes)
    assert all(change.old != change.new for change in changes)
    assert (old == new) == (not changes)


def test_texts() -> None:
    assert text_difference(b"a\nb\n", b"a\nc\n", "x.py") == [
        "--- a/x.py",
        "+++ b/x.py",
        "@@ -1,2 +1,2 @@",
        " a",
        "-b",
        "+c",
    ]
    assert text_difference(b"\xff", b"a", "x") is None
    assert text_difference(b"a\0", b"a", "x") is None
    assert text_difference(b"a" * (MAX_TEXT_BYTES + 1), b"a", "x") is None
    assert text_difference(b"\n" * 6000, b"a", "x") is None


def test_records() -> None:
    old = JobSpec.model_validate(
        {"command": ["a", "b"], "memory": "1GiB", "variables": {"LR": "1"}, "retry": {"attempts": 2}}
    )
    new = JobSpec.model_validate({"command": ["a", "c"], "memory": "1GiB", "variables": {"LR": "1", "X": "2"}})
    assert value_changes(old, new) == {
        "command": (["a", "b"], ["a", "c"]), "variables.X": (None, "2"), "retry.attempts": (2, 1),
    }  # fmt: skip
    assert value_changes(old, old) == {}
    assert flat({"a": {"b": {}, "c": 1}}) == {"a.c": 1}


def side(store: Store, tree: str | None) -> comparing.Side:
    return comparing.Side("x", JobSpec(command="x"), tree)


def test_of_files_only_what_differs_is_fetched() -> None:
    store = Store()
    big = b"x" * (MAX_TEXT_BYTES + 1)
    old = store.tree({"a.py": b"1\n", "same.py": b"s", "big": big, "bin": b"\xff"})
    new = store.tree({"a.py": b"2\n", "same.py": b"s", "big": big + b"y", "bin": b"\xfe", "n.py": b"n"})
    client: Any = store
    changes = {change.path: change for change in comparing.code(client, side(store, old), side(store, new), texts=True)}
    assert changes["a.py"].text == ["--- a/a.py", "+++ b/a.py", "@@ -1 +1 @@", "-1", "+2"]
    assert changes["big"].text is changes["bin"].text is changes["n.py"].text is None
    read = set(store.read_addresses)
    assert not read & {address_of(data) for data in (b"s", b"n", big, big + b"y")}
    store.read_addresses.clear()
    assert all(
        change.text is None for change in comparing.code(client, side(store, old), side(store, new), texts=False)
    )
    assert set(store.read_addresses) == {old, new}


def test_a_folder_here_is_read_here(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("2\n")
    (tmp_path / "same.py").write_text("s")
    store = Store()
    old = store.tree({"a.py": b"1\n", "same.py": b"s"})
    here = comparing.of_folder("job.yaml", JobSpec(command="x"), tmp_path)
    client: Any = store
    (change,) = comparing.code(client, side(store, old), here, texts=True)
    assert change.text is not None
    assert change.text[-2:] == ["-1", "+2"]
    assert here.tree == scan(tmp_path, code=True, now=0).root
    assert set(store.read_addresses) == {old, address_of(b"1\n")}


def test_bytes_that_are_not_what_they_should_be_are_refused() -> None:
    store = Store()
    old, new = store.tree({"a.py": b"1\n"}), store.tree({"a.py": b"2\n"})
    store.blobs[address_of(b"1\n")] = b"evil"
    client: Any = store
    with pytest.raises(DataDamaged):
        comparing.code(client, side(store, old), side(store, new), texts=True)


def test_where_code_came_from_is_no_difference_of_what_was_asked_for() -> None:
    class Traced(JobSpec):
        git: dict[str, str] = Field(default_factory=dict)

    job: Any = make_job()
    old, new = (comparing.Side("x", Traced(command="x", git={"commit": commit}), None, job) for commit in "ab")
    assert comparing.specification(old, new) == {}
    assert comparing.origin(old, new) == {"git.commit": ("a", "b")}
    old.job = None
    assert comparing.origin(old, new) == {}


def test_lists_of_models_are_values() -> None:
    assert json.dumps(flat(JobSpec(command=("a",)))["command"]) == '["a"]'


def test_of_a_role_that_one_of_them_lacks_only_what_was_said_is_told() -> None:
    alone = JobSpec(command="x")
    gang = JobSpec.model_validate({"command": "x", "framework": "none", "roles": {"worker": {"gpu": 0}}})
    said = {"framework": (None, "none"), "roles.worker.replicas": (None, 1), "roles.worker.gpu": (None, 0)}
    assert value_changes(alone, gang) == said
    again = JobSpec.model_validate(
        {"command": "x", "framework": "none", "roles": {"worker": {"gpu": 0, "restarts": 2}}}
    )
    assert value_changes(gang, again) == {"roles.worker.restarts": (0, 2)}


@pytest.mark.parametrize(
    ("name", "old", "new", "text"),
    [
        ("ran_s", 3.0, 3.1, "≈"),
        ("ran_s", 3.0, 4.5, "+50.0 %"),
        ("ran_s", 1000.0, 1009.0, "≈"),
        ("peak_memory_bytes", 880_000, 1_000_000, "≈"),
        ("peak_memory_bytes", 10**9, 2 * 10**9, "+100.0 %"),
        ("metrics.loss", 0.0123, 0.0124, "+0.8 %"),
        ("exit_code", 0, 1, ""),
        ("state", "failed", "failed", "="),
    ],
)
def test_two_runs_of_the_same_never_measure_the_same(name: str, old: Any, new: Any, text: str) -> None:
    assert _change(name, old, new) == text
