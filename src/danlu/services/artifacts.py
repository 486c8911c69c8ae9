"""Artifacts: the files that jobs left."""

from __future__ import annotations

from danlu.database.records import ARTIFACTS
from danlu.domain.artifacts import Artifact
from danlu.errors import NotFound
from danlu.services.context import Call


def get(call: Call, artifact: str) -> Artifact:
    """Returns one artifact of the project, or raises NotFound."""
    found = call.platform.database.read(lambda tx: ARTIFACTS.get(tx, artifact))
    if found is None or found.project != call.project:
        raise NotFound(f"there is no artifact {artifact!r} in project {call.project}")
    return found
