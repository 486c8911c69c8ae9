"""Secrets in output: no byte of one is kept, whatever comes in whatever pieces; everything else is, at its place."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.runner import follow, formats
from danlu.runner.follow import LONG_LINE_BYTES, Follower
from danlu.runner.redaction import FEW_WORDS, Redaction

GIB = 2**30
TOKEN = "hf_AbCdEfGhIj"
KEY = "-----BEGIN KEY-----\nAAAAB3NzaC1yc2EAAAADAQABAAAB\n-----END KEY-----\n"


def spooled(folder: Path) -> bytes:
    pieces = [Path(path).read_bytes() for _, path in formats.spool_files(str(folder / "spool"), formats.LOG)]
    return b"".join(pieces)


def text_of(folder: Path, stream: str = "o") -> str:
    """Returns what a reader sees of a stream: pieces of a line put together."""
    found = ""
    for line in formats.parse_lines(spooled(folder).decode(errors="replace")):
        if line.stream == stream and line.mark != "~":
            found += line.text + ("" if line.mark == "+" else "\n")
    return found


@pytest.mark.parametrize(
    ("values", "data", "kept"),
    [
        ([TOKEN], b"a hf_AbCdEfGhIj b", b"a ************* b"),
        ([TOKEN], b"hf_AbCdEfGhIjhf_AbCdEfGhIj", b"*" * 26),
        ([TOKEN], b"hf_AbCdEfGhI", b"hf_AbCdEfGhI"),
        (["abcabcabc"], b"abcabcabcabc!", b"************!"),
        (["abcdef", "defghi"], b"abcdefghi", b"*********"),
        (["abcdef", "bcdefg"], b"xabcdefgx", b"x*******x"),
        ([KEY], KEY.encode(), b"*" * 19 + b"\n" + b"*" * 28 + b"\n" + b"*" * 17 + b"\n"),
        ([KEY], b"\tAAAAB3NzaC1yc2EAAAADAQABAAAB\r\n", b"\t" + b"*" * 28 + b"\r\n"),
        (["short"], b"a short word", b"a short word"),
        (["schlüssel"], "schlüssel".encode(), b"*" * 10),
        ([], b"anything", b"anything"),
    ],
)
def test_what_is_hidden(values: list[str], data: bytes, kept: bytes) -> None:
    assert Redaction(values).of(data) == kept


@pytest.mark.parametrize(
    ("values", "data", "at"),
    [
        ([TOKEN], b"x hf_AbC", 2),
        ([TOKEN], b"x h", 2),
        ([TOKEN], b"x hf_AbCdEfGhIj", 15),
        ([TOKEN], b"x hf_AbCdEfGhI", 2),
        (["abcabcabX"], b"abcabcabc", 3),
        (["abcdef", "abcdefghij"], b"..abcdef", 2),
        ([TOKEN], b"", 0),
        ([], b"hf_", 3),
    ],
)
def test_where_a_secret_may_have_begun(values: list[str], data: bytes, at: int) -> None:
    assert Redaction(values).begun_at(data) == at


REPEATED = st.builds(lambda unit, times, rest: unit * times + rest, st.text("ab", min_size=1, max_size=4),
                     st.integers(6, 12), st.text("ab", max_size=2))  # fmt: skip


@given(
    values=st.lists(st.one_of(st.text("ab", min_size=6, max_size=12), REPEATED), min_size=1, max_size=3),
    pieces=st.lists(st.one_of(st.text("abc", max_size=60), REPEATED, st.integers(0, 2)), max_size=4),
    others=st.sampled_from([0, FEW_WORDS]),
)
def test_it_agrees_with_looking_at_every_place(values: list[str], pieces: list[str | int], others: int) -> None:
    data = "".join(values[piece % len(values)] if isinstance(piece, int) else piece for piece in pieces)
    text, hidden = data.encode(), bytearray(data.encode())
    for at in range(len(text)):
        for value in values:
            if text.startswith(value.encode(), at):
                hidden[at : at + len(value)] = b"*" * len(value)
    redaction = Redaction([*values, *(f"another {n:04}" for n in range(others))])
    assert redaction.of(text) == bytes(hidden)
    begins = [
        at for at in range(len(text)) for v in values if len(text) - at < len(v) and v.encode().startswith(text[at:])
    ]
    if others:
        begins += [at for at in range(len(text)) if b"another".startswith(text[at:])]
    assert redaction.begun_at(text) == min(begins, default=len(text))


class Looked(bytes):
    """Counts how often it is looked for something in it."""

    times = 0

    def find(self, *what: Any) -> int:
        self.times += 1
        return super().find(*what)


@pytest.mark.parametrize(
    ("value", "data"),
    [
        ("a" * 65_536, b"a" * 2**20),
        ("abc" * 20_000, b"abc" * 2**18),
        ("abc" * 20_000 + "d", b"abc" * 2**18),
        ("aab" * 3, (b"aab" * 2**16 + b"b") * 4),
    ],
)
def test_a_repetitive_secret_is_not_looked_for_at_every_place(value: str, data: bytes) -> None:
    looked = Looked(data)
    kept = Redaction([value]).of(looked)
    assert len(kept) == len(data)
    assert (value.encode() in kept, b"*" in kept) == (False, value.encode() in data)
    assert looked.times <= 20


def test_of_many_words_those_are_looked_for_whose_beginnings_are_there() -> None:
    words = [f"{n:05} is a line of a secret" for n in range(5000)]
    looked = Looked(b"a line of a log\n" * 1000 + words[17].encode() + b"\n00018 is another")
    assert Redaction(["\n".join(words)]).of(looked).endswith(b"\n" + b"*" * len(words[17]) + b"\n00018 is another")
    assert looked.times <= 4


ELEMENTS = st.one_of(
    st.just(TOKEN.encode()), st.sampled_from([b"\n", b"\r", b"hf_", b"hf_AbCdEfGhI", b"x" * 5000, b"x" * 70_000, b" y "]),
    st.binary(max_size=5),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    elements=st.lists(ELEMENTS, max_size=12),
    cuts=st.lists(st.integers(0, 400_000), max_size=8),
    lives=st.lists(st.booleans(), min_size=9, max_size=9),
    waits=st.lists(st.booleans(), min_size=9, max_size=9),
)
def test_no_secret_is_kept_whatever_comes_in_whatever_pieces(
    tmp_path_factory: pytest.TempPathFactory,
    elements: list[bytes],
    cuts: list[int],
    lives: list[bool],
    waits: list[bool],
) -> None:
    """Also where the follower is killed in between, and where lines stand unfinished so long that they are shown."""
    folder = tmp_path_factory.mktemp("task")
    data = b"".join(elements)
    redaction = Redaction([TOKEN])
    follower = Follower(str(folder), GIB, parse_metrics=False, redaction=redaction)
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for turn, (start, end) in enumerate(itertools.pairwise(places)):
        with (folder / "stdout").open("ab") as file:
            file.write(data[start:end])
        while follower.step() and follower.behind:
            pass
        if waits[turn]:
            for output in follower.outputs:  # as if a second had passed
                output.rest_since = output.rest_since and 1
            follower.step()
        if not lives[turn]:
            follower.close()
            follower = Follower(str(folder), GIB, parse_metrics=False, redaction=redaction)
    follower.drain()
    follower.close()
    kept = text_of(folder)
    assert TOKEN not in kept
    if b"\r" not in data:
        plain = redaction.of(data).decode(errors="replace")
        # a character of several bytes may be cut where an unfinished line is shown
        assert _ascii(kept).rstrip("\n") == _ascii(plain).rstrip("\n")


def _ascii(text: str) -> str:
    return "".join(char for char in text if char.isascii())


def test_a_prompt_is_shown_without_what_may_be_a_secret(tmp_path: Path) -> None:
    follower = Follower(str(tmp_path), GIB, parse_metrics=False, redaction=Redaction([TOKEN]))
    for text, shown in ((b"token: hf_AbC", "token: "), (b"dEfGhIj and on", "token: " + "*" * 13 + " and on")):
        with (tmp_path / "stdout").open("ab") as file:
            file.write(text)
        follower.step()
        follower.outputs[0].rest_since = 1  # as if a second had passed
        follower.step()
        assert text_of(tmp_path) == shown
    follower.close()


def test_a_secret_across_the_pieces_of_a_long_line(tmp_path: Path) -> None:
    for before in (LONG_LINE_BYTES - 5, LONG_LINE_BYTES, LONG_LINE_BYTES + 1, follow.READ_BYTES - 5):
        folder = tmp_path / str(before)
        folder.mkdir()
        follower = Follower(str(folder), GIB, parse_metrics=False, redaction=Redaction([TOKEN]))
        data = b"x" * before + TOKEN.encode()
        for end in (before + 5, len(data)):
            with (folder / "stdout").open("ab") as file:
                file.write(data[os.fstat(file.fileno()).st_size : end])
            while follower.step():
                pass
        follower.drain()
        follower.close()
        assert text_of(folder) == "x" * before + "*" * 13 + "\n"


def test_last_lines_and_notices_hold_none(tmp_path: Path) -> None:
    follower = Follower(str(tmp_path), GIB, parse_metrics=False, redaction=Redaction([TOKEN]))
    with (tmp_path / "stderr").open("ab") as file:
        file.write(TOKEN.encode() + b"y" * (follow.LAST_BYTES - 8))  # cut in the middle of the secret
    follower.notice(f"command not found: {TOKEN}")
    assert follower.last_lines() == "*" * 8 + "y" * (follow.LAST_BYTES - 8)
    follower.drain()
    follower.close()
    assert TOKEN not in text_of(tmp_path, "r")
    assert "*" * 13 in text_of(tmp_path, "r")


def test_a_metric_named_by_a_secret_is_not_told(tmp_path: Path) -> None:
    (tmp_path / "metrics").write_text(f"17\t1\tloss of {TOKEN}=0.5\n123456\t2\tloss=1\n")
    follower = Follower(str(tmp_path), GIB, parse_metrics=False, redaction=Redaction([TOKEN, "123456"]))
    follower.drain()
    kept = b"".join(
        Path(path).read_bytes() for _, path in formats.spool_files(str(tmp_path / "spool"), formats.METRICS)
    )
    points = [json.loads(line) for line in kept.splitlines()]
    assert points == [
        {"t": 17, "s": 1, "m": {"loss of " + "*" * len(TOKEN): 0.5}},
        {"t": 123456, "s": 2, "m": {"loss": 1.0}},
    ]
