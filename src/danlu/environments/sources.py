"""From what a user names to an EnvironmentSource, and what such a source is identified by."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Final

from danlu.domain.environments import EnvironmentSource
from danlu.domain.images import full_reference
from danlu.domain.validation import suggestion
from danlu.environments.catalogue import CATALOGUE, CatalogueEntry
from danlu.environments.requirements import check, normalized
from danlu.errors import InvalidSpec, UnknownEnvironment

RECIPE: Final = 2
"""Counts the ways of building; a new one makes every environment anew."""

FOLDER: Final = Path(__file__).parent


def own_python() -> str:
    """Returns the server's own version of Python, e.g. ``3.11``."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def source_for(env: str, requirements: str | None, python: str | None) -> EnvironmentSource:
    """Returns the source that a request names.

    Args:
        env: a name of the catalogue; ``python`` where requirements are given.
        requirements: a requirements.txt as text.
        python: a version such as ``3.12``; the server's own where neither this nor the catalogue says one.

    Raises:
        UnknownEnvironment: the catalogue has no such name.
        InvalidSpec: nothing can be built from it.
    """
    entry = CATALOGUE.get(env)
    if entry is None:
        near = suggestion(env, CATALOGUE)
        raise UnknownEnvironment(
            f"env: there is no environment {env[:63]!r}",
            next_step=f"{near}   all of them: danlu env ls".strip(),
            field="env",
        )
    if python is not None:
        _check_python(python, entry)
    if requirements is not None:
        if env != "python":
            raise InvalidSpec("env and requirements exclude each other: leave one of them out", field="requirements")
        text = normalized(requirements)
        check(text)
        return EnvironmentSource(requirements=text, python=python or own_python())
    if not entry.buildable:
        raise InvalidSpec(f"env: {env} is used as it is, there is nothing to build", field="env")
    return EnvironmentSource(catalogue=entry.name, python=python or entry.python or _fitting(own_python(), entry))


def _fitting(python: str, entry: CatalogueEntry) -> str:
    """Returns the version nearest to ``python`` that the entry works with."""
    newest = entry.newest_python or python
    return max(min(python, newest, key=_minor), entry.oldest_python, key=_minor)


def smoke_text(entry: CatalogueEntry) -> str:
    """Returns a small program that trains in the environment, and fails where its loss does not fall."""
    return (FOLDER / "smoke" / f"train_{entry.name.replace('-', '_')}.py").read_text(encoding="utf-8")


def image_source(image: str) -> EnvironmentSource:
    """Returns the source of a container image, or raises InvalidSpec."""
    try:
        return EnvironmentSource(image=full_reference(image))
    except ValueError as error:
        raise InvalidSpec(f"image: {error}", field="image", value=image[:200]) from error


def _check_python(python: str, entry: CatalogueEntry) -> None:
    if not re.fullmatch(r"3\.\d{1,2}", python):
        raise InvalidSpec(f"python: {python[:40]!r} is not a version such as 3.11", field="python", value=python[:40])
    if entry.python is not None and python != entry.python:
        raise InvalidSpec(
            f"python: {entry.name} runs on Python {entry.python} only (asked for: {python})",
            next_step="leave python out",
            field="python",
            value=python,
        )
    if _minor(python) < _minor(entry.oldest_python):
        raise InvalidSpec(
            f"python: {entry.name} needs Python {entry.oldest_python} or later (asked for: {python})",
            field="python",
            value=python,
        )
    if entry.newest_python is not None and _minor(python) > _minor(entry.newest_python):
        raise InvalidSpec(
            f"python: {entry.name} has no wheels for a Python later than {entry.newest_python} (asked for: {python})",
            next_step="leave python out",
            field="python",
            value=python,
        )


def _minor(version: str) -> int:
    return int(version.split(".")[1])


def lock_text(entry: CatalogueEntry) -> str:
    """Returns the entry's lock: every package with version and hashes, as ``relock`` wrote it."""
    return (FOLDER / "locks" / f"{entry.name}.txt").read_text(encoding="utf-8")


def locked_packages(lock: str, python: str) -> tuple[str, ...]:
    """Returns ``NAME==VERSION`` of each package that a lock has for a version of Python such as ``3.11``."""
    found = []
    for line in lock.splitlines():
        package, _, marker = line.rstrip("\\ ").partition(" ; ")
        if line[:1].isalnum() and _holds(marker, python):
            found.append(package.strip())
    return tuple(found)


def _holds(marker: str, python: str) -> bool:
    """Whether what ``relock`` writes about versions of Python holds; other conditions are taken to."""
    for operator, version in re.findall(r"python_full_version (<|>=) '(3\.\d+)'", marker):
        if (_minor(python) < _minor(version)) != (operator == "<"):
            return False
    return True


def hook_files(hook: str) -> tuple[Path, ...]:
    """Returns the files that a hook puts into site-packages, in the order of their names."""
    return tuple(
        sorted(p for p in (FOLDER / hook).iterdir() if p.suffix in (".py", ".pth") and p.name != "__init__.py")
    )


@functools.cache
def hook_digest(hook: str) -> str:
    """Returns the SHA-256 over a hook's files and their names."""
    digest = hashlib.sha256()
    for path in hook_files(hook):
        digest.update(f"{path.name}\n{path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()


@functools.cache
def _recipe(name: str) -> dict[str, object]:
    """Returns all of an entry that decides what is in the environment; its description and variables do not."""
    entry = CATALOGUE[name]
    recipe: dict[str, object] = {
        "lock": hashlib.sha256(lock_text(entry).encode()).hexdigest(),
        "hook": None if entry.hook is None else hook_digest(entry.hook),
    }
    if entry.from_source:
        recipe["wheels"] = [[build.package, dict(build.variables)] for build in entry.from_source]
    return recipe


def source_digest(source: EnvironmentSource) -> str:
    """Returns the SHA-256 over a source, its catalogue entry's lock and hook, and the way of building.

    A version of Danlu with a changed lock or hook so makes a new environment; the old one stays as it is.
    """
    whole = {
        "recipe": RECIPE,
        "source": source.model_dump(mode="json", exclude={"image"} if source.image is None else None),
        "entry": None if source.catalogue is None else _recipe(source.catalogue),
    }
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
