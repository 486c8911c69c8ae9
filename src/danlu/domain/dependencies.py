"""Dependencies: what has to have ended, and how, before a job may start."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import BeforeValidator, Field, StringConstraints

from danlu.domain.records import Value

MAX_DEPENDENCIES: Final = 100


class Condition(StrEnum):
    """How it has to have ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ANY = "any"


AFTER_PATTERN: Final = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(:(succeeded|failed|any))?$"
Asked = Annotated[str, StringConstraints(pattern=AFTER_PATTERN)]
"""``JOB`` or ``JOB:CONDITION``; the job, or the array, by name or id."""


def _several(given: object) -> object:
    return (given,) if isinstance(given, str) else given


After = Annotated[
    tuple[Asked, ...],
    BeforeValidator(_several, json_schema_input_type=str | tuple[str, ...]),
    Field(max_length=MAX_DEPENDENCIES),
]


class Dependency(Value):
    """One of them, found."""

    id: str = Field(description="of a job, or of an array: then all of its elements")
    name: str
    condition: Condition = Condition.SUCCEEDED

    def met(self, state: str) -> bool:
        """Says whether it ended as it has to have."""
        return self.condition is Condition.ANY or state == self.condition


def parsed(asked: str) -> tuple[str, Condition]:
    """Returns whom ``JOB:CONDITION`` names, and the condition."""
    name, _, condition = asked.partition(":")
    return name, Condition(condition or Condition.SUCCEEDED)
