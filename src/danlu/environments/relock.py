"""Resolves the catalogue's requirements into ``locks/``: ``python -m danlu.environments.relock [--upgrade] [NAME...]``.

Without ``--upgrade`` versions that are locked stay, and only what the catalogue asks for anew is added or changed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from uv import find_uv_bin

from danlu.environments.catalogue import CATALOGUE, CatalogueEntry
from danlu.environments.mirrors import uv_variables
from danlu.environments.sources import FOLDER

LOCK_TIMEOUT_S = 600
NOTHING = "# no packages\n"


def project_file(entry: CatalogueEntry) -> str:
    """Returns the pyproject.toml that says for which Pythons and systems the lock must hold."""
    requires = f"=={entry.python}.*" if entry.python else f">={entry.oldest_python}"
    marker = "sys_platform == 'linux'"
    newest = entry.python or entry.newest_python
    if newest:
        marker += f" and python_full_version < '3.{int(newest.split('.')[1]) + 1}'"
    return (
        f'[project]\nname = "{entry.name}"\nversion = "0"\nrequires-python = "{requires}"\n'
        f"dependencies = {json.dumps(list(entry.requirements))}\n"
        f"[tool.uv]\nenvironments = [{json.dumps(marker)}]\n"
    )


def lock(entry: CatalogueEntry, *, upgrade: bool) -> str:
    """Returns the lock of an entry: versions and hashes for Linux of every architecture, no name of any index."""
    if not entry.requirements:
        return NOTHING
    with tempfile.TemporaryDirectory() as folder:
        project, output = Path(folder, "pyproject.toml"), Path(folder, "lock.txt")
        project.write_text(project_file(entry))
        known = FOLDER / "locks" / f"{entry.name}.txt"
        if known.exists() and not upgrade:
            output.write_text(known.read_text())
        subprocess.run(
            [
                find_uv_bin(), "pip", "compile", "--quiet", "--universal", "--generate-hashes", "--no-header",
                "--no-annotate", "--only-binary", ":all:",
                *(word for source in entry.from_source for word in ("--no-binary", source.package)),
                "--python-version", entry.python or entry.oldest_python, "--output-file", "lock.txt", "pyproject.toml",
            ],
            cwd=folder, env=uv_variables(os.environ), timeout=LOCK_TIMEOUT_S, check=True,
        )  # fmt: skip
        text = output.read_text()
    if "://" in text:
        raise SystemExit(f"{entry.name}: the lock names an address; is an index set that uv writes down?")
    return text


def main(arguments: Sequence[str]) -> None:
    """Writes the locks of the named entries, or of all."""
    names = [name for name in arguments if name != "--upgrade"]
    for entry in CATALOGUE.values():
        if entry.buildable and (not names or entry.name in names):
            text = lock(entry, upgrade="--upgrade" in arguments)
            (FOLDER / "locks" / f"{entry.name}.txt").write_text(text)
            sys.stdout.write(f"{entry.name}: {sum(1 for line in text.splitlines() if line[:1].isalnum())} packages\n")


if __name__ == "__main__":
    main(sys.argv[1:])
