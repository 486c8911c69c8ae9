"""Several trees as one, of which nothing is lost: what the tasks of an attempt left, each on its own machine. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from danlu.domain.trees import MAX_NAME_BYTES, Entry, address_of, decode, encode, totals


class Part(NamedTuple):
    """A tree, and what is appended to the names of its things where another tree has these names: its task's name."""

    name: str
    root: str


class Joined(NamedTuple):
    """A tree made of several. ``nodes``: the bytes of those of its folders that were made for it, by address."""

    root: str
    size_bytes: int
    files: int
    nodes: dict[str, bytes]


def union(parts: Sequence[Part], read: Callable[[str], bytes]) -> Joined:
    """Returns several trees as one: what is in the same folder in several is in that folder.

    Where two have different things of one name, and not both are folders, the first keeps it, and the other's has its tree's
    name appended: ``model.pt`` and ``model.pt.worker-1``.

    Args:
        parts: the trees, at least one.
        read: returns a folder's bytes, which it must have checked against the address.

    Raises:
        InvalidRequest: one is no tree, or a folder of all of them would be too large.
    """
    nodes: dict[str, bytes] = {}

    def joined(parts: Sequence[Part]) -> Entry:
        found: dict[str, list[tuple[str, Entry]]] = {}
        for part in parts:
            for entry in decode(read(part.root)):
                _place(found, part.name, entry)
        entries = []
        for name, several in found.items():
            one = several[0][1]
            if len(several) > 1:
                one = joined([Part(part, entry.address) for part, entry in several])
            entries.append(replace(one, name=name))
        node = encode(entries)
        nodes[address_of(node)] = node
        size, files = totals(entries)
        return Entry("", "dir", address_of(node), size=size, files=files)

    root = joined(parts)
    return Joined(root.address, root.size, root.files, nodes)


def _place(found: dict[str, list[tuple[str, Entry]]], part: str, entry: Entry) -> None:
    """Adds an entry to those of a folder, under its own name or one that is free."""
    name, count = entry.name, 0
    while (there := found.get(name)) is not None:
        first = there[0][1]
        if replace(first, name="") == replace(entry, name=""):
            return
        if first.kind == entry.kind == "dir" and name == entry.name:
            there.append((part, entry))
            return
        count += 1
        ending = f".{part}" if count == 1 else f".{part}.{count}"
        name = entry.name.encode()[: MAX_NAME_BYTES - len(ending)].decode(errors="ignore") + ending
    found[name] = [(part, entry)]
