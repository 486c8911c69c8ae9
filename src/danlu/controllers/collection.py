"""What attempts write, brought to where it is kept: logs and metrics as they come, outputs once the attempt has ended."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from danlu.blobs.base import Blobs
from danlu.blobs.folders import MAX_SKIPPED, Scan, scan
from danlu.blobs.streams import StreamKey, Streams
from danlu.controllers.tasks import Tasks, Trials
from danlu.database import queries, reports
from danlu.database.engine import Transaction
from danlu.database.kept import Kept
from danlu.database.leadership import Fenced
from danlu.database.records import ARTIFACTS, ATTEMPTS, JOBS, OUTPUTS
from danlu.domain.artifacts import Artifact, TaskOutputs
from danlu.domain.jobs import Attempt, AttemptState, Job, Reason
from danlu.domain.unions import Joined, Part, union
from danlu.errors import DanluError, InvalidRequest, LeadershipLost, Unavailable
from danlu.executors.base import Executor, Spools
from danlu.runner.formats import LOG as LOG_STREAM
from danlu.runner.formats import METRICS as METRICS_STREAM
from danlu.services import checkpoints, secrets, stored
from danlu.services.context import Clock, Hub

LOG: Final = logging.getLogger("danlu.controllers")
LIVE_PERIOD_S: Final = 1.0
IDLE_PERIOD_S: Final = 30.0
MAX_ATTEMPTS: Final = 10_000
PIECE_BYTES: Final = 2**20
PIECES_A_TURN: Final = 16
MESSAGE_CHARACTERS: Final = 1000
NAME: Final = "outputs"
MAX_TASKS: Final = 100_000


@dataclass(slots=True)
class CollectionController:
    """Copies what is new of each attempt; an ended one is forgotten by its executor only when all of it is kept.

    Every step can be repeated: a piece names its offset, a blob its content, an artifact its attempt.
    """

    database: Fenced
    executor: Executor
    spools: Spools
    blobs: Blobs
    streams: Streams
    clock: Clock
    hub: Hub
    tasks: Tasks
    known: Kept[Attempt] = field(default_factory=lambda: Kept(ATTEMPTS))
    """shared with the other controllers of a term: thousands are in memory once"""
    _trials: Trials = field(default_factory=Trials)

    def step(self) -> float:
        """Looks once. An attempt with much to copy takes turns with the others."""
        attempts = self.database.read(lambda tx: queries.uncollected_attempts(tx, MAX_ATTEMPTS, self.known))
        now, busy = self.clock.now(), self.tasks.running()
        waiting = deque(a for a in attempts if a.id not in busy and self._trials.due(a.id, now))
        while waiting:
            attempt = waiting.popleft()
            try:
                more = self._copy(attempt)
            except LeadershipLost:
                raise
            except (DanluError, OSError, ValueError) as error:
                self._failed(attempt, error)
                continue
            if more:
                waiting.append(attempt)
            elif attempt.state is AttemptState.ENDED:
                self.tasks.start(attempt.id, partial(self._finish, attempt))
        self._trials.keep({attempt.id for attempt in attempts})
        return self._trials.wait_s(now, LIVE_PERIOD_S if attempts else IDLE_PERIOD_S)

    def _failed(self, attempt: Attempt, error: Exception) -> None:
        """Notes that not all of an attempt could be kept yet. It is tried again, and nothing of it is given up."""
        failures, wait_s = self._trials.failed(attempt.id, self.clock.now())
        LOG.warning("what %s left is not all kept yet: %s; again in %g s", attempt.id, error, wait_s)
        if failures > 1 and attempt.state is AttemptState.ENDED:
            message = f"what it left is not all kept yet: {error}"[:MESSAGE_CHARACTERS]

            def work(tx: Transaction) -> None:
                newest = ATTEMPTS.require(tx, attempt.id)
                if not newest.collected and newest.kept != message:
                    ATTEMPTS.put(tx, newest, newest.evolved(now=self.clock.now(), kept=message))

            self.database.write(work)

    def _copy(self, attempt: Attempt) -> bool:
        """Copies some of what is new; returns whether there may be more."""
        pieces, lines = 0, False
        for piece in self.spools.pending(attempt.id, max_bytes=PIECE_BYTES):
            key = StreamKey(attempt.project, attempt.id, piece.task, piece.stream)
            offset = piece.offset
            known = self.streams.size(key)
            if known < offset + len(piece.data):
                self.streams.append(key, offset, piece.data)
            self.spools.collected(piece, durably=partial(self.streams.sync, key))
            pieces, lines = pieces + 1, lines or piece.stream == LOG_STREAM
            if pieces >= PIECES_A_TURN:
                break
        if lines:  # nobody waits for metrics
            self.hub.notify("logs")
        return pieces >= PIECES_A_TURN

    def _finish(self, attempt: Attempt) -> None:
        """Keeps an ended attempt's outputs, marks it as collected, and lets its executor forget it."""
        try:
            folder = self.spools.outputs(attempt.id)
            found = self._reported(attempt) if folder is None else self._found(attempt, folder)
            for task in attempt.tasks:
                for stream in (LOG_STREAM, METRICS_STREAM):
                    self.streams.sync(StreamKey(attempt.project, attempt.id, task.name, stream))
            job = self.database.read(lambda tx: JOBS.require(tx, attempt.job_id))
            self._store(attempt, found, job, self.spools.checkpoint_bytes(job.checkpoint_owner))
            self._tell()  # nobody needs to wait until its folder is removed
            self.executor.forget(attempt.id)
            self._trials.over(attempt.id)
        except LeadershipLost:
            raise
        except (DanluError, OSError, ValueError) as error:
            self._failed(attempt, error)
        finally:
            self._tell()

    def _tell(self) -> None:
        for topic in ("logs", "jobs", "events"):
            self.hub.notify(topic)

    def _store(self, attempt: Attempt, found: Scan | None, job: Job, checkpoint_bytes: int) -> None:
        def work(tx: Transaction) -> None:
            newest = ATTEMPTS.require(tx, attempt.id)
            if newest.collected:
                return
            now = self.clock.now()
            if found is not None and (found.count or found.skipped):
                ARTIFACTS.add(tx, self._artifact(attempt, found, now))
            ATTEMPTS.put(tx, newest, newest.evolved(now=now, collected=True, kept=""))
            reports.remove(tx, attempt.id)
            stored.ended(tx, attempt)
            for told in OUTPUTS.find(tx, attempt_id=attempt.id, limit=MAX_TASKS):
                OUTPUTS.remove(tx, told)
            checkpoints.give_up(tx, job)
            stored.checkpoints(tx, job, checkpoint_bytes, now)
            secrets.forget_replaced(tx, attempt.project)

        self.database.write(work)

    def _found(self, attempt: Attempt, folder: Path) -> Scan:
        """Keeps what there is in a folder, and counts it."""
        found = scan(folder, code=False, now=self.clock.now())
        if not (found.count or found.skipped):
            return found  # nothing would refer to it
        sizes = {address: size for address, (_, size) in found.files.items()}
        sizes |= {address: len(node) for address, node in found.nodes.items()}
        missing = set(self.blobs.missing(attempt.project, sizes))
        new = sum(sizes[address] for address in missing)
        with stored.results(self.database, self.clock, attempt.project, new) as storing:
            for size in self._keep(attempt, found):
                storing.new_bytes += size
        if gone := self.blobs.missing(attempt.project, sizes.keys() - missing):  # in the time that the others took
            raise Unavailable(f"{len(gone)} blobs that nothing else refers to are being removed")
        return found

    def _reported(self, attempt: Attempt) -> Scan | None:
        """Returns what the tasks of an attempt in pods have sent, as one tree, which is kept; None where they sent nothing.

        What does not fit into it is left out, and told.
        """
        told = self.database.read(lambda tx: OUTPUTS.find(tx, attempt_id=attempt.id, limit=MAX_TASKS))
        if not told:
            return None
        by_task = {one.task: one for one in told}
        sent = [by_task[task.name] for task in attempt.tasks if task.name in by_task]
        skipped = [f"{one.task}/{line}" for one in sent for line in one.skipped]
        skipped += [f"{task.name}: nothing of it came" for task in attempt.tasks if task.name not in by_task]
        while True:
            try:
                joined = self._joined(attempt, sent)
                break
            except InvalidRequest as error:
                if len(sent) == 1:
                    raise
                skipped.insert(0, f"{sent.pop().task}: together with the others' it is too large: {error}")
        return Scan(
            root=joined.root, count=joined.files, size_bytes=joined.size_bytes, skipped=skipped[:MAX_SKIPPED]
        )  # fmt: skip

    def _joined(self, attempt: Attempt, sent: list[TaskOutputs]) -> Joined:
        """Keeps the tree of all that was sent, and counts it.

        Raises:
            InvalidRequest: it is larger than a tree may be.
        """
        blobs, project = self.blobs, attempt.project
        joined = union([Part(one.task, one.tree) for one in sent], lambda address: blobs.read(project, address))
        new = sum(len(joined.nodes[address]) for address in blobs.missing(project, joined.nodes))
        with stored.results(self.database, self.clock, project, new) as storing:
            storing.new_bytes = blobs.put_many(project, joined.nodes.items())[1]
        blobs.absent(project, joined.root, most=1)
        return joined

    def _keep(self, attempt: Attempt, found: Scan) -> Iterator[int]:
        """Stores what was found; yields how many bytes were new."""
        for address, (path, _) in found.files.items():
            if self.blobs.missing(attempt.project, (address,)):
                with open(path, "rb", opener=_as_file) as file:
                    yield self.blobs.put(attempt.project, address, file)[1]
        yield self.blobs.put_many(attempt.project, found.nodes.items())[1]

    def _artifact(self, attempt: Attempt, found: Scan, now: int) -> Artifact:
        # one artifact of a name an attempt: its id follows from it, so that a repetition is the same artifact
        return Artifact(
            id="a" + attempt.job_id[1:] if attempt.number == 1 else f"a{attempt.job_id[1:]}-{attempt.number}",
            project=attempt.project,
            job_id=attempt.job_id,
            attempt_id=attempt.id,
            name=NAME,
            tree=found.root,
            partial=attempt.reason is not Reason.COMPLETED or bool(found.skipped),
            files=found.count,
            size_bytes=found.size_bytes,
            skipped=tuple(found.skipped),
            created_at=now,
            updated_at=now,
        )


def _as_file(path: str, flags: int) -> int:
    """Opens without following a link or waiting for a pipe: the folder belongs to the job's user."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
