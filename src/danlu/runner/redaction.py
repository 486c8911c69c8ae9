"""Secrets in what a process wrote, replaced by as many asterisks before anything of it is kept: no position changes.

A value of several lines is looked for line by line. What is short stays: it may be any word. A job chooses both its secrets
and its output: the time that a look takes grows with the length of each, whatever they repeat.
"""

from __future__ import annotations

from typing import Dict, Iterable, List, Tuple

SHORTEST_BYTES = 6
FIRST_BYTES = 6
FEW_WORDS = 256


class Redaction:
    """What may not be read in an attempt's output."""

    def __init__(self, values: Iterable[str]) -> None:
        lines = {
            line.strip()
            for value in values
            for line in value.encode("utf-8", "replace").replace(b"\r", b"\n").split(b"\n")
        }
        self.words: List[bytes] = sorted(line for line in lines if len(line) >= SHORTEST_BYTES)
        self.longest = max(map(len, self.words), default=0)
        self._by_first: Dict[bytes, List[bytes]] = {}
        for word in self.words if len(self.words) > FEW_WORDS else ():
            self._by_first.setdefault(word[:FIRST_BYTES], []).append(word)

    def of(self, data: bytes) -> bytes:
        """Returns ``data`` without the secrets that are whole in it; what overlaps is replaced too."""
        found = [span for word in self._possible(data) for span in _spans(data, word)]
        if not found:
            return data
        hidden = bytearray(data)
        for begin, end in found:
            hidden[begin:end] = b"*" * (end - begin)
        return bytes(hidden)

    def text(self, text: str) -> str:
        """Returns a text without the secrets in it."""
        if not self.words:
            return text
        return self.of(text.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")

    def _possible(self, data: bytes) -> List[bytes]:
        """Returns the words to look for: of many, those whose first bytes are there, by one look at every place."""
        if not self._by_first:
            return self.words
        places = (data[at : at + FIRST_BYTES] for at in range(len(data) - FIRST_BYTES + 1))
        return [word for first in {one for one in places if one in self._by_first} for word in self._by_first[first]]

    def begun_at(self, data: bytes) -> int:
        """Returns where at the end of ``data`` a secret may have begun that goes on behind it; its length where none has."""
        return min((_begun_at(data, word) for word in self.words), default=len(data))


def _spans(data: bytes, word: bytes) -> List[Tuple[int, int]]:
    """Returns where ``word`` is, places that overlap or touch as one.

    Two of them begin a period of the word apart. Where the data goes on with that period there are more, without a gap, and
    what else begins among them ends there too. If it is at most half the word, it is the smallest (Fine and Wilf), and what
    comes next begins half a word later or more: so few looks do.
    """
    found: List[Tuple[int, int]] = []
    size = len(word)
    at = data.find(word)
    while at >= 0:
        end = at + size
        if found and at <= found[-1][1]:
            begin, before = found.pop()
            period = end - before
            for step in (size - size % period, period):
                more = word[size - step :]
                while data.startswith(more, end):
                    end += step
            found.append((begin, end))
        else:
            found.append((at, end))
        at = data.find(word, end - size + 1)
    return found


def _begun_at(data: bytes, word: bytes) -> int:
    """Returns the first place from which on all of ``data`` is a beginning of ``word``, but not all of it."""
    first = word[:FIRST_BYTES]
    at = data.find(first, max(0, len(data) - len(word) + 1))
    while at >= 0:
        if word.startswith(data[at:]):
            return at
        at = data.find(first, at + 1)
    for length in range(min(FIRST_BYTES - 1, len(data)), 0, -1):
        if data.endswith(word[:length]):
            return len(data) - length
    return len(data)


NOTHING = Redaction(())
