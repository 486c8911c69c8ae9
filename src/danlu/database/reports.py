"""What runners in pods report of their tasks: the newest report of each, until its attempt is collected."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from sqlalchemy import Select, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from danlu.database import tables
from danlu.database.engine import Transaction
from danlu.domain.reports import TaskReport

AT_ONCE: Final = 500
Reports = dict[str, dict[str, TaskReport]]
"""By attempt and task."""


def of(tx: Transaction, attempt_ids: Collection[str]) -> Reports:
    """Returns the reports of some attempts."""
    reports, found = tables.reports.c, Reports()
    asked = sorted(attempt_ids)
    for first in range(0, len(asked), AT_ONCE):
        query = select(tables.reports).where(reports.attempt_id.in_(asked[first : first + AT_ONCE]))
        _read(tx, query, found)
    return found


class Heard:
    """All reports, those of attempts that were not collected yet, of look after look: what came since is read anew."""

    def __init__(self) -> None:
        self._known: dict[str, dict[str, TaskReport]] = {}

    def look(self, tx: Transaction) -> Reports:
        """Returns them. Any thread may look; what it returns is for nobody to change."""
        reports, known, times = tables.reports.c, self._known, dict[str, dict[str, int]]()
        for attempt_id, task, seen_at in tx.connection.execute(
            select(reports.attempt_id, reports.task, reports.seen_at)
        ):
            times.setdefault(attempt_id, {})[task] = seen_at
        kept = {one: known[one] for one, seen in times.items() if one in known and _times(known[one]) == seen}
        fresh = of(tx, times.keys() - kept.keys())
        self._known = found = {one: kept.get(one) or fresh[one] for one in times if one in kept or one in fresh}
        return found


def _times(reports: Mapping[str, TaskReport]) -> dict[str, int | None]:
    return {task: report.seen_at for task, report in reports.items()}


def _read(tx: Transaction, query: Select[Any], found: Reports) -> Reports:
    for row in tx.connection.execute(query).mappings():
        report = TaskReport.model_validate({**row["body"], "seen_at": row["seen_at"]})
        found.setdefault(row["attempt_id"], {})[row["task"]] = report
    return found


def put(
    tx: Transaction, attempt_id: str, task: str, report: TaskReport, seen_at: int,
    follows: Callable[[TaskReport], bool] = lambda _before: True,
) -> bool:  # fmt: skip
    """Keeps a task's report in place of the one before, if it ``follows`` that one; returns whether it does.

    Its time tells it apart from the one before.
    """
    reports = tables.reports
    values = {"seen_at": seen_at, "body": report.model_dump(mode="json", exclude={"seen_at"})}
    its = (reports.c.attempt_id == attempt_id, reports.c.task == task)
    newest = select(reports).where(*its).with_for_update()
    found = _read(tx, newest, Reports())
    if not found:  # who stores the first one at the same time is waited for
        first = (postgresql if tx.dialect == "postgresql" else sqlite).insert(reports)
        row = first.values(attempt_id=attempt_id, task=task, **values).on_conflict_do_nothing()
        if tx.connection.execute(row).rowcount:
            return True
        found = _read(tx, newest, Reports())
    before = found[attempt_id][task]
    if not follows(before):
        return False
    values["seen_at"] = max(seen_at, (before.seen_at or 0) + 1)
    tx.connection.execute(update(reports).where(*its).values(**values))
    return True


def remove(tx: Transaction, attempt_id: str) -> None:
    """Removes an attempt's reports. Absent is success."""
    tx.connection.execute(delete(tables.reports).where(tables.reports.c.attempt_id == attempt_id))
