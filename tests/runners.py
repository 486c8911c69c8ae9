"""What runners in pods report of a process that the simulated executor's scripts play."""

from __future__ import annotations

from typing import Any

from danlu.domain.jobs import Task
from danlu.domain.reports import SavedCheckpoint, TaskReport
from danlu.executors.base import Observation, Phase

EXITED = frozenset({"exit_code", "signal", "oom", "stopped", "port_taken", "last_lines", "error"})


def report(seen: Observation, task: Task, ended: dict[str, Any] | None, *, silent: bool = False) -> TaskReport:
    """Returns all that there is to tell of a task.

    Args:
        ended: what is told with the last word; None: that is not said yet.
        silent: its runner has not told any end.
    """
    events: list[dict[str, Any]] = [{"event": "runner", "at": task.started_at or 0}]
    if task.started_at is not None:
        events.append({"event": "started", "task": task.name, "at": task.started_at})
        events += [{"event": "restarted", "task": task.name, "at": task.started_at} for _ in range(task.restarts)]
    at = task.ended_at or seen.ended_at
    over = seen.phase in (Phase.ENDED, Phase.LOST) or task.ended_at is not None
    if over and not silent:
        lost = {"lost": True} if seen.phase is Phase.LOST else {}
        events.append({"event": "exited", "task": task.name, "at": at, **task.model_dump(include=EXITED), **lost})
    if ended is not None and not silent:
        events.append({"event": "ended", "at": at, **ended})
    saved = None if seen.saved_at is None else SavedCheckpoint(name=seen.saved_as, at=seen.saved_at)
    return TaskReport(events=tuple(events), saved=saved)
