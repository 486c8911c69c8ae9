"""Usage: what was held, by whom, how much of it was not used, and what it costs. Sums are exact to the nanosecond."""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from fractions import Fraction
from functools import lru_cache
from typing import Final, NamedTuple

from pydantic import Field

from danlu.domain.jobs import Job
from danlu.domain.ledger import DAY_NS, HELD, MIB, SECOND_NS, Account, Amounts, Entry
from danlu.domain.prices import Price, cost, rounded
from danlu.domain.records import Ns, Value

EPOCH: Final = datetime.date(1970, 1, 1)
NO_GPU: Final = "none"
NO_MODEL: Final = "none"
NO_USER: Final = "unknown"


class By(StrEnum):
    """What a report has a line for."""

    PROJECT = "project"
    USER = "user"
    JOB = "job"
    MODEL = "model"
    GPU_KIND = "gpu-kind"
    DAY = "day"


class Shares(Value):
    """Units x seconds of one resource, by account. Exact decimal numbers; as texts in JSON."""

    used: Decimal = Field(default=Decimal(), description="its task ran")
    idle: Decimal = Field(default=Decimal(), description="its task had ended, and its gang went on")
    platform: Decimal = Field(default=Decimal(), description="not charged: starting, clearing up, lost work")


class Waste(Value):
    """Units x seconds that were reserved, charged and not used: all that was idle, and what tasks did not need."""

    cpu_core_seconds: Decimal = Decimal()
    memory_byte_seconds: Decimal = Decimal()
    gpu_seconds: Decimal = Field(
        default=Decimal(), description="idle alone: what a running task's GPU did is not known"
    )


class UsageLine(Value):
    """One line of a report."""

    name: str = Field(description="the project, user, model or GPU kind, the job's id, or the day (UTC)")
    label: str = Field(default="", description="a job's name")
    project: str = Field(default="", description="a job's project")
    user: str = Field(default="", description="who asked for a job")
    cpu_core_seconds: Shares = Shares()
    memory_byte_seconds: Shares = Shares()
    gpu_seconds: dict[str, Shares] = Field(default_factory=dict, description="by kind")
    waste: Waste = Waste()
    cost: dict[str, Decimal] = Field(
        default_factory=dict, description="of what was used and idle, by currency, to a millionth"
    )


class UsageReport(Value):
    """Who held what, from ``since`` until ``until``. What runs now counts until now."""

    by: By
    since: Ns
    until: Ns
    lines: tuple[UsageLine, ...] = Field(
        description="the dearest first, where all costs are in one currency; then by time of GPUs, of cores; days in order"
    )
    more: bool = Field(default=False, description="there are more lines; the total has them")
    total: UsageLine


class Piece(NamedTuple):
    """What many entries of the ledger have in common, and for how long in all, within a time in which no price changes."""

    project: str
    user: str
    model: str
    job: str
    day: int
    amounts: Amounts
    debit: str
    credit: str
    length_ns: int
    unused_cpu_ns: int = 0
    unused_mib_s: int = 0

    def name(self, by: By) -> str:
        """Returns the line that it belongs to."""
        if by is By.GPU_KIND:
            return self.amounts.gpu_kind or NO_GPU
        if by is By.DAY:
            return day_name(self.day)
        if by is By.MODEL:
            return self.model or NO_MODEL
        return {By.PROJECT: self.project, By.USER: self.user or NO_USER, By.JOB: self.job}[by]


def piece_of(entry: Entry, since: int, until: int) -> Piece | None:
    """Returns the part of an entry that lies within a time, if any does."""
    first, last = max(entry.since, since), min(entry.until, until)
    if first >= last:
        return None
    meter, whole = entry.meter, entry.until - entry.since
    return Piece(
        meter.project, meter.user, meter.model, meter.object_id.partition("-")[0], first // DAY_NS, meter.amounts,
        str(entry.debit), str(entry.credit), last - first,
        entry.unused_cpu_ns * (last - first) // whole, entry.unused_mib_s * (last - first) // whole,
    )  # fmt: skip


@dataclass(slots=True)
class Sum:
    """A line as it grows: whole numbers of the smallest units."""

    cpu: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    memory: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    gpus: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(int)))
    unused_cpu_ns: int = 0
    unused_mib_s: int = 0
    cost: dict[str, Fraction] = field(default_factory=dict)

    def add(self, piece: Piece, valid: Mapping[str, Price]) -> None:
        """Adds what a piece gives to an account, and takes what a correction takes from another."""
        if piece.credit not in (*HELD, Account.PLATFORM):
            return
        for account, length in ((piece.credit, piece.length_ns), (piece.debit, -piece.length_ns)):
            if account == piece.credit or account in HELD:
                self.cpu[account] += piece.amounts.cpu_milli * length
                self.memory[account] += piece.amounts.memory_bytes * length
                if piece.amounts.gpus:
                    self.gpus[piece.amounts.gpu_kind][account] += piece.amounts.gpus * length
            if account == Account.USED:
                sign = 1 if length > 0 else -1
                self.unused_cpu_ns += sign * piece.unused_cpu_ns
                self.unused_mib_s += sign * piece.unused_mib_s
            if account in HELD:
                for currency, amount in cost(valid, piece.amounts, length).items():
                    self.cost[currency] = self.cost.get(currency, Fraction()) + amount

    def line(self, name: str, job: Job | None = None) -> UsageLine:
        """Returns what there is now; ``job``: whose it is, of a line for one."""
        idle = Account.IDLE
        return UsageLine(
            name=name,
            label=job.name if job else "",
            project=job.project if job else "",
            user=job.created_by if job else "",
            cpu_core_seconds=_shares(self.cpu, 12),
            memory_byte_seconds=_shares(self.memory, 9),
            gpu_seconds={kind: _shares(self.gpus[kind], 9) for kind in sorted(self.gpus)},
            waste=Waste(
                cpu_core_seconds=_decimal(self.cpu.get(idle, 0) + self.unused_cpu_ns * 1000, 12),
                memory_byte_seconds=_decimal(self.memory.get(idle, 0) + self.unused_mib_s * MIB * SECOND_NS, 9),
                gpu_seconds=_decimal(sum(shares.get(idle, 0) for shares in self.gpus.values()), 9),
            ),
            cost={currency: rounded(amount) for currency, amount in sorted(self.cost.items())},
        )


def dearest_first(lines: Mapping[str, Sum], total: Sum) -> list[str]:
    """Returns lines' names by cost, GPU time, CPU time; costs in several currencies are not compared."""

    def weight(name: str) -> tuple[Fraction, int, int, str]:
        line = lines[name]
        cost = sum(line.cost.values(), Fraction()) if len(total.cost) == 1 else Fraction()
        gpus = sum(n for shares in line.gpus.values() for n in shares.values())
        return cost, gpus, sum(line.cpu.values()), name

    return sorted(lines, key=weight, reverse=True)


def summed(pieces: Iterable[tuple[Piece, Mapping[str, Price]]], by: By) -> tuple[dict[str, Sum], Sum]:
    """Returns the lines of a report by their names, and their total."""
    merged: dict[tuple[object, ...], list[int]] = {}
    likes: dict[tuple[object, ...], tuple[str, Piece, Mapping[str, Price]]] = {}
    for piece, valid in pieces:
        if piece.credit in (Account.FREE, Account.BROKEN):
            continue  # a node's own time: nobody held it
        name = piece.name(by)
        key = name, piece.amounts, piece.debit, piece.credit, id(valid)
        sums = merged.get(key)
        if sums is None:
            merged[key] = [piece.length_ns, piece.unused_cpu_ns, piece.unused_mib_s]
            likes[key] = name, piece, valid  # whose ``valid`` lives on: no other has its id
        else:
            sums[0] += piece.length_ns
            sums[1] += piece.unused_cpu_ns
            sums[2] += piece.unused_mib_s
    lines: dict[str, Sum] = defaultdict(Sum)
    total = Sum()
    for (name, piece, valid), (length, cpu, mib) in zip(likes.values(), merged.values(), strict=True):
        both = piece._replace(length_ns=length, unused_cpu_ns=cpu, unused_mib_s=mib)
        lines[name].add(both, valid)
        total.add(both, valid)
    return lines, total


@lru_cache(maxsize=1024)
def day_name(day: int) -> str:
    """Returns the date of a day that is counted from 1970-01-01, as ``2026-11-27``."""
    return (EPOCH + datetime.timedelta(days=day)).isoformat()


def _shares(found: Mapping[str, int], places: int) -> Shares:
    return Shares(**{str(a): _decimal(found.get(a, 0), places) for a in (Account.USED, Account.IDLE, Account.PLATFORM)})


def _decimal(number: int, places: int) -> Decimal:
    """Returns a whole number of 10 ** -places, exactly: arithmetic of decimals would round it."""
    sign, whole = ("-" if number < 0 else ""), f"{abs(number):0{places + 1}d}"
    return Decimal(f"{sign}{whole[:-places]}.{whole[-places:]}".rstrip("0").rstrip("."))
