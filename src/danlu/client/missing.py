"""Which blobs of a tree the platform lacks, asked with few words: by what changed since the tree that was sent last."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from danlu.api.bodies import MAX_ADDRESSES, MAX_TREES, AddressesAndTrees
from danlu.client.transport import Client
from danlu.domain.trees import Entry, decode, frames, unpack
from danlu.errors import InvalidRequest

MAX_REMEMBERED_BYTES: Final = 256 * 2**20

Ask = Callable[[Sequence[str], Sequence[str]], set[str]]
"""Takes (blobs, trees); returns which of these blobs, and what of these trees, is absent."""


@dataclass(frozen=True, slots=True)
class Tree:
    """A folder's nodes, as in ``Scan``."""

    root: str
    nodes: dict[str, bytes]

    def folder(self, address: str) -> tuple[Entry, ...]:
        """Returns a node's entries."""
        return decode(self.nodes[address])

    def has(self, path: str) -> bool:
        """Whether the tree has something at a path, its parts separated by slashes."""
        address = self.root
        for part in path.split("/"):
            entry = next((entry for entry in self.folder(address) if entry.name == part), None) if address else None
            if entry is None:
                return False
            address = entry.address if entry.kind == "dir" else ""
        return True


@dataclass(slots=True)
class Missing:
    """What the platform lacks, and for nodes among it the earlier ones that it has in their place."""

    addresses: set[str] = field(default_factory=set)
    bases: dict[str, bytes] = field(default_factory=dict)


def missing(new: Tree, last: Tree | None, ask: Ask) -> Missing:
    """Returns what of a tree the platform lacks.

    Args:
        new: the tree.
        last: the tree that was sent last, which the platform may have lost.
        ask: see Ask.
    """
    if last is not None and last.root == new.root:
        last = None
    if last is not None:
        asked = Missing()
        bases: dict[str, bytes] = {}
        for address, base in _changed(new, last):
            asked.addresses.add(address)
            if base is not None:
                bases[address] = base
        gone = ask(sorted(asked.addresses), (last.root,))
        if gone <= asked.addresses:  # of the tree that was sent last nothing is
            return Missing(gone, {address: base for address, base in bases.items() if address in gone})
    return Missing(_from_above(new, ask))


def _changed(new: Tree, last: Tree) -> Iterator[tuple[str, bytes | None]]:
    """Yields each (address, the node in its place) of the new tree that is not at its place in the last one."""
    seen = {new.root}
    waiting: list[tuple[str, str | None]] = [(new.root, last.root)]
    while waiting:
        address, place = waiting.pop()
        yield address, None if place is None else last.nodes[place]
        before = {} if place is None else {entry.name: entry for entry in last.folder(place)}
        for entry in new.folder(address):
            old = before.get(entry.name)
            same_kind = old is not None and old.kind == entry.kind
            if entry.kind == "link" or (old is not None and same_kind and old.address == entry.address):
                continue
            if entry.kind == "file":
                yield entry.address, None
            elif entry.address not in seen:
                seen.add(entry.address)
                waiting.append((entry.address, old.address if old is not None and same_kind else None))


def _from_above(new: Tree, ask: Ask) -> set[str]:
    """Asks folder by folder: what lies below one that the platform has whole need not be asked for."""
    absent, asked = set[str](), {new.root}
    blobs, trees = list[str](), [new.root]
    while blobs or trees:
        gone = ask(blobs, trees) - absent
        absent |= gone
        blobs, trees = [], []
        for entry in (entry for address in gone if address in new.nodes for entry in new.folder(address)):
            if entry.kind != "link" and entry.address not in asked:
                asked.add(entry.address)
                (trees if entry.kind == "dir" else blobs).append(entry.address)
    return absent


def asking(client: Client) -> Ask:
    """Returns how to ask a platform."""

    def ask(blobs: Sequence[str], trees: Sequence[str]) -> set[str]:
        absent = set[str]()
        for at in range(0, max(len(blobs), 1), MAX_ADDRESSES):
            some = trees[:MAX_TREES] if at == 0 else ()
            absent |= _call(client, blobs[at : at + MAX_ADDRESSES], some)
        for at in range(MAX_TREES, len(trees), MAX_TREES):
            absent |= _call(client, (), trees[at : at + MAX_TREES])
        return absent

    return ask


def _call(client: Client, blobs: Iterable[str], trees: Iterable[str]) -> set[str]:
    body = AddressesAndTrees(addresses=tuple(blobs), trees=tuple(trees))
    return set(client.call("blobs.missing", body=body).addresses)


def remembered(file: Path) -> Tree | None:
    """Returns the tree that was sent last from a folder; None where that is not known any more."""
    try:
        if file.stat().st_size > MAX_REMEMBERED_BYTES:
            return None
        nodes = dict(unpack(file.read_bytes()))
    except (OSError, InvalidRequest):
        return None
    return Tree(next(reversed(nodes)), nodes) if nodes else None  # a folder comes after those in it


def remember(file: Path, tree: Tree) -> None:
    """Stores the tree that was sent. What cannot be stored only costs time."""
    nodes = {address: node for address, node in tree.nodes.items() if address != tree.root}
    unfinished = file.with_suffix(f".{os.getpid()}.part")
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as opened:
            opened.writelines(frames((*nodes.values(), tree.nodes[tree.root])))
        unfinished.replace(file)
