"""What pods write. A runner sends it to the server itself; where an image has no Python, Kubernetes' own log has it.

That log is read on from the last line that was taken: a node keeps little of it, and what it has removed since is taken
already. It tells from which second on, so that some lines come twice: they are known by their times, which are the node's.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from danlu.errors import ExecutorUnavailable
from danlu.executors.base import Collected
from danlu.executors.kubernetes.client import Api, Refused, core
from danlu.executors.kubernetes.quantities import SECOND_NS, ns
from danlu.runner import formats

MAX_LINE_BYTES: Final = 512 << 10
"""What is longer is cut, and says so."""
TAIL_BYTES: Final = 1 << 20
Kept = Callable[[str, str, int], tuple[int, bytes]]
"""Returns of an attempt's task how long its log is that is kept, and the end of it, of at most so many bytes."""
NOTHING_KEPT: Final[Kept] = lambda _attempt, _task, _most: (0, b"")  # noqa: E731 - a default


@dataclass(frozen=True, slots=True)
class Taken:
    """How far a container's log was taken: so many bytes of records, the last of them at a time, ns UTC, as so many are."""

    offset: int = 0
    at: int = 0
    same: int = 0

    def then(self, at: int, size: int) -> Taken:
        """Returns it with one record more."""
        return Taken(self.offset + size, at, self.same + 1 if at == self.at else 1)


class PodSpools:
    """See Spools in executors/base.py."""

    def __init__(self, api: Api, namespace: str, kept: Kept) -> None:
        """Asks nothing yet."""
        self._api, self._spaces, self._kept = api, namespace, kept
        self._bare: dict[str, dict[str, str]] = {}
        """the pods of attempts without a runner, by attempt and task"""
        self._taken: dict[tuple[str, str], Taken] = {}
        """by attempt and task; of what was yielded last, whether that is kept or not"""

    def pending(self, attempt_id: str, *, max_bytes: int) -> Iterable[Collected]:
        """See Spools."""
        for task, pod in self._bare.get(attempt_id, {}).items():
            key = attempt_id, task
            begun = self._taken.get(key)
            if (
                begun is None or self._kept(attempt_id, task, 0)[0] != begun.offset
            ):  # it failed, or another server leads
                begun = resumed(*self._kept(attempt_id, task, TAIL_BYTES))
            since = {"sinceTime": _text(begun.at)} if begun.at else {}
            path = core(self._spaces, "pods", pod, "log")
            try:
                lines = self._api.lines(path, MAX_LINE_BYTES, timestamps="true", **since)
                for data, taken in pieces(lines, begun, max_bytes):
                    self._taken[key] = taken
                    yield Collected(
                        attempt_id=attempt_id, task=task, stream=formats.LOG, offset=taken.offset - len(data), data=data
                    )
            except (Refused, ExecutorUnavailable):
                continue  # it has not begun, is gone, or cannot be read now

    def collected(self, piece: Collected, *, durably: Callable[[], None]) -> None:
        """See Spools. Nothing is freed: the node does that."""
        del piece, durably

    def outputs(self, attempt_id: str) -> Path | None:
        """See Spools. Runners send them themselves."""
        del attempt_id
        return None

    def checkpoint_owners(self) -> Iterable[str]:
        """See Spools. They are no folders here."""
        return ()

    def checkpoint_bytes(self, owner: str) -> int:
        """See Spools."""
        del owner
        return 0

    def _forget_output(self, attempt_id: str) -> None:
        self._bare.pop(attempt_id, None)
        for key in [key for key in self._taken if key[0] == attempt_id]:
            del self._taken[key]


def pieces(lines: Iterable[bytes], begun: Taken, max_bytes: int) -> Iterator[tuple[bytes, Taken]]:
    """Yields what is new of a log, as a stamped one, in pieces of whole records, each with how far it was taken then.

    Args:
        lines: of a container, each with its time, as Kubernetes gives them, from the second on of what was taken last.
        begun: how far it was taken.
        max_bytes: what a piece has at most; more than a line may have.
    """
    taken, piece, again, met = begun, bytearray(), begun.same, False
    for line in lines:
        when, _, said = line.partition(b" ")
        at = _time(when.decode("ascii", "replace"))
        if at is None:
            continue  # the node says that for itself
        if (
            again and at <= begun.at
        ):  # before what was taken last, or of that: their order counts, as clocks are set back
            met = met or at == begun.at
            again -= met
            continue
        again, at = 0, max(at, taken.at)
        record = formats.stamp(at, formats.STDOUT, formats.WHOLE, said)
        if piece and len(piece) + len(record) > max_bytes:
            yield bytes(piece), taken
            piece.clear()
        piece += record
        taken = taken.then(at, len(record))
    if piece:
        yield bytes(piece), taken


def resumed(size: int, tail: bytes) -> Taken:
    """Returns how far a log was taken of which so many bytes are kept, that end so."""
    *lines, half = tail.split(b"\n")  # of what could not all be stored
    taken = Taken(size - len(half))
    for line in reversed(lines):
        head = line.partition(b" ")[0]
        at = int(head) if head.isdigit() else 0
        if taken.at and at != taken.at:
            break
        taken = replace(taken, at=at, same=taken.same + 1)
    return taken


def _text(at: int) -> str:
    """Returns the second of a time as Kubernetes reads it."""
    return datetime.datetime.fromtimestamp(at // SECOND_NS, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _time(text: str) -> int | None:
    """Returns ns UTC of a time with up to nine digits of a second."""
    head, dot, tail = text.removesuffix("Z").partition(".")
    seconds = ns(f"{head}Z")
    if seconds is None or (dot and not tail.isdecimal()):
        return None
    return seconds + int((tail or "0")[:9].ljust(9, "0")) % SECOND_NS
