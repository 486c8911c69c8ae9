"""A quota: what a project, or a group of them, is guaranteed, may have at most, and how much it counts against others.

Quotas are a tree: a project below a team, a team below an organization. Amounts are whole numbers of the smallest unit:
``cpu`` thousandths of a core, ``memory`` and ``storage`` bytes, ``gpu`` and ``gpu/KIND`` whole GPUs, ``jobs`` jobs that hold
resources. What is not named is not limited, and not guaranteed.
"""

from __future__ import annotations

from typing import ClassVar, Final

from pydantic import Field

from danlu.domain.ids import NAME_PATTERN
from danlu.domain.records import Flag, Record

UNLIMITED: Final = -1
MAX_DEPTH: Final = 8


class Quota(Record):
    """Its id is the project's or the group's name; no group has a project's name."""

    KIND: ClassVar[str] = "quota"

    id: str = Field(pattern=NAME_PATTERN)
    parent: str | None = Field(default=None, description="the group above it; none: the platform")
    group: Flag = Field(default=False, description="it groups projects or other groups, and has no jobs of its own")
    guarantee: dict[str, int] = Field(
        default_factory=dict, description="what it gets back within the reclaim time, whoever borrowed it"
    )
    limit: dict[str, int] = Field(default_factory=dict, description="the most that it holds at once, borrowed or not")
    weight: int = Field(
        default=1, ge=1, le=1000, description="its part of what is not guaranteed, against its siblings'"
    )
