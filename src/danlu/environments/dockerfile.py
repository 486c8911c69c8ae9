"""An environment as a recipe for a container image: the same packages by the same hashes, for any builder. Pure text."""

from __future__ import annotations

import base64
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from danlu.environments.catalogue import CatalogueEntry
from danlu.environments.sources import hook_files

LOCK: Final = "/tmp/danlu-lock.txt"  # noqa: S108 - in an image
_WIDTH: Final = 120


def dockerfile(name: str, python: str, lock: str, entry: CatalogueEntry | None) -> str:
    """Returns a Dockerfile.

    Args:
        name: the environment's, for the first line.
        python: the interpreter's version, e.g. ``3.11``.
        lock: every package with version and hashes.
        entry: the catalogue's, if it is one: its variables, hook, and what is built from sources.
    """
    return "\n".join(_lines(name, python, lock, entry)) + "\n"


def _lines(name: str, python: str, lock: str, entry: CatalogueEntry | None) -> Iterator[str]:
    yield f"# {name}: made by danlu env export --dockerfile; the packages are those of its lock, checked by their hashes"
    yield f"FROM python:{python}-slim"
    variables: Mapping[str, str] = {} if entry is None else entry.variables
    for variable, value in variables.items():
        yield f'ENV {variable}="{value}"'
    packages = [line.rstrip().removesuffix("\\").strip() for line in lock.splitlines()]
    packages = [line for line in packages if line and not line.startswith("#")]
    if packages:
        yield from _install(packages, entry)
    if entry is not None and entry.hook is not None:
        for path in hook_files(entry.hook):
            yield from _hook(path)


def _install(packages: list[str], entry: CatalogueEntry | None) -> Iterator[str]:
    """Writes the lock line by line, so that no builder needs a file beside the Dockerfile, and installs it."""
    words: list[str] = []
    for line in packages:
        if line.startswith("--hash") and words:
            words[-1] += f" {line}"
        else:
            words.append(line)
    builds = {} if entry is None else {build.package: build for build in entry.from_source}
    wheels = [word for word in words if word.partition("==")[0] not in builds]
    if wheels:
        yield from _run(wheels, "--only-binary :all:", {})
    for name, build in builds.items():
        if build.programs:
            yield "RUN apt-get update \\"
            yield f" && apt-get install -y --no-install-recommends {' '.join(build.programs.values())} \\"
            yield " && rm -rf /var/lib/apt/lists/*"
        source = [word for word in words if word.partition("==")[0] == name]
        yield from _run(source, "--no-binary :all: --no-build-isolation", build.variables)


def _run(words: list[str], options: str, variables: Mapping[str, str]) -> Iterator[str]:
    settings = "".join(f'{name}="{value}" ' for name, value in variables.items())
    yield "RUN printf '%s\\n' \\"
    for word in words:
        yield f'    "{word}" \\'
    yield f"    > {LOCK} \\"
    yield f" && {settings}pip install --no-cache-dir --no-deps --require-hashes {options} -r {LOCK} \\"
    yield f" && rm {LOCK}"


def _hook(path: Path) -> Iterator[str]:
    """Writes a file into site-packages, where Python reads it at each start."""
    parts = textwrap.wrap(base64.b64encode(path.read_bytes()).decode(), _WIDTH)
    yield "RUN printf '%s' \\"
    for part in parts:
        yield f"    {part} \\"
    yield "    | base64 -d > \\"
    yield f'    "$(python -c \'import sysconfig; print(sysconfig.get_path("purelib"))\')/{path.name}"'
