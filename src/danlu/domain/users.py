"""Users, and the projects that they are members of."""

from __future__ import annotations

from typing import ClassVar, Final

from pydantic import Field

from danlu.domain.actors import Role
from danlu.domain.ids import NAME_PATTERN
from danlu.domain.records import Ns, Record

PLATFORM: Final = ""
"""The project of what belongs to the platform itself."""
FIRST_USER: Final = "admin"


class User(Record):
    """Somebody who calls. A user is never deleted: what happened bears the name, which nobody else may get."""

    KIND: ClassVar[str] = "user"

    name: str = Field(pattern=NAME_PATTERN)
    administrator: bool = Field(default=False, description="may do everything, in every project")
    removed_at: Ns | None = Field(default=None, description="since then nothing of the user's is accepted")
    created_by: str = Field(description="the user that made it")


class Member(Record):
    """A user's role in a project."""

    KIND: ClassVar[str] = "member"

    user: str = Field(description="the user's id")
    name: str = Field(description="the user's name")
    role: Role
    created_by: str
