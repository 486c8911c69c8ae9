"""Sessions: where one takes place, and that it did. What goes through it is none of the services' business."""

from __future__ import annotations

from dataclasses import dataclass

from danlu.api.bodies import SessionQuery
from danlu.database.engine import Transaction
from danlu.database.records import ATTEMPTS, add_event
from danlu.domain.events import Event
from danlu.domain.ids import attempt_id
from danlu.domain.jobs import Attempt, AttemptState, Job, JobState, Task
from danlu.domain.sessions import OPENED, SessionRequest
from danlu.domain.validation import suggestion
from danlu.errors import NotFound, NotRunning
from danlu.services.context import Call
from danlu.services.jobs import require


@dataclass(frozen=True, slots=True)
class Place:
    """A running task, and of how many."""

    job: Job
    attempt_id: str
    task: str
    tasks: int


def open(call: Call, job: str, query: SessionQuery) -> Place:
    """Returns where a session of a job takes place: in the task that is named, else in its first one that runs.

    Raises:
        NotFound: the project has no such job, or the job no such task.
        NotRunning: it has not started, or has ended.
    """

    def work(tx: Transaction) -> Place:
        found = require(tx, call.project, job)
        attempt = ATTEMPTS.get(tx, attempt_id(found.id, found.attempts)) if found.attempts else None
        if attempt is None or found.state not in (JobState.RUNNING, JobState.STOPPING):
            raise _not_running(found)
        task = _task(found, attempt, query.task)
        if attempt.state is not AttemptState.RUNNING or task.ended_at is not None:
            raise (
                _not_running(found)
                if not found.live
                else NotRunning(
                    f"task {task.name} of job {found.name} does not run: its attempt is {attempt.state}"
                    if task.ended_at is None
                    else f"task {task.name} of job {found.name} has ended",
                    next_step=f"what it printed: danlu logs {found.name} --task {task.name}",
                )
            )
        return Place(found, attempt.id, task.name, len(attempt.tasks))

    return call.platform.database.read(work)


def _task(job: Job, attempt: Attempt, name: str | None) -> Task:
    if name is None:
        return next((task for task in attempt.tasks if task.ended_at is None), attempt.tasks[0])
    found = next((task for task in attempt.tasks if task.name == name), None)
    if found is None:
        names = [task.name for task in attempt.tasks]
        shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        raise NotFound(
            f"job {job.name} has no task {name!r}", next_step=f"{suggestion(name, names)}   it has {shown}".strip()
        )
    return found


def _not_running(job: Job) -> NotRunning:
    if job.live:
        return NotRunning(
            f"job {job.name} is {job.state}: it has no process to look into yet", next_step=f"danlu why {job.name}"
        )
    return NotRunning(
        f"job {job.name} has ended ({job.state}): there is no process to look into",
        next_step=f"what it left: danlu artifacts get {job.name}     what it printed: danlu logs {job.name}",
    )


def record(call: Call, place: Place, request: SessionRequest) -> None:
    """Notes as an event of the job who does what in which task."""
    now = call.platform.clock.now()
    event = Event(
        at=now, project=place.job.project, kind=Job.KIND, object_id=place.job.id, state=str(place.job.state),
        previous=str(place.job.state), reason=OPENED, message=request.shown(place.task), actor=call.actor.name,
    )  # fmt: skip
    call.write(lambda tx: add_event(tx, event))
    call.platform.hub.notify("events")
