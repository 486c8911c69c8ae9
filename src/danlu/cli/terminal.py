"""The terminal: colours, messages, one status line. Without a terminal: plain lines, and nothing moves."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Final, TextIO

_STYLES: Final = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "bold red": "1;31",
    "green": "32",
    "yellow": "33",
    "blue": "34",
    "magenta": "35",
    "cyan": "36",
}
STATE_STYLES: Final = {
    "succeeded": "green",
    "ready": "green",
    "running": "cyan",
    "building": "cyan",
    "failed": "red",
    "queued": "yellow",
    "wanted": "yellow",
    "stopping": "yellow",
    "cancelled": "dim",
}


def is_terminal(stream: TextIO) -> bool:
    """Whether ``stream`` is a screen on which the cursor can be moved."""
    return stream.isatty() and os.environ.get("TERM", "") != "dumb"


def has_colour(stream: TextIO) -> bool:
    """Whether to colour what goes to ``stream``: a terminal, and NO_COLOR is not set."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


def paint(text: str, style: str | None, stream: TextIO) -> str:
    """Returns ``text`` in a style, where ``stream`` shows colours."""
    return styled(text, style) if style and has_colour(stream) else text


def styled(text: str, style: str) -> str:
    """Returns ``text`` in a style."""
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m"


def width() -> int:
    """Returns the terminal's width in characters; 100 where there is none."""
    return max(20, shutil.get_terminal_size((100, 24)).columns)


def agreed(question: str) -> bool:
    """Asks on the terminal, and says whether the answer is yes; Enter is no."""
    print(f"  {question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def confirmed(what: str, *, yes: bool) -> bool:
    """Says whether to do what cannot be taken back: asked on a terminal, unless ``yes``; without one nobody is asked."""
    if yes or not sys.stdin.isatty():
        return True
    for line in what.splitlines():
        print(f"  {line}", file=sys.stderr)
    done = agreed("go on?")
    if not done:
        print("  nothing was changed; without this question: --yes", file=sys.stderr)
    return done


class Messages:
    """What danlu itself says, on stderr: lines that stay, and at the bottom of a terminal one line that changes."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._moving = is_terminal(sys.stderr)
        self._shown = ""
        self.raw = False
        """Whether the terminal was handed to something else: then it no longer goes to the left by itself at a line's end."""

    @property
    def moving(self) -> bool:
        """Whether there is a status line."""
        return self._moving and not self._quiet

    def say(self, text: str, style: str | None = None) -> None:
        """Prints a line, indented."""
        if not self._quiet:
            self.clear()
            sys.stdout.flush()
            end = "\r\n" if self.raw and sys.stderr.isatty() else "\n"
            lines = "".join(paint(f"  {line}", style, sys.stderr) + end for line in text.splitlines())
            print(lines, end="", file=sys.stderr, flush=True)

    def step(self, label: str, text: str, seconds: float | None = None) -> None:
        """Prints one step of a submission: what, how it went, how long it took."""
        took = "" if seconds is None else f"{seconds:>7.2f} s"
        self.say(f"{f'{label:<13} {text}':<66}{took}".rstrip())

    def status(self, text: str) -> None:
        """Replaces the status line; without a terminal nothing is shown."""
        if self.moving and text != self._shown:
            sys.stderr.write("\r" + paint(f"  {text}"[: width() - 1], "dim", sys.stderr) + "\x1b[K")
            sys.stderr.flush()
            self._shown = text

    def bar(self, label: str, done: int, total: int, unit: str) -> None:
        """Shows a progress bar as the status line."""
        if self.moving and total > 0:
            filled = round(24 * done / total)
            self.status(f"{label:<13} [{'#' * filled}{'-' * (24 - filled)}] {100 * done // total:3d} %  {unit}")

    def clear(self) -> None:
        """Takes the status line away, so that other things can be printed."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._shown = ""
