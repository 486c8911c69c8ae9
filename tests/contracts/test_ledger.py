"""The ledger on both databases: posted with what it is about, once, whoever changes it; its sums are exact."""

from __future__ import annotations

import itertools
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event

from danlu.api.bodies import Paging, UsageQuery
from danlu.blobs.local import LocalBlobs
from danlu.blobs.local_streams import LocalStreams
from danlu.controllers.decisions import rejected
from danlu.database import ledger, queries, usage
from danlu.database.engine import Database, Transaction
from danlu.database.records import ATTEMPTS, JOBS, NODES, PRICES, PROJECTS
from danlu.domain.actors import Actor
from danlu.domain.jobs import Attempt, AttemptState, Job, JobState, Reason
from danlu.domain.ledger import DAY_NS, HELD, Account, Amounts, Entry, Meter
from danlu.domain.nodes import NodeCapacity
from danlu.domain.prices import PriceRequest
from danlu.domain.resources import Resources
from danlu.domain.usage import By, UsageReport, piece_of
from danlu.errors import Conflict, InvalidRequest, NotAllowed, NotFound
from danlu.services import prices
from danlu.services.context import Call, Platform, PlatformFacts
from danlu.services.usage import report
from danlu.services.vault import Vault
from tests.books import audit, books, rows
from tests.databases import set_back, together
from tests.factories import (
    GIB,
    NOW,
    SECOND,
    Ids,
    make_attempt,
    make_job,
    make_node,
    make_price,
    make_project,
    make_task,
)

HOUR = 3600 * SECOND


def at(seconds: float) -> int:
    return NOW + int(seconds * SECOND)


class Fixed:
    """A clock that tells what the test says."""

    def __init__(self) -> None:
        self.time = at(3600)

    def now(self) -> int:
        return self.time

    def wall(self) -> int:
        return self.time


@pytest.fixture
def call(database: Database, tmp_path: Path) -> Call:
    def fill(tx: Transaction) -> None:
        PROJECTS.add(tx, make_project())
        NODES.add(tx, make_node(cpu=8, memory=32 * GIB, h100=4))

    database.write(fill)
    random = Random(0)
    platform = Platform(
        database=database, blobs=LocalBlobs(tmp_path), streams=LocalStreams(tmp_path), clock=Fixed(),
        random_bits=random.getrandbits, facts=PlatformFacts("", NOW, "", host_environment=True), attempt_key=b"",
        vault=Vault(b"m" * 32, random.randbytes),
    )  # fmt: skip
    return Call(platform, Actor(id="k", name="root", administrator=True), "default")


TASK = make_task(resources=Resources(cpu_milli=2000, memory_bytes=4 * GIB, gpus=2), devices=(0, 1))


def started(
    database: Database, *, number: int = 0, until: AttemptState = AttemptState.RUNNING, **job: Any
) -> tuple[Job, Attempt]:
    """Stores a job and its attempt, placed at 0 s, that has come as far as ``until``; it runs from 2 s on."""
    made = make_job(f"j{number:026d}", state=JobState.STARTING, attempts=1, **job)
    attempt = make_attempt(made, tasks=(TASK,))
    moves = [attempt]
    if until is not AttemptState.PLACED:
        moves.append(attempt.moved(AttemptState.LAUNCHING, now=at(1), reason=Reason.LAUNCHING))
    if until in (AttemptState.RUNNING, AttemptState.ENDING):
        running = TASK.model_copy(update={"started_at": at(2)})
        moves.append(
            moves[-1].moved(AttemptState.RUNNING, now=at(3), reason=Reason.STARTED, started_at=at(2), tasks=(running,))
        )
    if until is AttemptState.ENDING:
        moves.append(moves[-1].moved(AttemptState.ENDING, now=at(4), reason=Reason.STOP_REQUESTED))

    def work(tx: Transaction) -> None:
        JOBS.add(tx, made)
        ATTEMPTS.add(tx, attempt)
        for old, new in itertools.pairwise(moves):
            ATTEMPTS.put(tx, old, new)

    database.write(work)
    return made, moves[-1]


def end(
    database: Database, attempt: Attempt, reason: Reason = Reason.COMPLETED, *, now: int = at(12), **fields: Any
) -> Attempt:
    over = attempt.moved(AttemptState.ENDED, now=now, reason=reason, **{"ended_at": at(10), **fields})
    database.write(lambda tx: ATTEMPTS.put(tx, attempt, over))
    return over


def told(database: Database, attempt: Attempt) -> list[tuple[str, float, float]]:
    found = [e for e in database.read(rows) if e.meter.object_id == attempt.id]
    return [
        (str(e.credit), (e.since - NOW) / SECOND, (e.until - NOW) / SECOND) for e in sorted(found, key=lambda e: e.part)
    ]


@pytest.mark.parametrize("state", [state for state in AttemptState if state is not AttemptState.ENDED])
def test_whichever_way_an_attempt_ends_what_it_held_is_posted(
    database: Database, call: Call, state: AttemptState
) -> None:
    _, attempt = started(database, until=state)
    end(database, attempt)
    runs = state in (AttemptState.RUNNING, AttemptState.ENDING)
    assert told(database, attempt) == (
        [("platform", 0, 2), ("used", 2, 10), ("platform", 10, 12)] if runs else [("platform", 0, 12)]
    )
    found = audit(database.read(lambda tx: books(tx, at(12))))["node-1", "gpu/h100"]
    assert found["whole"] == 4 * 12 * SECOND
    assert found["used"] == (2 * 8 * SECOND if runs else 0)


def test_what_is_refused_is_posted_too(database: Database, call: Call) -> None:
    job, attempt = started(database, until=AttemptState.LAUNCHING)
    decision = rejected(job, attempt, Reason.LAUNCH_REJECTED, "no", at(5))
    database.write(lambda tx: ATTEMPTS.put(tx, attempt, decision.attempts[-1]))
    assert told(database, attempt) == [("platform", 0, 5)]


def test_what_is_not_stored_is_not_posted(database: Database, call: Call) -> None:
    _, attempt = started(database)
    over = attempt.moved(AttemptState.ENDED, now=at(12), reason=Reason.COMPLETED, ended_at=at(10))

    def work(tx: Transaction) -> None:
        ATTEMPTS.put(tx, attempt, over)
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        database.write(work)
    assert told(database, attempt) == []
    assert len(database.read(lambda tx: ledger.open_meters(tx, attempt.id))) == 1


def test_posting_twice_is_once(database: Database, call: Call) -> None:
    _, attempt = started(database)
    meters = database.read(lambda tx: ledger.open_meters(tx, attempt.id))
    over = end(database, attempt)
    before = database.read(rows)

    def again(tx: Transaction) -> None:
        ledger._open(tx, meters)
        ledger.attempt_stored(tx, attempt, over)

    database.write(again)
    assert database.read(rows) == before
    collected = over.evolved(now=at(20), collected=True)
    database.write(lambda tx: ATTEMPTS.put(tx, over, collected))
    assert database.read(rows) == before


def test_a_node_that_goes_is_broken_until_it_is_back(database: Database, call: Call) -> None:
    _, attempt = started(database)
    node = database.read(lambda tx: NODES.require(tx, "node-1"))
    lost = node.evolved(now=at(5), capacity=NodeCapacity(name="node-1", cpu_milli=0, memory_bytes=0))
    database.write(lambda tx: NODES.put(tx, node, lost))
    audit(database.read(lambda tx: books(tx, at(6))))
    end(database, attempt, Reason.RUNNER_LOST, now=at(7), seen_at=at(4))
    assert told(database, attempt) == [("platform", 0, 2), ("used", 2, 4), ("platform", 4, 5), ("platform", 5, 7)]
    back = lost.evolved(now=at(9), capacity=node.capacity)
    database.write(lambda tx: NODES.put(tx, lost, back))
    found = audit(database.read(lambda tx: books(tx, at(12))))["node-1", "cpu"]
    assert found["whole"] == 8000 * 12 * SECOND
    assert found["broken"] == 8000 * 4 * SECOND - 2000 * 2 * SECOND
    assert found["used"] == 2000 * 2 * SECOND


def test_a_clock_that_is_set_back_sells_nothing_twice(database: Database, call: Call) -> None:
    _, first = started(database)
    end(database, first, now=at(600))
    _, second = started(database, number=2)  # placed at 0 s, says the clock, which was at 600 s
    end(database, second, now=at(300))
    assert told(database, second) == []
    _, third = started(database, number=3)
    end(database, third, now=at(700), ended_at=at(650))
    assert told(database, third) == [("used", 600, 650), ("platform", 650, 700)]
    audit(database.read(lambda tx: books(tx, at(700))))


def usage_of(call: Call, **fields: Any) -> UsageReport:
    return report(call, UsageQuery.model_validate({"since": NOW, "until": at(3600), **fields}))


def test_a_report_tells_what_was_held(database: Database, call: Call) -> None:
    _, attempt = started(database, created_by="ada", spec={"labels": {"model": "resnet"}})
    measured = attempt.tasks[0].model_copy(update={"ended_at": at(10), "cpu_ns": 4 * SECOND, "peak_memory_bytes": GIB})
    end(database, attempt, tasks=(measured,))
    (line,) = usage_of(call).lines
    assert line.name == "default"
    assert line.gpu_seconds["h100"].model_dump() == {"used": 16, "idle": 0, "platform": 8}
    assert line.cpu_core_seconds.model_dump() == {"used": 16, "idle": 0, "platform": 8}
    assert line.memory_byte_seconds.used == 32 * GIB
    assert line.waste.model_dump() == {"cpu_core_seconds": 12, "memory_byte_seconds": 24 * GIB, "gpu_seconds": 0}
    names = {by: usage_of(call, by=by).lines[0].name for by in By}
    assert names == {
        By.PROJECT: "default", By.USER: "ada", By.JOB: attempt.job_id, By.MODEL: "resnet", By.GPU_KIND: "h100",
        By.DAY: "2023-11-14",
    }  # fmt: skip
    assert usage_of(call, by=By.JOB).lines[0].label.startswith("job-")
    cut = usage_of(call, since=at(2.5), until=at(4.5)).lines[0]
    assert cut.gpu_seconds["h100"].model_dump() == {"used": 4, "idle": 0, "platform": 0}
    assert cut.waste.cpu_core_seconds == 3
    assert usage_of(call, since=at(20)).lines == ()


def test_what_runs_is_in_the_report(database: Database, call: Call) -> None:
    started(database)
    (line,) = usage_of(call, until=at(12)).lines
    assert line.gpu_seconds["h100"].model_dump() == {"used": 20, "idle": 0, "platform": 4}


def test_nothing_is_charged_before_it_has_happened(database: Database, call: Call) -> None:
    started(database)
    (line,) = usage_of(call, until=2**61).lines  # the clock says 3600 s
    assert line.gpu_seconds["h100"].model_dump() == {"used": 2 * 3598, "idle": 0, "platform": 4}


def test_a_report_of_a_project_reads_nothing_of_others(database: Database, call: Call) -> None:
    _, mine = started(database)
    _, other = started(database, number=2, project="other")
    for project, expected in (("default", [mine.id]), ("other", [other.id]), (None, [mine.id, other.id])):
        held = database.read(partial(queries.holding_attempts, project=project))
        meters = database.read(partial(ledger.open_meters, project=project))
        assert [attempt.id for attempt in held] == expected
        assert [meter.object_id for meter in meters if meter.account is None] == expected


def test_the_end_of_a_gang_takes_no_more_questions_than_that_of_a_task(database: Database, call: Call) -> None:
    def asked(number: int, tasks: int) -> int:
        job = make_job(f"j{number:026d}", state=JobState.STARTING, attempts=1)
        attempt = make_attempt(job, tasks=tuple(make_task(index=rank, rank=rank) for rank in range(tasks)))
        database.write(lambda tx: (JOBS.add(tx, job), ATTEMPTS.add(tx, attempt)))
        statements: list[str] = []

        def heard(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            statements.append(statement)

        event.listen(Engine, "before_cursor_execute", heard)
        try:
            end(database, attempt)
        finally:
            event.remove(Engine, "before_cursor_execute", heard)
        return len(statements)

    asked(1, 1)  # makes what entries of this size have in common
    assert asked(2, 20) == asked(3, 1)


def test_what_was_held_lately_is_found_without_reading_what_was_before(sqlite: Database) -> None:
    asked: list[tuple[str, Any]] = []

    def heard(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        asked.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", heard)
    try:
        sqlite.read(lambda tx: ledger.held_lately(tx, NOW, 10))
    finally:
        event.remove(Engine, "before_cursor_execute", heard)
    ((statement, parameters),) = (one for one in asked if "FROM ledger" in one[0])
    plan = sqlite.read(lambda tx: tx.connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all())
    assert any("ix_ledger_line_day (line=? AND day>?)" in row[-1] for row in plan), plan


def test_preempted_work_is_charged_until_its_checkpoint(database: Database, call: Call) -> None:
    _, attempt = started(database)
    database.write(lambda tx: PRICES.add(tx, make_price(per_hour="3600")))
    end(database, attempt, Reason.PREEMPTED, saved_at=at(6))
    (line,) = usage_of(call).lines
    assert line.gpu_seconds["h100"].model_dump() == {"used": 8, "idle": 0, "platform": 16}
    assert line.cost == {"USD": 8}


def test_a_price_that_changes_within_a_run_splits_its_cost(database: Database, call: Call) -> None:
    _, attempt = started(database)
    end(database, attempt)
    set_price(call, "gpu=36.00", until=at(4))
    set_price(call, "gpu/h100=360.00", since=at(4), currency="EUR")
    set_price(call, "cpu=0.000000001", until=at(4))
    (line,) = usage_of(call).lines
    assert line.cost == {"USD": Decimal("0.04"), "EUR": Decimal("1.2")}
    assert usage_of(call, since=at(3), until=at(5)).total.cost == {"USD": Decimal("0.02"), "EUR": Decimal("0.2")}


def set_price(call: Call, price: str, *, since: int = 0, until: int | None = None, currency: str | None = None) -> str:
    resource, _, amount = price.partition("=")
    asked = PriceRequest(resource=resource, per_hour=amount, currency=currency, valid_from=since, valid_until=until)
    return prices.set(call, asked).id


def test_prices_of_one_time_are_refused_with_both_told(call: Call) -> None:
    first = set_price(call, "gpu/h100=2.50")
    assert set_price(call, "gpu/h100=2.60", until=1_796_083_200 * SECOND) == first  # the same beginning: replaced
    with pytest.raises(Conflict) as refused:
        set_price(call, "gpu/h100=3", since=1_796_000_000 * SECOND)
    assert refused.value.message == (
        "gpu/h100 would have two prices at once: 3 USD from 2026-11-30T00:53:20 on, and 2.60 USD until 2026-12-01"
    )
    assert f"danlu price rm {first}" in refused.value.next_step
    set_price(call, "gpu/h100=3", since=1_796_083_200 * SECOND)
    set_price(call, "gpu=3")  # another resource
    with pytest.raises(InvalidRequest, match="before it begins"):
        set_price(call, "cpu=1", since=at(2), until=at(2))
    prices.remove(call, first)
    with pytest.raises(NotFound):
        prices.remove(call, first)


def test_prices_of_one_time_have_one_currency(call: Call) -> None:
    set_price(call, "gpu=2.50", currency="EUR")
    for currency in ("EUR", None):
        set_price(call, "gpu/h100=3", until=at(5), currency=currency)
    with pytest.raises(Conflict) as refused:
        set_price(call, "cpu=1", since=at(2), currency="USD")
    assert "cpu would have a price in USD (from 2023" in refused.value.message
    assert "beside that of gpu in EUR (at any time)" in refused.value.message
    set_price(call, "gpu=2.50", until=at(5), currency="EUR")
    set_price(call, "gpu=3", since=at(5), currency="USD")
    set_price(call, "cpu=1", since=at(6))
    every = {(one.resource, one.currency) for one in prices.list(call, Paging()).items}
    assert every == {("cpu", "USD"), ("gpu", "EUR"), ("gpu", "USD"), ("gpu/h100", "EUR")}


def test_of_prices_that_are_set_at_once_one_is(call: Call) -> None:
    found = together(8, lambda n: set_price(call, f"cpu={n}", since=n))
    assert sum(isinstance(one, str) for one in found) == 1
    assert all(isinstance(one, str | Conflict) for one in found)


def test_all_projects_are_for_administrators(call: Call) -> None:
    other = replace(call, actor=Actor(id="k", name="ada"))
    with pytest.raises(NotAllowed):
        usage_of(other, platform=True)
    assert usage_of(call, platform=True).lines == ()
    with pytest.raises(InvalidRequest, match="not before until"):
        usage_of(call, since=at(10), until=at(10))


def random_entries(random: Random) -> list[Entry]:
    found = []
    ids = Ids()
    for _ in range(300):
        amounts = Amounts(
            random.choice([0, 1, 4000, 10**9]), random.choice([0, GIB, 2**60]), random.randrange(3), "h100"
        )
        begin = NOW - NOW % DAY_NS + random.randrange(5) * DAY_NS + random.randrange(DAY_NS)
        last = random.randint(begin + 1, begin - begin % DAY_NS + DAY_NS)
        meter = Meter(
            ids() + "-1",
            0,
            "node-1",
            amounts,
            begin,
            project=random.choice(["a", "b"]),
            user=random.choice(["", "ada"]),
        )
        debit, credit = random.choice(
            [(Account.FREE, Account.USED), (Account.FREE, Account.IDLE), (Account.USED, Account.PLATFORM)]
        )
        found.append(
            Entry(meter, 0, debit, credit, begin, last, random.choice([0, 7, 10**17]), random.choice([0, 2**48]))
        )
    return found


def test_sums_of_the_database_are_those_of_whole_numbers(database: Database) -> None:
    """However large: each of them alone is near what the database can hold."""
    entries = random_entries(Random(1))
    database.write(lambda tx: ledger._post(tx, entries))
    begin = NOW - NOW % DAY_NS
    for since, until in ((0, 2**62), (begin + DAY_NS, begin + 3 * DAY_NS), (begin + 12345, begin + 3 * DAY_NS + 777)):
        for by in By:
            for project in (None, "a"):

                def key(piece: Any, by: By = by) -> tuple[Any, ...]:
                    job, day = piece.job if by is By.JOB else "", piece.day if by is By.DAY else 0
                    return piece.project, piece.user, piece.amounts, piece.debit, piece.credit, job, day

                expected: dict[Any, list[int]] = {}
                for entry in entries:
                    piece = piece_of(entry, since, until)
                    if piece is not None and project in (None, piece.project):
                        sums = expected.setdefault(key(piece), [0, 0, 0])
                        sums[0] += piece.length_ns
                        sums[1] += piece.unused_cpu_ns
                        sums[2] += piece.unused_mib_s
                found = database.read(lambda tx, s=since, u=until, b=by, p=project: list(usage.pieces(tx, s, u, b, p)))  # type: ignore[misc]
                sums: dict[Any, list[int]] = {}
                for piece in found:
                    mine = sums.setdefault(key(piece), [0, 0, 0])
                    for place, number in enumerate((piece.length_ns, piece.unused_cpu_ns, piece.unused_mib_s)):
                        mine[place] += number
                assert sums == expected


def test_costs_are_exact_however_many(database: Database, call: Call) -> None:
    database.write(lambda tx: ledger._post(tx, random_entries(Random(2))))
    database.write(lambda tx: PRICES.add(tx, make_price(resource="cpu", per_hour="0.1")))
    entries = database.read(rows)
    expected = sum(
        (1 if e.credit in HELD else -1)
        * Fraction(1, 10)
        * e.meter.amounts.cpu_milli
        * (e.until - e.since)
        / 1000
        / HOUR
        for e in entries
    )
    total = usage_of(call, since=0, until=2**61, platform=True).total.cost["USD"]
    assert abs(Fraction(total) - expected) <= Fraction(1, 2 * 10**6)


def test_what_is_held_when_the_ledger_comes_is_metered_from_then_on(
    database: Database, database_url: str, call: Call
) -> None:
    started(database, created_by="ada", spec={"labels": {"model": "resnet"}})
    before = database.read(ledger.open_meters)
    database.close()
    engine = create_engine(database_url)
    with engine.begin() as connection:  # as a version without it left it
        set_back(connection.exec_driver_sql, "0005")
    engine.dispose()
    again = Database.open(database_url)
    try:
        after = again.read(ledger.open_meters)
    finally:
        again.close()
    assert [replace(meter, since=0) for meter in after] == [replace(meter, since=0) for meter in before]
    assert len({meter.since for meter in after}) == 1
    assert after[0].since > NOW


def test_an_attempt_without_a_meter_ends_all_the_same(database: Database) -> None:
    _, attempt = started(database)
    database.write(lambda tx: ledger._close(tx, attempt.id))
    end(database, attempt)
    assert told(database, attempt) == []
