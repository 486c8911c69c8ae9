"""One command's connection to the platform."""

from __future__ import annotations

from danlu.cli.options import Common
from danlu.cli.terminal import Messages
from danlu.client.connection import Connection, data_folder, find, require
from danlu.client.opening import open_client
from danlu.client.transport import FOLLOW_PATIENCE_S as FOLLOW_PATIENCE_S
from danlu.client.transport import Client


def connect(common: Common | None, messages: Messages | None = None) -> Client:
    """Returns a client of the platform that the command means.

    Raises:
        PlatformError: none is named and none runs here.
        NotAuthenticated: there is no key for it.
    """
    common = common or Common()
    return _open(require(common.url, profile=common.profile), common, messages)


def connect_or_start(common: Common | None, messages: Messages) -> Client:
    """Does as ``connect``; where no platform is named and none runs here, one is started, and the user is told."""
    common = common or Common()
    found = find(common.url, profile=common.profile)
    if found is None:
        from danlu.client.starting import start

        messages.status("danlu is not running here: starting it")
        found = start(data_folder())
        messages.say(f"danlu is not running here: started it ({found.url}, stop it with `danlu down`)")
    return _open(found, common, messages)


def _open(found: Connection, common: Common, messages: Messages | None) -> Client:
    notice = None if messages is None else messages.say
    return open_client(found, url=common.url, profile=common.profile, project=common.project, notice=notice)
