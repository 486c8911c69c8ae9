"""What attempts write, brought to where it is kept: logs and metrics as they come, outputs once the attempt has ended."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from danlu.blobs.base import Blobs
from danlu.blobs.folders import Scan, scan
from danlu.blobs.streams import StreamKey, Streams
from danlu.controllers.attempts import Spawn
from danlu.database import queries
from danlu.database.engine import Database, Transaction
from danlu.database.records import ARTIFACTS, ATTEMPTS
from danlu.domain.artifacts import Artifact
from danlu.domain.jobs import Attempt, AttemptState, Reason
from danlu.errors import DanluError, StorageFull
from danlu.executors.base import Executor, Spools
from danlu.services.context import Clock, Hub

LOG: Final = logging.getLogger("danlu.controllers")
LIVE_PERIOD_S: Final = 1.0
IDLE_PERIOD_S: Final = 30.0
MAX_ATTEMPTS: Final = 10_000
PIECE_BYTES: Final = 2**20
PIECES_A_TURN: Final = 16
OUTPUTS: Final = "outputs"


@dataclass(slots=True)
class CollectionController:
    """Copies what is new of each attempt; an ended one is forgotten by its executor only when all of it is kept.

    Every step can be repeated: a piece names its offset, a blob its content, an artifact its attempt.
    """

    database: Database
    executor: Executor
    spools: Spools
    blobs: Blobs
    streams: Streams
    clock: Clock
    hub: Hub
    spawn: Spawn
    _in_flight: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def step(self) -> float:
        """Looks once. An attempt with much to copy takes turns with the others."""
        attempts = self.database.read(lambda tx: queries.uncollected_attempts(tx, MAX_ATTEMPTS))
        waiting = deque(attempts)
        while waiting:
            attempt = waiting.popleft()
            with self._lock:
                if attempt.id in self._in_flight:
                    continue
            try:
                more = self._copy(attempt)
            except StorageFull:
                raise
            except (DanluError, OSError, ValueError) as error:  # a job can damage only what it wrote itself
                LOG.error("what %s wrote cannot be read on: %s", attempt.id, error)
                more = False
            if more:
                waiting.append(attempt)
            elif attempt.state is AttemptState.ENDED:
                with self._lock:
                    self._in_flight.add(attempt.id)
                self.spawn(lambda attempt=attempt: self._finish(attempt))  # type: ignore[misc]
        return LIVE_PERIOD_S if attempts else IDLE_PERIOD_S

    def _copy(self, attempt: Attempt) -> bool:
        """Copies some of what is new; returns whether there may be more."""
        pieces = 0
        for piece in self.spools.pending(attempt.id, max_bytes=PIECE_BYTES):
            key = StreamKey(attempt.project, attempt.id, piece.task, piece.stream)
            offset = piece.offset
            known = self.streams.size(key)
            if known < offset + len(piece.data):
                self.streams.append(key, offset, piece.data)
            self.spools.collected(attempt.id, piece.task, piece.stream, offset + len(piece.data))
            pieces += 1
            if pieces >= PIECES_A_TURN:
                break
        if pieces:
            self.hub.notify("logs")
        return pieces >= PIECES_A_TURN

    def _finish(self, attempt: Attempt) -> None:
        """Keeps an ended attempt's outputs, marks it as collected, and lets its executor forget it."""
        try:
            folder = self.spools.outputs(attempt.id)
            found = None if folder is None else self._keep(attempt, folder)

            def work(tx: Transaction) -> None:
                newest = ATTEMPTS.require(tx, attempt.id)
                if newest.collected:
                    return
                now = self.clock.now()
                if found is not None and found.count:
                    ARTIFACTS.add(tx, self._artifact(attempt, found, now))
                ATTEMPTS.put(tx, newest, newest.evolved(now=now, collected=True))

            self.database.write(work)
            self.executor.forget(attempt.id)
        finally:
            with self._lock:
                self._in_flight.discard(attempt.id)
            for topic in ("logs", "jobs", "events"):
                self.hub.notify(topic)

    def _keep(self, attempt: Attempt, folder: Path) -> Scan:
        found = scan(folder, code=False, now=self.clock.now())
        for address, (path, _) in found.files.items():
            if self.blobs.missing(attempt.project, (address,)):
                with open(path, "rb", opener=_as_file) as file:
                    self.blobs.put(attempt.project, address, file)
        self.blobs.put_many(attempt.project, found.nodes.items())
        return found

    def _artifact(self, attempt: Attempt, found: Scan, now: int) -> Artifact:
        # one artifact of a name an attempt: its id follows from it, so that a repetition is the same artifact
        return Artifact(
            id="a" + attempt.job_id[1:] if attempt.number == 1 else f"a{attempt.job_id[1:]}-{attempt.number}",
            project=attempt.project,
            job_id=attempt.job_id,
            attempt_id=attempt.id,
            name=OUTPUTS,
            tree=found.root,
            partial=attempt.reason is not Reason.COMPLETED,
            files=found.count,
            size_bytes=found.size_bytes,
            skipped=tuple(found.skipped),
            created_at=now,
            updated_at=now,
        )


def _as_file(path: str, flags: int) -> int:
    """Opens without following a link or waiting for a pipe: the folder belongs to the job's user."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
