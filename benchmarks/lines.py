"""A job that prints a million lines: none is lost, and the server answers meanwhile."""

from __future__ import annotations

import subprocess
import tempfile
import threading
import time

from benchmarks.platform import BIN, Figure, Times, platform, run, timed
from danlu.client.connection import require
from danlu.client.transport import Client

LINES = 1_000_000
PROGRAM = f"for n in range({LINES}): print('line', n)"


def figures() -> list[Figure]:
    """Measures."""
    with platform() as environ, tempfile.TemporaryDirectory() as folder:
        run(["danlu", "run", "--no-code", "--", "python", "-c", "pass"], environ)
        answers: list[float] = []
        over = threading.Event()

        def ask() -> None:
            with Client(require(environ=environ)) as client:
                while not over.wait(0.02):
                    answers.append(timed(lambda: client.call("platform.get")))

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(1)
        quiet = Times(tuple(answers))
        answers.clear()
        began = time.perf_counter()
        with open(f"{folder}/lines", "wb") as out:
            subprocess.run(
                [str(BIN / "danlu"), "run", "--no-code", "--", "python", "-c", PROGRAM],
                env=environ,
                check=True,
                stdout=out,
            )
        took = time.perf_counter() - began
        over.set()
        asking.join()
        with open(f"{folder}/lines", "rb") as file:
            right = all(line == b"line %d\n" % number for number, line in enumerate(file))
            file.seek(0)
            count = sum(1 for _ in file)
        with open(f"{folder}/bare", "wb") as out:
            bare = timed(lambda: subprocess.run([str(BIN / "python"), "-c", PROGRAM], check=True, stdout=out))
    busy = Times(tuple(answers))
    return [
        Figure(
            "a job prints 1,000,000 lines, followed by `danlu run`",
            f"{count} lines in order in {took:.2f} s; meanwhile `GET /v1/platform` {busy.median * 1e3:.1f} ms, "
            f"p99 {busy.at(0.99) * 1e3:.0f} ms", "none lost, server responsive (p99 ≤ 250 ms)",
            right and count == LINES and busy.at(0.99) <= 0.25, f"idle: {quiet.median * 1e3:.1f} ms",
            f"the program into a file: {bare:.2f} s",
        )
    ]  # fmt: skip
