"""Four tasks print 200,000 lines each: their logs, merged, are complete and in order, while they run and afterwards."""

from __future__ import annotations

import re
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.platform import BIN, Figure, platform, run, timed

TASKS, LINES = 4, 200_000
PROGRAM = f"import os; name = os.environ['DANLU_TASK']\nfor n in range({LINES}): print(name, 'line', n)"
LINE = re.compile(rb"(worker-(\d)) \| \1 line (\d+)\n")


def figures() -> list[Figure]:
    """Measures."""
    with platform() as environ, tempfile.TemporaryDirectory() as named:
        folder = Path(named)
        job = folder / "job.yaml"
        run(["danlu", "run", "--no-code", "--", "python", "-c", "pass"], environ)
        job.write_text(_job())
        began = time.perf_counter()
        run(["danlu", "apply", "-f", str(job)], environ)
        _logs(folder / "followed", environ, "-f")
        took = time.perf_counter() - began
        run(["danlu", "wait", "gang"], environ)
        again = timed(lambda: _logs(folder / "read", environ))
        right = _right(folder / "followed") and _right(folder / "read")
        bare = timed(lambda: _bare(folder))
    return [
        Figure(
            f"{TASKS} tasks print {LINES:,} lines each, merged by `danlu logs -f`",
            f"each task's {LINES:,} lines in order: {took:.2f} s from submit to the last; read again {again:.2f} s",
            "complete and ordered per stream", right, "", f"the {TASKS} programs into files: {bare:.2f} s",
        )
    ]  # fmt: skip


def _job() -> str:
    indented = "".join(f"      {line}\n" for line in PROGRAM.splitlines())
    return (
        f"name: gang\ncode: null\nframework: none\ncpu: 0.5\nroles: {{worker: {{replicas: {TASKS}}}}}\n"
        f"command:\n  - python\n  - -c\n  - |\n{indented}"
    )


def _logs(target: Path, environ: dict[str, str], *flags: str) -> None:
    with target.open("wb") as out:
        subprocess.run([str(BIN / "danlu"), "logs", "gang", *flags], env=environ, check=True, stdout=out)


def _right(merged: Path) -> bool:
    """Says whether each task's lines are all there, in order, and nothing else."""
    following = [0] * TASKS
    with merged.open("rb") as file:
        for line in file:
            found = LINE.fullmatch(line)
            if found is None or int(found.group(3)) != following[int(found.group(2))]:
                return False
            following[int(found.group(2))] += 1
    return following == [LINES] * TASKS


def _bare(folder: Path) -> None:
    def work(number: int) -> None:
        with (folder / f"bare-{number}").open("wb") as out:
            subprocess.run(
                [str(BIN / "python"), "-c", PROGRAM], env={"DANLU_TASK": f"worker-{number}"}, check=True, stdout=out
            )

    threads = [threading.Thread(target=work, args=(number,)) for number in range(TASKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
