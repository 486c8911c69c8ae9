"""Usage: reports of the ledger, with what runs now."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

from danlu.api.bodies import UsageQuery
from danlu.database import ledger, queries, usage
from danlu.database.engine import Transaction
from danlu.database.records import JOBS, PRICES
from danlu.domain.ledger import DAY_NS, Entry, entries
from danlu.domain.prices import MAX_PRICES, Price, boundaries, told_at, valid_at
from danlu.domain.usage import By, Piece, UsageReport, dearest_first, piece_of, summed
from danlu.errors import InvalidRequest, NotAllowed
from danlu.services.context import Call

SINCE_DAYS = 30


def report(call: Call, query: UsageQuery) -> UsageReport:
    """Returns who held what within a time: of the project, or of all projects.

    Raises:
        NotAllowed: all projects are for administrators.
        InvalidRequest: the time ends before it begins.
    """
    if query.platform and not call.actor.sees_all:
        raise NotAllowed(
            "the usage of all projects is for administrators", next_step="your project's: danlu usage --project NAME"
        )
    now = call.platform.clock.now()
    until = now if query.until is None else query.until
    since = max(0, until - SINCE_DAYS * DAY_NS) if query.since is None else query.since
    if since >= until:
        end = "now" if query.until is None else f"until {told_at(until)}"
        raise InvalidRequest(f"since {told_at(since)} is not before {end}", next_step="give an earlier --since")
    project = None if query.platform else call.project

    def work(tx: Transaction) -> UsageReport:
        running = live(tx, ledger.time_of(tx, min(until, now)), project)
        lines, total = summed(_pieces(tx, running, (since, until), query.by, project), query.by)
        names = sorted(lines) if query.by is By.DAY else dearest_first(lines, total)
        shown = names[: query.limit]
        jobs = {job.id: job for job in JOBS.find(tx, id=shown, limit=query.limit)} if query.by is By.JOB else {}
        return UsageReport(
            by=query.by, since=since, until=until, more=len(names) > len(shown), total=total.line("total"),
            lines=tuple(lines[name].line(name, jobs.get(name)) for name in shown),
        )  # fmt: skip

    return call.platform.database.read(work)


def _pieces(
    tx: Transaction, running: Sequence[Entry], span: tuple[int, int], by: By, project: str | None
) -> Iterator[tuple[Piece, Mapping[str, Price]]]:
    """Yields what was held within a time and what is, in pieces with the prices that were valid then."""
    prices = PRICES.find(tx, limit=MAX_PRICES)
    for first, last in itertools.pairwise(boundaries(prices, *span)):
        valid = valid_at(prices, first)
        for piece in usage.pieces(tx, first, last, by, project):
            yield piece, valid
        for entry in running:
            found = piece_of(entry, first, last)
            if found is not None:
                yield found, valid


def live(tx: Transaction, at: int, project: str | None = None) -> list[Entry]:
    """Returns the entries of what is held at a time of the ledger, as they would be if it ended then."""
    attempts = {attempt.id: attempt for attempt in queries.holding_attempts(tx, project)}
    meters = [meter for meter in ledger.open_meters(tx, project=project) if meter.object_id in attempts]
    begun = min((meter.since for meter in meters), default=at)
    gone = {node: ledger.outages(tx, node, begun, at) for node in {meter.node for meter in meters}}
    return [entry for meter in meters for entry in entries(attempts[meter.object_id], meter, at, gone[meter.node])]
