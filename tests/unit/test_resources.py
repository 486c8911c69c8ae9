"""Quantities: what is read, what is refused, and that both are quick."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.domain.resources import (
    MAX_BYTES,
    Resources,
    format_bytes,
    format_cpu,
    parse_bytes,
    parse_cpu,
    parse_duration,
)

NONSENSE: list[Any] = [
    "",
    " ",
    "x",
    "-1",
    "+1",
    "1e3x",
    "0x10",
    "nan",
    "inf",
    "-inf",
    "sNaN",
    "1,5",
    "1 2",
    "½",
    "\0",
    "1\n2",
    None,
    True,
    False,
    [],
    {},
    b"1",
    "1" * 5000,
    "1e999999",
    "1e9999999999",
    "9" * 400,
    10**4000,
    float("nan"),
    float("inf"),
    -1,
    0,
    -0.5,
]


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        (1, 1),
        ("1048576", 2**20),
        ("1k", 1000),
        ("1K", 1000),
        ("1Ki", 1024),
        ("1KiB", 1024),
        ("1kb", 1000),
        ("16GiB", 2**34),
        ("16 gib", 2**34),
        (" 1.5g ", 1_500_000_000),
        ("0.5Ki", 512),
        ("1Pi", 2**50),
        ("1024Pi", MAX_BYTES),
        (MAX_BYTES, MAX_BYTES),
        ("1048576.9", 2**20),
        ("1.9B", 1),
        ("500MB", 500_000_000),
        ("1B", 1),
    ],
)
def test_memory(text: object, amount: int) -> None:
    assert parse_bytes(text) == amount


@pytest.mark.parametrize(
    "text",
    [
        *NONSENSE,
        "1Ei",
        "0",
        "0.5",
        "1025Pi",
        MAX_BYTES + 1,
        "1mi1",
        "1.5.5g",
        "1m m",
        1.5,
        "1e3",
        "1",
        "512",
        "1048575",
    ],
)
def test_no_memory(text: object) -> None:
    with pytest.raises(ValueError, match=r"amount of memory|out of range|digits|has no unit"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "milli"),
    [
        ("1", 1000),
        (2, 2000),
        (0.5, 500),
        ("500m", 500),
        ("0.001", 1),
        ("1m", 1),
        (1e6, 10**9),
        ("1e2", 100_000),
        (0.1 + 0.2 - 0.1 - 0.1, 100),
    ],
)
def test_cpu(text: object, milli: int) -> None:
    if text == 0.1 + 0.2 - 0.1 - 0.1:
        with pytest.raises(ValueError, match="finer"):
            parse_cpu(text)
    else:
        assert parse_cpu(text) == milli


@pytest.mark.parametrize(
    "text", [*NONSENSE, "0.0005", "1.0001", "0.5m", "1000001", "m", "5mm"], ids=lambda text: type(text).__name__
)
def test_no_cpu(text: object) -> None:
    with pytest.raises(ValueError, match=r"amount of CPU|out of range|finer|digits"):
        parse_cpu(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        (1.5, 1.5),
        ("1.5", 1.5),
        ("30s", 30),
        ("15m", 900),
        ("2h", 7200),
        ("1h30m", 5400),
        ("3d", 259_200),
        ("1ms", 0.001),
        (" 5S ", 5),
        ("1.5h", 5400),
        ("3650d", 315_360_000),
    ],
)
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [*NONSENSE, "1w", "1h 30m", "h", "0s", "0.5ms", "3651d", "1h" * 1000, "٣s"],
    ids=lambda text: type(text).__name__,
)
def test_no_durations(text: object) -> None:
    with pytest.raises(ValueError, match=r"duration|out of range|digits"):
        parse_duration(text)


@given(st.text(max_size=80) | st.floats() | st.integers())
def test_anything_is_read_or_refused_by_a_value_error(text: object) -> None:
    for parse in (parse_bytes, parse_cpu, parse_duration):
        with contextlib.suppress(ValueError):
            found = parse(text)
            assert found > 0
            assert math.isfinite(found)


@given(st.integers(1, 10**9))
def test_cpu_is_printed_as_it_is_read(milli: int) -> None:
    assert parse_cpu(format_cpu(milli)) == milli


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (16 * 2**30, "16.0 GiB"),
        (2**60, "1.0 EiB"),
        (2**70, "1024.0 EiB"),
    ],
)
def test_memory_is_printed(amount: int, text: str) -> None:
    assert format_bytes(amount) == text


def test_resources_are_added() -> None:
    one = Resources(cpu_milli=1, memory_bytes=2, gpus=3)
    assert sum((one, one), Resources()) == Resources(cpu_milli=2, memory_bytes=4, gpus=6)
