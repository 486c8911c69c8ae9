"""Frames: every stream of bytes is taken apart in the same way however it is cut, or refused."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.runner import frames
from danlu.runner.frames import FROM_CLIENT, FROM_RUNNER, Decoder, FrameError, Taken, Window

KINDS = st.sampled_from([kind for kind, most in FROM_RUNNER.items() if most >= 100])
FRAMES = st.lists(st.tuples(KINDS, st.binary(max_size=100)), max_size=10)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[begin:end] for begin, end in pairwise(ends)]


@given(sent=FRAMES, places=st.lists(st.integers(min_value=0), max_size=20))
def test_frames_come_out_as_they_went_in(sent: list[frames.Frame], places: list[int]) -> None:
    decoder = Decoder(FROM_RUNNER)
    data = b"".join(frames.encode(kind, content) for kind, content in sent)
    assert [frame for piece in cut(data, places) for frame in decoder.feed(piece)] == sent
    assert decoder.between


@given(data=st.binary(max_size=300), places=st.lists(st.integers(min_value=0), max_size=5))
def test_any_bytes_are_frames_or_are_refused(data: bytes, places: list[int]) -> None:
    decoder = Decoder(FROM_CLIENT)
    try:
        found = [frame for piece in cut(data, places) for frame in decoder.feed(piece)]
    except FrameError:
        return
    for kind, content in found:
        assert len(content) <= FROM_CLIENT[kind]
    assert data.startswith(b"".join(frames.encode(*frame) for frame in found))


def test_a_wrong_frame_is_refused_before_its_bytes_come() -> None:
    for head in (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\2?", b"\0\1\0\0" + frames.CREDIT):
        with pytest.raises(FrameError):
            list(Decoder(FROM_CLIENT).feed(head))
    assert list(Decoder(FROM_CLIENT).feed(b"\0\1\0\0" + frames.STDIN)) == []


def test_a_window_is_used_and_given_back() -> None:
    window = Window(10)
    window.use(7)
    with pytest.raises(FrameError):
        window.use(4)
    with pytest.raises(FrameError):
        window.give(b"\0\0\0\x08")
    with pytest.raises(FrameError):
        window.give(b"\0\0\0")
    window.give(b"\0\0\0\x07")
    assert window.left == 10


@given(pieces=st.lists(st.integers(min_value=1, max_value=frames.DATA_BYTES), max_size=200))
def test_a_writer_never_waits_for_ever(pieces: list[int]) -> None:
    """What is taken is told early enough: a writer always finds room, once all that it wrote was taken."""
    window, taken = Window(), Taken()
    for piece in pieces:
        window.use(piece)
        for due in taken.take(piece):
            window.give(due)
        assert window.left >= frames.DATA_BYTES


def test_sizes() -> None:
    assert frames.size_of(frames.pack_size(24, 80)) == (24, 80)
    assert frames.size_of(frames.pack_size(-1, 100_000)) == (0, 65_535)
    with pytest.raises(FrameError):
        frames.size_of(b"abc")


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_only_objects_are_json(data: bytes) -> None:
    with pytest.raises(FrameError):
        frames.parse_json(data)


def test_every_kind_has_a_meaning() -> None:
    assert set(frames.MEANINGS) == {*FROM_CLIENT, *FROM_RUNNER}
