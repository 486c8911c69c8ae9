"""Streams: appended at an offset, read from an offset, searched by line and time; a model in memory says what is right."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.blobs import bucket_streams
from danlu.blobs.bucket_streams import BucketStreams
from danlu.blobs.local_streams import LocalStreams
from danlu.blobs.streams import SCAN_BYTES, SEGMENT_BYTES, StreamKey, Streams
from danlu.errors import Conflict, DataDamaged, InvalidRequest, StorageFull
from tests.databases import together
from tests.stores import Place, Store

KEY = StreamKey("default", "j0-1", "main-0", "log")


@pytest.fixture
def streams(store: Store) -> Streams:
    return store.streams(segment_bytes=16)


def whole(streams: Streams, key: StreamKey = KEY) -> bytes:
    return streams.read(key, 0, 2**30)


@settings(max_examples=40)
@given(pieces=st.lists(st.tuples(st.integers(0, 30), st.binary(max_size=50)), max_size=12), ends=st.data())
def test_a_stream_is_the_bytes_that_were_appended(
    new_store: Callable[[], Store], pieces: list[tuple[int, bytes]], ends: st.DataObject
) -> None:
    store, model = new_store(), b""
    streams = store.streams(segment_bytes=16)
    for back, data in pieces:
        offset = max(0, len(model) - back)
        sent = model[offset:] + data
        assert streams.append(KEY, offset, sent) == len(model) + len(data)
        model += data
    assert streams.size(KEY) == len(model)
    assert whole(streams) == model
    begin, length = ends.draw(st.integers(0, len(model) + 5)), ends.draw(st.integers(0, 60))
    assert streams.read(KEY, begin, length) == model[begin : begin + length]
    again = ends.draw(st.integers(0, len(model)))
    assert streams.append(KEY, again, model[again : again + length]) == len(model)
    assert whole(store.streams(segment_bytes=16)) == model, "as another server sees it"


@pytest.mark.parametrize("size", [15, 16, 17, 32, 33])
def test_segments_end_at_their_size(store: Store, streams: Streams, size: int) -> None:
    data = bytes(range(size))
    assert streams.append(KEY, 0, data) == size
    assert streams.append(KEY, size, b"x") == size + 1
    assert whole(streams) == data + b"x"
    assert streams.read(KEY, 14, 4) == (data + b"x")[14:18]
    sizes = list[int]()
    for name in store.names():
        store.change(name, lambda found: [sizes.append(len(found)), found][1])  # type: ignore[func-returns-value, list-item, return-value]
    assert max(sizes) <= 16


def test_a_gap_is_refused(streams: Streams) -> None:
    streams.append(KEY, 0, b"abc")
    with pytest.raises(Conflict, match="ends at 3; a piece at 4"):
        streams.append(KEY, 4, b"x")
    assert whole(streams) == b"abc"


def test_other_bytes_at_the_same_place_are_refused(streams: Streams) -> None:
    streams.append(KEY, 0, b"abc")
    with pytest.raises(Conflict, match="differs"):
        streams.append(KEY, 1, b"xcd")
    assert whole(streams) == b"abc"


def test_nothing_is_an_empty_stream(streams: Streams) -> None:
    assert (streams.size(KEY), whole(streams), streams.append(KEY, 0, b"")) == (0, b"", 0)
    assert (streams.tail_offset(KEY, 3), streams.seek_time(KEY, 5)) == (0, 0)
    streams.delete("default", "j0-1")


def test_a_lost_segment_is_told(store: Store, streams: Streams) -> None:
    streams.append(KEY, 0, bytes(40))
    store.remove(f"default/streams/j0-1/main-0/log/{0:020d}")
    with pytest.raises(DataDamaged, match="from 0 to 16"):
        streams.read(KEY, 0, 10)
    assert streams.read(KEY, 16, 10) == bytes(10)


def test_streams_are_separate_and_deleted_by_owner(streams: Streams) -> None:
    keys = [KEY, StreamKey("default", "j0-1", "main-0", "metrics"), StreamKey("default", "j0-2", "main-0", "log"),
            StreamKey("other", "j0-1", "main-0", "log")]  # fmt: skip
    for number, key in enumerate(keys):
        streams.append(key, 0, b"%d" % number)
    streams.delete("default", "j0-1")
    assert [whole(streams, key) for key in keys] == [b"", b"", b"2", b"3"]


@pytest.mark.parametrize("part", ["..", "a/b", "", "A", "a\n", "é"])
def test_only_names_are_paths(streams: Streams, part: str) -> None:
    for key in (StreamKey(part, "a", "b", "c"), StreamKey("a", part, "b", "c"), StreamKey("a", "b", part, "c"),
                StreamKey("a", "b", "c", part)):  # fmt: skip
        with pytest.raises(InvalidRequest):
            streams.append(key, 0, b"x")


@settings(max_examples=40)
@given(
    lines=st.lists(st.binary(max_size=30).map(lambda b: b.replace(b"\n", b" ")), max_size=20),
    count=st.integers(0, 25),
    torn=st.booleans(),
)
def test_the_last_lines(new_store: Callable[[], Store], lines: list[bytes], count: int, torn: bool) -> None:
    streams = new_store().streams(segment_bytes=16)
    data = b"".join(line + b"\n" for line in lines)
    streams.append(KEY, 0, data + (b"torn" if torn else b""))
    at = streams.tail_offset(KEY, count)
    if count:
        expected = b"".join(line + b"\n" for line in lines[-count:]) + (b"torn" if torn else b"")
        assert whole(streams)[at:] == expected
    else:
        assert at == streams.size(KEY)


def test_the_last_lines_of_a_long_stream(store: Store) -> None:
    streams = store.streams(segment_bytes=100_000)
    lines = [b"%d " % number + b"x" * (number % 97) + b"\n" for number in range(30_000)]
    streams.append(KEY, 0, b"".join(lines))
    for count in (1, 9_000, 29_999, 30_000, 40_000):
        assert whole(streams)[streams.tail_offset(KEY, count) :] == b"".join(lines[-count:])


@pytest.mark.parametrize("text", [b"", b"\r99999999999 b", b"\x0b", b"99999999999", b"9" * 5000])
def test_a_time_is_found_among_many_lines(store: Store, text: bytes) -> None:
    """What a program prints is never taken for a time, whatever it is."""
    streams = store.streams(segment_bytes=100_000)
    lines = [b"%d o. %s\n" % (1000 + number // 3, text) for number in range(4 * SCAN_BYTES // (20 + len(text)))]
    data = b"".join(lines)
    streams.append(KEY, 0, data)
    for since in (0, 1000, 1001, 1500, 1000 + len(lines) // 3 - 1, 10**9):
        expected = sum(len(line) for line in lines if int(line.split(b" ", 1)[0]) < since)
        assert streams.seek_time(KEY, since) == expected


def test_a_line_longer_than_a_look_is_found_too(store: Store) -> None:
    streams = store.streams()
    lines = [b"1 o. a\n", b"2 o. " + b"x" * (3 * SCAN_BYTES) + b"\n", b"3 o. c\n"]
    streams.append(KEY, 0, b"".join(lines))
    assert streams.seek_time(KEY, 1) == 0
    assert streams.seek_time(KEY, 2) == len(lines[0])
    assert streams.seek_time(KEY, 3) <= len(lines[0] + lines[1])


def test_many_append_the_same_and_it_is_there_once(streams: Streams) -> None:
    data = bytes(range(200))

    def send(_number: int) -> None:
        for at in range(0, 200, 7):
            streams.append(KEY, at, data[at : at + 7])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(send, range(8))) == [None] * 8
    assert whole(streams) == data


def test_of_many_who_append_at_the_same_place_one_wins(store: Store) -> None:
    streams = store.streams()
    pieces = [bytes([number]) * 200_000 for number in range(6)]
    model = b""
    for _ in range(8):
        end = len(model)
        results = together(6, lambda number, end=end: streams.append(KEY, end, pieces[number]))  # type: ignore[misc]
        winners = [number for number, found in enumerate(results) if isinstance(found, int)]
        assert len(winners) == 1
        assert {type(found) for found in results} == {int, Conflict}
        model += pieces[winners[0]]
    assert whole(streams) == model


def test_a_full_disk_keeps_a_beginning_and_the_rest_can_follow(small_disk: Callable[[int], Any]) -> None:
    disk = small_disk(300_000)
    filler = disk / "filler"
    filler.write_bytes(bytes(150_000))
    streams = LocalStreams(disk, segment_bytes=50_000)
    data = bytes(range(250)) * 1000
    streams.append(KEY, 0, data[:10_000])
    with pytest.raises(StorageFull):
        streams.append(KEY, 10_000, data[10_000:])
    found = whole(streams)
    assert data.startswith(found)
    assert len(found) >= 10_000
    filler.unlink()
    assert streams.append(KEY, 10_000, data[10_000:]) == len(data)
    assert whole(streams) == data


# several servers of one bucket


def test_of_servers_that_append_at_the_same_place_one_wins(place: Place) -> None:
    servers = [place.streams() for _ in range(4)]
    model = b""
    for turn in range(5):
        pieces, end = [b"%d-%d " % (turn, number) for number in range(4)], len(model)
        results = together(4, lambda number, end=end, pieces=pieces: servers[number].append(KEY, end, pieces[number]))  # type: ignore[misc]
        winners = [number for number, found in enumerate(results) if isinstance(found, int)]
        assert len(winners) == 1
        assert {type(found) for found in results} == {int, Conflict}
        model += pieces[winners[0]]
    assert [whole(server) for server in servers] == [model] * 4


@pytest.mark.parametrize("segment_bytes", [40, SEGMENT_BYTES])
def test_many_small_objects_become_few(place: Place, monkeypatch: pytest.MonkeyPatch, segment_bytes: int) -> None:
    monkeypatch.setitem(vars(bucket_streams), "COUNT", 4)
    monkeypatch.setitem(vars(bucket_streams), "END_S", 0.0)
    model = b""
    for number in range(90):
        streams = BucketStreams(place.bucket, segment_bytes=segment_bytes, old_s=-1.0)
        piece = b"%d\n" % number
        assert streams.append(KEY, len(model), piece) == len(model) + len(piece)
        model += piece
        assert whole(streams) == model
    assert len(place.names()) < (20 if segment_bytes == SEGMENT_BYTES else 50)
    assert whole(place.streams()) == model
    assert place.streams().append(KEY, 0, model + b"end") == len(model) + 3


def test_what_comes_too_late_into_a_gap_of_what_was_put_together_is_not_read(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(vars(bucket_streams), "COUNT", 4)
    monkeypatch.setitem(vars(bucket_streams), "END_S", 0.0)
    streams = BucketStreams(place.bucket, old_s=-1.0)
    for number in range(6):
        streams.append(KEY, number, b"%d" % number)
    stopped = f"{KEY.folder}/{2:020d}"
    assert stopped not in place.names(), "it is part of a larger object"
    place.bucket.put_new(stopped, b"from a server that was stopped for long")
    assert whole(streams) == b"012345"
    assert streams.append(KEY, 6, b"6") == 7


def test_pieces_of_one_stream_come_to_servers_in_turn(store: Store) -> None:
    """As behind a load balancer: what another server has stored meanwhile is no gap."""
    first, second = store.streams(), store.streams()
    data = b"".join(b"%d line\n" % number for number in range(9))
    for number, at in enumerate(range(0, len(data), 7)):
        end = (first, second, second)[number % 3].append(KEY, at, data[at : at + 7])
        assert end == min(len(data), at + 7)
    assert first.read(KEY, 0, len(data)) == data
