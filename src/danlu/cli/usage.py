"""``danlu usage``: who held what, how much of it was not used, what it costs."""

from __future__ import annotations

import csv
import datetime
import io
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Final, Literal

from cyclopts import Parameter, validators

from danlu.api.bodies import UsageQuery
from danlu.cli import output as out
from danlu.cli import wording
from danlu.cli.keys import request
from danlu.cli.options import Common, Flag
from danlu.cli.session import connect
from danlu.cli.terminal import Messages
from danlu.domain.resources import parse_duration
from danlu.domain.usage import By, Shares, UsageLine, UsageReport
from danlu.errors import InvalidRequest

Grouping = Literal["project", "user", "job", "model", "gpu-kind", "day"]
Form = Literal["table", "wide", "csv", "json", "yaml"]
HOUR_S: Final = Decimal(3600)
GIB: Final = 2**30
ACCOUNTS: Final = ("used", "idle", "platform")


@Parameter(name="*")
@dataclass(frozen=True)
class Which:
    """Which usage."""

    by: Annotated[Grouping, Parameter(help="a line for each; model is the job's label of that name")] = "project"
    since: Annotated[
        str | None,
        Parameter(help="from then on: 7d, 2026-11-01 or 2026-11-01T08:00 (UTC); left out: 30 days before the end"),
    ] = None
    until: Annotated[str | None, Parameter(help="until then, likewise; now when left out")] = None
    all_projects: Annotated[bool, Parameter(help="of all projects; for administrators"), Flag] = False

    def query(self, limit: int) -> UsageQuery:
        """Returns what to ask for.

        Raises:
            InvalidRequest: a time is none.
        """
        now = time.time_ns()
        since, until = moment("--since", self.since, now), moment("--until", self.until, now)
        fields = {"by": self.by, "since": since, "until": until, "platform": self.all_projects, "limit": limit}
        return request(UsageQuery, fields)


def usage(
    *,
    which: Which | None = None,
    limit: Annotated[
        int, Parameter(help="at most so many lines", validator=validators.Number(gte=1, lte=10_000))
    ] = 1000,
    output: Annotated[
        Form,
        Parameter(
            name=("--output", "-o"), help="table, wide, csv, json or yaml", show_choices=False, show_default=False
        ),
    ] = "table",
    common: Common | None = None,
) -> int:
    """Show who held what, how much of it was not used, and what it costs.

    Hours of GPUs, cores and GiB that were reserved and are charged; UNUSED is the part of the core hours that nothing ran on,
    - where that was not measured. With -o wide also what is not charged. Prices: danlu price ls

    Example: danlu usage --by user --since 2026-11-01 -o csv > november.csv
    """
    query = (which or Which()).query(limit)
    messages = Messages()
    with connect(common, messages) as client:
        report: UsageReport = client.call("usage.report", query=query)
    if output in ("json", "yaml"):
        out.record(report, output)
    elif output == "csv":
        out.write(csv_of(report).rstrip("\n"))
    elif report.lines:
        wide = output == "wide"
        out.table(*table(report, wide=wide), whole=wide)
    else:
        messages.say(f"nothing was held from {wording.clock(report.since)} until {wording.clock(report.until)}")
    if report.more:
        messages.say(f"there are more than {limit}: --limit; the total has them all")
    return 0


def moment(flag: str, text: str | None, now: int) -> int | None:
    """Returns the time (ns UTC) of ``30d`` (so long before now), ``2026-11-01`` or ``2026-11-01T08:00``; None for none.

    Raises:
        InvalidRequest: it is none of these.
    """
    if text is None:
        return None
    try:
        return max(0, now - round(parse_duration(text) * wording.SECOND_NS))
    except ValueError:
        pass
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise InvalidRequest(
            f"{flag} {text!r} is no time",
            next_step=f"write for example {flag} 30d, {flag} 2026-11-01 or {flag} 2026-11-01T08:00",
        ) from None
    found = found if found.tzinfo is not None else found.replace(tzinfo=datetime.UTC)
    since = found - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return max(0, (since.days * 86_400 + since.seconds) * wording.SECOND_NS + since.microseconds * 1000)


def table(report: UsageReport, *, wide: bool) -> tuple[list[str], list[list[str]]]:
    """Returns the heads and the rows of the table, a total at its end; jobs of one name are told apart."""
    apart, ids = _apart(report.lines)
    heads = [str(report.by).upper(), *(field.upper() for field in apart), "GPU-H", "CPU-H", "GIB-H", "UNUSED", "COST"]
    heads += ["ID"] if ids else []
    if wide:
        heads += [f"{what}-{account.upper()}" for what in ("GPU", "CPU", "GIB") for account in ACCOUNTS] + ["BY-KIND"]
    rows = []
    for line in (*report.lines, *([report.total] if len(report.lines) > 1 else [])):
        named = [line.label or line.name, *(getattr(line, field) for field in apart)]
        own = [line.name if line.label else ""] if ids else []
        rows.append([*named, *charged(line), *own, *(accounts(line) if wide else [])])
    return heads, rows


def _apart(lines: Sequence[UsageLine]) -> tuple[list[str], bool]:
    """Returns the fields by which jobs of one name differ, and whether it takes their ids too."""
    names = Counter(line.label for line in lines)
    same = [line for line in lines if line.label and names[line.label] > 1]

    def kinds(*fields: str) -> int:
        return len({(line.label, *(getattr(line, field) for field in fields)) for line in same})

    found = [field for field in ("project", "user") if kinds(field) > kinds()]
    return found, kinds(*found) < len(same)


def charged(line: UsageLine) -> list[str]:
    """Returns the cells of one line: hours that are charged, the part that was not used, the cost."""
    cores, waste = _charged(line.cpu_core_seconds), line.waste
    measured = waste.cpu_core_seconds or waste.memory_byte_seconds  # no task uses all of both to the last bit
    return [
        *(_hours(_charged(one)) for one in (_all_kinds(line), line.cpu_core_seconds, _gib(line))),
        f"{100 * waste.cpu_core_seconds / cores:.0f}%" if cores and measured else "-",
        ", ".join(f"{amount:.2f} {currency}" for currency, amount in line.cost.items()) or "-",
    ]


def accounts(line: UsageLine) -> list[str]:
    """Returns the cells that a wide table has beside: hours by account, and those that are charged by the GPUs' kind."""
    every = (_all_kinds(line), line.cpu_core_seconds, _gib(line))
    by_kind = ", ".join(f"{_hours(_charged(one))} {kind}" for kind, one in line.gpu_seconds.items())
    return [*(_hours(getattr(one, account)) for one in every for account in ACCOUNTS), by_kind]


def csv_of(report: UsageReport) -> str:
    """Returns the lines as CSV: hours as exactly as six decimals can tell them, GPUs by kind."""
    kinds = sorted(report.total.gpu_seconds)
    currencies = sorted(report.total.cost)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [str(report.by), *(["job_name", "project", "user"] if report.by is By.JOB else []), "since", "until"]
        + [f"gpu_{kind}_hours_{account}" for kind in kinds for account in ACCOUNTS]
        + [f"{what}_hours_{account}" for what in ("cpu", "gib") for account in ACCOUNTS]
        + ["gpu_hours_wasted", "cpu_hours_wasted", "gib_hours_wasted"]
        + [f"cost_{currency}" for currency in currencies]
    )
    for line in report.lines:
        shares = [*(line.gpu_seconds.get(kind, Shares()) for kind in kinds), line.cpu_core_seconds, _gib(line)]
        wasted = (
            line.waste.gpu_seconds, line.waste.cpu_core_seconds, line.waste.memory_byte_seconds / GIB
        )  # fmt: skip
        writer.writerow(
            [
                line.name,
                *([line.label, line.project, line.user] if report.by is By.JOB else []),
                wording.clock(report.since),
                wording.clock(report.until),
            ]
            + [f"{getattr(one, account) / HOUR_S:.6f}" for one in shares for account in ACCOUNTS]
            + [f"{amount / HOUR_S:.6f}" for amount in wasted]
            + [f"{line.cost.get(currency, Decimal()):.6f}" for currency in currencies]
        )
    return text.getvalue()


def _all_kinds(line: UsageLine) -> Shares:
    every = line.gpu_seconds.values()
    return Shares(
        used=sum((one.used for one in every), Decimal()), idle=sum((one.idle for one in every), Decimal()),
        platform=sum((one.platform for one in every), Decimal()),
    )  # fmt: skip


def _gib(line: UsageLine) -> Shares:
    memory = line.memory_byte_seconds
    return Shares(used=memory.used / GIB, idle=memory.idle / GIB, platform=memory.platform / GIB)


def _charged(shares: Shares) -> Decimal:
    return shares.used + shares.idle


def _hours(seconds: Decimal) -> str:
    return f"{seconds / HOUR_S:,.2f}"
