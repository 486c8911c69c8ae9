"""The ledger's rows: posted in the transaction in which an attempt or a node changes, whoever changes it.

``records.py`` calls this for every attempt and node that is stored, as it stores their events: no caller can forget it. See
``domain/ledger.py`` for the rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, Final, NamedTuple

from sqlalchemy import delete, func, insert, select
from sqlalchemy.dialects import postgresql, sqlite

from danlu.database import tables
from danlu.database.engine import Transaction
from danlu.domain.jobs import Attempt, AttemptState
from danlu.domain.ledger import (
    DAY_NS,
    MODEL_LABEL,
    Account,
    Amounts,
    Entry,
    Meter,
    Outages,
    Who,
    entries,
    gone,
    meters,
    node_entries,
    node_meters,
)
from danlu.domain.nodes import NODE_PROJECT, Node, NodeCapacity

CLOCK: Final = "ledger's time"
"""The counter that holds the newest time of the ledger: it never goes back."""
AT_ONCE: Final = 500


def time_of(tx: Transaction, now: int) -> int:
    """Returns the ledger's time at ``now``, without moving it."""
    clock = tables.counters.c
    newest = tx.connection.execute(
        select(clock.value).where(clock.project == NODE_PROJECT, clock.name == CLOCK)
    ).scalar()
    return max(now, newest or 0)


def attempt_stored(tx: Transaction, old: Attempt | None, new: Attempt) -> None:
    """Opens the meters of an attempt that is new, and posts what they have counted of one that has ended."""
    if old is None:
        at = _advance(tx, new.created_at)
        _open(tx, meters(new, _who(tx, new), _kinds(tx, {task.node for task in new.tasks}), at))
    if new.state is AttemptState.ENDED and (old is None or old.state is not AttemptState.ENDED):
        at = _advance(tx, new.updated_at)
        found = open_meters(tx, new.id)
        gone = {node: outages(tx, node, since, at) for node, since in {(meter.node, meter.since) for meter in found}}
        _post(tx, (entry for meter in found for entry in entries(new, meter, at, gone[meter.node])))
        _close(tx, new.id)


def node_stored(tx: Transaction, old: Node | None, new: Node) -> None:
    """Posts the time of what a node had, and begins to count what it has now; one that is gone has it broken."""
    if old is not None and old.capacity == new.capacity:
        return
    at = _advance(tx, new.updated_at)
    before = open_meters(tx, new.id)
    _post(tx, [entry for meter in before for entry in node_entries(meter, at)])
    _close(tx, new.id)
    after = node_meters(new.id, new.capacity, at)
    if gone(new.capacity) and before:
        after = tuple(
            Meter(new.id, meter.number, meter.node, meter.amounts, at, account=Account.BROKEN) for meter in before
        )
    _open(tx, after)


class Held(NamedTuple):
    """What a project's attempts of one size held on one day, as if one after the other. Times are ns UTC."""

    project: str
    cpu_milli: int
    memory_bytes: int
    gpus: int
    began: int
    ended: int


def held_lately(tx: Transaction, since: int, limit: int) -> list[Held]:
    """Returns what was held since a time, and is not any more, in the order of its end; of too much the newest."""
    line, entry = tables.ledger_lines.c, tables.ledger.c
    # in ms: the sum of a day's intervals in ns could be more than a database counts
    lasted_ms = func.sum((entry.until - entry.since) / 1_000_000)
    ended = func.max(entry.until)
    query = (
        select(line.project, line.cpu_milli, line.memory_bytes, line.gpus, lasted_ms, ended)
        .select_from(tables.ledger.join(tables.ledger_lines, entry.line == line.id))
        # an entry lies within a day: the days before are not read, of however many years they are
        .where(entry.until > since, entry.day >= since // DAY_NS)
        .where(line.debit == Account.FREE, line.project != NODE_PROJECT)
        .group_by(line.project, line.cpu_milli, line.memory_bytes, line.gpus, entry.day)
        .order_by(ended.desc(), line.project, line.cpu_milli, line.memory_bytes, line.gpus)
        .limit(limit)
    )
    rows = [(*row[:4], int(row[5]) - int(row[4]) * 1_000_000, int(row[5])) for row in tx.connection.execute(query)]
    return [Held._make(row) for row in reversed(rows)]


def open_meters(tx: Transaction, object_id: str | None = None, *, project: str | None = None) -> list[Meter]:
    """Returns what is being counted, of one attempt or node, of the attempts of a project, or of all."""
    query = select(tables.meters).order_by(tables.meters.c.object_id, tables.meters.c.number)
    if object_id is not None:
        query = query.where(tables.meters.c.object_id == object_id)
    if project is not None:
        query = query.where(tables.meters.c.body["project"].as_string() == project)
    return [_meter(row.object_id, row.number, row.body) for row in tx.connection.execute(query)]


def outages(tx: Transaction, node: str, since: int, until: int) -> Outages:
    """Returns when a node was gone, from ``since`` until ``until``."""
    rows, lines = tables.ledger.c, tables.ledger_lines.c
    query = (
        select(rows.since, rows.until).distinct()
        .where(rows.object_id == node, rows.line == lines.id, lines.credit == Account.BROKEN)
        .where(rows.until > since, rows.since < until).order_by(rows.since)
    )  # fmt: skip
    found = [(int(begin), int(end)) for begin, end in tx.connection.execute(query)]
    still = [meter.since for meter in open_meters(tx, node) if meter.account is Account.BROKEN]
    return [*found, *([(min(still), until)] if still and min(still) < until else [])]


def _advance(tx: Transaction, now: int) -> int:
    """Moves the ledger's time on to ``now``, unless it is later already, and returns it."""
    table = tables.counters
    statement = _upsert(tx, table).values(project=NODE_PROJECT, name=CLOCK, value=now)
    later = func.greatest if tx.dialect == "postgresql" else func.max
    statement = statement.on_conflict_do_update(
        index_elements=[table.c.project, table.c.name], set_={"value": later(table.c.value, now)}
    ).returning(table.c.value)
    return int(tx.connection.execute(statement).scalar_one())


def _upsert(tx: Transaction, table: Any) -> Any:
    build: Any = postgresql.insert if tx.dialect == "postgresql" else sqlite.insert
    return build(table)


def _who(tx: Transaction, attempt: Attempt) -> Who:
    jobs = tables.jobs.c
    body = tx.connection.execute(select(jobs.body).where(jobs.id == attempt.job_id)).scalar() or {}
    labels = body.get("spec", {}).get("labels", {})
    return Who(attempt.project, body.get("created_by", "")[:80], labels.get(MODEL_LABEL, ""))


def _kinds(tx: Transaction, names: Iterable[str]) -> dict[str, dict[int, str]]:
    nodes = tables.nodes.c
    rows = tx.connection.execute(select(nodes.id, nodes.body).where(nodes.id.in_(sorted(names))))
    found = {row.id: NodeCapacity.model_validate(row.body["capacity"]) for row in rows}
    return {name: {gpu.index: gpu.kind for gpu in capacity.gpus} for name, capacity in found.items()}


def _meter(object_id: str, number: int, body: dict[str, Any]) -> Meter:
    fields = dict(body)
    amounts = Amounts(**{name: fields.pop(name) for name in ("cpu_milli", "memory_bytes", "gpus", "gpu_kind")})
    account = fields.pop("account")
    return Meter(
        object_id=object_id, number=number, amounts=amounts, account=account and Account(account), **fields
    )  # fmt: skip


def _open(tx: Transaction, found: Sequence[Meter]) -> None:
    rows = []
    for meter in found:
        body = asdict(meter)
        body |= body.pop("amounts")._asdict()
        rows.append({"object_id": body.pop("object_id"), "number": body.pop("number"), "body": body})
    if rows:
        tx.connection.execute(insert(tables.meters), rows)


def _close(tx: Transaction, object_id: str) -> None:
    tx.connection.execute(delete(tables.meters).where(tables.meters.c.object_id == object_id))


def _post(tx: Transaction, posted: Iterable[Entry]) -> None:
    """Appends entries; what is there already stays as it is."""
    lines: dict[tuple[Any, ...], int] = {}
    rows = []
    for entry in posted:
        meter = entry.meter
        rows.append(
            {
                "object_id": meter.object_id, "number": meter.number, "begun": meter.since, "part": entry.part,
                "line": _line(tx, entry, lines), "day": entry.since // DAY_NS, "node": meter.node, "since": entry.since,
                "until": entry.until, "unused_cpu_ns": entry.unused_cpu_ns, "unused_mib_s": entry.unused_mib_s,
            }
        )  # fmt: skip
    for at in range(0, len(rows), AT_ONCE):
        tx.connection.execute(_upsert(tx, tables.ledger).on_conflict_do_nothing(), rows[at : at + AT_ONCE])


def _line(tx: Transaction, entry: Entry, known: dict[tuple[Any, ...], int]) -> int:
    """Returns the number of what an entry has in common with others."""
    meter, amounts = entry.meter, entry.meter.amounts
    fields = {
        "project": meter.project, "user": meter.user, "model": meter.model, "gpu_kind": amounts.gpu_kind[:256],
        "cpu_milli": amounts.cpu_milli, "memory_bytes": amounts.memory_bytes, "gpus": amounts.gpus,
        "debit": str(entry.debit), "credit": str(entry.credit),
    }  # fmt: skip
    key = tuple(fields.values())
    if key not in known:
        table = tables.ledger_lines
        query = select(table.c.id).where(*(table.c[name] == value for name, value in fields.items()))
        number = tx.connection.execute(query).scalar()
        if number is None:
            tx.connection.execute(_upsert(tx, table).values(**fields).on_conflict_do_nothing())
            number = tx.connection.execute(query).scalar_one()
        known[key] = int(number)
    return known[key]
