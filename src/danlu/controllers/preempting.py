"""How an attempt is made to give way: who has to is the scheduler's decision, and this is its door; and what is said of it.

An attempt that has to is told so (controllers/attempts.py, by the executor's notice), and has until its deadline to write a
checkpoint. What it does with the time is its own affair; it ends then, and its job waits again.
"""

from __future__ import annotations

from typing import Final

from danlu.database.engine import Transaction
from danlu.database.records import ATTEMPTS, JOBS
from danlu.domain.jobs import Attempt, AttemptState, Desired, Preemption
from danlu.domain.notices import SECOND_NS

GIVES_WAY: Final = frozenset({AttemptState.PLACED, AttemptState.LAUNCHING, AttemptState.RUNNING})


def preempt(tx: Transaction, attempt: Attempt, preemption: Preemption, now: int) -> Attempt | None:
    """Stores that an attempt has to make way, once; returns it as it is then, or None where it no longer can.

    It can as long as it is not being ended, was not asked before, and its job is not to stop.

    Raises:
        VersionConflict: the attempt has changed since it was read: decide anew.
    """
    job = JOBS.require(tx, attempt.job_id)
    current = job.live and job.attempts == attempt.number and job.desired is Desired.RUN
    if not current or attempt.state not in GIVES_WAY or attempt.preemption is not None:
        return None
    gains = JOBS.get(tx, preemption.for_job)
    # the name of another project's job is told to nobody, wherever this is shown
    name = gains.name if gains is not None and gains.project == job.project else ""
    asked = attempt.evolved(now=now, preemption=preemption.model_copy(update={"for_name": name}))
    ATTEMPTS.put(tx, attempt, asked)
    return asked


def asks(preemption: Preemption) -> str:
    """Returns what is said of an attempt from the notice on."""
    within_s = max(0, preemption.deadline - preemption.at) / SECOND_NS
    return f"it makes way for {preemption.whom}, and has {spell(within_s)} to save{_because(preemption)}"


def told(preemption: Preemption, ended: Attempt) -> str:
    """Returns what is said of an attempt that has made way: for whom, why, and what was lost."""
    return f"it made way for {preemption.whom}{_because(preemption)}; lost: {_lost(preemption, ended)}"


def _because(preemption: Preemption) -> str:
    return f": {preemption.why}" if preemption.why else ""


def _lost(preemption: Preemption, ended: Attempt) -> str:
    if ended.started_at is None:
        return "nothing: it had not begun"
    ran_until, saved_at = ended.ended_at or preemption.at, ended.saved_at
    if saved_at is None:
        return f"all of it, {spell((ran_until - ended.started_at) / SECOND_NS)}: it has no checkpoint"
    if saved_at >= preemption.at:
        return "nothing: it wrote a checkpoint at the notice"
    lost_s = max(0, ran_until - max(saved_at, ended.started_at)) / SECOND_NS
    since = f"the checkpoint {ended.saved_as}" if ended.saved_as else "its newest checkpoint"
    return f"{spell(lost_s)} of work since {since}"


def spell(seconds: float) -> str:
    """Returns ``3 s``, ``2 min 3 s`` or ``1 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")
    return f"{whole // 3600} h" + (f" {whole % 3600 // 60} min" if whole % 3600 // 60 else "")
