"""Runs the commands in a document: blocks marked ``console``, line by line, in one shell.

A line that begins with ``$ `` is a command; the lines below it are what it prints, on stdout or stderr. Spaces count once.
``...`` within a line is any text, with the spaces around it; as a line it is any lines, or none. Output that is left out
altogether may be anything. A command ends with 0, unless a comment at its end says ``# exit code N``.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXIT_CODE = re.compile(r"# exit code (\d+)\s*$")


class Step(NamedTuple):
    """One command, the line that it stands on, and the lines that it should print."""

    line: int
    command: str
    expected: list[str]


def steps(text: str) -> list[Step]:
    """Returns the commands of a document, in order."""
    found: list[Step] = []
    for block in BLOCK.finditer(text):
        begin = text.count("\n", 0, block.start(1)) + 1
        block_steps: list[Step] = []
        for number, line in enumerate(block.group(1).splitlines(), begin):
            if line.startswith("$ "):
                block_steps.append(Step(number, line[2:], []))
            elif block_steps:
                block_steps[-1].expected.append(line)
            else:
                raise ValueError(f"line {number}: a console block begins with a command: {line!r}")
        found += block_steps
    return found


def matches(expected: list[str], printed: str) -> bool:
    """Says whether what was printed is what a document shows."""
    lines = [" ".join(line.split()) for line in expected]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        return True
    patterns = []
    for line in lines:
        pattern = ".*".join(re.escape(part) for part in re.split(r" ?\.\.\. ?", line))
        patterns.append("(?:.*\n)*" if line == "..." else pattern + "\n")
    said = "".join(" ".join(line.split()) + "\n" for line in printed.splitlines())
    return re.fullmatch("".join(patterns), said) is not None


class Shell:
    """One bash for a whole document: folders and variables stay from one command to the next."""

    def __init__(self, folder: Path, environ: Mapping[str, str], timeout_s: float) -> None:
        self._mark = f"done-{secrets.token_hex(8)}"
        self._bash = subprocess.Popen(
            ["bash", "--norc"], cwd=folder, env=dict(environ), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        self._timer = threading.Timer(timeout_s, self._kill)
        self._timer.start()

    def run(self, command: str) -> tuple[int, str]:
        """Returns (exit code, output) of one command; -9 when the document's time is over."""
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.write(f"{{ {command}\n}} < /dev/null\nprintf '\\n%s %s\\n' {self._mark} $?\n")
        self._bash.stdin.flush()
        output = ""
        for line in self._bash.stdout:
            if line.startswith(self._mark):
                return int(line.split()[1]), output.removesuffix("\n")
            output += line
        return -9, output

    def close(self) -> None:
        self._timer.cancel()
        self._kill()
        self._bash.communicate()

    def _kill(self) -> None:
        """Ends bash and what it runs; a platform that it has started is a session of its own."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._bash.pid, signal.SIGKILL)


def execute(text: str, folder: Path, environ: Mapping[str, str], timeout_s: float) -> Iterator[str]:
    """Runs a document's commands and yields what is wrong; stops at the first command that fails."""
    shell = Shell(folder, environ, timeout_s)
    try:
        for step in steps(text):
            wanted = EXIT_CODE.search(step.command)
            code, printed = shell.run(step.command)
            if code != (int(wanted.group(1)) if wanted else 0):
                yield f"line {step.line}: `{step.command}` ended with {code} and printed:\n{printed}"
                return
            if not matches(step.expected, printed):
                shown = "\n".join(step.expected)
                yield f"line {step.line}: `{step.command}` printed:\n{printed}\nand not:\n{shown}"
    finally:
        shell.close()
