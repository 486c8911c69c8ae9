"""What runners in pods report of their tasks: the newest report of each, until its attempt is collected."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from sqlalchemy import Select, case, delete, insert, select, update

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


def put(tx: Transaction, attempt_id: str, task: str, report: TaskReport, seen_at: int) -> None:
    """Keeps a task's report in place of the one before, which its time tells it apart from."""
    reports, body = tables.reports, report.model_dump(mode="json", exclude={"seen_at"})
    changed = tx.connection.execute(
        update(reports)
        .where(reports.c.attempt_id == attempt_id, reports.c.task == task)
        .values(seen_at=case((reports.c.seen_at < seen_at, seen_at), else_=reports.c.seen_at + 1), body=body)
    )
    if not changed.rowcount:
        tx.connection.execute(insert(reports).values(attempt_id=attempt_id, task=task, seen_at=seen_at, body=body))


def remove(tx: Transaction, attempt_id: str) -> None:
    """Removes an attempt's reports. Absent is success."""
    tx.connection.execute(delete(tables.reports).where(tables.reports.c.attempt_id == attempt_id))
