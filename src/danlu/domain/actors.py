"""Who calls: every service takes an actor, and what it may do in a project follows from its role there."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from pydantic import Field

from danlu.domain.records import Value


class Role(StrEnum):
    """What a member may do in a project: each role all that the one before it may."""

    VIEWER = "viewer"
    DEVELOPER = "developer"
    ADMIN = "admin"


class Standing(StrEnum):
    """What an actor is to a project: a member with a role, an attempt of it, the platform's administrator, or a user."""

    USER = "user"
    ATTEMPT = "attempt"
    VIEWER = "viewer"
    DEVELOPER = "developer"
    ADMIN = "admin"
    ADMINISTRATOR = "administrator"


class Actor(Value):
    """The caller of one request."""

    id: str = Field(description="of the access key or the token by which it calls, or of the attempt")
    name: str = Field(description="as it appears in events: the user's name, or the attempt's id")
    user: str = Field(default="", description="the user's id; empty for an attempt")
    administrator: bool = Field(default=False, description="of the platform")
    roles: Mapping[str, Role] = Field(default={}, description="the user's role in each project")
    project: str | None = Field(
        default=None, description="the only project in which it may act; None: in all of its user's"
    )
    attempt_id: str | None = None

    def standing(self, project: str) -> Standing | None:
        """Returns what it is to a project; None: for it there is no such project."""
        if self.project is not None and self.project != project:
            return None
        if self.attempt_id is not None:
            return Standing.ATTEMPT
        if self.administrator:
            return Standing.ADMINISTRATOR
        role = self.roles.get(project)
        return None if role is None else Standing(role)

    @property
    def sees_all(self) -> bool:
        """Whether it may act in every project."""
        return self.administrator and self.project is None

    def default_project(self, default: str) -> str:
        """Returns the project that is meant where none is named: its only one, else ``default``."""
        if self.project is not None:
            return self.project
        return next(iter(self.roles)) if len(self.roles) == 1 and not self.administrator else default
