"""Blobs that come in pieces, and trees of which something is missing: what every store of blobs promises."""

from __future__ import annotations

import gc
import io
import os
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.blobs import bucket_blobs, parts, wholeness
from danlu.blobs.base import Blobs
from danlu.blobs.bucket import Bucket
from danlu.blobs.bucket_blobs import PART_BYTES
from danlu.blobs.local import LocalBlobs
from danlu.domain.trees import Entry, address_of, encode
from danlu.errors import Conflict, DataDamaged, InvalidRequest, StorageFull
from tests.databases import together
from tests.stores import Place, Store


def add(blobs: Blobs, data: bytes, begin: int, end: int, *, address: str | None = None) -> int:
    return blobs.append("p", address or address_of(data), io.BytesIO(data[begin:end]), offset=begin, size=len(data))


@settings(max_examples=30)  # each blob waits for the disk
@given(data=st.binary(min_size=1, max_size=200), cuts=st.lists(st.integers(0, 200), max_size=6), restart=st.booleans())
def test_pieces_cut_anywhere_become_the_blob(
    new_store: Callable[[], Store], data: bytes, cuts: list[int], restart: bool
) -> None:
    store = new_store()
    blobs = store.blobs()
    at = 0
    for cut in [*sorted({min(cut, len(data)) for cut in cuts} - {0}), len(data)]:
        if restart:  # whoever stores the next piece knows nothing of the ones before
            blobs = store.blobs()
        assert blobs.received("p", address_of(data)) == at
        at = add(blobs, data, at, max(cut, at))
    assert blobs.missing("p", [address_of(data)]) == ()
    assert blobs.read("p", address_of(data)) == data
    assert blobs.received("p", address_of(data)) == len(data)
    assert len(store.names()) == 1


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("piece", [PART_BYTES // 2, PART_BYTES, PART_BYTES + 1])
def test_large_pieces_become_the_blob(store: Store, piece: int, restart: bool) -> None:
    data = random.Random(piece).randbytes(3 * PART_BYTES + 7)
    blobs, at = store.blobs(), 0
    while at < len(data):
        blobs = store.blobs() if restart else blobs
        at = add(blobs, data, at, min(at + piece, len(data)))
    with blobs.open("p", address_of(data)) as file:
        assert file.read() == data
    assert blobs.stored_bytes("p") == len(data)
    assert store.blobs().received("p", address_of(data)) == len(data)
    assert blobs.remove("p", [address_of(data)]) == len(data)
    assert store.names() == []


def test_a_piece_goes_where_the_last_one_ended(blobs: Blobs) -> None:
    data = b"0123456789"
    add(blobs, data, 0, 4)
    for begin in (0, 3, 5):
        with pytest.raises(Conflict) as caught:
            add(blobs, data, begin, 10)
        assert caught.value.details["received"] == 4
    assert add(blobs, data, 4, 10) == 10
    assert add(blobs, data, 4, 10) == 10  # an answer was lost: it is there
    assert blobs.read("p", address_of(data)) == data


def test_another_project_has_its_own_pieces(blobs: Blobs) -> None:
    data = b"0123456789"
    add(blobs, data, 0, 4)
    assert blobs.received("q", address_of(data)) == 0
    assert blobs.append("q", address_of(data), io.BytesIO(data), offset=0, size=10) == 10
    assert blobs.missing("p", [address_of(data)]) == (address_of(data),)


def test_wrong_bytes_begin_anew(blobs: Blobs) -> None:
    data = b"0123456789"
    add(blobs, b"x" * 10, 0, 9, address=address_of(data))
    with pytest.raises(InvalidRequest, match="nothing was stored"):
        add(blobs, b"x" * 10, 9, 10, address=address_of(data))
    assert blobs.received("p", address_of(data)) == 0
    assert add(blobs, data, 0, 10) == 10


def test_a_piece_that_is_too_long_is_not_added(blobs: Blobs) -> None:
    data = b"0123456789"
    add(blobs, data, 0, 4)
    with pytest.raises(InvalidRequest, match="has 10 bytes"):
        blobs.append("p", address_of(data), io.BytesIO(b"x" * 7), offset=4, size=10)
    assert blobs.received("p", address_of(data)) == 4
    assert add(blobs, data, 4, 10) == 10


def read_bytes() -> int:
    """Returns how much this process has read so far."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_a_small_piece_does_not_cost_reading_what_came_before_it(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(8 * 2**20)
    add(LocalBlobs(tmp_path), data, 0, len(data) - 100)
    blobs = LocalBlobs(tmp_path)  # it remembers the hash of nothing, as of an upload that is not among the last ones
    before = read_bytes()
    for left in range(100, 1, -1):
        add(blobs, data, len(data) - left, len(data) - left + 1)
    assert read_bytes() - before < 2**20
    before = read_bytes()
    assert add(blobs, data, len(data) - 1, len(data)) == len(data)
    assert read_bytes() - before >= len(data)  # all of it is checked once
    assert blobs.missing("p", [address_of(data)]) == ()


class Torn(io.BytesIO):
    """A sender that goes away after some bytes."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() >= 3:
            raise ConnectionError
        return super().read(min(3, size or 3))


def test_a_sender_that_goes_away_leaves_whole_pieces(blobs: Blobs) -> None:
    data = b"0123456789"
    add(blobs, data, 0, 2)
    with pytest.raises(ConnectionError):
        blobs.append("p", address_of(data), Torn(data[2:]), offset=2, size=10)
    assert blobs.received("p", address_of(data)) == 2
    assert add(blobs, data, 2, 10) == 10


def test_two_senders_do_not_mix(blobs: Blobs) -> None:
    data = os.urandom(200_000)

    def send(_: int) -> None:
        at = 0
        while at < len(data):
            try:
                at = add(blobs, data, at, at + 1000)
            except Conflict:
                at = blobs.received("p", address_of(data))

    with ThreadPoolExecutor(4) as senders:
        list(senders.map(send, range(4)))
    assert blobs.read("p", address_of(data)) == data


def test_what_was_given_up_is_removed(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path / "blobs")
    for data in (b"old-one", b"new-one"):
        add(blobs, data, 0, 3)
    (old,) = (tmp_path / "blobs" / ".unfinished").glob(f"*{address_of(b'old-one')[7:]}*")
    long_ago = old.stat().st_mtime - parts.KEPT_S - 60
    os.utime(old, (long_ago, long_ago))
    add(blobs, b"third", 0, 3)
    assert blobs.received("p", address_of(b"old-one")) == 0
    assert blobs.received("p", address_of(b"new-one")) == 3


def test_a_server_that_starts_leaves_what_another_one_of_the_folder_is_storing(tmp_path: Path) -> None:
    first = LocalBlobs(tmp_path)

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            LocalBlobs(tmp_path).start()
            return super().read(size)

    first.put("default", address_of(b"whole"), Slow(b"whole"))
    assert first.read("default", address_of(b"whole")) == b"whole"
    left = tmp_path / ".unfinished" / "killed"
    left.touch()
    os.utime(left, (1, 1))
    first.start()
    assert not left.exists()


def test_a_full_disk_keeps_what_has_arrived(small_disk: Any) -> None:
    blobs = LocalBlobs(small_disk(4 * 2**20) / "blobs")
    data = random.Random(1).randbytes(16 * 2**20)
    add(blobs, data, 0, 2**20)
    with pytest.raises(StorageFull):
        add(blobs, data, 2**20, len(data))
    assert blobs.received("p", address_of(data)) == 2**20


# trees


def test_of_a_tree_what_is_missing_is_named(blobs: Blobs) -> None:
    inner = encode(
        [Entry("b.py", "file", address_of(b"b"), 0o644, 1), Entry("c.py", "file", address_of(b"c"), 0o644, 1)]
    )
    outer = encode(
        [Entry("lib", "dir", address_of(inner), size=2, files=2), Entry("a.py", "file", address_of(b"a"), 0o644, 1)]
    )
    root = address_of(outer)
    assert blobs.absent("p", root, most=10) == (root,)
    blobs.put_many("p", [(root, outer)])
    assert set(blobs.absent("p", root, most=10)) == {address_of(b"a"), address_of(inner)}
    assert len(blobs.absent("p", root, most=1)) == 1
    blobs.put_many("p", [(address_of(inner), inner), (address_of(b"a"), b"a"), (address_of(b"b"), b"b")])
    assert blobs.absent("p", root, most=10) == (address_of(b"c"),)
    blobs.put_many("p", [(address_of(b"c"), b"c")])
    assert blobs.absent("p", root, most=10) == ()
    assert blobs.absent("q", root, most=10) == (root,)


def test_what_was_whole_is_so_no_more_once_something_is_damaged(store: Store) -> None:
    blobs = store.blobs()
    node = encode([Entry("a.py", "file", address_of(b"a"), 0o644, 1)])
    blobs.put_many("p", [(address_of(node), node), (address_of(b"a"), b"a")])
    assert blobs.absent("p", address_of(node), most=10) == ()
    (stored,) = (name for name in store.names() if name.endswith(address_of(b"a")[9:]))
    store.change(stored, lambda _data: b"x")
    with pytest.raises(DataDamaged):
        blobs.read("p", address_of(b"a"))
    assert blobs.absent("p", address_of(node), most=10) == (address_of(b"a"),)


@pytest.mark.parametrize(
    "node",
    [
        b"{}", b"", encode([Entry("up", "link", target="../x")]),
        encode([Entry("lib", "dir", address_of(encode([])), size=1, files=1)]),
    ],
)  # fmt: skip
def test_what_is_no_tree_is_told(blobs: Blobs, node: bytes) -> None:
    blobs.put_many("p", [(address_of(one), one) for one in (node, encode([]))])
    for _ in range(2):  # it is not taken for one the second time either
        with pytest.raises(InvalidRequest):
            blobs.absent("p", address_of(node), most=10)


def test_a_link_may_climb_as_far_as_its_folder_lies_deep(blobs: Blobs) -> None:
    inner = encode([Entry("up", "link", target="../a.py")])
    outer = encode([Entry("lib", "dir", address_of(inner))])
    blobs.put_many("p", [(address_of(one), one) for one in (inner, outer)])
    assert blobs.absent("p", address_of(outer), most=10) == ()
    with pytest.raises(InvalidRequest, match="leaves it"):
        blobs.absent("p", address_of(inner), most=10)


class Counted(LocalBlobs):
    """Blobs that count what is read of them."""

    read_bytes = 0

    def read(self, project: str, address: str) -> bytes:
        data = super().read(project, address)
        self.read_bytes += len(data)
        return data


def test_a_node_is_looked_at_once_for_all_trees_that_name_it(tmp_path: Path) -> None:
    blobs = Counted(tmp_path / "blobs")
    names = [f"f{n}" for n in range(100)]
    shared = encode([Entry(name, "file", address_of(name.encode()), 0o644, len(name)) for name in names])
    roots = [encode([Entry(f"d{n}", "dir", address_of(shared))]) for n in range(5)]
    blobs.put_many("p", [(address_of(node), node) for node in (shared, *roots)])
    asked = [address_of(node) for node in roots] * 3
    assert set(blobs.absent("p", *asked, most=1000)) == {address_of(name.encode()) for name in names}
    assert blobs.read_bytes == len(shared) + sum(map(len, roots))
    assert len(blobs.absent("p", *asked, most=7)) == 7


def test_trees_that_are_asked_for_together_are_no_larger_than_one_may_be(
    blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [encode([Entry(f"{n}-{i}", "file", address_of(b"x"), 0o644, 1) for i in range(10)]) for n in range(4)]
    blobs.put_many("p", [(address_of(node), node) for node in nodes])
    roots = [address_of(node) for node in nodes]
    for name, most in (("MAX_TREE_ENTRIES", 30), ("MAX_LOOKED_BYTES", sum(map(len, nodes[:3])))):
        with monkeypatch.context() as changed:
            changed.setitem(vars(wholeness), name, most)
            assert blobs.absent("p", *roots[:3], most=10) == (address_of(b"x"),)
            with pytest.raises(InvalidRequest):
                blobs.absent("p", *roots, most=10)


def test_folders_that_name_each_other_twice_end(blobs: Blobs) -> None:
    entries: list[Entry] = []
    for _ in range(63):
        node = encode(entries)
        blobs.put_many("p", [(address_of(node), node)])
        entries = [Entry(name, "dir", address_of(node)) for name in ("a", "b")]
    root = encode(entries)
    blobs.put_many("p", [(address_of(root), root)])
    with pytest.raises(InvalidRequest, match="more than"):
        blobs.absent("p", address_of(root), most=10)


# several servers of one bucket


@pytest.mark.parametrize("size", [4, PART_BYTES])
def test_what_one_server_remembers_of_pieces_is_not_taken_for_others(place: Place, size: int) -> None:
    one, other = place.blobs(), place.blobs()
    data = random.Random(size).randbytes(2 * size)
    address = address_of(data)
    add(one, data, 0, size)
    with pytest.raises(InvalidRequest):
        add(other, data[:size] + bytes(size), size, 2 * size, address=address)
    add(other, bytes(2 * size), 0, size, address=address)
    with pytest.raises(InvalidRequest):
        add(one, data, size, 2 * size)
    assert one.missing("p", [address]) == (address,)


@pytest.mark.parametrize("size", [1000, 2 * PART_BYTES + 1])
def test_a_blob_that_several_servers_store_at_once_is_new_for_one(place: Place, size: int) -> None:
    servers = [place.blobs() for _ in range(4)]
    data = random.Random(size).randbytes(size)
    results = together(4, lambda number: servers[number].put("p", address_of(data), io.BytesIO(data)))
    assert sorted(results) == [(0, 0), (0, 0), (0, 0), (1, size)]
    with servers[0].open("p", address_of(data)) as file:
        assert file.read() == data
    assert servers[0].stored_bytes("p") == size
    assert sum("/parts/" in name for name in place.names()) == (0 if size == 1000 else 3)


def test_each_piece_may_come_to_another_server(place: Place) -> None:
    data = random.Random(1).randbytes(100_000)

    def send(_: int) -> None:
        blobs, at = place.blobs(), 0
        while at < len(data):
            try:
                at = add(blobs, data, at, at + 9000)
            except Conflict as conflict:
                at = conflict.details["received"]

    assert together(4, send) == [None] * 4
    assert place.blobs().read("p", address_of(data)) == data
    assert len(place.names()) == 1


def test_of_an_upload_that_was_given_up_nothing_stays(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = place.blobs()
    add(blobs, b"x" * 10, 0, 3)
    whole = random.Random(1).randbytes(2 * PART_BYTES)
    add(blobs, whole, 0, PART_BYTES)
    add(blobs, whole, PART_BYTES, len(whole))
    blobs.sweep()
    assert blobs.received("p", address_of(b"x" * 10)) == 3, "it is too young"
    monkeypatch.setitem(vars(bucket_blobs), "KEPT_S", -1.0)
    blobs.sweep()
    assert blobs.received("p", address_of(b"x" * 10)) == 0
    with blobs.open("p", address_of(whole)) as file:
        assert file.read() == whole


class Asked(Bucket):
    """A bucket that counts the parts that are asked for."""

    asked = 0

    def get(self, key: str) -> bytes:
        self.asked += "/parts/" in key
        return super().get(key)


def test_who_reads_large_blobs_holds_little_ahead_of_all_who_do(place: Place) -> None:
    """As pods do that begin at the same time and read slowly: their server's memory has an end."""
    bucket, parts_of_it, ahead, readers = Asked(place.place), 3, 4, 5
    blobs = bucket_blobs.BucketBlobs(bucket, read_ahead=ahead)
    data = random.Random(1).randbytes(parts_of_it * PART_BYTES)
    blobs.put("default", address_of(data), io.BytesIO(data))
    for _ in range(2):  # what one has held ahead others may, once it has gone
        bucket.asked = 0
        files = [blobs.open("default", address_of(data)) for _ in range(readers)]
        for file in files:
            file.read(1)
        assert readers <= bucket.asked <= readers + ahead < readers * parts_of_it
        assert files[-1].read() == data[1:]
        files[0].close()
        assert files[1].read() == data[1:]
        del files, file
        gc.collect()


def test_what_was_sent_again_while_it_was_read_is_not_set_aside(place: Place) -> None:
    reads, writes = bucket_blobs.BucketBlobs(place.bucket, read_ahead=0), place.blobs()
    data = random.Random(2).randbytes(2 * PART_BYTES + 1)
    address = address_of(data)
    for _ in range(2):
        writes.put("default", address, io.BytesIO(data))
        with reads.open("default", address) as file:
            file.read(1)
            writes.remove("default", [address])
            writes.put("default", address, io.BytesIO(data))
            with pytest.raises(DataDamaged, match="was removed while it was read"):
                file.read()
        assert writes.missing("default", [address]) == ()
    with writes.open("default", address) as file:
        assert file.read() == data
