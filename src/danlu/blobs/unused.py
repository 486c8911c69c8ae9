"""Blobs that nothing refers to any more, from being named until they are removed: one way for every store.

Between a look at what refers to a blob and its removal somebody may begin to refer to it. So it is *condemned* first: from
then on nobody is told that it is there. Who was told before has ``SETTLE_S`` to say what it is for. Only then references are
looked at once more, and what still has none is removed. Which blobs are condemned is kept in the store itself, beside them:
each server sees it, and a killed one leaves it to the next.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from danlu.errors import DataDamaged, Unavailable

SETTLE_S: Final = 120.0
SEEN_S: Final = 10.0
"""For so long a server believes what it saw of what is condemned."""
CONDEMNED: Final = ".condemned"
"""Where a store keeps what is, a name for each project."""
MAX_CONDEMNED: Final = 100_000
"""Blobs, about 75 bytes each."""


class Listed(NamedTuple):
    """A whole blob. ``modified_at``: when it was stored, ns UTC by the store's clock."""

    address: str
    size_bytes: int
    modified_at: int


@dataclass(frozen=True, slots=True)
class Condemned:
    """A project's blobs that are to be removed; ``at``: since when, ns UTC. What is remembered from before may be wrong."""

    at: int = 0
    addresses: frozenset[str] = frozenset()


NOTHING: Final = Condemned()


class Condemnation:
    """What is condemned, as a store keeps it: ``load`` returns a project's text or None, ``save`` replaces it."""

    def __init__(self, load: Callable[[str], bytes | None], save: Callable[[str, bytes], None]) -> None:
        self._load, self._save = load, save
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[float, Condemned]] = {}

    def of(self, project: str) -> Condemned:
        """Returns what is condemned, as it was at most ``SEEN_S`` ago."""
        at, found = self._seen.get(project, (0.0, NOTHING))
        return found if at and time.monotonic() - at < SEEN_S else self.now(project)

    def now(self, project: str) -> Condemned:
        """Returns what is condemned."""
        begun = time.monotonic()
        data = self._load(project)
        found = NOTHING
        if data is not None:
            try:
                read = json.loads(data)
                found = Condemned(int(read["at"]), frozenset(map(str, read["addresses"])))
            except (ValueError, KeyError, TypeError) as error:
                raise DataDamaged(
                    f"the list of blobs of project {project} that are to be removed cannot be read"
                ) from error
        with self._lock:
            self._seen[project] = begun, found
        return found

    def set(self, project: str, addresses: Iterable[str], at: int) -> None:
        """Condemns these blobs, and none else."""
        self._save(project, json.dumps({"format": 1, "at": at, "addresses": sorted(addresses)}).encode())
        with self._lock:
            self._seen.pop(project, None)

    def require_none(self, project: str, *addresses: str) -> None:
        """Raises Unavailable where one of the addresses is condemned: it is stored again once it was removed."""
        condemned = self.of(project).addresses
        if condemned and not condemned.isdisjoint(addresses):
            raise Unavailable(
                "a blob that was not used for long is being removed", next_step="try again in some minutes"
            )
