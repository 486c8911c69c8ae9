"""What ``danlu usage`` shows: a table that fits a terminal, CSV with all of it, times as people write them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping

import pytest

from danlu.cli.output import columns, table_lines
from danlu.cli.usage import csv_of, headers, moment, row
from danlu.domain.ledger import SECOND_NS, Account, Amounts
from danlu.domain.prices import Price, valid_at
from danlu.domain.usage import By, Piece, UsageReport, summed
from danlu.errors import InvalidRequest
from tests.factories import GIB, NOW, make_price

HOUR = 3600 * SECOND_NS


def piece(
    project: str, credit: Account, hours: float, *, gpus: int = 2, debit: str = "free", unused: float = 0
) -> Piece:
    amounts = Amounts(8000, 64 * GIB, gpus, "h100" if gpus else "")
    length = int(hours * HOUR)
    return Piece(project, "ada", "", "", 0, amounts, debit, credit, length, int(unused * HOUR), 0)


def report(*pieces: Piece, prices: tuple[Price, ...] = ()) -> UsageReport:
    valid: Mapping[str, Price] = valid_at(prices, NOW)
    lines, total = summed(((one, valid) for one in pieces), By.PROJECT)
    return UsageReport(
        by=By.PROJECT, since=NOW, until=NOW + HOUR, total=total.line("total"),
        lines=tuple(lines[name].line(name) for name in sorted(lines)),
    )  # fmt: skip


FOUND = report(
    piece("vision", Account.USED, 10, unused=20), piece("vision", Account.IDLE, 1), piece("vision", Account.PLATFORM, 0.5),
    piece("speech-recognition-and-synthesis-of-the-whole-company-europe-1", Account.USED, 1234.5, gpus=0),
    piece("vision", Account.PLATFORM, 2, debit="used", unused=5), piece("", Account.FREE, 99, debit="capacity"),
    prices=(
        make_price(per_hour="2.50"), make_price(resource="cpu", per_hour="0.02"), make_price(resource="gpu", per_hour="9"),
    ),
)  # fmt: skip


def test_the_table_tells_what_is_charged_and_fits() -> None:
    _, vision = FOUND.lines
    assert row(vision, wide=False) == ["vision", "18.00", "72.00", "576.00", "32%", "46.44 USD"]
    for wide in (False, True):
        lines = table_lines(headers(By.PROJECT, wide=wide), [row(line, wide=wide) for line in FOUND.lines], most=80)
        assert all(columns(line) <= 80 for line in lines)
    assert row(vision, wide=True)[6:] == [
        "16.00", "2.00", "5.00", "64.00", "8.00", "20.00", "512.00", "64.00", "160.00", "18.00 h100",
    ]  # fmt: skip


def test_the_csv_has_all_of_it() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_of(FOUND))))
    assert [one["project"][:6] for one in rows] == ["speech", "vision"]
    assert rows[1]["gpu_h100_hours_used"] == "16.000000"
    assert rows[1]["cpu_hours_wasted"] == "23.000000"
    assert rows[1]["cost_USD"] == "46.440000"
    assert rows[0]["gpu_h100_hours_used"] == "0.000000"


def test_a_report_of_nothing_has_a_head() -> None:
    assert csv_of(report()).startswith("project,since,until,")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-11-01", 1_793_491_200), ("2026-11-01T08:30", 1_793_521_800), ("2026-11-01T08:30:00+02:00", 1_793_514_600),
        ("90s", NOW // SECOND_NS - 90), ("2h", NOW // SECOND_NS - 7200), ("1969-01-01", 0),
    ],
)  # fmt: skip
def test_times_are_written_as_dates_or_as_how_long_ago(text: str, seconds: int) -> None:
    assert moment("--since", text, NOW) == seconds * SECOND_NS


@pytest.mark.parametrize("text", ["yesterday", "2026-13-01", "", "-5m"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="--since") as refused:
        moment("--since", text, NOW)
    assert "2026-11-01" in refused.value.next_step
