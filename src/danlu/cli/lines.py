"""Turns a stamped log into what a program's output looked like: progress lines folded, streams kept apart."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, TextIO

from danlu.cli.terminal import has_colour, is_terminal, styled, width
from danlu.cli.wording import clock
from danlu.client.logs import in_time
from danlu.domain.views import LogChunk, LogPage
from danlu.runner.formats import Line, parse_lines

_PLAIN: Final = re.compile(r"^\d+ o\. ", re.MULTILINE)
_CLEAR: Final = "\x1b[K"
_STYLES: Final = ("cyan", "green", "yellow", "magenta", "blue")

Key = tuple[int, str, str]
"""Attempt, task, stream."""


@dataclass
class Screen:
    """Where lines go. ``moving``: a progress line can be replaced on it. The rest is what its last line is like."""

    name: Literal["out", "err"]
    moving: bool = False
    colour: bool = False
    columns: int = 100
    unfinished: Key | None = None
    progress: Key | None = None


class Prefixes:
    """What stands before each line of a job of several tasks: ``worker-1 | ``, aligned, in a colour of its own."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._places = {name: place for place, name in enumerate(names)}
        self._width = max(map(len, self._places), default=0)

    def of(self, task: str, *, colour: bool) -> str:
        """Returns what stands before a task's line."""
        place = self._places.setdefault(task, len(self._places))
        text = f"{task:<{self._width}} |"
        return (styled(text, _STYLES[place % len(_STYLES)]) if colour else text) + " "

    @property
    def columns(self) -> int:
        """How many columns it takes."""
        return self._width + len(" | ")


class LogLines:
    """Makes text of log pages. ``take`` returns pieces of (out or err, text) in order; ``end`` returns what was held.

    On a terminal a progress line is replaced in place. Elsewhere only the last of a row of progress lines is kept.

    Args:
        out: where stdout goes.
        err: where stderr goes; the same screen when both are one terminal.
        timestamps: put the time before each line.
        prefixes: put the task's name before each line, and the time behind it.
    """

    def __init__(self, out: Screen, err: Screen, *, timestamps: bool = False, prefixes: Prefixes | None = None) -> None:
        self._out, self._err = out, err
        self._timestamps, self._prefixes = timestamps, prefixes
        self._held: dict[Key, str] = {}
        self._pieces: list[tuple[str, str]] = []

    def take(self, page: LogPage) -> list[tuple[str, str]]:
        """Returns what a page adds, its tasks' lines in the order of time."""
        for chunk in in_time(page):
            if not self._plain(chunk):
                for line in parse_lines(chunk.data):
                    self._add((chunk.attempt, chunk.task, line.stream), line)
        pieces, self._pieces = self._pieces, []
        return pieces

    def end(self) -> list[tuple[str, str]]:
        """Returns what was held back, and ends unfinished lines."""
        for key, text in self._held.items():
            self._write(self._screen(key), text + "\n")
        self._held.clear()
        for screen in (self._out, self._err):
            if screen.unfinished is not None or screen.progress is not None:
                self._write(screen, "\n")
                screen.unfinished = screen.progress = None
        pieces, self._pieces = self._pieces, []
        return pieces

    def _plain(self, chunk: LogChunk) -> bool:
        """Takes a chunk of nothing but whole lines of stdout at once, which is by far the most usual and the largest."""
        if self._timestamps or self._held or self._out.unfinished or self._out.progress:
            return False
        text, found = _PLAIN.subn(self._prefix(chunk.task, self._out), chunk.data)
        if found != chunk.data.count("\n") or not found:
            return False
        self._write(self._out, text)
        return True

    def _screen(self, key: Key) -> Screen:
        return self._out if key[2] == "o" else self._err

    def _write(self, screen: Screen, text: str) -> None:
        self._pieces.append((screen.name, text))

    def _add(self, key: Key, line: Line) -> None:
        screen = self._screen(key)
        head, columns = self._head(key, line, screen)
        text = head + line.text
        if line.mark == "~":
            if screen.moving:
                self._begin(screen, key)
                self._write(screen, head + line.text[: max(0, screen.columns - 1 - columns)] + _CLEAR + "\r")
                screen.unfinished, screen.progress = None, key
            else:
                self._held[key] = text
            return
        if screen.unfinished == key:
            text = line.text
        else:
            self._begin(screen, key)
        if line.mark == "+":
            self._write(screen, text)
            screen.unfinished = key
        else:
            self._write(screen, text + "\n")
            screen.unfinished = None

    def _begin(self, screen: Screen, key: Key) -> None:
        self._held.pop(key, None)
        if screen.unfinished is not None and screen.unfinished != key:
            self._write(screen, "\n")
            screen.unfinished = None
        if screen.progress is not None:
            self._write(screen, _CLEAR)
            screen.progress = None

    def _head(self, key: Key, line: Line, screen: Screen) -> tuple[str, int]:
        """Returns what stands before a line, and how many columns it takes."""
        head = f"{clock(line.at)} " if self._timestamps else ""
        head += "danlu: " if line.stream == "r" else ""
        prefix = self._prefix(key[1], screen)
        return prefix + head, len(head) + (self._prefixes.columns if self._prefixes else 0)

    def _prefix(self, task: str, screen: Screen) -> str:
        return "" if self._prefixes is None else self._prefixes.of(task, colour=screen.colour)


def screens(out: TextIO, err: TextIO) -> tuple[Screen, Screen]:
    """Returns the screens of this process's stdout and stderr; one for both when both are terminals."""
    first = Screen("out", moving=is_terminal(out), colour=has_colour(out), columns=width())
    if is_terminal(out) and is_terminal(err):
        return first, first
    return first, Screen("err", moving=is_terminal(err), colour=has_colour(err), columns=width())


def emit(pieces: list[tuple[str, str]]) -> None:
    """Writes pieces to stdout and stderr, as UTF-8 whatever the locale is: a program's bytes pass as they are."""
    for name, text in pieces:
        stream = sys.stdout if name == "out" else sys.stderr
        stream.flush()
        stream.buffer.write(text.encode("utf-8", errors="replace"))
        stream.buffer.flush()
