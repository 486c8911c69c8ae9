"""``--help``, as wide as the terminal: names at the left, what they mean beside them, lines that end between words."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from cyclopts.help import HelpEntry, HelpPanel
    from rich.console import Console, ConsoleOptions

NARROWEST: Final = 40
WIDEST: Final = 100
MOST_OF_A_NAME: Final = 22
"""Beside a longer name nothing stands; what it means begins on the next line."""
NOTHING: Final = ("()", "[]", "{}", "False")


class Formatter:
    """Writes a command's help (cyclopts' HelpFormatter)."""

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:  # noqa: ARG002 - cyclopts names it
        """Writes one group of commands or parameters."""
        rows = [row for entry in panel.entries if (row := _row(entry))[0]]
        if not rows:
            return
        title = _text(panel.title)
        lines = [f"{title}:"] if title else []
        beside = min(max(len(name) for name, _ in rows), MOST_OF_A_NAME)
        for name, said in rows:
            lines += _entry(name, said, beside, _width(console))
        _write(console, "\n".join(lines) + "\n")

    def render_usage(self, console: Console, options: ConsoleOptions, usage: Any) -> None:  # noqa: ARG002 - cyclopts names it
        """Writes the line that shows how a command is written."""
        if text := _text(usage):
            _write(console, (text if text.startswith("Usage:") else f"Usage: {text}") + "\n")

    def render_description(self, console: Console, options: ConsoleOptions, description: Any) -> None:  # noqa: ARG002 - cyclopts names it
        """Writes what a command does, paragraph by paragraph."""
        paragraphs = [" ".join(part.split()) for part in _text(description).split("\n\n")]
        filled = [
            "\n".join(textwrap.wrap(part, _width(console), break_on_hyphens=False)) for part in paragraphs if part
        ]
        if filled:
            _write(console, "\n\n".join(filled) + "\n")


def _row(entry: HelpEntry) -> tuple[str, str]:
    """Returns (name, what it means)."""
    parts = [_text(entry.description)]
    if not all(choice in parts[0] for choice in entry.choices or ()):
        parts.append(f"[choices: {', '.join(entry.choices or ())}]")
    if entry.default is not None and str(entry.default) not in NOTHING:
        parts.append(f"[default: {entry.default}]")
    return ", ".join(entry.display_labels_with_metavar), " ".join(part for part in parts if part)


def _entry(name: str, said: str, beside: int, width: int) -> Iterator[str]:
    at = beside + 4
    first, *more = textwrap.wrap(said, width - at, break_on_hyphens=False) or [""]
    if len(name) > beside:
        yield f"  {name}"
        name = ""
    yield f"  {name:<{beside}}  {first}".rstrip()
    for line in more:
        yield " " * at + line


def _width(console: Console) -> int:
    return max(NARROWEST, min(console.width, WIDEST))


def _text(thing: Any) -> str:
    """Returns the text of what cyclopts hands on, without styles."""
    if thing is None or isinstance(thing, str):
        return (thing or "").strip()
    from rich.console import Console

    console = Console(file=io.StringIO(), width=10_000, color_system=None)
    with console.capture() as capture:
        console.print(thing, end="", highlight=False, markup=False)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).strip()


def _write(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
