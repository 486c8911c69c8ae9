"""What reports read of the ledger: sums that the database makes, which no amount of rows can overflow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from sqlalchemy import BigInteger, ColumnElement, Float, and_, case, cast, func, literal, select

from danlu.database import tables
from danlu.database.engine import Transaction
from danlu.domain.ledger import CAPACITY, Amounts
from danlu.domain.usage import By, Piece

SPLIT: Final = 10**9
"""A sum is made of two: of whole multiples of it, and of what is left. 2**33 rows of int64 do not overflow either."""
JOB_ID_LENGTH: Final = 27


def pieces(tx: Transaction, since: int, until: int, by: By, project: str | None = None) -> Iterator[Piece]:
    """Yields what the ledger has posted of a time, cut to it, of one project or of all."""
    rows = tables.ledger.c
    greatest, least = (func.greatest, func.least) if tx.dialect == "postgresql" else (func.max, func.min)
    length = least(rows.until, literal(until, BigInteger)) - greatest(rows.since, literal(since, BigInteger))
    within = and_(rows.since >= since, rows.until <= until)

    def part(column: ColumnElement[int]) -> ColumnElement[int]:
        """Of what was not used, an even share of a row that is cut: it was measured at the end alone."""
        share = cast(column, Float) * cast(length, Float) / cast(rows.until - rows.since, Float)
        return case((within, column), else_=cast(share, BigInteger))

    job = func.substr(rows.object_id, 1, JOB_ID_LENGTH) if by is By.JOB else literal("")
    groups: list[Any] = [rows.line, *([rows.day] if by is By.DAY else []), *([job] if by is By.JOB else [])]
    day: Any = rows.day if by is By.DAY else literal(0)
    sums = [half for what in (length, part(rows.unused_cpu_ns), part(rows.unused_mib_s)) for half in _halves(what)]
    query = select(rows.line, day, job, *sums).where(rows.since < until, rows.until > since).group_by(*groups)
    lines = _lines(tx, project)
    if project is not None:
        if not lines:
            return
        known = tables.ledger_lines.c
        query = query.where(rows.line.in_(select(known.id).where(known.project == project)))
    for line, day_, job_, *halves in tx.connection.execute(query):
        fields = lines.get(int(line))
        if fields is None:
            continue  # a node's own
        whole = [int(high) * SPLIT + int(low) for high, low in zip(halves[::2], halves[1::2], strict=True)]
        amounts = Amounts(fields.cpu_milli, fields.memory_bytes, fields.gpus, fields.gpu_kind)
        yield Piece(
            fields.project,
            fields.user,
            fields.model,
            str(job_),
            int(day_),
            amounts,
            fields.debit,
            fields.credit,
            *whole,
        )


def _halves(column: ColumnElement[int]) -> tuple[ColumnElement[Any], ColumnElement[Any]]:
    return func.sum(column // SPLIT), func.sum(column % SPLIT)


def _lines(tx: Transaction, project: str | None) -> dict[int, Any]:
    """Returns the lines of one project, or of all: not of the nodes' own time."""
    lines = tables.ledger_lines.c
    query = select(tables.ledger_lines).where(lines.debit != CAPACITY)
    if project is not None:
        query = query.where(lines.project == project)
    return {int(row.id): row for row in tx.connection.execute(query)}
