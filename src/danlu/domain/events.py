"""An event: one move of one record, or one call of somebody, written in the same transaction as what it changes."""

from __future__ import annotations

from typing import Final

from pydantic import Field

from danlu.domain.records import Value

CALL: Final = "call"
"""The kind of what somebody did: ``reason`` is the operation, ``state`` its outcome."""


class Event(Value):
    """One change of a record's state or reason. ``seq`` orders all events of a platform."""

    seq: int = Field(default=0, ge=0, description="position; 0 until stored")
    at: int = Field(ge=0, description="ns UTC")
    project: str
    kind: str = Field(description="job, attempt, environment, node, call ...")
    object_id: str
    state: str
    previous: str | None = None
    reason: str | None = None
    message: str = ""
    actor: str = Field(default="", description="who asked for it; empty for the platform itself")
    source: str = Field(default="", description="of a call: the address that it came from")
    request_id: str = Field(default="", description="of a call: as the answer and the server's log name it")
