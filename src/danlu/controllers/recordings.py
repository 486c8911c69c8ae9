"""What the platform's scheduler is told and decides, kept since the server's start: to be decided again somewhere else.

It is bounded: full, it keeps what it has and takes no more until the next start. 64 MiB are about 100,000 decisions.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Final

from danlu.blobs.streams import Streams
from danlu.errors import DanluError
from danlu.scheduler.cycle import Scheduler
from danlu.scheduler.recording import Recorder
from danlu.services.trace import DECISIONS

MAX_BYTES: Final = 64 * 2**20
LOG: Final = logging.getLogger(__name__)


@dataclass(slots=True)
class Recording:
    """A stream with the newest recording."""

    streams: Streams
    max_bytes: int = MAX_BYTES
    _lines: list[str] = field(default_factory=list)
    _recorder: Recorder | None = None
    _end: int = 0

    def begin(self, scheduler: Scheduler) -> Recorder:
        """Forgets what was kept; returns through what a fresh scheduler is to be told everything from now on."""
        self.streams.delete(DECISIONS.project, DECISIONS.owner)
        self._lines, self._end = [], 0
        self._recorder = Recorder(scheduler, scheduler.policy, self._lines.append, self.max_bytes)
        return self._recorder

    def flush(self) -> None:
        """Keeps what was told since the last time. Where that fails, the recording ends; the scheduler goes on."""
        if not self._lines or self._recorder is None:
            return
        data = "".join(self._lines).encode()
        self._lines.clear()
        try:
            self._end = self.streams.append(DECISIONS, self._end, data)
        except (DanluError, OSError) as error:
            self._recorder.full = True  # a line that is missing would make all that follow worthless
            LOG.warning("what the scheduler decides is not recorded any more until the next start: %s", error)
