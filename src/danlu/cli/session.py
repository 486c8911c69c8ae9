"""One command's connection to the platform."""

from __future__ import annotations

from danlu.cli.options import Common
from danlu.cli.terminal import Messages
from danlu.client.connection import data_folder, find, require
from danlu.client.opening import open_client
from danlu.client.transport import FOLLOW_PATIENCE_S as FOLLOW_PATIENCE_S
from danlu.client.transport import Client, Notice


def connect(common: Common | None, messages: Messages | None = None) -> Client:
    """Returns a client of the platform that the command means.

    Raises:
        PlatformError: none is named and none runs here.
        NotAuthenticated: there is no key for it.
    """
    common = common or Common()
    return open_client(require(common.url), url=common.url, project=common.project, notice=_notice(messages))


def connect_or_start(common: Common | None, messages: Messages) -> Client:
    """Does as ``connect``; where no platform is named and none runs here, one is started, and the user is told."""
    common = common or Common()
    found = find(common.url)
    if found is None:
        from danlu.client.starting import start

        messages.status("danlu is not running here: starting it")
        found = start(data_folder())
        messages.say(f"danlu is not running here: started it ({found.url}, stop it with `danlu down`)")
    return open_client(found, url=common.url, project=common.project, notice=_notice(messages))


def _notice(messages: Messages | None) -> Notice | None:
    return None if messages is None else messages.say
