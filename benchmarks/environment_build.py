"""Building an environment against uv alone, from the same lock; and asking again for one that is there.

The peer does the same work by uv's own means: make an environment, install the lock by its hashes out of a warm cache, and
compile its byte code. Danlu does that through its builder, and beyond it checks what the packages brought, gives the files to
one owner, links what other environments have too, makes it durable and renames it. Both find every wheel in a cache of their
own, filled before, so that no network is in the figure. The least possible is the peer without byte code.
"""

from __future__ import annotations

import os
import resource
import secrets
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from uv import find_uv_bin

from benchmarks.platform import Figure, Times, in_turns, platform, timed
from danlu.api.bodies import EnvironmentRequest
from danlu.client.connection import require
from danlu.client.transport import Client
from danlu.environments.builder import Builder
from danlu.environments.catalogue import CATALOGUE
from danlu.environments.mirrors import uv_variables
from danlu.environments.pythons import find
from danlu.environments.sources import lock_text, source_for
from danlu.environments.uv_command import Uv

NAME = "sklearn"
TURNS, AGAIN = 3, 100


class _Bare:
    """uv as a person would use it."""

    def __init__(self, folder: Path, python: Path) -> None:
        self.folder, self.python = folder, python
        self.environ = {**uv_variables(os.environ), "UV_CACHE_DIR": str(folder / "cache"), "UV_NO_PROGRESS": "1"}
        (folder / "lock.txt").write_text(lock_text(CATALOGUE[NAME]))

    def build(self, *compiling: str) -> None:
        venv = self.folder / f"venv-{secrets.token_hex(4)}"
        for words in (
            ["venv", "--quiet", "--no-project", "--python", str(self.python), str(venv)],
            [
                "pip",
                "sync",
                "--quiet",
                "lock.txt",
                "--python",
                str(venv / "bin" / "python"),
                "--require-hashes",
                *compiling,
            ],
        ):
            subprocess.run([find_uv_bin(), *words], cwd=self.folder, env=self.environ, check=True)


def _ours(folder: Path) -> None:
    """Builds into an empty folder with a warm cache."""
    root = folder / f"environments-{secrets.token_hex(4)}"
    Builder(root, folder / "cache" / "uv").build(source_for(NAME, None, None), lambda _: None)


def _counted(work: Callable[[], object], spent: list[float]) -> Callable[[], None]:
    """Returns the work, which then notes the processor time of itself and its children, s."""

    def both() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(one.ru_utime + one.ru_stime for one in used)

    def counted() -> None:
        before = both()
        work()
        spent.append(both() - before)

    return counted


def _again() -> Times:
    """Times asking the platform for an environment that is there, from the client's call to its answer."""
    with platform() as environ:
        home = Path(environ["DANLU_HOME"])
        connection = require(environ={"DANLU_HOME": str(home)})
        with Client(connection) as client:
            body = EnvironmentRequest(env=NAME)
            asked = client.call("environments.build", body=body)
            while asked.state in ("wanted", "building"):
                time.sleep(0.1)
                asked = client.call("environments.get", {"environment": asked.id})
            if asked.state != "ready":
                raise SystemExit(f"{NAME} was not built: {asked.message}")
            return Times(tuple(timed(lambda: client.call("environments.build", body=body)) for _ in range(AGAIN)))


def _unchanged(folder: Path) -> Times:
    """Times the builder alone on an environment that is there: another record, or another server's, of the same."""
    builder, source = Builder(folder / "kept", folder / "cache" / "uv"), source_for(NAME, None, None)
    builder.build(source, lambda _: None)
    return Times(tuple(timed(lambda: builder.build(source, lambda _: None)) for _ in range(20)))


def figures() -> list[Figure]:
    """Measures."""
    folder = Path(tempfile.mkdtemp(prefix="danlu-builds-", dir="/tmp"))
    folder.chmod(0o711)
    try:
        uv = Uv(folder / "probe", folder / "pythons")
        python = find(source_for(NAME, None, None).python, uv, folder, lambda _: None, deadline=time.monotonic() + 60)
        bare = _Bare(folder, python.executable)
        works = {
            "bare": lambda: bare.build("--compile-bytecode"),
            "ours": lambda: _ours(folder),
            "plain": lambda: bare.build(),
        }
        spent: dict[str, list[float]] = {name: [] for name in works}
        found = in_turns(TURNS, **{name: _counted(work, spent[name]) for name, work in works.items()})
        unchanged = _unchanged(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    again = _again()
    ratio = found["ours"].median / found["bare"].median
    cpu = {name: statistics.median(seconds) for name, seconds in spent.items()}
    ours, theirs = (f"{found[name]}, {cpu[name]:.1f} s of processors" for name in ("ours", "bare"))
    times = f"{again.median * 1e3:.1f} ms (p99 {again.at(0.99) * 1e3:.1f}) and {unchanged.median * 1e3:.1f} ms"
    return [
        Figure(
            f"environment `{NAME}` built from a warm cache", f"{ours}; {ratio:.2f} × uv alone", "≤ 1.1 × uv alone",
            ratio <= 1.1, f"`uv venv`, `uv pip sync --compile-bytecode` of the same lock: {theirs}",
            f"the same without byte code: {found['plain']}",
        ),
        Figure(
            "an unchanged environment asked for again: by the API, and found by the builder", times, "50 ms",
            again.median + unchanged.median <= 0.05, "", "",
        ),
    ]  # fmt: skip
