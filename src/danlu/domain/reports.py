"""What the runner in a pod reports of its task: the whole truth each time, never a delta."""

from __future__ import annotations

from typing import Any, Final

from pydantic import Field

from danlu.domain.records import Ns, Said, Value

MAX_REPORT_BYTES: Final = 64 << 10
MAX_EVENTS: Final = 1000


class SavedCheckpoint(Value):
    """The newest proven checkpoint."""

    name: Said = Field(max_length=255)
    at: Ns = Field(description="ns UTC; when it was complete")


class TaskReport(Value):
    """What a task's runner says of it. Who reports is the job's own code: nothing in it may be trusted beyond its attempt."""

    events: tuple[dict[str, Any], ...] = Field(
        default=(), max_length=MAX_EVENTS, description="the status file's events, each with `event` and `at`"
    )
    saved: SavedCheckpoint | None = Field(default=None, description="its newest proven checkpoint, if it has one")
    seen_at: Ns | None = Field(default=None, description="when the server heard it last, by the server's clock")
