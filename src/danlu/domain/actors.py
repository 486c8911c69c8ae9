"""Who calls: every service takes an actor, and decides by its kind and project alone."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from pydantic import Field

from danlu.domain.records import Record, Value


class Role(StrEnum):
    """What an actor may do."""

    ADMINISTRATOR = "administrator"
    MEMBER = "member"
    ATTEMPT = "attempt"


class Actor(Value):
    """The caller of one request."""

    id: str = Field(description="as it appears in events: bootstrap, a token's id, an attempt's id")
    role: Role
    project: str | None = Field(description="the only project it sees; None for all of them")
    attempt_id: str | None = None

    def sees(self, project: str) -> bool:
        """Whether things of ``project`` exist for this actor."""
        return self.project is None or self.project == project


class Token(Record):
    """A bearer token. Only its SHA-256 is stored; the secret is shown once, when it is made."""

    KIND: ClassVar[str] = "token"

    name: str = Field(min_length=1, max_length=63)
    digest: str = Field(description="SHA-256 of the secret, hex")
    created_by: str
    expires_at: int | None = Field(default=None, description="ns UTC; None: never")
