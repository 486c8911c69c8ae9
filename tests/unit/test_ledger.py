"""The rule by which what is held is shared out: disjoint, complete, in the customer's favour, whatever the clocks say."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.domain.jobs import Attempt, AttemptState, Reason
from danlu.domain.ledger import (
    DAY_NS,
    HELD,
    Account,
    Amounts,
    Entry,
    Meter,
    Outages,
    Who,
    entries,
    meters,
    node_entries,
    node_meters,
)
from danlu.domain.nodes import NodeCapacity
from danlu.domain.prices import rounded
from danlu.domain.resources import Resources
from tests.books import RESOURCES, audit
from tests.factories import GIB, NOW, SECOND, make_attempt, make_capacity, make_job, make_task

HISTORIES = int(os.environ.get("DANLU_HISTORIES", "1000"))
JOB = make_job()
KINDS = {"node-1": {0: "h100", 1: "h100", 2: "a100"}}


def at(seconds: float) -> int:
    return NOW + int(seconds * SECOND)


def ended(reason: Reason = Reason.COMPLETED, **fields: Any) -> Attempt:
    tasks = fields.pop("tasks", (make_task(started_at=at(2), ended_at=at(10)),))
    return make_attempt(
        JOB, state=AttemptState.ENDED, reason=reason, tasks=tasks, **{"started_at": at(2), "ended_at": at(10), **fields}
    )


def meter(**fields: Any) -> Meter:
    amounts = fields.pop("amounts", Amounts(cpu_milli=2000, memory_bytes=4 * GIB, gpus=1, gpu_kind="h100"))
    return Meter(
        **{"object_id": JOB.id + "-1", "number": 0, "node": "node-1", "amounts": amounts, "since": NOW, **fields}
    )


def spans(found: tuple[Entry, ...]) -> list[tuple[str, float, float]]:
    return [(str(e.credit), (e.since - NOW) / SECOND, (e.until - NOW) / SECOND) for e in found if e.debit not in HELD]


def corrections(found: tuple[Entry, ...]) -> list[tuple[str, str, float, float]]:
    return [
        (str(e.debit), str(e.credit), (e.since - NOW) / SECOND, (e.until - NOW) / SECOND)
        for e in found
        if e.debit in HELD
    ]


def test_a_life_is_starting_used_and_clearing_up() -> None:
    assert spans(entries(ended(), meter(), at(12))) == [("platform", 0, 2), ("used", 2, 10), ("platform", 10, 12)]


def test_what_runs_counts_until_now() -> None:
    running = make_attempt(JOB, state=AttemptState.RUNNING, tasks=(make_task(started_at=at(2)),), started_at=at(2))
    assert spans(entries(running, meter(), at(5))) == [("platform", 0, 2), ("used", 2, 5)]
    launching = make_attempt(JOB, state=AttemptState.LAUNCHING)
    assert spans(entries(launching, meter(), at(5))) == [("platform", 0, 5)]


def test_a_task_that_ended_before_its_gang_is_idle_until_the_gang_ends() -> None:
    tasks = (
        make_task(rank=0, started_at=at(2), ended_at=at(10)),
        make_task(rank=1, index=1, started_at=at(3), ended_at=at(6)),
    )
    found = entries(ended(tasks=tasks), meter(rank=1, number=1), at(12))
    assert spans(found) == [("platform", 0, 3), ("used", 3, 6), ("idle", 6, 10), ("platform", 10, 12)]


def test_a_task_that_never_started_is_the_platforms() -> None:
    tasks = (make_task(rank=0, started_at=at(2), ended_at=at(10)), make_task(rank=1, index=1, ended_at=at(10)))
    assert spans(entries(ended(tasks=tasks), meter(rank=1, number=1), at(12))) == [("platform", 0, 12)]


@pytest.mark.parametrize("reason", [Reason.RUNNER_LOST, Reason.NODE_LOST])
def test_what_was_lost_is_billed_until_its_last_sign_of_life(reason: Reason) -> None:
    found = entries(ended(reason, seen_at=at(7)), meter(), at(12))
    assert spans(found) == [("platform", 0, 2), ("used", 2, 7), ("platform", 7, 12)]


@pytest.mark.parametrize("reason", [Reason.COMPLETED, Reason.PROCESS_FAILED, Reason.STOPPED])
def test_what_was_seen_after_it_is_said_to_have_ended_is_billed(reason: Reason) -> None:
    found = entries(ended(reason, ended_at=at(3), seen_at=at(8)), meter(), at(12))
    assert sum(e.until - e.since for e in found if e.credit in HELD) == 6 * SECOND


def test_a_lost_one_that_is_said_to_have_ended_earlier_is_billed_until_it_was_seen() -> None:
    found = entries(ended(Reason.RUNNER_LOST, ended_at=at(3), seen_at=at(8)), meter(), at(12))
    assert sum(e.until - e.since for e in found if e.credit in HELD) == 6 * SECOND


def test_what_was_lost_without_a_sign_of_life_is_not_billed() -> None:
    assert {e.credit for e in entries(ended(Reason.RUNNER_LOST), meter(), at(12))} == {Account.PLATFORM}


def test_what_was_preempted_is_billed_until_its_checkpoint_by_a_correction() -> None:
    found = entries(ended(Reason.PREEMPTED, saved_at=at(6)), meter(), at(12))
    assert spans(found) == [("platform", 0, 2), ("used", 2, 10), ("platform", 10, 12)]
    assert corrections(found) == [("used", "platform", 6, 10)]
    assert corrections(entries(ended(Reason.PREEMPTED), meter(), at(12))) == [("used", "platform", 2, 10)]
    assert corrections(entries(ended(Reason.COMPLETED, saved_at=at(6)), meter(), at(12))) == []


def test_while_its_node_is_gone_nothing_is_billed_and_nothing_is_taken_from_what_is_free() -> None:
    found = entries(ended(), meter(), at(12), ((at(4), at(6)),))
    assert spans(found) == [
        ("platform", 0, 2),
        ("used", 2, 4),
        ("platform", 4, 6),
        ("used", 6, 10),
        ("platform", 10, 12),
    ]
    assert [e.debit for e in found] == [
        Account.FREE, Account.FREE, Account.BROKEN, Account.FREE, Account.FREE,
    ]  # fmt: skip


def test_what_was_not_used_is_told_and_taken_back_with_a_correction() -> None:
    task = make_task(started_at=at(2), ended_at=at(10), cpu_ns=6 * SECOND, peak_memory_bytes=GIB)
    found = entries(ended(Reason.PREEMPTED, tasks=(task,), saved_at=at(6)), meter(), at(12))
    used = next(e for e in found if e.credit is Account.USED)
    assert (used.unused_cpu_ns, used.unused_mib_s) == (10 * SECOND, 3 * 1024 * 8)
    correction = next(e for e in found if e.debit is Account.USED)
    assert (correction.unused_cpu_ns, correction.unused_mib_s) == (5 * SECOND, 3 * 1024 * 4)


def test_entries_are_cut_at_midnight() -> None:
    midnight = NOW - NOW % DAY_NS + DAY_NS
    attempt = ended(ended_at=midnight + 2 * DAY_NS + 5, tasks=(make_task(started_at=at(2)),))
    found = entries(attempt, meter(), midnight + 2 * DAY_NS + 5)
    assert all(e.since // DAY_NS == (e.until - 1) // DAY_NS for e in found)
    assert len(found) == 5
    assert [e.part for e in found] == [0, 1, 2, 3, 4]


def test_a_meter_counts_each_gpu_kind_and_the_rest_once() -> None:
    task = make_task(resources=Resources(cpu_milli=500, memory_bytes=GIB, gpus=3), devices=(0, 1, 2))
    found = meters(make_attempt(JOB, tasks=(task,)), Who("vision", "ada", "resnet"), KINDS, NOW)
    assert [one.amounts for one in found] == [Amounts(500, GIB, 1, "a100"), Amounts(0, 0, 2, "h100")]
    assert {(one.project, one.user, one.model, one.node) for one in found} == {("vision", "ada", "resnet", "node-1")}


# properties

times = st.one_of(st.none(), st.integers(NOW - 5 * DAY_NS, NOW + 5 * DAY_NS))
tasks = st.builds(
    lambda a, b, c, d: make_task(started_at=a, ended_at=b, cpu_ns=c, peak_memory_bytes=d),
    times, times, st.one_of(st.none(), st.integers(0, 10**15)), st.one_of(st.none(), st.integers(0, 8 * GIB)),
)  # fmt: skip
attempts = st.builds(
    lambda reason, task, started, finished, seen, saved: ended(
        reason, tasks=(task,), started_at=started, ended_at=finished, seen_at=seen, saved_at=saved
    ),
    st.sampled_from([Reason.COMPLETED, Reason.RUNNER_LOST, Reason.PREEMPTED, Reason.PROCESS_FAILED, Reason.STOPPED]),
    tasks, times, times, times, times,
)  # fmt: skip
gaps = st.lists(st.integers(NOW - DAY_NS, NOW + 4 * DAY_NS), max_size=6, unique=True).map(
    lambda found: tuple(zip(sorted(found)[0:-1:2], sorted(found)[1::2], strict=False))
)


@given(attempts, gaps, st.integers(-DAY_NS, 4 * DAY_NS))
def test_whatever_the_clocks_say_it_is_shared_out_once(attempt: Attempt, outages: Outages, length: int) -> None:
    until = NOW + length
    found = entries(attempt, meter(), until, outages)
    assert found == entries(attempt, meter(), until, outages)
    posted = sorted((e.since, e.until) for e in found if e.debit not in HELD)
    assert all(begin < end for begin, end in posted)
    assert all(before[1] == after[0] for before, after in itertools.pairwise(posted))
    if until > NOW:
        assert (posted[0][0], posted[-1][1]) == (NOW, until)
    else:
        assert not found
    held = Counter[Account]()
    for entry in found:
        assert entry.unused_cpu_ns >= 0
        assert entry.unused_mib_s >= 0
        held[entry.credit] += entry.until - entry.since
        if entry.debit in HELD:
            held[entry.debit] -= entry.until - entry.since
            assert any(e.credit == entry.debit and e.since <= entry.since and entry.until <= e.until for e in found)
    assert all(amount >= 0 for amount in held.values())
    assert sum(held.values()) == max(0, length)


@given(attempts, st.integers(0, DAY_NS), st.integers(0, DAY_NS))
def test_what_is_billed_grows_with_time(attempt: Attempt, first: int, more: int) -> None:
    running = attempt.model_copy(update={"state": AttemptState.RUNNING, "ended_at": None})

    def used(length: int) -> int:
        return sum(e.until - e.since for e in entries(running, meter(), NOW + length) if e.credit in HELD)

    assert used(first) <= used(first + more)


# random histories


@dataclass
class History:
    """A node or two, attempts that come and go, machines that go and come back, clocks that jump; and the books of it."""

    random: Random
    clock: int = NOW
    ledger: int = 0
    posted: list[Entry] = field(default_factory=list)
    nodes: dict[str, tuple[Meter, ...]] = field(default_factory=dict)
    held: dict[str, tuple[Attempt, tuple[Meter, ...]]] = field(default_factory=dict)
    outages: dict[str, list[tuple[int, int]]] = field(default_factory=lambda: {"a": [], "b": []})
    began: int = 0
    count: int = 0

    HAS = make_capacity("x", cpu=4, memory=8 * GIB, h100=2, a100=1)

    def now(self) -> int:
        self.clock += self.random.choice(
            [0, 1, 1000, SECOND, 3600 * SECOND, -600 * SECOND if self.random.random() < 0.2 else 0]
        )
        self.ledger = max(self.ledger, self.clock)
        return self.ledger

    def live(self) -> None:
        self.began = self.now()
        for name in ("a", "b"):
            self.nodes[name] = node_meters(name, self.HAS, self.began)
        for _ in range(self.random.randrange(4, 16)):
            self.random.choice([self.place, self.place, self.end, self.end, self.node])()
        at_last = self.now()
        for name in list(self.held):
            self.end(name, at_last)
        for name in self.nodes:
            self.posted += [e for one in self.nodes[name] for e in node_entries(one, at_last)]

    def place(self) -> None:
        node = self.random.choice(["a", "b"])
        mine = [m for _, found in self.held.values() for m in found if m.node == node]
        taken = {(m.amounts.gpu_kind, n) for m in mine for n in range(m.amounts.gpus)}
        cpu = 4000 - sum(m.amounts.cpu_milli for m in mine)
        if cpu < 1000 or self.nodes[node][0].account is Account.BROKEN:
            return
        self.count += 1
        devices = (0,) if not any(kind == "a100" for kind, _ in taken) else ()
        need = Resources(cpu_milli=self.random.randrange(1, cpu + 1), memory_bytes=GIB, gpus=len(devices))
        task = make_task(node=node, resources=need, devices=devices)
        job = make_job(f"j{self.count:026d}")
        attempt = make_attempt(job, tasks=(task,))
        self.held[attempt.id] = attempt, meters(attempt, Who("p"), {node: {0: "a100"}}, self.now())

    def end(self, name: str | None = None, until: int | None = None) -> None:
        if name is None and not self.held:
            return
        name = name or self.random.choice(sorted(self.held))
        attempt, mine = self.held.pop(name)
        r, lies = self.random, self.random.random() < 0.2
        until = self.now() if until is None else until
        low, high = (NOW - DAY_NS, NOW + 9 * DAY_NS) if lies else (mine[0].since, max(until, mine[0].since))
        some: list[Any] = sorted(r.randint(low, high) for _ in range(4))
        if lies:
            r.shuffle(some)
        over = attempt.model_copy(
            update={
                "state": AttemptState.ENDED,
                "reason": r.choice([Reason.COMPLETED, Reason.RUNNER_LOST, Reason.PREEMPTED, Reason.LAUNCH_REJECTED]),
                "started_at": r.choice([None, some[0]]), "ended_at": r.choice([None, some[3]]),
                "seen_at": r.choice([None, some[1]]), "saved_at": r.choice([None, some[1]]),
                "tasks": tuple(t.model_copy(update={"started_at": some[0], "ended_at": some[2]}) for t in attempt.tasks),
            }
        )  # fmt: skip
        for one in mine:
            gone = list(self.outages[one.node])
            if self.nodes[one.node][0].account is Account.BROKEN:
                gone.append((self.nodes[one.node][0].since, until))
            self.posted += entries(over, one, until, tuple(gone))

    def node(self) -> None:
        name, now = self.random.choice(["a", "b"]), self.now()
        before = self.nodes[name]
        self.posted += [e for one in before for e in node_entries(one, now)]
        broken = before[0].account is Account.BROKEN
        if broken:
            self.outages[name].append((before[0].since, now))
        account = Account.FREE if broken else Account.BROKEN
        self.nodes[name] = tuple(Meter(m.object_id, m.number, m.node, m.amounts, now, account=account) for m in before)

    def check(self) -> None:
        names = [(e.meter.object_id, e.meter.number, e.meter.since, e.part) for e in self.posted if e.since < e.until]
        assert len(set(names)) == len(names)
        found = audit(self.posted)
        for node, mine in self.nodes.items():
            for resource, amount_of in RESOURCES.items():
                have = sum(amount_of(meter.amounts) for meter in mine) * (self.ledger - self.began)
                assert found.get((node, resource), {}).get("whole", 0) == have, (node, resource)


def test_in_random_histories_all_accounts_have_capacity_times_time() -> None:
    for seed in range(HISTORIES):
        history = History(Random(seed))
        history.live()
        try:
            history.check()
        except AssertionError as error:
            raise AssertionError(f"history {seed}: {error}") from error


def test_a_node_that_has_nothing_is_gone() -> None:
    from danlu.domain.ledger import gone

    assert gone(NodeCapacity(name="a", cpu_milli=0, memory_bytes=0))
    assert not gone(make_capacity())


@pytest.mark.parametrize(
    "amount", [Fraction(0), Fraction(1, 3), Fraction(5, 2 * 10**6), Fraction(10**40) + Fraction(1, 8)]
)
def test_money_is_told_to_a_millionth_however_much(amount: Fraction) -> None:
    told = rounded(amount)
    assert Fraction(told) == Fraction(round(amount * 10**6), 10**6)
    assert len(str(told).partition(".")[2]) == 6
