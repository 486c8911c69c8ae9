"""An artifact: a tree of files that a job left, kept by content address."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from danlu.domain.records import Record, Said, Value
from danlu.domain.trees import ADDRESS_PATTERN

MAX_SKIPPED = 100
MAX_SAID = 500


class Artifact(Record):
    """Files that an attempt left under its output folder."""

    KIND: ClassVar[str] = "artifact"

    job_id: str
    attempt_id: str
    name: str = Field(default="outputs")
    tree: str = Field(description="address of the tree: sha256:HEX")
    partial: bool = Field(description="the attempt did not succeed: files may be missing or half written")
    files: int = Field(ge=0)
    size_bytes: int = Field(ge=0)
    skipped: tuple[Said, ...] = Field(default=(), description="what could not be kept, with the reason; at most 100")


class OutputsReport(Value):
    """What a runner has sent of a task's output folder."""

    tree: str = Field(pattern=ADDRESS_PATTERN)
    skipped: tuple[Said, ...] = Field(
        default=(), max_length=MAX_SKIPPED, description="what could not be kept, with the reason"
    )


class TaskOutputs(Record):
    """What one task of an attempt left on its own machine, until all of them are an artifact."""

    KIND: ClassVar[str] = "outputs"

    attempt_id: str
    task: str
    tree: str
    skipped: tuple[Said, ...] = ()
