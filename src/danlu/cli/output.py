"""Data on stdout: tables that are easy to cut, or the records themselves as JSON or YAML."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

from danlu.cli.terminal import STATE_STYLES, paint

if TYPE_CHECKING:
    from pydantic import BaseModel

Format = Literal["table", "wide", "json", "yaml", "name"]
GAP: Final = "   "
COLOURED: Final = ("STATE",)


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


def structured(value: Any, form: Format) -> None:
    """Writes JSON-able data as JSON or YAML."""
    if form == "yaml":
        import yaml

        write(yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip("\n"))
    else:
        write(json.dumps(value, indent=2, ensure_ascii=False))


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], *, with_head: bool = True) -> None:
    """Writes a table: columns as wide as they need to be, three spaces between them, ``-`` for nothing."""
    for line in table_lines(headers, [[_cell(cell) for cell in row] for row in rows], with_head=with_head):
        write(line)


def table_lines(headers: Sequence[str], rows: Sequence[Sequence[str]], *, with_head: bool = True) -> list[str]:
    """Returns a table's lines."""
    widths = [max(map(columns, (head, *(row[at] for row in rows)))) for at, head in enumerate(headers)]
    lines = [_line(headers, widths, headers)] if with_head else []
    return lines + [_line(row, widths, headers) for row in rows]


def columns(text: str) -> int:
    """Returns how many columns a text takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def _line(cells: Sequence[str], widths: Sequence[int], headers: Sequence[str]) -> str:
    parts = []
    for at, cell in enumerate(cells):
        padding = " " * (widths[at] - columns(cell)) if at < len(cells) - 1 else ""
        style = STATE_STYLES.get(cell) if headers[at] in COLOURED else None
        parts.append(paint(cell, style, sys.stdout) + padding)
    return GAP.join(parts).rstrip()


def _cell(text: str) -> str:
    shown = "".join(char if char.isprintable() else " " for char in text)
    return shown if shown.strip() else "-"


def labelled(label: str, lines: Iterable[str]) -> None:
    """Writes ``  label       line``, further lines below the first."""
    for at, line in enumerate(lines):
        write(f"  {label if at == 0 else '':<11} {line}")
