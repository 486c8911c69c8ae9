"""What runners in pods report of their tasks: the newest report of each, until its attempt is collected."""

from __future__ import annotations

from collections.abc import Callable, Collection
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


def every(tx: Transaction) -> Reports:
    """Returns all of them: those of attempts that were not collected yet."""
    return _read(tx, select(tables.reports), Reports())


def _read(tx: Transaction, query: Select[Any], found: Reports) -> Reports:
    for row in tx.connection.execute(query).mappings():
        report = TaskReport.model_validate({**row["body"], "seen_at": row["seen_at"]})
        found.setdefault(row["attempt_id"], {})[row["task"]] = report
    return found


def put(
    tx: Transaction, attempt_id: str, task: str, report: TaskReport, seen_at: int,
    follows: Callable[[TaskReport], bool] = lambda _before: True,
) -> bool:  # fmt: skip
    """Keeps a task's report in place of the one before, if it ``follows`` that one; returns whether it does."""
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
    if not follows(found[attempt_id][task]):
        return False
    tx.connection.execute(update(reports).where(*its).values(**values))
    return True


def remove(tx: Transaction, attempt_id: str) -> None:
    """Removes an attempt's reports. Absent is success."""
    tx.connection.execute(delete(tables.reports).where(tables.reports.c.attempt_id == attempt_id))
