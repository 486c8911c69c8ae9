"""What is wished of attempts whose runners ask for it, by what the database says."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Final

from danlu.database import reports
from danlu.database.engine import Transaction
from danlu.database.kept import Kept
from danlu.database.records import ATTEMPTS, JOBS
from danlu.domain.jobs import Attempt, AttemptState, Desired, Job
from danlu.domain.notices import Stop, Wishes, notice_of
from danlu.domain.reports import TaskReport
from danlu.errors import StaleAttempt
from danlu.runner import gang
from danlu.runner.formats import BADLY, WELL
from danlu.services.context import Platform

SECOND_NS: Final = 1_000_000_000
NOTHING: Final = "nothing"


class Look:
    """Looks at what is wished of attempts; the same ones again cost only what has changed."""

    def __init__(self) -> None:
        self._attempts, self._jobs = Kept(ATTEMPTS), Kept(JOBS)

    def of(self, platform: Platform, attempt_ids: Collection[str]) -> dict[str, Wishes | None]:
        """Returns what is wished of some attempts; None of those that are over."""
        now = platform.clock.now()

        def work(tx: Transaction) -> dict[str, Wishes | None]:
            found: dict[str, Wishes | None] = dict.fromkeys(attempt_ids)
            attempts = self._attempts.named(tx, attempt_ids).values()
            jobs = self._jobs.named(tx, {attempt.job_id for attempt in attempts})
            said = reports.of(tx, [attempt.id for attempt in attempts if len(attempt.tasks) > 1])
            for attempt in attempts:
                job = jobs[attempt.job_id]
                if job.attempts == attempt.number and not (attempt.state is AttemptState.ENDED and attempt.collected):
                    found[attempt.id] = of_attempt(job, attempt, said.get(attempt.id, {}), now)
            return found

        return platform.database.read(work)


def require(platform: Platform, attempt_id: str) -> Wishes:
    """Returns what is wished of one.

    Raises:
        StaleAttempt: it is over.
    """
    found = Look().of(platform, [attempt_id])[attempt_id]
    if found is None:
        raise StaleAttempt(f"attempt {attempt_id} is over")
    return found


def of_attempt(job: Job, attempt: Attempt, said: Mapping[str, TaskReport], now: int) -> Wishes:
    """Returns what is wished of an attempt, of which its runners have said something."""
    grace_s = job.spec.grace if job.stop_grace_s is None else job.stop_grace_s
    if attempt.state is AttemptState.ENDED:  # it was given up; nothing of it may go on beside its successor
        return _wishes(Stop(grace_s=0.0))
    if job.desired is Desired.STOP:
        return _wishes(Stop(grace_s=grace_s))
    outcome = _outcome(job, attempt, said, now)
    if outcome:
        return _wishes(Stop(grace_s=job.spec.grace, outcome=outcome))
    if attempt.preemption is not None:
        stop = Stop(grace_s=grace_s, notice=notice_of(job, attempt.preemption, now))
        return _wishes(stop, about=f"{attempt.preemption.deadline}")
    return Wishes(tag=NOTHING)


def _wishes(stop: Stop, *, about: str = "") -> Wishes:
    """Returns a wish, known again by what does not change while time passes."""
    text = f"{stop.grace_s} {stop.outcome} {about}"
    return Wishes(tag=hashlib.sha256(text.encode()).hexdigest()[:16], stop=stop)


def _outcome(job: Job, attempt: Attempt, said: Mapping[str, TaskReport], now: int) -> str:
    """Returns how a gang has ended whose tasks have to end now, by the runner's own rule; empty where they go on."""
    if len(attempt.tasks) < 2:
        return ""
    members = [
        _member(asked.decides, asked.linger_s, said.get(task.name))
        for task, asked in zip(attempt.tasks, job.spec.tasks, strict=True)
    ]
    end_at = gang.end_at(members)
    if end_at is None or now / SECOND_NS < end_at:
        return ""
    decide = [one for one in members if one.decides]
    return WELL if decide and all(one.ended_at is not None and not one.failed for one in decide) else BADLY


def _member(decides: bool, linger_s: float, said: TaskReport | None) -> gang.Member:
    exited = next((event for event in said.events if event["event"] == "exited"), None) if said is not None else None
    if exited is None:
        return gang.Member(decides, linger_s)
    return gang.Member(decides, linger_s, exited["at"] / SECOND_NS, exited.get("exit_code") != 0)
