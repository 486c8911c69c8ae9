"""Reads a folder of code as far as a guess needs it: a few files, the beginning of each."""

from __future__ import annotations

import itertools
import os
import tomllib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from danlu.domain import guesses

MAX_FILES: Final = 200
MAX_FOLDERS: Final = 1000
MAX_BYTES: Final = 256 * 1024
MAX_DEPTH: Final = 3
LEFT_OUT: Final = frozenset({"node_modules", "__pycache__", "site-packages", "build", "dist", "venv", "env"})


@dataclass(frozen=True, slots=True)
class Guess:
    """What a folder probably needs."""

    command: str
    environment: guesses.Environment


def guess(folder: Path, known: Collection[str]) -> Guess:
    """Returns what a folder probably needs; ``known``: the environments that there are, none where that is not known."""
    sources = {name: _beginning(folder / name) for name in _programs(folder)}
    scripts = [path.name for path in folder.glob("*.sh")][:MAX_FILES]
    requirements = _beginning(folder / "requirements.txt") or _of_project(folder / "pyproject.toml")
    return Guess(guesses.command(sources, scripts), guesses.environment(sources, requirements, known))


def _programs(folder: Path) -> list[str]:
    """Returns the paths of Python files, those at the top first; virtual environments and the like are left out."""
    found: list[str] = []
    for where, folders, files in itertools.islice(os.walk(folder), MAX_FOLDERS):
        here = Path(where)
        depth = len(here.relative_to(folder).parts)
        folders[:] = sorted(
            name
            for name in folders
            if depth < MAX_DEPTH
            and not name.startswith(".")
            and name not in LEFT_OUT
            and not (here / name / "pyvenv.cfg").exists()
        )
        found += [(here / name).relative_to(folder).as_posix() for name in sorted(files) if name.endswith(".py")]
        if len(found) >= MAX_FILES:
            break
    return found[:MAX_FILES]


def _beginning(path: Path) -> str:
    try:
        if not path.is_file():  # a pipe would be waited for
            return ""
        with path.open("rb") as file:
            return file.read(MAX_BYTES).decode(errors="replace")
    except OSError:
        return ""  # it is not there, or not ours to read: then it tells nothing


def _of_project(path: Path) -> str:
    """Returns the dependencies of a pyproject.toml as lines of a requirements.txt."""
    try:
        needed = tomllib.loads(_beginning(path)).get("project", {}).get("dependencies", [])
        return "".join(f"{line}\n" for line in needed if isinstance(line, str))
    except (tomllib.TOMLDecodeError, AttributeError, TypeError):
        return ""  # a broken one tells nothing
