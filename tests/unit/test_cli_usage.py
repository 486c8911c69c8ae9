"""What ``danlu usage`` shows: a table that fits a terminal, CSV with all of it, times as people write them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from fractions import Fraction

import pytest

from danlu.cli.output import columns, table_lines
from danlu.cli.usage import csv_of, moment, table
from danlu.domain.ledger import SECOND_NS, Account, Amounts
from danlu.domain.prices import Price, valid_at
from danlu.domain.usage import By, Piece, Sum, UsageLine, UsageReport, dearest_first, summed
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
    _, (_, vision, total) = table(FOUND, wide=False)
    assert vision == ["vision", "18.00", "72.00", "576.00", "32%", "46.44 USD"]
    assert total[0] == "total"
    for wide in (False, True):
        heads, rows = table(FOUND, wide=wide)
        lines = table_lines(heads, rows, most=80)
        assert all(columns(line) <= 80 for line in lines)
        assert "COST" in lines[0]
    assert rows[1][6:] == [
        "16.00", "2.00", "5.00", "64.00", "8.00", "20.00", "512.00", "64.00", "160.00", "18.00 h100",
    ]  # fmt: skip


def test_what_was_not_measured_is_not_told_as_nothing() -> None:
    for unused, told in ((0, "-"), (0.001, "0%"), (40, "50%")):
        _, (line,) = table(report(piece("vision", Account.USED, 10, unused=unused)), wide=False)
        assert line[4] == told
    _, (line,) = table(report(piece("vision", Account.PLATFORM, 10)), wide=False)
    assert line[4] == "-"


@pytest.mark.parametrize(
    ("whose", "heads", "apart"),
    [
        ([("a", "p", "ada"), ("b", "p", "bob")], [], ["a", "b"]),
        ([("a", "p", "ada"), ("a", "q", "ada")], ["PROJECT"], ["a p", "a q"]),
        ([("a", "p", "ada"), ("a", "p", "bob"), ("b", "q", "ada")], ["USER"], ["a ada", "a bob", "b ada"]),
        ([("a", "p", "ada"), ("a", "q", "bob")], ["PROJECT", "USER"], ["a p ada", "a q bob"]),
        ([("a", "p", "ada"), ("a", "p", "ada")], ["ID"], ["a j0", "a j1"]),
        ([("a", "p", "ada"), ("a", "q", "ada"), ("a", "q", "ada")], ["PROJECT", "ID"], ["a p j0", "a q j1", "a q j2"]),
    ],
)  # fmt: skip
def test_jobs_of_one_name_are_told_apart(whose: list[tuple[str, str, str]], heads: list[str], apart: list[str]) -> None:
    lines = tuple(
        UsageLine(name=f"j{at}", label=label, project=project, user=user) for at, (label, project, user) in enumerate(whose)
    )  # fmt: skip
    found = UsageReport(by=By.JOB, since=NOW, until=NOW + HOUR, lines=lines, total=UsageLine(name="total"))
    shown, rows = table(found, wide=False)
    places = [at for at, head in enumerate(shown) if head in ("JOB", "PROJECT", "USER", "ID")]
    assert [shown[at] for at in places[1:]] == heads
    assert [" ".join(row[at] for at in places) for row in rows[:-1]] == apart
    assert len(set(apart)) == len(apart)


def test_the_csv_has_all_of_it() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_of(FOUND))))
    assert [one["project"][:6] for one in rows] == ["speech", "vision"]
    assert rows[1]["gpu_h100_hours_used"] == "16.000000"
    assert rows[1]["cpu_hours_wasted"] == "23.000000"
    assert rows[1]["cost_USD"] == "46.440000"
    assert rows[0]["gpu_h100_hours_used"] == "0.000000"


def test_a_report_of_nothing_has_a_head() -> None:
    assert csv_of(report()).startswith("project,since,until,")


def test_costs_are_compared_within_one_currency_alone() -> None:
    yen, euro = Sum(cost={"JPY": Fraction(1000)}, cpu={"used": 1}), Sum(cost={"EUR": Fraction(90)}, cpu={"used": 9})
    both = Sum(cost={"JPY": Fraction(1000), "EUR": Fraction(90)})
    assert dearest_first({"a": yen, "b": euro}, both) == ["b", "a"]  # by what they held
    less = Sum(cost={"JPY": Fraction(90)}, cpu={"used": 9})
    assert dearest_first({"a": yen, "b": less}, Sum(cost={"JPY": Fraction(1090)})) == ["a", "b"]


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
