"""A project: the tenant. Every stored thing belongs to one."""

from __future__ import annotations

from typing import ClassVar, Final

from pydantic import Field

from danlu.domain.ids import NAME_PATTERN
from danlu.domain.isolation import Layer
from danlu.domain.records import Record

DEFAULT_PROJECT: Final = "default"


class Project(Record):
    """A tenant. Its id is its name; ``number`` picks the user id that its processes run as where the server is root."""

    KIND: ClassVar[str] = "project"

    id: str = Field(pattern=NAME_PATTERN)
    number: int = Field(ge=0, description="0, 1, 2 ... in order of creation; never reused")
    require: tuple[Layer, ...] = Field(
        default=(),
        description="layers of isolation without which no job of it may start: rather none than a weaker one",
    )
