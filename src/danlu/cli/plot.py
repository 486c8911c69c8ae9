"""Draws a series of numbers with braille dots: two columns and four rows of dots in a character."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

_DOTS: Final = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_BLANK: Final = 0x2800
MIN_WIDTH: Final = 10


def number(value: float) -> str:
    """Returns a number in at most about seven characters."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.4g}"


def draw(
    xs: Sequence[float], ys: Sequence[float], *, width: int, height: int, written: Callable[[float], str] = number
) -> list[str]:
    """Returns lines: the curve of ``ys`` over ``xs`` with its largest and smallest value at the left and xs below.

    Values that are not finite leave a gap. Points need not be ordered: the curve follows their order.

    Args:
        xs: finite.
        ys: as many.
        width: of everything, in characters.
        height: of the curve, in characters.
        written: how a value is written.
    """
    finite = [y for y in ys if math.isfinite(y)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    left, right = (min(xs), max(xs)) if xs else (0.0, 0.0)
    labels = [written(high), *[""] * (height - 2), written(low)] if height > 1 else [written(high)]
    margin = max(map(len, labels))
    columns = max(MIN_WIDTH, width - margin - 2)
    cells = _curve(xs, ys, (left, right, low, high), columns, height)
    lines = []
    for row in range(height):
        text = "".join(chr(_BLANK + cells.get((column, row), 0)) for column in range(columns))
        lines.append(f"{labels[row]:>{margin}} {'┤' if labels[row] else '│'}{text.replace(chr(_BLANK), ' ').rstrip()}")
    lines.append(f"{'':>{margin}} └{'─' * columns}")
    begin, end = number(left), number(right)
    lines.append(f"{'':>{margin + 2}}{begin}{end:>{max(1, columns - len(begin))}}")
    return lines


def _curve(
    xs: Sequence[float], ys: Sequence[float], box: tuple[float, float, float, float], columns: int, rows: int
) -> dict[tuple[int, int], int]:
    """Returns the dots of each character that has any, by (column, row)."""
    left, right, low, high = box
    across, down = columns * 2 - 1, rows * 4 - 1
    cells: dict[tuple[int, int], int] = {}

    def place(x: float, y: float) -> tuple[int, int]:
        return round(across * _part(x, left, right)), round(down * (1 - _part(y, low, high)))

    previous: tuple[int, int] | None = None
    for x, y in zip(xs, ys, strict=True):
        if not math.isfinite(y):
            previous = None
            continue
        here = place(x, y)
        begin = previous or here
        steps = max(abs(here[0] - begin[0]), abs(here[1] - begin[1]), 1)
        for step in range(steps + 1):
            column = begin[0] + round((here[0] - begin[0]) * step / steps)
            row = begin[1] + round((here[1] - begin[1]) * step / steps)
            cell = (column // 2, row // 4)
            cells[cell] = cells.get(cell, 0) | _DOTS[column % 2][row % 4]
        previous = here
    return cells


def _part(value: float, low: float, high: float) -> float:
    """Returns where between ``low`` (0) and ``high`` (1) a value lies; halves first, so that nothing overflows."""
    span = high / 2 - low / 2
    return min(1.0, max(0.0, (value / 2 - low / 2) / span)) if span > 0 else 0.5
