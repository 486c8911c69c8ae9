"""What the runners in pods report of their tasks: kept as they say it, told to the executor that watches the pods."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from danlu.database import reports
from danlu.database.engine import Database, Transaction
from danlu.domain.jobs import Attempt, Job
from danlu.domain.notices import Wishes
from danlu.domain.reports import MAX_REPORT_BYTES, TaskReport
from danlu.errors import InvalidRequest, NotAllowed
from danlu.services import access, wishes
from danlu.services.context import Call

QUIET_NS: Final = 10_000_000_000
"""A report that says nothing new is stored at most so often: it tells that the runner is there."""
MAX_DEPTH: Final = 3
MAX_WHOLE: Final = 2**63


def put(call: Call, attempt: str, task: str, body: TaskReport) -> Wishes:
    """Keeps what a task's runner says, and returns what is wished of it. The same again changes nothing.

    Raises:
        NotAllowed: it is another attempt's.
        InvalidRequest: the attempt has no such task, or it says too much, or what can be no event.
        StaleAttempt: the attempt is over.
    """
    require_own(call, attempt)
    if len(body.model_dump_json()) > 2 * MAX_REPORT_BYTES:  # what is one byte there may be several here
        raise InvalidRequest(f"a report has at most {MAX_REPORT_BYTES:,} bytes")
    said = TaskReport(events=tuple(_event(event) for event in body.events), saved=body.saved)
    now = call.platform.clock.now()

    def look(tx: Transaction) -> tuple[Job, Attempt, Mapping[str, TaskReport]]:
        job, found = _current(tx, attempt, task)
        return job, found, reports.of(tx, [attempt]).get(attempt, {})

    job, found, before = call.platform.database.read(look)
    known = before.get(task)
    same = known is not None and known.model_copy(update={"seen_at": None}) == said
    quiet = known is not None and same and now - (known.seen_at or 0) < QUIET_NS
    if quiet or (known is not None and not _follows(said, known)):
        return wishes.of_attempt(job, found, before, now)

    def work(tx: Transaction) -> Wishes:
        job, found = _current(tx, attempt, task, stores=True)
        stored = reports.put(tx, attempt, task, said, now, lambda newest: _follows(said, newest))
        return wishes.of_attempt(job, found, {**before, task: said} if stored else before, now)

    wished = call.write(work)
    if not same:
        for topic in ("attempts", "wishes"):
            call.platform.hub.notify(topic)
    return wished


def seen(database: Database) -> Callable[[], Mapping[str, Mapping[str, TaskReport]]]:
    """Returns what tells what runners have said of the attempts that are not collected yet, by attempt and task."""
    heard = reports.Heard()
    return lambda: database.read(heard.look)


def require_own(call: Call, attempt: str) -> None:
    """Raises NotAllowed unless the attempt itself calls."""
    if call.actor.attempt_id != attempt:
        raise NotAllowed(f"{call.actor.name} may only speak for itself")


def _current(tx: Transaction, attempt: str, task: str, *, stores: bool = False) -> tuple[Job, Attempt]:
    job, found = access.current(tx, attempt, stores=stores)
    if all(one.name != task for one in found.tasks):
        raise InvalidRequest(f"attempt {attempt} has no task {task[:80]!r}")
    return job, found


def _follows(said: TaskReport, known: TaskReport) -> bool:
    """Says whether a report may follow another: after the last one comes what a server had that stood still."""

    def ended(report: TaskReport) -> bool:
        return any(event["event"] == "ended" for event in report.events)

    return ended(said) or not ended(known)


def _event(said: dict[str, Any]) -> dict[str, Any]:
    """Returns an event as it can be stored; its job may have made it up."""
    kind, at = said.get("event"), said.get("at")
    if not isinstance(kind, str) or type(at) is not int or not 0 <= at < MAX_WHOLE:
        raise InvalidRequest("an event has a text `event` and a time `at`, in ns UTC")
    cleaned: dict[str, Any] = _cleaned(said, MAX_DEPTH)
    return cleaned


def _cleaned(value: Any, depth: int) -> Any:
    """Returns a value of JSON without what no database takes: NUL, half characters, numbers past all bounds."""
    if isinstance(value, str):
        return value.replace("\0", "\ufffd").encode(errors="replace").decode()
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return value if -MAX_WHOLE <= value < MAX_WHOLE else None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth and isinstance(value, list | tuple):
        return [_cleaned(one, depth - 1) for one in value]
    if depth and isinstance(value, dict):
        return {_cleaned(str(name), 0): _cleaned(one, depth - 1) for name, one in value.items()}
    return None
