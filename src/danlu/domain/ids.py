"""Identity: ids that sort by time, fit a DNS label and cannot be guessed.

An id is one letter and 26 characters of lower-case base32hex (``0-9a-v``, which keeps the order of the bits):
48 bits of milliseconds since 1970 and 82 random bits. An attempt's id is its job's id, a hyphen and a number from 1.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

ALPHABET: Final = "0123456789abcdefghijklmnopqrstuv"
RANDOM_BITS: Final = 82
ID_PATTERN: Final = r"^[a-z][0-9a-v]{26}$"
ATTEMPT_PATTERN: Final = r"^[a-z][0-9a-v]{26}-[1-9][0-9]{0,5}$"
NAME_PATTERN: Final = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"

_ID = re.compile(ID_PATTERN)


def make_id(letter: str, now_ns: int, random_bits: int) -> str:
    """Returns an id for ``letter`` at ``now_ns`` from 82 random bits."""
    if not 0 <= random_bits < 1 << RANDOM_BITS:
        raise ValueError(f"random_bits must have at most {RANDOM_BITS} bits")
    return _written(letter, ((now_ns // 1_000_000) & ((1 << 48) - 1)) << RANDOM_BITS | random_bits)


def _written(letter: str, number: int) -> str:
    return letter + "".join(ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))


def derived_id(made: str, name: str) -> str:
    """Returns another id of the same letter and time, whose random bits follow from an id that was made, and a name."""
    number = 0
    for letter in made[1:]:
        number = number << 5 | ALPHABET.index(letter)
    found = int.from_bytes(hashlib.sha256(f"{made}/{name}".encode()).digest())
    number = number >> RANDOM_BITS << RANDOM_BITS | found & ((1 << RANDOM_BITS) - 1)
    return _written(made[0], number)


def is_id(text: str, letter: str) -> bool:
    """Says whether ``text`` has the form of an id of this letter."""
    return text[:1] == letter and _ID.fullmatch(text) is not None


def attempt_id(job_id: str, number: int) -> str:
    """Returns the id of a job's attempt, counted from 1."""
    return f"{job_id}-{number}"


def job_of_attempt(attempt: str) -> tuple[str, int]:
    """Returns the job's id and the number that an attempt's id is made of.

    Raises:
        ValueError: it is not an attempt's id.
    """
    if not re.fullmatch(ATTEMPT_PATTERN, attempt):
        raise ValueError(f"{attempt!r} is not an attempt's id")
    job, _, number = attempt.rpartition("-")
    return job, int(number)
