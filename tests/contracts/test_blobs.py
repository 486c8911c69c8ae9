"""Blobs: what goes in comes out, or an error does."""

from __future__ import annotations

import io
import os
import random
import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, BinaryIO

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from danlu.blobs.base import Blobs
from danlu.blobs.bucket_blobs import PART_BYTES
from danlu.blobs.local import LocalBlobs
from danlu.domain.trees import MAX_NODE_BYTES, Entry, address_of
from danlu.errors import DataDamaged, InvalidRequest, InvalidSpec, NotFound, StorageFull, TooLarge
from danlu.services.blobs import require_tree
from tests.factories import Trees
from tests.stores import Folder, Store

P = "default"


def put(blobs: Blobs, data: bytes, project: str = P) -> str:
    blobs.put(project, address_of(data), io.BytesIO(data))
    return address_of(data)


def left_over(store: Store) -> list[str]:
    """Returns what in a store is no blob; what is condemned is told beside them."""
    return [name for name in store.names() if not re.search(r"/sha256/../[0-9a-f]{62}$", name)]


LARGE = PART_BYTES + 5
"""More than a store keeps in one object."""


@settings(max_examples=30)
@given(data=st.binary(max_size=100) | st.integers(0, 3_000_000).map(bytes))
@example(data=bytes(LARGE))
@example(data=random.Random(1).randbytes(PART_BYTES))
@example(data=random.Random(2).randbytes(LARGE))
def test_what_is_put_comes_back(blobs: Blobs, data: bytes) -> None:
    address = address_of(data)
    before = blobs.stored_bytes(P)
    new = blobs.missing(P, [address]) != ()
    assert blobs.put(P, address, io.BytesIO(data)) == ((1, len(data)) if new else (0, 0))
    assert blobs.put(P, address, io.BytesIO(data)) == (0, 0)
    assert blobs.stored_bytes(P) == before + (len(data) if new else 0)
    assert blobs.missing(P, [address]) == ()
    assert blobs.read(P, address) == data
    with blobs.open(P, address) as file:
        assert b"".join(iter(lambda: file.read(1000), b"")) == data
        assert file.read(1) == b""


@settings(max_examples=30)
@given(found=st.lists(st.binary(max_size=50), max_size=8))
@example(found=[b"x", b"y" * LARGE, b"z"])
def test_many_are_put_at_once(new_store: Callable[[], Store], found: list[bytes]) -> None:
    blobs = new_store().blobs()
    if found:
        put(blobs, found[0])
    new = set(found[1:]) - set(found[:1])
    assert blobs.put_many(P, [(address_of(data), data) for data in found]) == (len(new), sum(map(len, new)))
    assert [blobs.read(P, address_of(data)) for data in found] == found


def test_missing_ones_are_named_in_order(blobs: Blobs) -> None:
    there = put(blobs, b"there")
    absent = [address_of(b"2"), address_of(b"1")]
    assert blobs.missing(P, [absent[0], there, absent[1]]) == tuple(absent)
    assert blobs.missing(P, []) == ()


def test_projects_are_separate(blobs: Blobs) -> None:
    address = put(blobs, b"secret", "a")
    assert blobs.missing("b", [address]) == (address,)
    for read in (blobs.read, blobs.open):
        with pytest.raises(NotFound, match="project b"):
            read("b", address)


@pytest.mark.parametrize("project", ["", "..", "a/b", "../a", "A", "a\n", "x" * 64])
def test_only_a_projects_name_is_a_path(blobs: Blobs, project: str) -> None:
    with pytest.raises(InvalidRequest):
        blobs.missing(project, [address_of(b"")])


@pytest.mark.parametrize("address", ["", "sha256:../../../../etc/passwd", "sha256:" + "A" * 64, "x", "md5:" + "a" * 32])
def test_only_an_address_is_a_path(blobs: Blobs, address: str) -> None:
    for use in (lambda: blobs.open(P, address), lambda: blobs.put(P, address, io.BytesIO(b"")),
                lambda: blobs.missing(P, [address]), lambda: blobs.put_many(P, [(address, b"")])):  # fmt: skip
        with pytest.raises(InvalidRequest):
            use()


def test_wrong_bytes_are_refused_and_nothing_is_stored(store: Store) -> None:
    blobs = store.blobs()
    good, wrong = address_of(b"good"), address_of(b"wrong")
    with pytest.raises(InvalidRequest, match="nothing was stored"):
        blobs.put(P, wrong, io.BytesIO(b"other"))
    with pytest.raises(InvalidRequest, match="nothing was stored"):
        blobs.put_many(P, [(good, b"good"), (wrong, b"other")])
    assert blobs.missing(P, [good, wrong]) == (good, wrong)
    with pytest.raises(InvalidRequest, match="nothing was stored"):
        blobs.put(P, wrong, io.BytesIO(bytes(LARGE)))
    assert blobs.missing(P, [good, wrong]) == (good, wrong)
    assert left_over(store) == []


class Breaking(io.RawIOBase):
    """A sender that goes away in the middle."""

    def __init__(self) -> None:
        self.chunks: Iterator[bytes] = iter([b"x" * 1000, b"x" * LARGE])

    def read(self, size: int = -1) -> bytes:
        for chunk in self.chunks:
            return chunk
        raise ConnectionResetError


def test_a_sender_that_goes_away_leaves_nothing(store: Store) -> None:
    blobs = store.blobs()
    sender: BinaryIO = Breaking()  # type: ignore[assignment]
    with pytest.raises(ConnectionResetError):
        blobs.put(P, address_of(b"x" * 2000), sender)
    assert blobs.missing(P, [address_of(b"x" * 2000)])
    assert left_over(store) == []


def damaged_by_a_bit(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    "damage", [damaged_by_a_bit, lambda data: data[:-1], lambda _data: b"", lambda data: data + b"x"],
    ids=["a bit", "cut", "empty", "longer"],
)  # fmt: skip
@pytest.mark.parametrize("how", ["read", "all", "chunks", "lines", "into"])
@pytest.mark.parametrize("size", [3_000_000, LARGE])
def test_damage_in_the_store_never_reaches_a_reader(
    store: Store, damage: Callable[[bytes], bytes], how: str, size: int
) -> None:
    blobs = store.blobs()
    data = os.urandom(size) + b"end"
    address = put(blobs, data)
    store.change(
        [name for name in store.names() if name.startswith(f"{P}/")][-1], damage
    )  # its last part, where it has parts
    got = bytearray()

    def read() -> None:
        if how == "read":
            got.extend(blobs.read(P, address))
            return
        with blobs.open(P, address) as file:
            if how == "all":
                got.extend(file.read())
            elif how == "lines":
                for line in file:
                    got.extend(line)
            elif how == "into":
                buffer = bytearray(2 * size)
                got.extend(buffer[: file.readinto(buffer)])  # type: ignore[attr-defined]
            else:
                while chunk := file.read(100_000):
                    got.extend(chunk)

    with pytest.raises(DataDamaged, match=address):
        read()
    assert len(got) < len(damage(data)) or not got, "the last bytes never come"
    assert blobs.missing(P, [address]) == (address,), "it was set aside, and can be sent again"
    assert put(blobs, data) == address
    assert blobs.read(P, address) == data


def test_reading_at_once_is_for_small_ones(blobs: Blobs) -> None:
    address = put(blobs, bytes(MAX_NODE_BYTES + 1))
    with pytest.raises(TooLarge):
        blobs.read(P, address)
    with blobs.open(P, address) as file:
        assert len(file.read()) == MAX_NODE_BYTES + 1


def test_a_full_disk_keeps_nothing_of_what_did_not_fit(small_disk: Callable[[int], Any]) -> None:
    store = Folder(small_disk(1_000_000) / "blobs")
    blobs = store.blobs()
    kept = put(blobs, b"kept")
    large = b"x" * 2_000_000
    with pytest.raises(StorageFull):
        put(blobs, large)
    parts = [bytes([number]) * 200_000 for number in range(10)]
    with pytest.raises(StorageFull):
        blobs.put_many(P, [(address_of(part), part) for part in parts])
    assert blobs.missing(P, map(address_of, [large, *parts])) == tuple(map(address_of, [large, *parts]))
    assert left_over(store) == []
    assert blobs.read(P, kept) == b"kept"
    put(blobs, bytes(500_000))


def test_a_disk_without_room_for_a_name_is_full_too(small_disk: Callable[[int], Any]) -> None:
    disk = small_disk(64 * 1024)
    blobs = LocalBlobs(disk)
    (disk / "filler").write_bytes(b"")

    def fill() -> None:
        for number in range(1000):
            put(blobs, b"%d" % number)

    with pytest.raises(StorageFull):
        fill()
    assert left_over(Folder(disk)) == ["filler"]


def test_a_jobs_code_is_there_as_a_whole(blobs: Blobs) -> None:
    trees = Trees()
    file = trees.file("f", b"x")
    inner = trees.folder(file)
    root = trees.folder(Entry("d", "dir", inner, size=1, files=1))
    call: Any = SimpleNamespace(platform=SimpleNamespace(blobs=blobs), project=P)
    for address, absent in ((root, root), (inner, inner), (file.address, file.address)):
        with pytest.raises(InvalidSpec, match=f"not complete: .*{absent}"):
            require_tree(call, root)
        put(blobs, trees[address])
    require_tree(call, root)
    with pytest.raises(InvalidRequest, match="not a tree node"):
        require_tree(call, file.address)
    lie = trees.folder(Entry("d", "dir", inner, size=2, files=1))
    put(blobs, trees[lie])
    with pytest.raises(InvalidRequest, match="other totals"):
        require_tree(call, lie)
