"""``danlu`` as its user types it, with a configuration of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TIMEOUT_S = 120


@dataclass
class Person:
    """Somebody at a terminal: runs commands in an environment of its own.

    Attributes:
        folder: holds the configuration.
        variables: of the commands, such as DANLU_HOME.
    """

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)
    said: str = ""

    @property
    def profiles(self) -> Path:
        return self.folder / "danlu" / "config.toml"

    def danlu(self, *words: str, code: int = 0, stdin: str = "") -> str:
        """Runs one command, expects its exit code, and returns its stdout; ``said`` is its stderr."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("DANLU_")}
        environ = {**kept, "XDG_CONFIG_HOME": str(self.folder), "XDG_DATA_HOME": str(self.folder), **self.variables}
        done = subprocess.run(
            [sys.executable, "-m", "danlu.cli.main", *words], env=environ, input=stdin, capture_output=True, text=True,
            timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
        self.said = done.stderr
        assert done.returncode == code, f"danlu {words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def json(self, *words: str, stdin: str = "") -> Any:
        return json.loads(self.danlu(*words, "-o", "json", stdin=stdin))
