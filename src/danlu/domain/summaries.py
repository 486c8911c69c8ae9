"""What of a folder decides whether it may lie in a tree, put together from below: each node is looked at once. Pure.

``trees.walk`` asks the same of each folder at its place. Here a folder's answer does not depend on its place, so that it can
be remembered: of a tree of which most is known, only what is new is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from danlu.domain.trees import (
    MAX_DEPTH,
    MAX_PATH_BYTES,
    MAX_TREE_ENTRIES,
    Entry,
    climb,
    totals,
)
from danlu.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Summary:
    """A folder and all below it.

    Attributes:
        size_bytes: of its files.
        files: how many.
        entries: names in it and in all folders below it.
        height: how many folders lie below each other in it.
        path_bytes: the longest path in it, each name with its slash.
        climb: how many folders above it the highest link leads to.
    """

    size_bytes: int = 0
    files: int = 0
    entries: int = 0
    height: int = 0
    path_bytes: int = 0
    climb: int = 0

    def wrong(self) -> str:
        """Returns why a folder like this cannot be the topmost one; "" where it can."""
        if self.entries > MAX_TREE_ENTRIES:
            return f"has more than {MAX_TREE_ENTRIES} entries"
        if self.height > MAX_DEPTH:
            return f"has more than {MAX_DEPTH} levels"
        if self.path_bytes > MAX_PATH_BYTES:
            return f"has a path of more than {MAX_PATH_BYTES} bytes"
        return "has a link that leaves it" if self.climb > 0 else ""


def summarize(entries: Iterable[Entry], below: Mapping[str, Summary]) -> Summary:
    """Returns the summary of a folder with these entries.

    Args:
        entries: a node's.
        below: the summaries of the folders in it, by address.

    Raises:
        InvalidRequest: an entry claims other totals than its folder has.
    """
    entries = tuple(entries)
    count, height, path_bytes, up = len(entries), 0, 0, 0
    for entry in entries:
        length = len(entry.name.encode()) + 1
        if entry.kind == "link":
            up = max(up, climb(entry.target))
        elif entry.kind == "dir":
            inner = below[entry.address]
            if (inner.size_bytes, inner.files) != (entry.size, entry.files):
                raise InvalidRequest(f"{entry.name!a} has other totals than the folder above it says")
            count += inner.entries
            height = max(height, inner.height + 1)
            length += inner.path_bytes
            up = max(up, inner.climb - 1)
        path_bytes = max(path_bytes, length)
    return Summary(*totals(entries), count, height, path_bytes, up)
