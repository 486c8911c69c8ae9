"""The ledger as tests audit it: every row of it, and what is still being counted; its sums, moment by moment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from sqlalchemy import select

from danlu.database import ledger, queries, tables
from danlu.database.engine import Database, Transaction
from danlu.database.records import ATTEMPTS
from danlu.domain.jobs import Attempt, AttemptState
from danlu.domain.ledger import CAPACITY, Account, Amounts, Entry, Meter, node_entries
from danlu.domain.nodes import NodeCapacity
from danlu.services.usage import live

RESOURCES: Final[Mapping[str, Callable[[Amounts], int]]] = {
    "cpu": lambda amounts: amounts.cpu_milli,
    "memory": lambda amounts: amounts.memory_bytes,
    **{
        f"gpu/{kind}": lambda amounts, kind=kind: amounts.gpus if amounts.gpu_kind == kind else 0
        for kind in ("gpu", "h100", "a100")
    },
}  # type: ignore[dict-item]


def rows(tx: Transaction) -> list[Entry]:
    """Returns every row of the ledger."""
    query = select(tables.ledger, tables.ledger_lines).where(tables.ledger.c.line == tables.ledger_lines.c.id)
    return [
        Entry(
            Meter(row.object_id, row.number, row.node, Amounts(row.cpu_milli, row.memory_bytes, row.gpus, row.gpu_kind),
                  row.begun, project=row.project, user=row.user, model=row.model),
            row.part, row.debit, Account(row.credit), row.since, row.until, row.unused_cpu_ns, row.unused_mib_s,
        )
        for row in tx.connection.execute(query)
    ]  # fmt: skip


def books(tx: Transaction, at: int) -> list[Entry]:
    """Returns every row, and what is counted at a time of the ledger as if it ended then."""
    nodes = [meter for meter in ledger.open_meters(tx) if meter.account is not None]
    return [*rows(tx), *live(tx, at), *(entry for meter in nodes for entry in node_entries(meter, at))]


def audit(entries: Iterable[Entry]) -> dict[tuple[str, str], Counter[str]]:
    """Returns what each account has, by node and resource.

    Raises AssertionError where all accounts together have something else than the node had, or one of them has less than
    nothing at any moment.
    """
    by_node: dict[str, list[Entry]] = {}
    for entry in entries:
        by_node.setdefault(entry.meter.node, []).append(entry)
    found = {}
    for node, mine in by_node.items():
        for resource, amount_of in RESOURCES.items():
            balance, moments = Counter[str](), Counter[tuple[str, int]]()
            for entry in mine:
                amount = amount_of(entry.meter.amounts)
                if not amount:
                    continue
                for account, sign in ((str(entry.credit), amount), (str(entry.debit), -amount)):
                    balance[account] += sign * (entry.until - entry.since)
                    moments[account, entry.since] += sign
                    moments[account, entry.until] -= sign
            whole = -balance.pop(CAPACITY, 0)
            assert sum(balance.values()) == whole, (node, resource, balance, whole)
            for name in Account:
                level = 0
                for moment in sorted(at for account, at in moments if account == name):
                    level += moments[name, moment]
                    assert level >= 0, f"{name} of {resource} of {node} has {level} at {moment}"
            found[node, resource] = balance + Counter({"whole": whole})
    return found


def check_books(database: Database, now: int, nodes: Iterable[NodeCapacity], *, exact: bool) -> None:
    """Raises AssertionError unless the ledger has what attempts held, once, and all accounts have capacity times time.

    ``exact``: no clock was ever set back; else the records' times are not those of the ledger, which does not go back.
    """
    at, posted = database.read(lambda tx: (ledger.time_of(tx, now), books(tx, ledger.time_of(tx, now))))
    found = audit(posted)
    for node in nodes:
        began = min((entry.since for entry in posted if entry.meter.object_id == node.name), default=at)
        whole = found.get((node.name, "cpu"), Counter())["whole"]
        assert whole == node.cpu_milli * (at - began), node.name
    ended = {
        event.object_id: event.at
        for event in database.read(lambda tx: queries.events_after(tx, 0, limit=1_000_000))
        if event.kind == Attempt.KIND and event.state == AttemptState.ENDED and event.previous != AttemptState.ENDED
    }
    counted = Counter[tuple[str, int]]()
    for entry in posted:
        if entry.debit in (Account.FREE, Account.BROKEN):
            counted[entry.meter.object_id, entry.meter.number] += entry.until - entry.since
    for attempt in database.read(lambda tx: ATTEMPTS.find(tx, limit=100_000)):
        held = max(0, ended[attempt.id] - attempt.created_at)
        for number, task in enumerate(attempt.tasks):  # each of one GPU kind: one meter
            length = counted[attempt.id, number]
            said = f"{task.name} of {attempt.id} was held for {held} ns, and {length} are in the ledger"
            assert length == held or not exact, said
