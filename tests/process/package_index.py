"""Whether this machine reaches a package index, asked once; and where builds are kept from one test run to the next."""

from __future__ import annotations

import functools
import os
import subprocess
import tempfile
from pathlib import Path

from uv import find_uv_bin

from danlu.environments.mirrors import uv_variables
from tests.conftest import cannot_run

PROBE_TIMEOUT_S = 60


@functools.cache
def _unreachable() -> str | None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "requirements.txt").write_text("six\n")
        (Path(folder) / "uv.toml").touch()
        command = [find_uv_bin(), "pip", "compile", "--quiet", "--no-cache", "requirements.txt"]
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env=uv_variables(os.environ),
                capture_output=True,
                text=True,
                timeout=PROBE_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            return f"no answer in {PROBE_TIMEOUT_S} s"
    return None if done.returncode == 0 else done.stderr.strip()[-300:]


def require_index() -> None:
    """Skips the test, with the reason, where no package index can be reached; fails it where nothing may be skipped."""
    reason = _unreachable()
    if reason is not None:
        cannot_run(f"no package index can be reached from this machine: {reason}")


def kept_folder() -> Path:
    """Returns the folder for what is built once per machine."""
    return Path(os.environ.get("DANLU_TEST_CACHE") or Path.home() / ".cache" / "danlu-tests")
