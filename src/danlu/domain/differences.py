"""What differs between two things: code trees, records, texts. Pure: nodes are read through a function that is handed in."""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from typing import Any, Final, NamedTuple

from pydantic import BaseModel

from danlu.domain.trees import MAX_DEPTH, Entry, decode

MAX_CHANGES: Final = 10_000
MAX_TEXT_BYTES: Final = 256 * 1024
MAX_TEXT_LINES: Final = 5_000


class TreeChange(NamedTuple):
    """A name that is in one tree only, or not the same in both. A folder that is in one only is one change."""

    path: str
    old: Entry | None
    new: Entry | None

    @property
    def kind(self) -> str:
        """``added``, ``removed``, ``changed``, or ``mode`` where only the right to execute differs."""
        if self.old is None or self.new is None:
            return "added" if self.old is None else "removed"
        same = (self.old.kind, self.old.address, self.old.target) == (self.new.kind, self.new.address, self.new.target)
        return "mode" if same else "changed"


def tree_changes(old: str | None, new: str | None, read: Callable[[str], bytes]) -> Iterator[TreeChange]:
    """Yields what differs between two trees, in the order of their paths, at most MAX_CHANGES. What is equal is never read.

    Args:
        old: the address of a tree; None for an empty one.
        new: the same.
        read: returns a node's bytes, which it must have checked against the address.

    Raises:
        InvalidRequest: a node is wrong.
    """
    yield from itertools.islice(_changes("", old, new, read, 0), MAX_CHANGES)


def _changes(
    path: str, old: str | None, new: str | None, read: Callable[[str], bytes], depth: int
) -> Iterator[TreeChange]:
    if old == new or depth > MAX_DEPTH:
        return
    before = {entry.name: entry for entry in decode(read(old))} if old is not None else {}
    after = {entry.name: entry for entry in decode(read(new))} if new is not None else {}
    for name in sorted({*before, *after}, key=str.encode):
        one, other = before.get(name), after.get(name)
        if one == other:
            continue
        if one is not None and other is not None and one.kind == other.kind == "dir":
            yield from _changes(f"{path}{name}/", one.address, other.address, read, depth + 1)
        else:
            yield TreeChange(path + name, one, other)


def text_difference(old: bytes, new: bytes, path: str) -> list[str] | None:
    """Returns a unified diff; None where one is not a text, or too long to be read."""
    if max(len(old), len(new)) > MAX_TEXT_BYTES:
        return None
    try:
        before, after = old.decode().splitlines(), new.decode().splitlines()
    except UnicodeDecodeError:
        return None
    if b"\0" in old + new or max(len(before), len(after)) > MAX_TEXT_LINES:
        return None
    return list(difflib.unified_diff(before, after, f"a/{path}", f"b/{path}", lineterm=""))


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Returns a record's values by dotted paths: of models, and of dicts, whose keys are steps too. Lists are values."""
    if isinstance(value, BaseModel):
        value = {name: getattr(value, name) for name in type(value).model_fields}
    if isinstance(value, Mapping) and (value or not path):
        inner: dict[str, Any] = {}
        for name, one in value.items():
            inner |= flat(one, f"{path}.{name}" if path else str(name))
        return inner
    if isinstance(value, Mapping):
        return {}
    if isinstance(value, Enum):
        return {path: value.value}
    if isinstance(value, tuple | list):
        return {path: [json.loads(one.model_dump_json()) if isinstance(one, BaseModel) else one for one in value]}
    return {path: value}


def _unset(value: Any, path: str = "") -> set[str]:
    """Returns the paths of a record at which nothing was said: 0, false or an empty text, as the field has it by default."""
    fields = type(value).model_fields if isinstance(value, BaseModel) else {}
    inner = value.items() if isinstance(value, Mapping) else [(name, getattr(value, name)) for name in fields]
    found: set[str] = set()
    for name, one in inner:
        where = f"{path}.{name}" if path else str(name)
        found |= _unset(one, where)
        if name in fields and not one and one == fields[name].default:
            found.add(where)
    return found


def value_changes(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """Returns what differs between two records: dotted path -> (old, new), None where it is not there.

    Of a part that only one of them has, what it leaves unset is not told.
    """
    before, after = flat(old), flat(new)
    unset = {path for path in _unset(old) if path not in after} | {path for path in _unset(new) if path not in before}
    paths = [*before, *(path for path in after if path not in before)]
    return {
        path: (before.get(path), after.get(path))
        for path in paths
        if before.get(path) != after.get(path) and path not in unset
    }
