"""What keeps a job from being placed whatever is free: a stop, a hold, dependencies, its environment, a pause. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from danlu.database.queries import QueuedJob
from danlu.domain.dependencies import Condition, Dependency
from danlu.domain.environments import Environment, EnvironmentReason, EnvironmentState
from danlu.domain.jobs import Desired, JobState, Reason

SECOND_NS: Final = 1_000_000_000
NAMED: Final = 3
"""So many of the jobs that it waits for are named."""


class Change(NamedTuple):
    """What a waiting job becomes: it waits for another reason, or it has ended."""

    job_id: str
    version: int
    state: JobState
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What the rules look at, beside the job.

    Attributes:
        environments: by id, those that waiting jobs use.
        ended: how what waiting jobs are to run after has ended, by id; what is not in it has not.
        now: ns UTC.
    """

    environments: Mapping[str, Environment]
    ended: Mapping[str, str]
    now: int


def not_yet(job: QueuedJob, facts: Facts) -> Change | None:
    """Returns what keeps a job from being placed, or ends it; None where only room can."""
    if job.desired == Desired.STOP:
        return _ends(job, JobState.CANCELLED, Reason.STOPPED, "stopped while it waited")
    return (
        _dependencies(job, facts.ended) or _held(job) or _environment(job, facts.environments) or _pause(job, facts.now)
    )


def _ends(job: QueuedJob, state: JobState, reason: Reason, message: str) -> Change:
    return Change(job.id, job.version, state, reason, message)


def _waits(job: QueuedJob, reason: Reason, message: str) -> Change:
    return Change(job.id, job.version, JobState.QUEUED, reason, message)


def _held(job: QueuedJob) -> Change | None:
    return _waits(job, Reason.ON_HOLD, "it is held; danlu release lets it go") if job.held else None


def _dependencies(job: QueuedJob, ended: Mapping[str, str]) -> Change | None:
    """A job whose dependencies can no longer be met ends at once, even where it is held: it never waits for ever."""
    for one in job.after:
        state = ended.get(one.id)
        if state is None or one.met(state):
            continue
        if one.condition is Condition.FAILED:  # it was for that case only, which has not come: nothing failed
            message = f"it was to run if {one.name} failed, and that {_ended(state)}"
            return _ends(job, JobState.CANCELLED, Reason.DEPENDENCY_FAILED, message)
        message = f"it was to run after {one.name} ({one.id}), which {_ended(state)}"
        return _ends(job, JobState.FAILED, Reason.DEPENDENCY_FAILED, message)
    left = [one for one in job.after if one.id not in ended]
    return _waits(job, Reason.WAITING_FOR_DEPENDENCY, waits_for(left)) if left else None


def _ended(state: str) -> str:
    return "was cancelled" if state == JobState.CANCELLED else f"has {state}"


def waits_for(left: Iterable[Dependency]) -> str:
    """Returns which dependencies a job waits for, in words."""
    every = list(left)
    more = f" and {len(every) - NAMED} more" if len(every) > NAMED else ""
    return f"waits for {', '.join(map(_told, every[:NAMED]))}{more}"


def _told(one: Dependency) -> str:
    how = {Condition.SUCCEEDED: "to succeed", Condition.FAILED: "to fail", Condition.ANY: "to end"}
    return f"{one.name} {how[one.condition]}"


def _environment(job: QueuedJob, environments: Mapping[str, Environment]) -> Change | None:
    if job.environment_id is None:
        return None
    environment = environments.get(job.environment_id)
    if environment is None or environment.state in (EnvironmentState.WANTED, EnvironmentState.BUILDING):
        name = job.environment_id if environment is None else environment.name
        if environment is not None and environment.source.image is not None:
            return _waits(job, Reason.IMAGE_PULLING, f"image {name} is being pulled")
        packing = environment is not None and environment.reason is EnvironmentReason.PACKING
        doing = "being packed for the pods" if packing else "being built"
        return _waits(job, Reason.ENVIRONMENT_BUILDING, f"environment {name} is {doing}")
    if environment.state is EnvironmentState.FAILED:
        message = environment.message
        if environment.source.image is None:
            message = f"environment {environment.name}: {message}"
        return _ends(job, JobState.FAILED, Reason.ENVIRONMENT_FAILED, message)
    return None


def _pause(job: QueuedJob, now: int) -> Change | None:
    if job.queued_at <= now < job.not_before:  # an earlier now: the clock was wrong when that was written
        left_s = -(-(job.not_before - now) // SECOND_NS)
        return _waits(job, Reason.WAITING_FOR_RETRY, f"its next attempt begins in {left_s:,} s at the earliest")
    return None
