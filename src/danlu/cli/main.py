"""``danlu``: the entry. ``--version`` and the overview import nothing but the standard library, and answer at once."""

from __future__ import annotations

import os
import sys

import danlu
from danlu.cli.commands import BY_NAME, NESTED, overview


def main(words: list[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    if words is None:  # as UTF-8 whatever the locale is
        words = [os.fsencode(word).decode("utf-8", "surrogateescape") for word in sys.argv[1:]]
    if words in (["--version"], ["-V"], ["version"]):
        print(f"danlu {danlu.__version__}")
        return 0
    if not words or words in (["--help"], ["-h"], ["help"]):
        print(overview())
        return 0
    if words[0] == "__complete":
        from danlu.cli.completing import answer

        return answer(words[1:])
    if words[0] == "help":
        words = [*words[1:], "--help"]
    from danlu.cli.dispatch import execute

    return execute(_flags_after_command(words))


def _flags_after_command(words: list[str]) -> list[str]:
    """Moves what every command knows, such as ``--url``, from before the command to behind its name."""
    at = 0
    while at < len(words) and words[at].partition("=")[0] in ("--url", "--profile", "--project"):
        at += 1 if "=" in words[at] else 2
    if at >= len(words) or words[at] not in BY_NAME:
        return words
    names = 2 if words[at] in NESTED else 1
    return [*words[at : at + names], *words[:at], *words[at + names :]]


if __name__ == "__main__":
    sys.exit(main())
