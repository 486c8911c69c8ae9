"""Artifacts: the files that jobs left."""

from __future__ import annotations

from danlu.database.engine import Transaction
from danlu.database.records import ARTIFACTS, OUTPUTS
from danlu.domain.artifacts import Artifact, OutputsReport, TaskOutputs
from danlu.domain.ids import derived_id
from danlu.domain.trees import decode, totals
from danlu.errors import InvalidRequest, NotFound
from danlu.services import access, blobs, stored
from danlu.services.context import Call
from danlu.services.reports import require_own


def get(call: Call, artifact: str) -> Artifact:
    """Returns one artifact of the project, or raises NotFound."""
    found = call.platform.database.read(lambda tx: ARTIFACTS.get(tx, artifact))
    if found is None or found.project != call.project:
        raise NotFound(f"there is no artifact {artifact!r} in project {call.project}")
    return found


def report(call: Call, attempt: str, task: str, body: OutputsReport) -> TaskOutputs:
    """Stores what a task of an attempt in pods left; the same twice is once. With that of the others it becomes an artifact.

    Raises:
        StaleAttempt: another attempt took its place.
        InvalidSpec: the bytes are not all there.
    """
    require_own(call, attempt)
    blobs.require_tree(call, body.tree, "output folder")
    size, files = totals(decode(call.platform.blobs.read(call.project, body.tree)))

    def work(tx: Transaction) -> TaskOutputs:
        job, record = access.current(tx, attempt, stores=True)
        if all(known.name != task for known in record.tasks):
            raise InvalidRequest(f"attempt {attempt} has no task {task}")
        now = call.platform.clock.now()
        stored.told(tx, record, size, files, now)
        known = OUTPUTS.find(tx, attempt_id=attempt, task=task, limit=1)
        if known:
            new = known[0].evolved(now=now, tree=body.tree, skipped=body.skipped)
            OUTPUTS.put(tx, known[0], new)
            return new
        new = TaskOutputs(
            id=derived_id(f"o{job.id[1:]}", f"{attempt}/{task}"), project=job.project, attempt_id=attempt, task=task,
            tree=body.tree, skipped=body.skipped, created_at=now, updated_at=now,
        )  # fmt: skip
        OUTPUTS.add(tx, new)
        return new

    return call.write(work)
