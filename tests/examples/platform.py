"""A platform of its own data folder, used as a person uses it: by the command ``danlu``."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.process.package_index import kept_folder
from tests.process.platform import processes_with

COMMAND_TIMEOUT_S = 150
ROOT = Path(__file__).parents[2]


class Platform:
    """Runs ``danlu`` with one data folder."""

    def __init__(self, home: Path) -> None:
        self.home = home
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DANLU_", "VIRTUAL_ENV"))}
        bin_folder = str(Path(sys.executable).parent)
        self.environ = {
            **kept, "DANLU_HOME": str(home), "PATH": os.pathsep.join([bin_folder, kept.get("PATH", os.defpath)]),
            "COLUMNS": "100", "XDG_CONFIG_HOME": str(home.parent / "config"), "NO_COLOR": "1", "LC_ALL": "C.UTF-8",
        }  # fmt: skip

    def danlu(self, *words: str, cwd: Path = ROOT, code: int = 0, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Runs one command, expects its exit code, and returns what it wrote to stdout."""
        done = subprocess.run(
            ["danlu", *words], cwd=cwd, env=self.environ, capture_output=True, text=True, timeout=timeout_s,
            check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == code, (
            f"danlu {words}: {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
        return done.stdout

    def json(self, *words: str, cwd: Path = ROOT, timeout_s: float = COMMAND_TIMEOUT_S) -> Any:
        """Runs one command with ``-o json`` and returns what it told."""
        return json.loads(self.danlu(words[0], "-o", "json", *words[1:], cwd=cwd, timeout_s=timeout_s))

    def line(self, pattern: str, *words: str, timeout_s: float = COMMAND_TIMEOUT_S) -> re.Match[str]:
        """Runs a command that follows something, until it writes a line with ``pattern``; returns what was found."""
        with subprocess.Popen(
            ["danlu", *words], cwd=ROOT, env=self.environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        ) as following:
            late = threading.Timer(timeout_s, following.kill)
            late.start()
            assert following.stdout is not None
            seen = []
            try:
                for line in following.stdout:
                    seen.append(line)
                    if found := re.search(pattern, line):
                        return found
            finally:
                late.cancel()
                following.kill()
        raise AssertionError(
            f"danlu {words}: no line with {pattern!r} within {timeout_s} s in\n{''.join(seen)[-3000:]}"
        )

    def api(self, path: str) -> Any:
        """Returns the answer to a GET request."""
        return json.loads(self.danlu("api", "GET", path))


@contextlib.contextmanager
def platform(environments: Path) -> Iterator[Platform]:
    """Yields a platform that is not started yet, and stops it at the end, with its jobs.

    Args:
        environments: what was built here by other platforms is found again, not built again.
    """
    outer = Path(tempfile.mkdtemp(prefix="danlu-examples-", dir="/tmp"))
    outer.chmod(0o711)  # jobs run as other users where the tests run as root
    home = outer / "home"
    home.mkdir(mode=0o700)
    (home / "cache").mkdir()
    for name in ("uv", "wheels"):
        (kept_folder() / name).mkdir(parents=True, exist_ok=True)
        (home / "cache" / name).symlink_to(kept_folder() / name)
    (home / "environments").symlink_to(environments)
    made = Platform(home)
    try:
        yield made
        made.danlu("down", "--jobs")
    finally:
        for pid in processes_with(str(home)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(outer)
