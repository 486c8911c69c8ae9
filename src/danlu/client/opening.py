"""Opens a platform that was found, and finds it again after it was away."""

from __future__ import annotations

import os

from danlu.client.connection import Connection, find
from danlu.client.profiles import require_project
from danlu.client.transport import Client, Notice
from danlu.errors import DanluError


def open_client(
    connection: Connection,
    *,
    url: str | None = None,
    profile: str | None = None,
    project: str | None = None,
    notice: Notice | None = None,
) -> Client:
    """Returns a client of a platform that was found by ``url`` or ``profile``.

    The project is DANLU_PROJECT's when left out, then the profile's.

    Raises:
        InvalidRequest: the project's name cannot be one.
    """

    def relocate() -> Connection | None:
        try:
            return find(url, profile=profile)
        except DanluError:  # it is just being started again: ask once more after the next pause
            return None

    project = project or os.environ.get("DANLU_PROJECT") or connection.project or None
    if project:
        require_project(project)
    return Client(connection, project=project, relocate=relocate, notice=notice)
