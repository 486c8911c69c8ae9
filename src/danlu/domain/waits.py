"""Why a job waits, part by part: who is served before it, what its quotas allow, what is free, when it could start."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from pydantic import Field

from danlu.domain.records import Ns, Value
from danlu.domain.resources import Resources


class Precedence(StrEnum):
    """Why one job is served before another. Codes are never renamed."""

    PROMISED = "Promised"
    GUARANTEE = "Guarantee"
    PRIORITY = "Priority"
    PROJECT_HAD_LESS = "ProjectHadLess"
    HAD_LESS = "HadLess"
    PROJECT_HOLDS_LESS = "ProjectHoldsLess"
    ASKED_BEFORE = "AskedBefore"


PRECEDENCES: Final[Mapping[Precedence, str]] = {
    Precedence.PROMISED: "others made way for it",
    Precedence.GUARANTEE: "within its guarantee",
    Precedence.PRIORITY: "higher priority",
    Precedence.PROJECT_HAD_LESS: "its project had less lately",
    Precedence.HAD_LESS: "it had less itself",
    Precedence.PROJECT_HOLDS_LESS: "its project holds less now",
    Precedence.ASKED_BEFORE: "asked before",
}
"""In words, as said of the one that is served first."""


class Ahead(Value):
    """A job that is served before this one, once there is room. Of another project's only that, and why."""

    job_id: str = Field(default="", description="empty for a job of another project")
    name: str = Field(default="", description="empty for a job of another project")
    why: Precedence
    asks: tuple[Resources, ...] = Field(default=(), description="one a task; empty for a job of another project")
    gpu_kind: str | None = None
    queued_at: Ns | None = None

    @property
    def who(self) -> str:
        """What it is called."""
        return self.name or "a job of another project"


class QuotaLine(Value):
    """What a quota says of one resource that the job asks for: its project's quota, or that of a group above it."""

    quota: str
    resource: str = Field(description="cpu (thousandths), memory (bytes), gpu, gpu/KIND or jobs")
    asks: int = Field(description="by this job")
    used: int = Field(description="by all that it limits, this job not among them")
    limit: int | None = Field(default=None, description="None: not limited")
    guarantee: int | None = Field(default=None, description="None: nothing is guaranteed")


class Room(Value):
    """What is free of one resource that the job asks for."""

    resource: str = Field(description="cpu (thousandths), memory (bytes) or gpu/KIND")
    total: int
    free: int
    most: int = Field(description="the most that is free on one node")
    kept: int = Field(default=0, description="how much of what is free is kept for jobs ahead")


class MakesWay(Value):
    """What has been asked to make way for the job, and has not ended yet."""

    job_id: str = Field(default="", description="empty where it is another project's")
    name: str = Field(default="", description="empty where it is another project's")
    holds: Resources = Field(description="all its tasks together; its place is this job's once it has ended")
    until: Ns = Field(description="ns UTC; it is ended then at the latest")

    @property
    def who(self) -> str:
        """What it is called."""
        return self.name or "a job of another project"


class AskedLater(Value):
    """Who will be asked to make way for the job, if nothing else happens: who has just begun to run is not asked yet."""

    at: Ns = Field(description="ns UTC; when all of them will have run for long enough")
    names: tuple[str, ...] = Field(description="of their jobs, those of the same project; at most 10")
    count: int = Field(ge=1, description="how many they are, of all projects")
    least_run_s: float = Field(description="what has run for less is never asked")


class Smaller(Value):
    """A shape of the job that would start at this moment."""

    flags: str = Field(description="what to type: danlu run FLAGS")
    asks: tuple[Resources, ...] = Field(description="one a task")
    gpu_kind: str | None = None


class Start(Value):
    """When the job could start, by what runs and what is ahead now. Who comes later may be served before it."""

    at: Ns | None = Field(default=None, description="ns UTC; as likely earlier as later. None: not known")
    most: Ns | None = Field(default=None, description="ns UTC; nine of ten start before that")
    after: str = Field(default="", description="the job whose end it waits for, where it is of the same project")
    unknown: str = Field(default="", description="why it is not known")
    ended: int = Field(
        default=0,
        ge=0,
        description="by how many attempts that ended it is told how long jobs take that have not said so",
    )
    corrected_by: int = Field(
        default=0, ge=0, description="by how many such estimates that came out it is corrected; 0: too few did"
    )
