"""Whole commands: ``danlu --version``, ``danlu get jobs``, and a cold run from Enter to exit code."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.platform import BIN, Figure, in_turns, platform, run

TURNS = 15


def figures() -> list[Figure]:
    """Measures."""
    python, danlu = str(BIN / "python"), str(BIN / "danlu")
    folder = Path(tempfile.mkdtemp(prefix="danlu-code-"))
    (folder / "train.py").write_text("print('hello')\n")
    with platform() as environ:
        run([danlu, "run", "--", "python", "-c", "pass"], environ, folder)  # builds the bare environment
        for _ in range(20):
            run([danlu, "run", "--detach", "--", "true"], environ, folder)
        found = in_turns(
            TURNS,
            bare=lambda: run([python, "-c", "pass"], environ, folder),
            version=lambda: run([danlu, "--version"], environ, folder),
            get=lambda: run([danlu, "get", "jobs"], environ, folder),
            cold=lambda: run([danlu, "run", "--", "python", "-c", "pass"], environ, folder),
        )
    bare = found["bare"]
    over = found["cold"].median - bare.median
    limit = f"`python -c pass`: {bare}"
    return [
        Figure("`danlu --version`", str(found["version"]), "no third party's import (tested)", True, "", limit),
        Figure("`danlu get jobs`, 20 jobs", str(found["get"]), "0.4 s", found["get"].median <= 0.4, "", limit),
        Figure(
            "cold `danlu run -- python -c pass`, Enter to exit code", f"{found['cold']}; {over:.3f} s over bare",
            "0.8 s over bare", over <= 0.8, limit, limit,
        ),
    ]  # fmt: skip
