"""What reports read of the ledger: sums that the database makes, which no amount of rows can overflow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, and_, func, literal, or_, select

from danlu.database import tables
from danlu.database.engine import Transaction
from danlu.domain.ledger import CAPACITY, DAY_NS, Amounts
from danlu.domain.usage import By, Piece

SPLIT: Final = 10**9
"""A sum is made of two: of whole multiples of it, and of what is left. 2**33 rows of int64 do not overflow either."""
JOB_ID_LENGTH: Final = 27
ROWS, LINES = tables.ledger.c, tables.ledger_lines.c
COMMON: Final = (
    LINES.project, LINES.user, LINES.model, LINES.cpu_milli, LINES.memory_bytes, LINES.gpus, LINES.gpu_kind, LINES.debit,
    LINES.credit,
)  # fmt: skip
MEASURED: Final = (ROWS.unused_cpu_ns, ROWS.unused_mib_s)


def pieces(tx: Transaction, since: int, until: int, by: By, project: str | None = None) -> Iterator[Piece]:
    """Yields what the ledger has posted of a time, of one project or of all: whole entries summed, and those that are cut.

    An entry lies within a day of UTC, so that what is cut is of the first day or of the last one.
    """
    first, last = since // DAY_NS, min(until // DAY_NS, 2**31 - 1)
    job = func.substr(ROWS.object_id, 1, JOB_ID_LENGTH) if by is By.JOB else literal("")
    day: Any = ROWS.day if by is By.DAY else literal(0)
    groups: list[Any] = [LINES.id, *([ROWS.day] if by is By.DAY else []), *([job] if by is By.JOB else [])]
    sums = [half for what in (ROWS.until - ROWS.since, *MEASURED) for half in _halves(what)]
    whole = _entries(project, *COMMON, job, day, *sums).where(ROWS.day.between(first, last))
    for row in tx.connection.execute(whole.where(ROWS.since >= since, ROWS.until <= until).group_by(*groups)):
        high_low = row[len(COMMON) + 2 :]
        numbers = [int(high) * SPLIT + int(low) for high, low in zip(high_low[::2], high_low[1::2], strict=True)]
        yield _piece(row, *numbers)
    cut = _entries(project, *COMMON, job, ROWS.day, ROWS.since, ROWS.until, *MEASURED).where(
        ROWS.day.in_((first, last))
    )
    begins, ends = (and_(ROWS.since < at, ROWS.until > at) for at in (since, until))
    for row in tx.connection.execute(cut.where(or_(begins, ends))):
        begin, end, cpu_ns, mib_s = (int(number) for number in row[len(COMMON) + 2 :])
        length = min(end, until) - max(begin, since)
        # of what was not used, an even share: it was measured at the end alone
        yield _piece(row, length, cpu_ns * length // (end - begin), mib_s * length // (end - begin))


def _entries(project: str | None, *columns: Any) -> Select[Any]:
    """Returns a query of entries with their lines, of one project or of all: not of the nodes' own time."""
    query = select(*columns).select_from(tables.ledger_lines.join(tables.ledger, ROWS.line == LINES.id))
    query = query.where(LINES.debit != CAPACITY)
    return query if project is None else query.where(LINES.project == project)


def _halves(column: ColumnElement[int]) -> tuple[ColumnElement[Any], ColumnElement[Any]]:
    return func.sum(column // SPLIT), func.sum(column % SPLIT)


def _piece(row: Any, length_ns: int, unused_cpu_ns: int, unused_mib_s: int) -> Piece:
    project, user, model, cpu_milli, memory_bytes, gpus, gpu_kind, debit, credit, job, day = row[: len(COMMON) + 2]
    return Piece(
        project, user, model, str(job), int(day), Amounts(cpu_milli, memory_bytes, gpus, gpu_kind), debit, credit, length_ns,
        unused_cpu_ns, unused_mib_s,
    )  # fmt: skip
