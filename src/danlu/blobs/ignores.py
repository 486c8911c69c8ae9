"""What of a user's code is left out: the rules of ignore files, as git has them, and what is never code."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from pathspec import GitIgnoreSpec

IGNORE_FILES: Final = (".gitignore", ".danluignore")
GIT: Final = ".git"
MAX_IGNORE_BYTES: Final = 2**20
FEW_CHECKS: Final = 200
"""After so many it pays to make one expression of all patterns of a file."""
_DIRECTORY_MARK: Final = "(?P<ps_d>"


def never_code(name: str, folder: bool) -> bool:
    """Says whether a name is left out unless an ignore file brings it back: byte code, git's own, a desktop's notes."""
    return name == "__pycache__" if folder else name.endswith(".pyc") or name == ".DS_Store"


class Ignores:
    """The patterns of one ignore file, for what lies below the folder that it is in.

    Args:
        base: that folder, relative to the root of the code; "" for the root itself.
        text: the file's text.

    Raises:
        ValueError: a line of it is not a pattern.
    """

    def __init__(self, base: str, text: str) -> None:
        lines = [line.removesuffix("\r") for line in text.split("\n")]
        self._start = len(base) + 1 if base else 0
        self._spec = GitIgnoreSpec.from_lines(lines)
        self._any: re.Pattern[str] | None = None
        self._checks = 0
        self.names_git = any(line.strip().rstrip("/").rpartition("/")[2].lstrip("!") == GIT for line in lines)
        """A line of it speaks of .git by name."""

    def verdict(self, relative: str, folder: bool) -> bool | None:
        """Returns whether a path is left out (True) or brought back (False); None where no pattern speaks of it."""
        name = relative[self._start :] + "/" if folder else relative[self._start :]
        self._checks += 1
        if self._checks == FEW_CHECKS:
            self._any = _any_of(self._spec)
        if self._any is not None and self._any.search(name) is None:
            return None
        return self._spec.check_file(name).include


def ignored(relative: str, folder: bool, ignores: Sequence[Ignores], *, unless_said: bool = False) -> bool:
    """Says whether a path is left out, by the ignore files from the root down: the last pattern that speaks of it decides.

    Args:
        relative: the path from the root of the code.
        folder: it is a folder.
        ignores: the ignore files above it, the root's first.
        unless_said: it is left out if no pattern speaks of it.
    """
    name = relative.rpartition("/")[2]
    git = name.lower() == GIT  # it may hold passwords: `!*/` does not bring it back, only its name does
    verdict = git or unless_said or never_code(name, folder)
    for one in ignores:
        if git and not one.names_git:
            continue
        said = one.verdict(relative, folder)
        if said is not None:
            verdict = said
    return verdict


def _any_of(spec: GitIgnoreSpec) -> re.Pattern[str] | None:
    """Returns an expression that finds something wherever one of the patterns does; None where they cannot be joined."""
    texts = []
    for pattern in spec.patterns:
        regex: re.Pattern[str] | None = getattr(pattern, "regex", None)
        if pattern.include is None or regex is None:
            continue
        if regex.groups != regex.pattern.count(_DIRECTORY_MARK) or regex.flags & ~re.UNICODE:
            return None  # it is written in a way that is not known here
        texts.append(regex.pattern.replace(_DIRECTORY_MARK, "(?:"))
    return re.compile("|".join(f"(?:{text})" for text in texts)) if texts else re.compile("(?!)")
