"""Streams: appended at an offset, read from an offset, searched by line and time; a model in memory says what is right."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.blobs.streams import SCAN_BYTES, StreamKey, Streams
from danlu.errors import Conflict, DataDamaged, InvalidRequest, StorageFull
from tests.databases import together

KEY = StreamKey("default", "j0-1", "main-0", "log")


@pytest.fixture
def streams(tmp_path: Path) -> Streams:
    return Streams(tmp_path, segment_bytes=16)


def whole(streams: Streams, key: StreamKey = KEY) -> bytes:
    return streams.read(key, 0, 2**30)


@settings(max_examples=80)
@given(pieces=st.lists(st.tuples(st.integers(0, 30), st.binary(max_size=50)), max_size=12), ends=st.data())
def test_a_stream_is_the_bytes_that_were_appended(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[int, bytes]], ends: st.DataObject
) -> None:
    streams, model = Streams(tmp_path_factory.mktemp("streams"), segment_bytes=16), b""
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
    segments = sorted(path.stat().st_size for path in streams.root.rglob("0*"))
    assert all(size <= 16 for size in segments)
    assert len([size for size in segments if size < 16]) <= 1


@pytest.mark.parametrize("size", [15, 16, 17, 32, 33])
def test_segments_end_at_their_size(streams: Streams, size: int) -> None:
    data = bytes(range(size))
    assert streams.append(KEY, 0, data) == size
    assert streams.append(KEY, size, b"x") == size + 1
    assert whole(streams) == data + b"x"
    assert streams.read(KEY, 14, 4) == (data + b"x")[14:18]


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


def test_a_lost_segment_is_told(streams: Streams) -> None:
    streams.append(KEY, 0, bytes(40))
    (streams.root / "default/streams/j0-1/main-0/log" / f"{0:020d}").unlink()
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


@given(
    st.lists(st.binary(max_size=30).map(lambda b: b.replace(b"\n", b" ")), max_size=20),
    st.integers(0, 25),
    st.booleans(),
)
def test_the_last_lines(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], count: int, torn: bool) -> None:
    streams = Streams(tmp_path_factory.mktemp("streams"), segment_bytes=16)
    data = b"".join(line + b"\n" for line in lines)
    streams.append(KEY, 0, data + (b"torn" if torn else b""))
    at = streams.tail_offset(KEY, count)
    if count:
        expected = b"".join(line + b"\n" for line in lines[-count:]) + (b"torn" if torn else b"")
        assert whole(streams)[at:] == expected
    else:
        assert at == streams.size(KEY)


def test_the_last_lines_of_a_long_stream(tmp_path: Path) -> None:
    streams = Streams(tmp_path, segment_bytes=100_000)
    lines = [b"%d " % number + b"x" * (number % 97) + b"\n" for number in range(30_000)]
    streams.append(KEY, 0, b"".join(lines))
    for count in (1, 9_000, 29_999, 30_000, 40_000):
        assert whole(streams)[streams.tail_offset(KEY, count) :] == b"".join(lines[-count:])


@pytest.mark.parametrize("text", [b"", b"\r99999999999 b", b"\x0b", b"99999999999", b"9" * 5000])
def test_a_time_is_found_among_many_lines(tmp_path: Path, text: bytes) -> None:
    """What a program prints is never taken for a time, whatever it is."""
    streams = Streams(tmp_path, segment_bytes=100_000)
    lines = [b"%d o. %s\n" % (1000 + number // 3, text) for number in range(4 * SCAN_BYTES // (20 + len(text)))]
    data = b"".join(lines)
    streams.append(KEY, 0, data)
    for since in (0, 1000, 1001, 1500, 1000 + len(lines) // 3 - 1, 10**9):
        expected = sum(len(line) for line in lines if int(line.split(b" ", 1)[0]) < since)
        assert streams.seek_time(KEY, since) == expected


def test_a_line_longer_than_a_look_is_found_too(tmp_path: Path) -> None:
    streams = Streams(tmp_path)
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


def test_of_many_who_append_at_the_same_place_one_wins(tmp_path: Path) -> None:
    streams = Streams(tmp_path)
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
    streams = Streams(disk, segment_bytes=50_000)
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
