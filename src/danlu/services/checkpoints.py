"""Checkpoints of attempts in pods: told of once all their bytes are here, and handed to the next attempt."""

from __future__ import annotations

from typing import Final

from danlu.database.engine import Transaction
from danlu.database.records import ATTEMPTS, CHECKPOINTS
from danlu.domain.checkpoints import Checkpoint, CheckpointReport, given_up, to_restore
from danlu.domain.ids import derived_id
from danlu.domain.jobs import Job
from danlu.domain.trees import decode, require_name, totals
from danlu.domain.views import Page
from danlu.errors import InvalidRequest
from danlu.services import access, blobs, stored
from danlu.services.context import Call
from danlu.services.reports import require_own

MAX_FOUND: Final = 100_000


def register(call: Call, attempt: str, name: str, body: CheckpointReport) -> Checkpoint:
    """Stores that a task has saved something under a name, instead of what it had saved under it before.

    What was sent before that, and comes only now as a server stood still with it, changes nothing: returned is what is kept.

    Of names that differ in numbers alone the newest are kept. What attempts before it have left is not touched meanwhile:
    not all of this attempt's tasks may have got it yet.

    Raises:
        StaleAttempt: another attempt took its place.
        InvalidSpec: the bytes are not all there.
    """
    require_own(call, attempt)
    try:
        require_name(name)
    except ValueError as error:
        raise InvalidRequest(str(error)) from None
    blobs.require_tree(call, body.tree, "checkpoint")
    size, files = totals(decode(call.platform.blobs.read(call.project, body.tree)))

    def work(tx: Transaction) -> Checkpoint:
        job, record = access.current(tx, attempt, stores=True)
        rank = next((task.rank for task in record.tasks if task.name == body.task), None)
        if rank is None:
            raise InvalidRequest(f"attempt {attempt} has no task {body.task}")
        now = call.platform.clock.now()
        saved = {"tree": body.tree, "at": min(body.at, now), "sent_at": body.sent_at, "size_bytes": size}
        of_task = CHECKPOINTS.find(tx, attempt_id=attempt, task=body.task, limit=MAX_FOUND)
        known = next((one for one in of_task if one.name == name), None)
        if known is not None and body.sent_at < known.sent_at:
            return known
        if known is not None:
            new = known.evolved(now=now, **saved)
            CHECKPOINTS.put(tx, known, new)
        else:
            new = Checkpoint.model_validate(
                {
                    **saved, "id": derived_id(f"c{job.id[1:]}", f"{attempt}/{body.task}/{name}"), "project": job.project,
                    "owner": job.checkpoint_owner, "attempt_id": attempt, "task": body.task, "rank": rank, "name": name,
                    "created_at": now, "updated_at": now,
                }
            )  # fmt: skip
            CHECKPOINTS.add(tx, new)
        stored.told(tx, record, size, files, now)
        for over in given_up([new, *(one for one in of_task if one.name != name)]):
            CHECKPOINTS.remove(tx, over)
        return new

    return call.write(work)


def restorable(call: Call, attempt: str) -> Page[Checkpoint]:
    """Returns what an attempt's tasks all find in their checkpoint folders at their begin: what those before it have left."""
    require_own(call, attempt)

    def work(tx: Transaction) -> tuple[Checkpoint, ...]:
        job, _ = access.current(tx, attempt)
        found = [one for one in CHECKPOINTS.find(tx, owner=job.checkpoint_owner, limit=MAX_FOUND)
                 if one.attempt_id != attempt and one.project == job.project]  # fmt: skip
        before = ATTEMPTS.find(tx, id={one.attempt_id for one in found}, limit=MAX_FOUND)
        return to_restore(found, {one.id: [task.name for task in one.tasks] for one in before})

    return Page[Checkpoint](items=call.platform.database.read(work))


def give_up(tx: Transaction, job: Job) -> None:
    """Gives up what newer ones have taken the place of, once an attempt has left all that it will leave."""
    found = CHECKPOINTS.find(tx, owner=job.checkpoint_owner, limit=MAX_FOUND)
    for over in given_up(found, across=True):
        CHECKPOINTS.remove(tx, over)
