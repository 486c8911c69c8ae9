"""The Python of a catalogue environment, built once per machine and kept as other tests keep theirs."""

from __future__ import annotations

import functools
from pathlib import Path

from danlu.domain.environments import Environment, Interpreter
from danlu.environments.builder import Builder
from danlu.environments.sources import source_digest, source_for
from tests.process.package_index import kept_environments, kept_folder, require_index


@functools.cache
def built_interpreter(name: str) -> Interpreter:
    """Builds an environment of the catalogue where no test has yet; returns how its programs are run."""
    require_index()
    builder = Builder(kept_environments(), kept_folder() / "uv")
    source = source_for(name, None, None)
    made = builder.build(source, print)
    found = builder.interpreter(
        Environment(
            id="e1", project="p", name=name, source=source, source_digest=source_digest(source),
            lock_digest=made.lock_digest, created_at=1, updated_at=1,
        )
    )  # fmt: skip
    assert found is not None
    return found


def built(name: str) -> Path:
    """Returns the Python of an environment of the catalogue, as ``built_interpreter`` has it."""
    return built_interpreter(name).bin / "python"
