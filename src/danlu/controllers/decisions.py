"""What to do about one attempt: (job, attempt, observation, time) -> Decision. Pure, and tested on every combination."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from danlu.domain.jobs import (
    INFRASTRUCTURE_ATTEMPTS,
    LOST,
    NEVER_RETRIED,
    Attempt,
    AttemptState,
    Desired,
    Job,
    JobState,
    Reason,
    Task,
)
from danlu.executors.base import Observation, Phase

LOSS_BACKOFF_S: Final = (0.0, 0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""What was lost is repeated at once; what is lost again and again gives its machine time to recover."""

TASK_PAUSE_NS: Final = 1_000_000
"""What became of a live gang's tasks is stored at most once in so long, times their number: all of them are written then."""


class Action(StrEnum):
    """What to ask of the executor."""

    NOTHING = "nothing"
    LAUNCH = "launch"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Decision:
    """The records as they should be (in order of their moves; empty: unchanged) and what to ask of the executor.

    A launch comes after the records are stored, a stop before; both may be asked again.
    """

    action: Action = Action.NOTHING
    jobs: tuple[Job, ...] = ()
    attempts: tuple[Attempt, ...] = ()


def decide(job: Job, attempt: Attempt, seen: Observation | None, now: int) -> Decision:
    """Returns what follows for an attempt that has not ended."""
    jobs, attempts = _launching(job, attempt, now)
    job, attempt = (jobs or [job])[-1], (attempts or [attempt])[-1]
    if seen is None:
        decision = _unseen(job, attempt, now)
    elif seen.phase in (Phase.ENDED, Phase.LOST):
        decision = _ended(job, attempt, seen, now)
    else:
        decision = _alive(job, attempt, seen, now)
    return Decision(decision.action, (*jobs, *decision.jobs), (*attempts, *decision.attempts))


def _launching(job: Job, attempt: Attempt, now: int) -> tuple[list[Job], list[Attempt]]:
    """Returns the moves that come before all others: what was placed is launched."""
    if attempt.state is not AttemptState.PLACED:
        return [], []
    moves = [job.moved(JobState.STARTING, now=now, reason=Reason.LAUNCHING)] if job.state is JobState.ADMITTED else []
    return moves, [attempt.moved(AttemptState.LAUNCHING, now=now, reason=Reason.LAUNCHING)]


def _alive(job: Job, attempt: Attempt, seen: Observation, now: int) -> Decision:
    """The executor holds it: it starts or runs."""
    stopping = job.desired is Desired.STOP
    jobs: list[Job] = []
    attempts: list[Attempt] = []
    if seen.phase is Phase.RUNNING and attempt.state is AttemptState.LAUNCHING:
        changes: dict[str, Any] = {
            "started_at": seen.started_at,
            "tasks": seen.tasks or attempt.tasks,
            "limits": seen.limits,
            "resumed_from": seen.resumed_from,
        }
        attempts.append(attempt.moved(AttemptState.RUNNING, now=now, reason=Reason.STARTED, **changes))
        if job.state is JobState.STARTING:
            jobs.append(job.moved(JobState.RUNNING, now=now, reason=Reason.STARTED, started_at=seen.started_at))
    elif _is_news(attempt, seen, now):
        attempts.append(attempt.evolved(now=now, tasks=seen.tasks))
    if not stopping:
        return Decision(jobs=tuple(jobs), attempts=tuple(attempts))
    latest_job, latest = (jobs or [job])[-1], (attempts or [attempt])[-1]
    if latest.state in (AttemptState.LAUNCHING, AttemptState.RUNNING):
        attempts.append(latest.moved(AttemptState.ENDING, now=now, reason=Reason.STOP_REQUESTED))
    if latest_job.state in (JobState.STARTING, JobState.RUNNING):
        jobs.append(latest_job.moved(JobState.STOPPING, now=now, reason=Reason.STOP_REQUESTED))
    return Decision(Action.STOP, tuple(jobs), tuple(attempts))


def _is_news(attempt: Attempt, seen: Observation, now: int) -> bool:
    """Whether tasks of a gang have started, ended or been started again since the attempt was stored, and it is time."""
    if (
        attempt.state not in (AttemptState.RUNNING, AttemptState.ENDING)
        or not seen.tasks
        or seen.tasks == attempt.tasks
    ):
        return False
    since = now - attempt.updated_at
    return not 0 <= since < TASK_PAUSE_NS * len(seen.tasks)  # before 0: the clock was wrong when that was written


def _unseen(job: Job, attempt: Attempt, now: int) -> Decision:
    """The executor does not hold it: it was never launched, or everything of it is gone."""
    if attempt.state is AttemptState.LAUNCHING:
        if job.desired is not Desired.STOP:
            return Decision(Action.LAUNCH)
        # a launch that a killed server had begun may still come through: the stop is there before it
        ended = attempt.moved(AttemptState.ENDED, now=now, reason=Reason.STOPPED, ended_at=now, collected=True)
        return Decision(Action.STOP, jobs=after(job, ended, now), attempts=(ended,))
    ended = attempt.moved(
        AttemptState.ENDED, now=now, reason=Reason.RUNNER_LOST, message="the executor no longer knows it", ended_at=now
    )
    return Decision(jobs=after(job, ended, now), attempts=(ended,))


def _ended(job: Job, attempt: Attempt, seen: Observation, now: int) -> Decision:
    reason, message, exit_code = verdict(seen, job)
    ended = attempt.moved(
        AttemptState.ENDED,
        now=now,
        reason=reason,
        message=message,
        started_at=seen.started_at or attempt.started_at,
        ended_at=max(seen.ended_at or now, seen.started_at or attempt.started_at or 0),
        tasks=seen.tasks or attempt.tasks,
        limits=seen.limits or attempt.limits,
        resumed_from=seen.resumed_from or attempt.resumed_from,
        exit_code=exit_code,
    )
    return Decision(jobs=after(job, ended, now), attempts=(ended,))


def rejected(job: Job, attempt: Attempt, reason: Reason, message: str, now: int) -> Decision:
    """Returns what follows when the executor refused to launch an attempt."""
    jobs, attempts = _launching(job, attempt, now)
    job, attempt = (jobs or [job])[-1], (attempts or [attempt])[-1]
    ended = attempt.moved(AttemptState.ENDED, now=now, reason=reason, message=message, ended_at=now, collected=True)
    return Decision(jobs=(*jobs, *after(job, ended, now)), attempts=(*attempts, ended))


def verdict(seen: Observation, job: Job) -> tuple[Reason, str, int | None]:
    """Returns how an attempt ended: a reason, its words, and the exit code (128 + signal when killed).

    The first task that failed decides; what was ended because of it, or after the result was known, does not.
    """
    if seen.phase is Phase.LOST:
        return Reason.RUNNER_LOST, seen.message or "its runner was killed; everything it had written was kept", None
    if not seen.tasks:
        return _taskless(seen)
    failed = _first_failure(task for task in seen.tasks if not task.stopped)
    if failed is None:
        deciding = {task.name for task in job.spec.tasks if task.decides}
        failed = _first_failure(task for task in seen.tasks if task.name in deciding)
    if failed is None:
        return Reason.COMPLETED, "", 0
    code = failed.exit_code if failed.signal is None else 128 + failed.signal
    reason, words = _why_failed(seen, failed)
    if len(seen.tasks) > 1 and reason not in (Reason.MAX_TIME_EXCEEDED, Reason.STOPPED):
        words = f"{failed.name} (rank {failed.rank}): {words}"
        if failed.last_lines and not failed.oom:
            words += "; the last that it wrote:\n" + failed.last_lines
    return reason, words, code


def _why_failed(seen: Observation, failed: Task) -> tuple[Reason, str]:
    """Returns why an attempt ended in which this task failed."""
    asked = (
        failed.stopped or len(seen.tasks) == 1
    )  # a gang that ended by itself may be stopped, or out of time, meanwhile
    if seen.timed_out and asked:
        return Reason.MAX_TIME_EXCEEDED, seen.message or "it ran longer than max_time"
    if seen.stopped and asked:
        return Reason.STOPPED, ""
    if failed.port_taken is not None:
        owner = next((task for task in seen.tasks if failed.port_taken in task.ports), failed)
        whose = "that was leased to it" if owner is failed else f"that was leased to {owner.name}"
        return Reason.PORT_TAKEN, f"another program of the machine listens on port {failed.port_taken} {whose}"
    if failed.oom:
        return Reason.OUT_OF_MEMORY, failed.error or "killed by the kernel for lack of memory"
    if failed.signal is not None:
        return Reason.KILLED_BY_SIGNAL, failed.error or f"killed by signal {failed.signal}"
    if failed.error and failed.exit_code in (126, 127):
        return Reason.COMMAND_NOT_FOUND, failed.error
    if failed.exit_code is None or failed.error:
        return Reason.PROCESS_FAILED, failed.error or "it ended without an exit code"
    return Reason.PROCESS_FAILED, f"exit code {failed.exit_code}"


def _taskless(seen: Observation) -> tuple[Reason, str, int | None]:
    """Returns how an attempt ended of whose tasks nothing is known: never that it succeeded."""
    if seen.timed_out:
        return Reason.MAX_TIME_EXCEEDED, seen.message or "it ran longer than max_time", None
    if seen.stopped:
        return Reason.STOPPED, seen.message, None
    return Reason.RUNNER_LOST, seen.message or "it ended, and nothing tells how", None


def _first_failure(tasks: Iterable[Task]) -> Task | None:
    failed = [task for task in tasks if task.exit_code != 0]
    return min(failed, key=lambda task: (task.ended_at or 2**63, task.rank), default=None)


def after(job: Job, ended: Attempt, now: int) -> tuple[Job, ...]:
    """Returns the job's moves that follow the end of its current attempt, in order."""
    if not job.live or job.attempts != ended.number or job.state is JobState.QUEUED:
        return ()
    reason = ended.reason
    outcome: dict[str, Any] = {"ended_at": ended.ended_at, "exit_code": ended.exit_code, "started_at": ended.started_at}
    if reason is Reason.COMPLETED:
        return (job.moved(JobState.SUCCEEDED, now=now, reason=Reason.COMPLETED, **outcome),)
    if job.desired is Desired.STOP:
        return _stopped(job, ended, now, outcome)
    repeat: dict[str, Any] = {"queued_at": now, "exit_code": ended.exit_code}
    words = f"attempt {ended.number}: {reason}" + (f", {ended.message}" if ended.message else "")
    if reason in LOST and job.losses < INFRASTRUCTURE_ATTEMPTS:
        wait_s = LOSS_BACKOFF_S[min(job.losses, len(LOSS_BACKOFF_S) - 1)]
        repeat["not_before"] = now + int(wait_s * 1_000_000_000) if wait_s else 0
        return (job.moved(JobState.QUEUED, now=now, reason=reason, message=words, losses=job.losses + 1, **repeat),)
    failures = job.failures + (reason not in LOST)
    if reason not in NEVER_RETRIED and reason not in LOST and failures < job.spec.retry.attempts:
        wait_ns = int((job.spec.retry.backoff or 0) * 1_000_000_000)
        return (
            job.moved(
                JobState.QUEUED,
                now=now,
                reason=Reason.ATTEMPT_FAILED,
                message=words,
                failures=failures,
                not_before=now + wait_ns if wait_ns else 0,
                **repeat,
            ),
        )
    return (job.moved(JobState.FAILED, now=now, reason=reason, message=ended.message, failures=failures, **outcome),)


def _stopped(job: Job, ended: Attempt, now: int, outcome: dict[str, Any]) -> tuple[Job, ...]:
    moves = []
    if job.state is not JobState.STOPPING:
        job = job.moved(JobState.STOPPING, now=now, reason=Reason.STOP_REQUESTED)
        moves.append(job)
    final = JobState.CANCELLED if ended.reason is Reason.STOPPED or ended.reason in LOST else JobState.FAILED
    reason = Reason.STOPPED if final is JobState.CANCELLED else ended.reason
    moves.append(job.moved(final, now=now, reason=reason, message=ended.message, **outcome))
    return tuple(moves)
