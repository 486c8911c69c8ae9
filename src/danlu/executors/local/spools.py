"""What attempts of this machine write until it is collected: in files of their own, freed once it is kept elsewhere."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from danlu.domain.ids import is_id
from danlu.executors.base import Collected
from danlu.executors.local import beneath, folders
from danlu.executors.local.observing import Seen
from danlu.runner import formats

NOTICES_BYTES: Final = 1 << 20


class LocalSpools:
    """See Spools in executors/base.py."""

    def __init__(self, attempts: Path, checkpoints: Path) -> None:
        """Opens nothing yet; these are the folders of all attempts' folders, and of all jobs' checkpoints."""
        self.attempts, self.checkpoints = attempts, checkpoints
        self._seen: dict[str, Seen] = {}

    def pending(self, attempt_id: str, *, max_bytes: int) -> Iterable[Collected]:
        """See Spools."""
        folder = self._folder(attempt_id)
        try:
            order = self._seen.get(attempt_id, Seen(folder)).order()
        except FileNotFoundError:
            return
        most = int(order["log_limit_bytes"]) + NOTICES_BYTES  # the index is the job's user's own
        for task in [str(task["name"]) for task in order["tasks"]]:
            try:
                index = formats.parse_index(beneath.read(folder, task, "spool", "index", max_bytes=formats.INDEX_BYTES))
                names = beneath.names(folder, task, "spool")
            except FileNotFoundError:
                continue
            for stream, end in ((formats.LOG, min(index.log, most)), (formats.METRICS, min(index.metrics, most))):
                starts = _starts(names, stream)
                for start, following in itertools.pairwise([*starts, end]):
                    at = max(start, self._collected(folder, task, stream))
                    while at < min(following, end):  # not a byte further: what is collected may be gone by then
                        size = min(max_bytes, following - at)
                        name = formats.spool_name(stream, start)
                        data = beneath.read(folder, task, "spool", name, max_bytes=size, offset=at - start)
                        if not data:
                            break
                        yield Collected(attempt_id=attempt_id, task=task, stream=stream, offset=at, data=data)
                        at += len(data)

    def collected(self, piece: Collected, *, durably: Callable[[], None]) -> None:
        """See Spools."""
        folder, task, stream = self._folder(piece.attempt_id), piece.task, piece.stream
        end = piece.offset + len(piece.data)
        seen = self._seen.setdefault(piece.attempt_id, Seen(folder))
        seen.collected[task, stream] = max(end, seen.collected.get((task, stream), 0))
        starts = _starts(beneath.names(folder, task, "spool"), stream)
        # a newer file exists: the runner writes to the ones before it no more
        over = [start for start, following in itertools.pairwise(starts) if following <= end]
        if over:
            durably()
        for start in over:
            beneath.remove(folder, task, "spool", formats.spool_name(stream, start))

    def outputs(self, attempt_id: str) -> Path | None:
        """See Spools."""
        folder = self._folder(attempt_id) / "outputs"
        return folder if folder.is_dir() and not folder.is_symlink() else None

    def checkpoint_owners(self) -> Iterable[str]:
        """See Spools."""
        return [name for name in beneath.names(self.checkpoints) if is_id(name, name[:1])]

    def checkpoint_bytes(self, owner: str) -> int:
        """See Spools."""
        return beneath.size(self.checkpoints, owner) if is_id(owner, owner[:1]) else 0

    def _collected(self, folder: Path, task: str, stream: str) -> int:
        seen = self._seen.get(folder.name)
        return 0 if seen is None else seen.collected.get((task, stream), 0)

    def _folder(self, attempt_id: str) -> Path:
        return self.attempts / folders.checked(attempt_id)


def _starts(names: list[str], stream: str) -> list[int]:
    """Returns where the files of a stream begin, in order."""
    found = [name.partition(".") for name in names]
    return sorted(int(start) for head, _, start in found if head == stream and start.isdecimal())
