"""What ``danlu doctor`` finds: each thing that was looked at, how it is, and what to do where it is not well."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from danlu.domain.records import Said, Value


class Verdict(StrEnum):
    """How a thing is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Check(Value):
    """One thing that was looked at."""

    name: str = Field(description="what was looked at, one word")
    verdict: Verdict = Field(description="warn: it works, but not as well as it could; fail: something cannot work so")
    value: Said = Field(description="what was found")
    next_step: str = Field(default="", description="what to do about it")


class Diagnosis(Value):
    """What the server can see of itself and its machine."""

    version: str
    now: int = Field(ge=0, description="ns UTC, by the server's clock")
    checks: tuple[Check, ...]


def ok(name: str, value: str) -> Check:
    """Returns that all is well."""
    return Check(name=name, verdict=Verdict.OK, value=value)


def warn(name: str, value: str, next_step: str) -> Check:
    """Returns that something could be better."""
    return Check(name=name, verdict=Verdict.WARN, value=value, next_step=next_step)


def fail(name: str, value: str, next_step: str) -> Check:
    """Returns that something cannot work."""
    return Check(name=name, verdict=Verdict.FAIL, value=value, next_step=next_step)
