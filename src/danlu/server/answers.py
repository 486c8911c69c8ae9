"""What was answered lately, and is still true: a read whose records were not written since costs no look at the database."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final

MAX_ANSWERS: Final = 1000
MAX_ANSWER_BYTES: Final = 16_384


class Answers:
    """Answers by what was asked, in which project included; those asked for least lately are given up first."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, tuple[int, bytes]] = OrderedDict()

    def get(self, asked: Hashable, written: int | None) -> bytes | None:
        """Returns the answer, if it was kept at the same ``written``, which is what Database.written returns."""
        kept = self._kept.get(asked)
        if kept is None or kept[0] != written:
            return None
        self._kept.move_to_end(asked)
        return kept[1]

    def keep(self, asked: Hashable, written: int | None, answer: bytes) -> None:
        """Keeps an answer; ``written`` was read before it was made. Without that, or where it is long, it is not kept."""
        if written is None or len(answer) > MAX_ANSWER_BYTES:
            return
        self._kept[asked] = written, answer
        self._kept.move_to_end(asked)
        if len(self._kept) > MAX_ANSWERS:
            self._kept.popitem(last=False)
