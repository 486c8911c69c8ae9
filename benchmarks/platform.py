"""A platform of its own for a measurement, and how to time whole commands."""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Figure:
    """One measured value, what it is held against, and what would be the least possible."""

    name: str
    value: str
    target: str
    met: bool
    peer: str
    limit: str

    def line(self) -> str:
        """Returns it as a row of the table in docs/reference/performance.md."""
        met = "yes" if self.met else "**no**"
        return f"| {self.name} | {self.value} | {self.target} | {met} | {self.peer} | {self.limit} |"


@dataclass(frozen=True)
class Times:
    """Seconds of repeated runs."""

    all: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.all)

    def at(self, quantile: float) -> float:
        """Returns the value that this part of all runs does not exceed."""
        return sorted(self.all)[min(len(self.all) - 1, int(quantile * len(self.all)))]

    def __str__(self) -> str:
        return f"{self.median:.3f} s ({min(self.all):.3f} to {max(self.all):.3f})"


@contextlib.contextmanager
def platform(*arguments: str) -> Iterator[dict[str, str]]:
    """Yields the environment for commands on a fresh platform."""
    outer = Path(tempfile.mkdtemp(prefix="danlu-benchmark-", dir="/tmp"))
    outer.chmod(0o711)
    environ = {**os.environ, "DANLU_HOME": str(outer / "home"), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    # and byte code is kept, as it is for users: without it every start compiles all sources anew
    for name in ("DANLU_URL", "DANLU_TOKEN", "PYTHONDONTWRITEBYTECODE"):
        environ.pop(name, None)
    run(["danlu", "up", *arguments], environ)
    try:
        yield environ
    finally:
        run(["danlu", "down", "--jobs"], environ)
        shutil.rmtree(outer, ignore_errors=True)


def run(command: list[str], environ: dict[str, str], cwd: Path | None = None) -> str:
    """Runs a command to its end and returns what it printed."""
    done = subprocess.run(command, env=environ, cwd=cwd, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout


def timed(work: Callable[[], object]) -> float:
    """Returns how long it took, s."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def in_turns(times: int, **works: Callable[[], object]) -> dict[str, Times]:
    """Times pieces of work in turns, so that a busy moment of the machine meets all of them; the first turn is dropped."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(times + 1):
        for name, work in works.items():
            took = timed(work)
            if turn:
                found[name].append(took)
    return {name: Times(tuple(values)) for name, values in found.items()}
