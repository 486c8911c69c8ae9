"""Data on stdout: tables that are easy to cut, or the records themselves as JSON or YAML."""

from __future__ import annotations

import json
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

from danlu.cli.terminal import STATE_STYLES, is_terminal, paint, width

if TYPE_CHECKING:
    from pydantic import BaseModel

Format = Literal["table", "wide", "json", "yaml", "name"]
GAP: Final = "   "
NARROW_GAP: Final = "  "
CUT: Final = "…"
INDENT: Final = 14
"""Columns before what ``labelled`` writes."""
COLOURED: Final = ("STATE",)
TEXTS: Final = frozenset({"ASKS", "BY", "COMMAND", "DESCRIPTION", "GPU", "GPUS", "HOW", "MEANING", "MESSAGE"})
NAMES: Final = frozenset({"ACTOR", "ENV", "JOB", "MODEL", "NAME", "NODE", "PATH", "PROJECT", "USER", "WAITING"})
IDS: Final = frozenset({"OBJECT", "TO"})
"""Of these the middle is taken away: ids of one hour begin alike, and an attempt's ends with its number."""
SHORTENED: Final = ((TEXTS, 24), (IDS, 14), (NAMES, 10), (TEXTS, 12))
"""Which columns are shortened where a table is too wide, and down to what, one step after the other. Numbers, states, codes
and ids that are to be copied are of no use in part.
"""
MESSAGE: Final = "MESSAGE"
BELOW: Final = "    "
"""Before a message that stands below its row."""
LEAST_EXPLAINED: Final = 24


def write(text: str) -> None:
    """Writes text and a newline to stdout; what its encoding lacks is escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, errors="backslashreplace").decode(encoding) + "\n")


def records(items: Iterable[BaseModel], form: Format) -> None:
    """Writes a list of records as JSON or YAML: an object with ``items``."""
    structured({"items": [item.model_dump(mode="json") for item in items]}, form)


def record(item: BaseModel, form: Format) -> None:
    """Writes one record as JSON or YAML."""
    structured(item.model_dump(mode="json"), form)


def made(item: BaseModel, name: str, form: Format) -> None:
    """Writes what was made, changed or removed: the record, or what it is called."""
    if form in ("json", "yaml"):
        record(item, form)
    else:
        write(name)


def structured(value: Any, form: Format) -> None:
    """Writes JSON-able data as JSON or YAML."""
    if form == "yaml":
        import yaml

        write(yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip("\n"))
    else:
        write(json.dumps(value, indent=2, ensure_ascii=False))


def room(indent: int = 0) -> int | None:
    """Returns how many columns stdout shows beside an indent; None where it is no terminal: then nothing is cut."""
    return max(1, width() - indent) if is_terminal(sys.stdout) else None


def table(
    headers: Sequence[str], rows: Iterable[Sequence[str]], *, with_head: bool = True, whole: bool = False
) -> None:
    """Writes a table, ``-`` for nothing; on a terminal it is no wider than that, unless the ``whole`` of it is wanted."""
    cells = [[_cell(cell) for cell in row] for row in rows]
    lines = told_lines if headers[-1] == MESSAGE else table_lines
    for line in lines(headers, cells, with_head=with_head, most=None if whole else room()):
        write(line)


def explained(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Writes a table whose last column is what it is read for: on a terminal that goes on below itself."""
    cells = [headers, *([_cell(cell) for cell in row] for row in rows)]
    widths = [max(columns(row[at]) for row in cells) for at in range(len(headers))]
    before = _total(widths[:-1], NARROW_GAP) + len(NARROW_GAP)
    most = room(before)
    for row in cells:
        first, *more = wrapped(row[-1], None if most is None else max(most, LEAST_EXPLAINED))
        write(_line([*row[:-1], first], widths, NARROW_GAP, headers))
        for line in more:
            write(" " * before + line)


def table_lines(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, with_head: bool = True, most: int | None = None
) -> list[str]:
    """Returns a table's lines: columns as wide as they need to be, three spaces between them.

    Where that takes more than ``most`` columns of a terminal, texts and names are shortened. What has no room even then is
    left out on the right, and a mark stands for it.
    """
    cells = [headers, *rows] if with_head else rows
    widths = [max((columns(row[at]) for row in cells), default=0) for at in range(len(headers))]
    gap = GAP
    if most is not None and _total(widths, GAP) > most:
        gap, widths = NARROW_GAP, _fitted(headers, widths, most)
    return [_line(row, widths, gap, headers) for row in cells]


def told_lines(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, with_head: bool = True, most: int | None = None
) -> list[str]:
    """Returns a table's lines, the last column a message: all of it, below its row where it has no room beside it."""
    cells = [headers, *rows] if with_head else rows
    widths = [max((columns(row[at]) for row in cells), default=0) for at in range(len(headers))]
    if most is None or _total(widths, GAP) <= most:
        return table_lines(headers, rows, with_head=with_head, most=most)
    *before, longest = widths
    before = _shortened(headers, before, most - longest - len(NARROW_GAP), ((IDS, 14),))
    if _total(before, NARROW_GAP) > most:
        before = _fitted(headers[:-1], before, most)
    left = most - _total(before, NARROW_GAP) - len(NARROW_GAP)
    lines = []
    for row in cells:
        if len(before) == len(row) - 1 and columns(row[-1]) <= left:
            lines.append(_line(row, [*before, left], NARROW_GAP, headers))
        else:
            lines.append(_line(row[:-1], before, NARROW_GAP, headers))
            lines += [BELOW + line for line in wrapped(row[-1], most - len(BELOW))]
    return lines


def cut_middle(text: str, most: int) -> str:
    """Returns a text of at most so many columns; where its middle was taken away, a mark stands for it."""
    if columns(text) <= most or not text.isascii():
        return cut(text, most)
    head = (most - len(CUT)) // 3
    return text[:head] + CUT + text[len(text) - (most - len(CUT) - head) :]


def cut(text: str, most: int | None) -> str:
    """Returns a text of at most so many columns, all of it for None; where something was taken away, it ends with a mark."""
    if most is None or columns(text) <= most:
        return text
    kept, left = "", most - columns(CUT)
    for char in text:
        left -= columns(char)
        if left < 0:
            break
        kept += char
    return kept.rstrip() + CUT


def _total(widths: Sequence[int], gap: str) -> int:
    return sum(widths) + len(gap) * (len(widths) - 1)


def _fitted(headers: Sequence[str], widths: Sequence[int], most: int) -> list[int]:
    """Returns the widths of as many columns, from the left, as there is room for."""
    for count in range(len(widths), 1, -1):
        space = most if count == len(widths) else most - len(NARROW_GAP) - columns(CUT)
        fitted = _shortened(headers, widths[:count], space)
        if _total(fitted, NARROW_GAP) <= space:
            return fitted
    return [min(widths[0], max(1, most - len(NARROW_GAP) - columns(CUT)))]


def _shortened(
    headers: Sequence[str],
    widths: Sequence[int],
    space: int,
    steps: Iterable[tuple[frozenset[str], int]] = SHORTENED,
) -> list[int]:
    """Returns widths that need no more than ``space``, or as little as can be: each time the widest gives one column."""
    found = list(widths)
    over = _total(found, NARROW_GAP) - space
    for names, narrowest in steps:
        able = [at for at in range(len(found)) if headers[at] in names]
        while over > 0 and able and found[widest := max(able, key=found.__getitem__)] > narrowest:
            found[widest] -= 1
            over -= 1
    return found


def columns(text: str) -> int:
    """Returns how many columns a text takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def _line(cells: Sequence[str], widths: Sequence[int], gap: str, headers: Sequence[str]) -> str:
    parts = []
    for at, wide in enumerate(widths):
        cell = (cut_middle if headers[at] in IDS else cut)(cells[at], wide)
        padding = " " * (wide - columns(cell)) if at < len(cells) - 1 else ""
        style = STATE_STYLES.get(cells[at]) if headers[at] in COLOURED else None
        parts.append(paint(cell, style, sys.stdout) + padding)
    if len(widths) < len(cells):
        parts.append(CUT)
    return gap.join(parts).rstrip()


def _cell(text: str) -> str:
    shown = "".join(char if char.isprintable() else " " for char in text)
    return shown if shown.strip() else "-"


def heading(text: str, name: str = "", style: str | None = None) -> None:
    """Writes what a screen of ``labelled`` lines begins with, maybe with a name; a terminal's lines end between words."""
    first, *more = wrapped(text, room(len(GAP)))
    write(f"{paint(name, 'bold', sys.stdout)}{paint(first.removeprefix(name), style, sys.stdout)}")
    for line in more:
        write(paint(GAP + line, style, sys.stdout))


def labelled(label: str, lines: Iterable[str]) -> None:
    """Writes ``  label       line``, further lines below the first; a terminal's lines end between words."""
    most = room(INDENT)
    for at, line in enumerate(part for whole in lines for part in wrapped(whole, most)):
        write(f"  {label if at == 0 else '':<11} {line}")


def wrapped(text: str, most: int | None) -> list[str]:
    """Returns a text as lines of at most so many columns, unless a word is longer."""
    if most is None or columns(text) <= most:
        return [text]
    return textwrap.wrap(text, most, break_long_words=False, break_on_hyphens=False)
