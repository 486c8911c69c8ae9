"""An event: one move of one record, written in the same transaction as the move."""

from __future__ import annotations

from pydantic import Field

from danlu.domain.records import Value


class Event(Value):
    """One change of a record's state or reason. ``seq`` orders all events of a platform."""

    seq: int = Field(default=0, ge=0, description="position; 0 until stored")
    at: int = Field(ge=0, description="ns UTC")
    project: str
    kind: str = Field(description="job, attempt, environment, node ...")
    object_id: str
    state: str
    previous: str | None = None
    reason: str | None = None
    message: str = ""
    actor: str = Field(default="", description="who asked for it; empty for the platform itself")
