"""One command's connection to the platform."""

from __future__ import annotations

import os
import re
from typing import Final

from danlu.cli.options import Common
from danlu.cli.terminal import Messages
from danlu.client.connection import Connection, data_folder, find, require
from danlu.client.transport import Client
from danlu.domain.ids import NAME_PATTERN
from danlu.errors import DanluError, InvalidRequest

FOLLOW_PATIENCE_S: Final = 900.0
"""How long a command that follows a job waits for a platform that is away; the job itself goes on meanwhile."""


def connect(common: Common | None, messages: Messages | None = None) -> Client:
    """Returns a client of the platform that the command means.

    Raises:
        PlatformError: none is named and none runs here.
        NotAuthenticated: there is no key for it.
    """
    common = common or Common()
    return _client(require(common.url), common, messages)


def connect_or_start(common: Common | None, messages: Messages) -> Client:
    """Does as ``connect``; where no platform is named and none runs here, one is started, and the user is told."""
    common = common or Common()
    found = find(common.url)
    if found is None:
        from danlu.client.starting import start

        messages.status("danlu is not running here: starting it")
        found = start(data_folder())
        messages.say(f"danlu is not running here: started it ({found.url}, stop it with `danlu down`)")
    return _client(found, common, messages)


def _client(connection: Connection, common: Common, messages: Messages | None) -> Client:
    def relocate() -> Connection | None:
        try:
            return find(common.url)
        except DanluError:  # it is just being started again: ask once more after the next pause
            return None

    project = common.project or os.environ.get("DANLU_PROJECT")
    if project and not re.fullmatch(NAME_PATTERN, project):
        raise InvalidRequest(f"{project!r} is not a project's name: lower-case letters, digits and hyphens, at most 63")
    return Client(
        connection,
        project=project,
        relocate=relocate,
        notice=messages.say if messages is not None else None,
    )
