"""An artifact: a tree of files that a job left, kept by content address."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from danlu.domain.records import Record, Said


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
