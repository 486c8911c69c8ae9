"""Projects: which there are."""

from __future__ import annotations

from danlu.database.records import PROJECTS
from danlu.services.context import Platform


def exists(platform: Platform, name: str) -> bool:
    """Says whether there is a project of that name."""
    return platform.database.read(lambda tx: PROJECTS.get(tx, name)) is not None
