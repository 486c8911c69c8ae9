"""Much code: a folder of 500 MB in 5,000 files, sent for the first time, and again with one file changed."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.platform import BIN, Figure, Times, in_turns, platform, run, timed

FOLDERS, FILES, FILE_BYTES = 100, 50, 100_000
TURNS = 10
PROGRAM = "print('first line', flush=True)\n"
UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20}


def write_code(folder: Path) -> None:
    """Writes the folder, with a git repository in which all of it is committed."""
    numbers = random.Random(1)
    for number in range(FOLDERS):
        (folder / f"part{number // 10}" / f"part{number}").mkdir(parents=True)
        for file in range(FILES):
            path = folder / f"part{number // 10}" / f"part{number}" / f"{file}.bin"
            path.write_bytes(numbers.randbytes(FILE_BYTES))
    (folder / "train.py").write_text(PROGRAM)
    for words in (
        ["init", "-q"], ["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-qm", "code"],
    ):  # fmt: skip
        subprocess.run(["git", *words], cwd=folder, check=True)


def change(folder: Path) -> None:
    """Changes one file, to 64 KiB of text."""
    lines = [
        f"rate_{number} = schedule({random.random():.6f}, steps={random.randrange(1000)})\n" for number in range(2000)
    ]
    (folder / "train.py").write_text((PROGRAM + "# " + "# ".join(lines))[: 64 * 1024])


def to_first_line(folder: Path, environ: dict[str, str]) -> tuple[float, int]:
    """Runs the command; returns (s until the job's first line was there, bytes sent as it says)."""
    began = time.perf_counter()
    with subprocess.Popen(
        [str(BIN / "danlu"), "run", "--", "python", "train.py"], cwd=folder, env=environ, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as started:  # fmt: skip
        assert started.stdout is not None
        assert started.stderr is not None
        line = started.stdout.readline()
        took = time.perf_counter() - began
        said = started.stderr.read()
    sent = re.search(r"([\d.,]+) (\w+) sent", said)
    if line != "first line\n" or started.returncode or sent is None:
        raise SystemExit(f"danlu run ended with {started.returncode}:\n{said}")
    return took, round(float(sent.group(1).replace(",", "")) * UNITS[sent.group(2)])


def flushed(words: list[str]) -> float:
    """Times a command until what it wrote is on the disk."""
    return timed(lambda: (subprocess.run(words, check=True), subprocess.run(["sync"], check=True)))


def figures() -> list[Figure]:
    """Measures."""
    with platform() as environ, tempfile.TemporaryDirectory(prefix="danlu-code-", dir="/tmp") as base:
        folder, copy = Path(base) / "code", Path(base) / "copy"
        environ["XDG_CACHE_HOME"] = str(Path(base) / "cache")
        folder.mkdir()
        write_code(folder)
        run(["danlu", "run", "--no-code", "--", "python", "-c", "pass"], environ)  # builds the bare environment
        subprocess.run(["sync"], check=True)
        copy.mkdir()
        write = flushed(["cp", "-a", *map(str, folder.glob("part*")), str(copy)])
        first, first_bytes = to_first_line(folder, environ)
        shutil.rmtree(copy)
        rsync = ["rsync", "-a", "--exclude=.git", f"{folder}/", f"{copy}/"]
        if shutil.which("rsync") is None:
            raise SystemExit("rsync is the peer here: apt install rsync")
        first_peer = flushed(rsync)
        time.sleep(3)  # what changes within two seconds of its reading is read again
        seconds: list[tuple[float, int]] = []
        empty = Path(base) / "empty"
        empty.mkdir()
        (empty / "train.py").write_text(PROGRAM)

        def again() -> None:
            change(folder)
            seconds.append(to_first_line(folder, environ))

        def rsynced() -> None:
            change(folder)
            subprocess.run(rsync, check=True)

        again()
        small: list[float] = []
        found = in_turns(
            TURNS,
            ours=again,
            small=lambda: small.append(to_first_line(empty, environ)[0]),
            rsync=rsynced,
        )
    second = Times(tuple(took for took, _ in seconds[2:]))
    most = max(sent for _, sent in seconds)
    return [
        Figure(
            "first submit of 5,000 files, 477 MiB, Enter to first line",
            f"{first:.1f} s, {first_bytes / 2**20:.0f} MiB sent", "", True,
            f"`rsync -a` and `sync`: {first_peer:.1f} s", f"one copy, `cp -a` and `sync`: {write:.1f} s",
        ),
        Figure(
            "second submit, one file of 64 KiB changed, Enter to first line", f"{second}; {most / 1000:.1f} kB sent at most",
            "1 s; 100 kB", second.median <= 1.0 and most < 100_000,
            f"`rsync -a` of the folder alone: {found['rsync']}",
            f"`danlu run` of one small file: {Times(tuple(small[1:]))}",
        ),
    ]  # fmt: skip
