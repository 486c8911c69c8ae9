"""What to do about one attempt: (job, attempt, observation, time) -> Decision. Pure, and tested on every combination."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from danlu.controllers.preempting import asks, told
from danlu.domain.jobs import (
    INFRASTRUCTURE_ATTEMPTS,
    KEEPS_PODS,
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
from danlu.scheduler.model import Shape

LOSS_BACKOFF_S: Final = (0.0, 0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""What was lost is repeated at once; what is lost again and again gives its machine time to recover."""

SAVED_PAUSE_NS: Final = 5_000_000_000
"""That an attempt has a newer checkpoint is stored at most so often: who has to make way is chosen by it."""

TASK_PAUSE_NS: Final = 1_000_000
"""What became of a live gang's tasks is stored at most once in so long, times their number: all of them are written then."""


HEEDED_CODES: Final = frozenset({0, *(128 + number for number in (1, 2, 10, 12, 15))})
"""With what a program ends that heeds the signal of a notice: with success, or as if the signal had ended it."""


class Action(StrEnum):
    """What to ask of the executor."""

    NOTHING = "nothing"
    LAUNCH = "launch"
    STOP = "stop"
    GIVE_WAY = "give way"


@dataclass(frozen=True, slots=True)
class Decision:
    """The records as they should be (in order of their moves; empty: unchanged) and what to ask of the executor.

    A launch comes after the records are stored, a stop or a notice to give way before; all may be asked again.
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
            "tasks": _tasks(attempt, seen),
            "limits": seen.limits,
            "resumed_from": seen.resumed_from,
            **_saved(attempt, seen),
        }
        attempts.append(attempt.moved(AttemptState.RUNNING, now=now, reason=Reason.STARTED, **changes))
        if job.state is JobState.STARTING:
            jobs.append(job.moved(JobState.RUNNING, now=now, reason=Reason.STARTED, started_at=seen.started_at))
    elif not stopping and _tells_why(job, attempt, seen):
        jobs.append(job.evolved(now=now, reason=seen.reason or Reason.LAUNCHING, message=seen.message[:4096]))
    elif _is_news(attempt, seen, now):
        attempts.append(attempt.evolved(now=now, tasks=_tasks(attempt, seen), **_saved(attempt, seen)))
    latest_job, latest = (jobs or [job])[-1], (attempts or [attempt])[-1]
    if not stopping and attempt.preemption is not None:
        words = asks(attempt.preemption)
        if latest.state in (AttemptState.LAUNCHING, AttemptState.RUNNING):
            attempts.append(latest.moved(AttemptState.ENDING, now=now, reason=Reason.PREEMPTED, message=words))
            jobs.append(latest_job.evolved(now=now, reason=Reason.PREEMPTED, message=words))
        return Decision(Action.GIVE_WAY, tuple(jobs), tuple(attempts))
    if not stopping:
        again = seen.unfinished and attempt.state is AttemptState.LAUNCHING
        return Decision(Action.LAUNCH if again else Action.NOTHING, tuple(jobs), tuple(attempts))
    if latest.state in (AttemptState.LAUNCHING, AttemptState.RUNNING):
        attempts.append(latest.moved(AttemptState.ENDING, now=now, reason=Reason.STOP_REQUESTED))
    if latest_job.state in (JobState.STARTING, JobState.RUNNING):
        jobs.append(latest_job.moved(JobState.STOPPING, now=now, reason=Reason.STOP_REQUESTED))
    return Decision(Action.STOP, tuple(jobs), tuple(attempts))


def _tells_why(job: Job, attempt: Attempt, seen: Observation) -> bool:
    """Whether what keeps an attempt from running is another thing than the job says, or nothing any more."""
    starting = (job.state, attempt.state, seen.phase) == (JobState.STARTING, AttemptState.LAUNCHING, Phase.STARTING)
    if not starting or attempt.preemption is not None:
        return False
    if seen.reason is None:
        return job.reason in KEEPS_PODS
    return (job.reason, job.message) != (seen.reason, seen.message[:4096])


def _is_news(attempt: Attempt, seen: Observation, now: int) -> bool:
    """Whether tasks have started, ended or been started again, or a checkpoint was written, since it was stored."""
    if attempt.state not in (AttemptState.RUNNING, AttemptState.ENDING) or not seen.tasks:
        return False
    since = now - attempt.updated_at
    if since < 0:  # the clock was wrong when that was written
        since = SAVED_PAUSE_NS
    moved = _tasks(attempt, seen) != attempt.tasks and since >= TASK_PAUSE_NS * len(seen.tasks)
    return moved or (since >= SAVED_PAUSE_NS and _saved(attempt, seen)["saved_at"] != attempt.saved_at)


def _tasks(attempt: Attempt, seen: Observation) -> tuple[Task, ...]:
    """Returns the tasks as they are told; when each began stays as it was told first: its job may write into the status."""
    began = {task.rank: task.started_at for task in attempt.tasks if task.started_at is not None}
    tasks = seen.tasks or attempt.tasks
    if all(task.started_at == began.get(task.rank, task.started_at) for task in tasks):
        return tasks
    return tuple(task.model_copy(update={"started_at": began.get(task.rank, task.started_at)}) for task in tasks)


def _saved(attempt: Attempt, seen: Observation) -> dict[str, Any]:
    """Returns an attempt's newest proven checkpoint; what an observation does not tell is as it was."""
    if seen.saved_at is None:
        return {"saved_at": attempt.saved_at, "saved_as": attempt.saved_as}
    return {"saved_at": seen.saved_at, "saved_as": seen.saved_as[:255]}


def _unseen(job: Job, attempt: Attempt, now: int) -> Decision:
    """The executor does not hold it: it was never launched, or everything of it is gone."""
    if attempt.state is AttemptState.LAUNCHING:
        if job.desired is not Desired.STOP and attempt.preemption is None:
            return Decision(Action.LAUNCH)
        # a launch that a killed server had begun may still come through: the stop is there before it
        reason = Reason.STOPPED if job.desired is Desired.STOP else Reason.PREEMPTED
        ended = attempt.moved(AttemptState.ENDED, now=now, reason=reason, ended_at=now, collected=True)
        ended = _explained(ended)
        return Decision(Action.STOP, jobs=after(job, ended, now), attempts=(ended,))
    reason, words = _lost(attempt, "the executor no longer knows it")
    ended = attempt.moved(AttemptState.ENDED, now=now, reason=reason, message=words, ended_at=now)
    ended = _explained(ended)
    return Decision(jobs=after(job, ended, now), attempts=(ended,))


def _lost(attempt: Attempt, words: str) -> tuple[Reason, str]:
    """Returns how an attempt ended whose runner is gone; one that was to make way has done so."""
    return (Reason.RUNNER_LOST if attempt.preemption is None else Reason.PREEMPTED), words


def saved_at_notice(ended: Attempt) -> bool:
    """Whether an attempt that had to make way wrote a checkpoint when it was told so."""
    return ended.preemption is not None and (ended.saved_at or 0) >= ended.preemption.at


def _explained(ended: Attempt) -> Attempt:
    """Returns an ended attempt; where it made way, with for whom, why, and what was lost."""
    if ended.reason is not Reason.PREEMPTED or ended.preemption is None:
        return ended
    words = told(ended.preemption, ended)
    return ended.model_copy(update={"message": (f"{words} ({ended.message})" if ended.message else words)[:4096]})


def _ended(job: Job, attempt: Attempt, seen: Observation, now: int) -> Decision:
    if attempt.preemption is None:  # nobody asked it to make way, whatever it says
        seen = seen.model_copy(update={"preempted": False})
    reason, message, exit_code = verdict(seen, job)
    if seen.phase is Phase.LOST and attempt.preemption is not None:
        reason, message = _lost(attempt, message)
    began = attempt.started_at or seen.started_at
    ended = attempt.moved(
        AttemptState.ENDED,
        now=now,
        reason=reason,
        message=message,
        started_at=began,
        ended_at=max(seen.ended_at or now, began or 0),
        seen_at=max(seen.seen_at or 0, attempt.seen_at or 0) or None,
        tasks=_tasks(attempt, seen),
        limits=seen.limits or attempt.limits,
        resumed_from=seen.resumed_from or attempt.resumed_from,
        exit_code=exit_code,
        **_saved(attempt, seen),
    )
    ended = _explained(ended)
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
    if seen.phase is Phase.LOST and seen.reason is not None:
        return seen.reason, seen.message, None
    if seen.phase is Phase.LOST:
        return Reason.RUNNER_LOST, seen.message or "its runner was killed; everything it had written was kept", None
    if seen.preempted and not seen.stopped and not seen.timed_out:
        return _gave_way(seen)
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


def _gave_way(seen: Observation) -> tuple[Reason, str, int | None]:
    """Returns how an attempt ended that had heard the notice: it made way, whatever its program made of that.

    Its code is told, as a program that fails while it saves would lose its checkpoint each time.
    """
    failed = _first_failure(seen.tasks)
    if failed is None:
        return Reason.PREEMPTED, "", 0 if seen.tasks else None
    code = failed.exit_code if failed.signal is None else 128 + failed.signal
    asked = failed.signal is not None or code in (None, *HEEDED_CODES)
    whose = f"{failed.name} " if len(seen.tasks) > 1 else ""
    return Reason.PREEMPTED, "" if asked else f"{whose}ended by exit code {code}", code


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
    attained = job.attained + service(ended)
    outcome: dict[str, Any] = {
        "ended_at": ended.ended_at, "exit_code": ended.exit_code, "started_at": ended.started_at, "attained": attained,
    }  # fmt: skip
    if reason is Reason.COMPLETED:
        return (job.moved(JobState.SUCCEEDED, now=now, reason=Reason.COMPLETED, **outcome),)
    if job.desired is Desired.STOP:
        return _stopped(job, ended, now, outcome)
    repeat: dict[str, Any] = {"exit_code": ended.exit_code, "attained": attained}
    words = f"attempt {ended.number}: {reason}" + (f", {ended.message}" if ended.message else "")
    if reason is Reason.PREEMPTED:
        # it had waited for its turn and was taken out of it by no fault of its own: queued_at stays, as with a new one each
        # later arrival would pass it, time and again; nor has it failed or was it lost: it may start at once
        made_way = {
            "preemptions": job.preemptions + 1,
            "preempted_at": now,
            "not_before": 0,
            "saves": saved_at_notice(ended),
        }
        return (job.moved(JobState.QUEUED, now=now, reason=reason, message=words, **made_way, **repeat),)
    repeat["queued_at"] = now
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


def service(ended: Attempt) -> int:
    """Returns what an ended attempt had of the machines, as ``Job.attained``."""
    held_ns = max(0, (ended.ended_at or 0) - ended.created_at)
    return held_ns * Shape(tuple(task.resources for task in ended.tasks)).rate


def _stopped(job: Job, ended: Attempt, now: int, outcome: dict[str, Any]) -> tuple[Job, ...]:
    moves = []
    if job.state is not JobState.STOPPING:
        job = job.moved(JobState.STOPPING, now=now, reason=Reason.STOP_REQUESTED)
        moves.append(job)
    final = JobState.CANCELLED if ended.reason is Reason.STOPPED or ended.reason in LOST else JobState.FAILED
    reason = Reason.STOPPED if final is JobState.CANCELLED else ended.reason
    moves.append(job.moved(final, now=now, reason=reason, message=ended.message, **outcome))
    return tuple(moves)
