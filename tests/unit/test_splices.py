"""A node as another one with its middle replaced."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from danlu.domain.splices import Splice, splice_of, spliced
from danlu.domain.trees import Entry, address_of, encode
from danlu.errors import InvalidRequest

TEXTS = st.text(st.characters(codec="utf-8"), max_size=30)


@given(TEXTS, TEXTS, TEXTS, TEXTS)
def test_what_was_taken_apart_comes_together(head: str, middle: str, other: str, tail: str) -> None:
    base, data = (head + middle + tail).encode(), (head + other + tail).encode()
    splice = splice_of(base, data)
    assert spliced(base, splice) == data
    assert splice.address == address_of(data)
    assert len(splice.middle.encode()) <= len(other.encode())
    assert Splice.model_validate_json(splice.model_dump_json()) == splice


@given(TEXTS, TEXTS)
def test_of_any_two_texts_too(one: str, other: str) -> None:
    assert spliced(one.encode(), splice_of(one.encode(), other.encode())) == other.encode()


def test_half_a_character_is_not_kept() -> None:
    base, data = "aé1".encode(), "aè1".encode()  # they share the first byte of the letter
    assert splice_of(base, data).middle == "è"
    base, data = "é".encode(), "a\u0929".encode()  # and here the last
    assert spliced(base, splice_of(base, data)) == data


def test_one_name_of_many_is_short() -> None:
    entries = [Entry(f"file-{n}.py", "file", address_of(b"%d" % n), 0o644, n) for n in range(5000)]
    base = encode(entries)
    entries[2500] = Entry(entries[2500].name, "file", address_of(b"changed"), 0o644, 7)
    assert len(splice_of(base, encode(entries)).middle) < 200


@pytest.mark.parametrize(("head", "tail"), [(4, 0), (0, 4), (2, 2)])
def test_more_than_there_is_cannot_be_kept(head: int, tail: int) -> None:
    splice = Splice(address=address_of(b""), base=address_of(b"abc"), head_bytes=head, middle="", tail_bytes=tail)
    with pytest.raises(InvalidRequest, match="it has 3"):
        spliced(b"abc", splice)


@pytest.mark.parametrize("wrong", [{"head_bytes": -1}, {"tail_bytes": 2**40}, {"base": "x"}, {"address": "sha256:0"}])
def test_a_wrong_one_is_refused(wrong: dict[str, object]) -> None:
    right = {"address": address_of(b""), "base": address_of(b""), "head_bytes": 0, "middle": "", "tail_bytes": 0}
    assert Splice.model_validate(right)
    with pytest.raises(ValidationError):
        Splice.model_validate({**right, **wrong})
