"""Turns a stamped log into what a program's output looked like: progress lines folded, streams kept apart."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import Final, Literal, TextIO

from danlu.cli.terminal import is_terminal, width
from danlu.cli.wording import clock
from danlu.domain.views import LogChunk, LogPage
from danlu.runner.formats import Line, parse_lines

_PLAIN: Final = re.compile(r"^\d+ o\. ", re.MULTILINE)
_CLEAR: Final = "\x1b[K"

Key = tuple[int, str, str]
"""Attempt, task, stream."""


@dataclass
class Screen:
    """Where lines go. ``moving``: a progress line can be replaced on it. The rest is what its last line is like."""

    name: Literal["out", "err"]
    moving: bool = False
    columns: int = 100
    unfinished: Key | None = None
    progress: Key | None = None


class LogLines:
    """Makes text of log pages. ``take`` returns pieces of (out or err, text) in order; ``end`` returns what was held.

    On a terminal a progress line is replaced in place. Elsewhere only the last of a row of progress lines is kept.

    Args:
        out: where stdout goes.
        err: where stderr goes; the same screen when both are one terminal.
        timestamps: put the time before each line.
        tasks: put the task's name before each line.
    """

    def __init__(self, out: Screen, err: Screen, *, timestamps: bool = False, tasks: bool = False) -> None:
        self._out, self._err = out, err
        self._timestamps, self._tasks = timestamps, tasks
        self._held: dict[Key, str] = {}
        self._pieces: list[tuple[str, str]] = []

    def take(self, page: LogPage) -> list[tuple[str, str]]:
        """Returns what a page adds."""
        for chunk in page.chunks:
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
        if self._timestamps or self._tasks or self._held or self._out.unfinished or self._out.progress:
            return False
        text, found = _PLAIN.subn("", chunk.data)
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
        text = self._head(key, line) + line.text
        if line.mark == "~":
            if screen.moving:
                self._begin(screen, key)
                self._write(screen, text[: screen.columns - 1] + _CLEAR + "\r")
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

    def _head(self, key: Key, line: Line) -> str:
        head = f"{clock(line.at)} " if self._timestamps else ""
        if self._tasks:
            head += f"[{key[1]}] "
        return head + ("danlu: " if line.stream == "r" else "")


def screens(out: TextIO, err: TextIO) -> tuple[Screen, Screen]:
    """Returns the screens of this process's stdout and stderr; one for both when both are terminals."""
    first = Screen("out", moving=is_terminal(out), columns=width())
    if is_terminal(out) and is_terminal(err):
        return first, first
    return first, Screen("err", moving=is_terminal(err), columns=width())


def emit(pieces: list[tuple[str, str]]) -> None:
    """Writes pieces to stdout and stderr, as UTF-8 whatever the locale is: a program's bytes pass as they are."""
    for name, text in pieces:
        stream = sys.stdout if name == "out" else sys.stderr
        stream.flush()
        stream.buffer.write(text.encode("utf-8", errors="replace"))
        stream.buffer.flush()
