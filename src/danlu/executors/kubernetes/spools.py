"""What pods write. A runner sends it to the server itself; where an image has no Python, Kubernetes' own log has it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from danlu.errors import ExecutorUnavailable
from danlu.executors.base import Collected
from danlu.executors.kubernetes.client import Api, Refused, core
from danlu.executors.kubernetes.quantities import SECOND_NS, ns
from danlu.runner import formats

MAX_LOG_BYTES: Final = 64 << 20
"""What is read of a container's log: the node keeps less (10 MiB a file by default)."""


class PodSpools:
    """See Spools in executors/base.py."""

    def __init__(self, api: Api, namespace: str) -> None:
        """Asks nothing yet."""
        self._api, self._spaces = api, namespace
        self._bare: dict[str, dict[str, str]] = {}
        """the pods of attempts without a runner, by attempt and task"""
        self._collected: dict[tuple[str, str], int] = {}

    def pending(self, attempt_id: str, *, max_bytes: int) -> Iterable[Collected]:
        """See Spools."""
        for task, pod in self._bare.get(attempt_id, {}).items():
            try:
                text = self._api.text(
                    core(self._spaces, "pods", pod, "log"), timestamps="true", limitBytes=str(MAX_LOG_BYTES)
                )
            except (Refused, ExecutorUnavailable):
                continue  # it has not begun, is gone, or cannot be read now
            data = stamped(text)
            at = self._collected.get((attempt_id, task), 0)
            while at < len(data):
                piece = data[at : at + max_bytes]
                yield Collected(attempt_id=attempt_id, task=task, stream=formats.LOG, offset=at, data=piece)
                at += len(piece)

    def collected(self, piece: Collected, *, durably: Callable[[], None]) -> None:
        """See Spools. Nothing is freed: the node does that."""
        del durably
        key, end = (piece.attempt_id, piece.task), piece.offset + len(piece.data)
        self._collected[key] = max(end, self._collected.get(key, 0))

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
        for key in [key for key in self._collected if key[0] == attempt_id]:
            del self._collected[key]


def stamped(text: bytes) -> bytes:
    """Returns a container's log with its times, as Kubernetes gives it, as a stamped log; the last line may be unfinished."""
    records, last = [], 0
    for line in text[: text.rfind(b"\n") + 1].split(b"\n")[:-1]:
        when, _, said = line.partition(b" ")
        at = _time(when.decode("ascii", "replace"))
        last = max(last, at or 0)
        records.append(formats.stamp(last, formats.STDOUT, formats.WHOLE, said if at is not None else line))
    return b"".join(records)


def _time(text: str) -> int | None:
    """Returns ns UTC of a time with up to nine digits of a second."""
    head, dot, tail = text.removesuffix("Z").partition(".")
    seconds = ns(f"{head}Z")
    if seconds is None or (dot and not tail.isdecimal()):
        return None
    return seconds + int((tail or "0")[:9].ljust(9, "0")) % SECOND_NS
