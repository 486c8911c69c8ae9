"""What is wished of an attempt that runs: to make way, after a notice, or to end. Pure.

On one machine the executor passes it on; the runner in a pod asks for it.
"""

from __future__ import annotations

from typing import Final

from pydantic import Field

from danlu.domain.jobs import Job, Preemption
from danlu.domain.records import Ns, Said, Value

SECOND_NS: Final = 1_000_000_000


class Notice(Value):
    """That an attempt has to make way: what its tasks are told before they are ended, so that they can save."""

    signal: str = Field(description="TERM, USR1 ...: goes to the programs that handle it")
    within_s: float = Field(ge=0, description="how long they have from now on")
    deadline: Ns = Field(description="the same as a time; what they are told")
    why: Said = ""
    whom: Said = Field(default="", description="for whom")


class Stop(Value):
    """That a task has to end."""

    grace_s: float = Field(ge=0, description="how long it has between SIGTERM and SIGKILL")
    notice: Notice | None = Field(default=None, description="it hears this first, and has the notice's time")
    outcome: str = Field(
        default="", description="well or badly: its gang's result is known; empty: it was asked to end"
    )


class Wishes(Value):
    """What is wished of a task in a pod."""

    tag: str = Field(description="another one once something else is wished")
    stop: Stop | None = None


def notice_of(job: Job, preemption: Preemption, now: int) -> Notice:
    """Returns what the tasks are told: never that there is more time than the job has asked for, whatever the clock says."""
    left_s = (preemption.deadline - now) / SECOND_NS
    return Notice(
        signal=job.spec.notice_signal, within_s=min(max(0.0, left_s), job.spec.notice), deadline=preemption.deadline,
        why=preemption.why, whom=preemption.whom,
    )  # fmt: skip
