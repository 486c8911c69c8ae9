"""The ledger: to whom each second of each resource belongs. Pure.

A node's capacity flows into ``free``, or into ``broken`` while the node is gone; what an attempt held flows from there into
the accounts of who held it. Each entry takes from one account what it gives to another, for a half-open interval in ns UTC,
so that all accounts together always have capacity times time. Nothing is ever rewritten: a correction is an entry too.

The ledger's time is the platform's, but never goes back, not even with a machine's clock: what is held at one moment of it
was really held together. Where a clock was set back, what happens until it has caught up takes no time and costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from danlu.domain.jobs import LOST, Attempt, AttemptState, Reason, Task
from danlu.domain.nodes import NODE_PROJECT, NodeCapacity

SECOND_NS: Final = 1_000_000_000
DAY_NS: Final = 86_400 * SECOND_NS
"""Entries are cut at midnight UTC: a report of whole days meets whole entries, and no sum of one entry can overflow."""
MIB: Final = 2**20
MODEL_LABEL: Final = "model"
"""The label that says for which model a job works."""
UNKNOWN_KIND: Final = "gpu"


class Account(StrEnum):
    """Where a resource's time goes."""

    USED = "used"
    IDLE = "idle"
    PLATFORM = "platform"
    FREE = "free"
    BROKEN = "broken"


CAPACITY: Final = "capacity"
"""What entries of a node's own time take from: it is no account, but where all of it comes from."""
HELD: Final = frozenset({Account.USED, Account.IDLE})
"""The accounts that a project pays for."""


class Amounts(NamedTuple):
    """How much of everything: what one meter counts."""

    cpu_milli: int = 0
    memory_bytes: int = 0
    gpus: int = 0
    gpu_kind: str = ""


@dataclass(frozen=True, slots=True)
class Meter:
    """What is held from ``since`` on, until its meter is closed: by a task, or by a node, whose capacity it is.

    Attributes:
        object_id, number: whose: an attempt's or a node's id, and which of its meters.
        rank: the task's.
        account: of a node's meter, where its time goes.
        user, model: who asked for the job, and for what, as its labels say.
    """

    object_id: str
    number: int
    node: str
    amounts: Amounts
    since: int
    rank: int = 0
    project: str = NODE_PROJECT
    user: str = ""
    model: str = ""
    account: Account | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """So much, for so long, from one account to another.

    Attributes:
        part: its place among the entries of its meter; with ``object_id`` and ``number`` it is the entry's name, so that
            what is posted twice is posted once.
        unused_cpu_ns: processor time that was reserved and not used, as far as it was measured.
        unused_mib_s: MiB x s of memory, likewise: above the most that was used at once.
    """

    meter: Meter
    part: int
    debit: Account | str
    credit: Account
    since: int
    until: int
    unused_cpu_ns: int = 0
    unused_mib_s: int = 0


@dataclass(frozen=True, slots=True)
class Who:
    """Whose an attempt is: its project, who asked for the job, for which model."""

    project: str
    user: str = ""
    model: str = ""


Outages = Sequence[tuple[int, int]]
"""When a node was gone: half-open intervals, in order, disjoint."""


def meters(attempt: Attempt, who: Who, kinds: Mapping[str, Mapping[int, str]], at: int) -> tuple[Meter, ...]:
    """Returns the meters that begin to count when an attempt is placed: one a task, one more for each further GPU kind.

    ``kinds`` has, by node and index, each GPU's kind; ``at`` is the ledger's time.
    """
    found: list[Meter] = []
    for task in attempt.tasks:
        for amounts in _amounts(task, kinds.get(task.node, {})):
            meter = Meter(
                object_id=attempt.id, number=len(found), node=task.node, amounts=amounts, since=at, rank=task.rank,
                project=who.project, user=who.user, model=who.model,
            )  # fmt: skip
            found.append(meter)
    return tuple(found)


def _amounts(task: Task, kinds: Mapping[int, str]) -> list[Amounts]:
    counts: dict[str, int] = {}
    for device in task.devices:
        kind = kinds.get(device, UNKNOWN_KIND)
        counts[kind] = counts.get(kind, 0) + 1
    if not counts and task.resources.gpus:
        counts[UNKNOWN_KIND] = task.resources.gpus
    return _split(task.resources.cpu_milli, task.resources.memory_bytes, counts)


def _split(cpu_milli: int, memory_bytes: int, gpus: Mapping[str, int]) -> list[Amounts]:
    (kind, count), *more = sorted(gpus.items()) or [("", 0)]
    return [Amounts(cpu_milli, memory_bytes, count, kind), *(Amounts(0, 0, n, other) for other, n in more)]


def node_meters(node: str, capacity: NodeCapacity, at: int) -> tuple[Meter, ...]:
    """Returns the meters of what a node has, from ``at`` on: one, and one more for each further GPU kind."""
    counts: dict[str, int] = {}
    for gpu in capacity.gpus:
        counts[gpu.kind] = counts.get(gpu.kind, 0) + 1
    return tuple(
        Meter(object_id=node, number=number, node=node, amounts=amounts, since=at, account=Account.FREE)
        for number, amounts in enumerate(_split(capacity.cpu_milli, capacity.memory_bytes, counts))
    )


def gone(capacity: NodeCapacity) -> bool:
    """Says whether a node of this capacity is gone: it has nothing to give away."""
    return not (capacity.cpu_milli or capacity.memory_bytes or capacity.gpus)


def node_entries(meter: Meter, until: int) -> tuple[Entry, ...]:
    """Returns what a node's meter has counted until then."""
    account = meter.account or Account.FREE
    spans = _days(meter.since, max(meter.since, until))
    return tuple(Entry(meter, part, CAPACITY, account, begin, end) for part, (begin, end) in enumerate(spans))


def entries(attempt: Attempt, meter: Meter, until: int, outages: Outages = ()) -> tuple[Entry, ...]:
    """Returns what one meter of an attempt has counted until then; of an ended one, when its resources were free again.

    Without corrections the intervals are disjoint, and together exactly [meter.since, until). What an attempt that has ended
    is known to have lost is taken back by corrections, in the customer's favour.
    """
    until = max(meter.since, until)
    life = _life(attempt, meter, until)
    found: list[Entry] = []
    for credit, begin, end in (
        (Account.PLATFORM, meter.since, life.began), (Account.USED, life.began, life.over),
        (Account.IDLE, life.over, life.ended), (Account.PLATFORM, life.ended, until),
    ):  # fmt: skip
        for debit, first, last in _apart(begin, end, outages):
            to = Account.PLATFORM if debit is Account.BROKEN else credit
            found += (
                Entry(meter, 0, debit, to, a, b, *(life.unused(a, b) if to is Account.USED else (0, 0)))
                for a, b in _days(first, last)
            )
    if attempt.state is AttemptState.ENDED and attempt.reason is Reason.PREEMPTED:
        found += _corrections(attempt, life, found)
    return tuple(
        Entry(e.meter, part, e.debit, e.credit, e.since, e.until, e.unused_cpu_ns, e.unused_mib_s)
        for part, e in enumerate(found)
    )


def _corrections(attempt: Attempt, life: _Life, posted: Iterable[Entry]) -> list[Entry]:
    """Returns what takes back what a preempted attempt had done since its last checkpoint: it will do that again."""
    kept = life.began if attempt.saved_at is None else attempt.saved_at
    return [
        Entry(
            entry.meter, 0, entry.credit, Account.PLATFORM, max(entry.since, kept), entry.until,
            *(life.unused(max(entry.since, kept), entry.until) if entry.credit is Account.USED else (0, 0)),
        )
        for entry in posted
        if entry.credit in HELD and entry.until > kept
    ]  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Life:
    """When a task began, was over, and its attempt ended, all within its meter's time and in this order."""

    began: int
    over: int
    ended: int
    idle_cpu_ns: int
    idle_mib_ns: int

    def unused(self, since: int, until: int) -> tuple[int, int]:
        """Returns the part of what was not used that falls into an interval: exact in the sum of all intervals."""
        whole = self.over - self.began

        def before(at: int, amount: int) -> int:
            return amount * (min(max(at, self.began), self.over) - self.began) // whole if whole else 0

        cpu = before(until, self.idle_cpu_ns) - before(since, self.idle_cpu_ns)
        mib = before(until, self.idle_mib_ns) // SECOND_NS - before(since, self.idle_mib_ns) // SECOND_NS
        return cpu, mib


def _life(attempt: Attempt, meter: Meter, until: int) -> _Life:
    task = next((task for task in attempt.tasks if task.rank == meter.rank), None)
    known = any(one.started_at is not None for one in attempt.tasks)
    started = attempt.started_at if task is None or not known else task.started_at
    began = until if started is None else min(max(started, meter.since), until)
    ended = until
    if attempt.state is AttemptState.ENDED:
        said, seen = attempt.ended_at if attempt.ended_at is not None else until, attempt.seen_at
        if attempt.reason in LOST - {Reason.PREEMPTED, Reason.PORT_TAKEN}:  # nobody knows when: what is sure is billed
            said = began if seen is None else seen
        elif seen is not None:  # its job may have written when it ended, but not what was seen of it
            said = max(said, seen)
        ended = min(max(said, began), until)
    over = ended
    if task is not None and task.ended_at is not None:
        over = min(max(task.ended_at, began), ended)
    amounts, length = meter.amounts, over - began
    cpu = mib = 0
    if task is not None and task.cpu_ns is not None:
        cpu = max(0, amounts.cpu_milli * length // 1000 - task.cpu_ns)
    if task is not None and task.peak_memory_bytes is not None:
        mib = max(0, amounts.memory_bytes - task.peak_memory_bytes) // MIB * length
    return _Life(began, over, ended, cpu if amounts.cpu_milli else 0, mib)


def _apart(since: int, until: int, outages: Outages) -> Iterator[tuple[Account, int, int]]:
    """Yields an interval in pieces: those in which the node was there, and those in which it was gone."""
    for begin, end in outages:
        first, last = max(since, begin), min(until, end)
        if first >= last:
            continue
        if since < first:
            yield Account.FREE, since, first
        yield Account.BROKEN, first, last
        since = last
    if since < until:
        yield Account.FREE, since, until


def _days(since: int, until: int) -> Iterator[tuple[int, int]]:
    while since < until:
        end = min(until, since - since % DAY_NS + DAY_NS)
        yield since, end
        since = end
