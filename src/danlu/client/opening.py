"""Opens a platform that was found, and finds it again after it was away."""

from __future__ import annotations

import os
import re

from danlu.client.connection import Connection, find
from danlu.client.transport import Client, Notice
from danlu.domain.ids import NAME_PATTERN
from danlu.errors import DanluError, InvalidRequest


def open_client(
    connection: Connection, *, url: str | None = None, project: str | None = None, notice: Notice | None = None
) -> Client:
    """Returns a client of a platform that was found by ``url``; the project is DANLU_PROJECT's when left out.

    Raises:
        InvalidRequest: the project's name cannot be one.
    """

    def relocate() -> Connection | None:
        try:
            return find(url)
        except DanluError:  # it is just being started again: ask once more after the next pause
            return None

    project = project or os.environ.get("DANLU_PROJECT")
    if project and not re.fullmatch(NAME_PATTERN, project):
        raise InvalidRequest(f"{project!r} is not a project's name: lower-case letters, digits and hyphens, at most 63")
    return Client(connection, project=project, relocate=relocate, notice=notice)
