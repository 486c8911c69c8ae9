"""Looks at what projects really store, where that is not told: checkpoints, uploads given up, blobs miscounted or unused."""

from __future__ import annotations

from functools import partial
from typing import Final

from danlu.blobs.base import Blobs
from danlu.database import queries
from danlu.database.engine import Transaction
from danlu.database.leadership import Fenced
from danlu.database.records import ATTEMPTS, JOBS
from danlu.domain.jobs import Attempt, Job
from danlu.executors.base import Spools
from danlu.services import stored, unused
from danlu.services.context import Clock

SECOND: Final = 1_000_000_000
LOOK_S: Final = 60.0
RUNNING_NS: Final = 30 * SECOND
"""Running jobs' checkpoints are counted no more often, however soon there is something else to look at."""
SWEEP_NS: Final = 3600 * SECOND
NEXT_S: Final = 0.1
DAY: Final = 86_400 * SECOND
MAX_ATTEMPTS: Final = 10_000
JOBS_AT_ONCE: Final = 500


class StoredController:
    """Counts running jobs' checkpoints at each step; all checkpoints, and all blobs, at a start and once a day."""

    def __init__(self, database: Fenced, spools: Spools, blobs: Blobs, clock: Clock) -> None:
        self._database, self._spools, self._blobs, self._clock = database, spools, blobs, clock
        self._removal = unused.Removal(database, blobs, clock)
        self._since = clock.now()
        self._next_all = self._next_running = self._next_sweep = 0
        self._owners: list[str] = []

    def step(self) -> float:
        """Looks at some; returns after how many seconds to look again."""
        now = self._clock.now()
        more = stored.unfinished(self._database, self._blobs, now)
        if now >= self._next_all:
            counted = self._database.read(stored.checkpoint_owners)  # a folder that was removed counts no more
            self._next_all, self._owners = now + DAY, sorted({*self._spools.checkpoint_owners(), *counted})
        some, self._owners = self._owners[:JOBS_AT_ONCE], self._owners[JOBS_AT_ONCE:]
        for job in self._database.read(lambda tx: JOBS.find(tx, id=some, limit=JOBS_AT_ONCE)) if some else ():
            self._count(job, None)
        if now >= self._next_running:
            self._next_running = now + RUNNING_NS
            for attempt in self._running():
                self._count(self._database.read(partial(JOBS.require, record_id=attempt.job_id)), attempt)
        self._unused(now)
        more |= stored.blobs_again(self._database, self._blobs, max(self._since, now - DAY), now)
        return NEXT_S if more or self._owners else LOOK_S

    def _running(self) -> list[Attempt]:
        """Returns the attempts whose jobs may have checkpoints on this machine: those of pods count as blobs."""
        if not [*self._spools.checkpoint_owners()] and not self._database.read(stored.checkpoint_owners):
            return []
        return self._database.read(lambda tx: queries.uncollected_attempts(tx, MAX_ATTEMPTS))

    def _unused(self, now: int) -> None:
        """Removes what nobody uses any more: blobs that were condemned, uploads that were given up."""
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_NS
            self._database.require()
            self._blobs.sweep()
        self._removal.step()

    def _count(self, job: Job, running: Attempt | None) -> None:
        known = self._database.read(lambda tx: stored.checkpoints_counted(tx, job))
        size, now = self._spools.checkpoint_bytes(job.checkpoint_owner), self._clock.now()

        def work(tx: Transaction) -> None:
            # what was counted meanwhile, or when all of it was collected, was counted later than what was seen here
            collected = running is not None and ATTEMPTS.require(tx, running.id).collected
            if not collected and stored.checkpoints_counted(tx, job) == known:
                stored.checkpoints(tx, job, size, now)

        if known != size:
            self._database.write(work)
