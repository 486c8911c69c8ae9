"""What the commands of several nouns do alike: list them, and take one away."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

from danlu.cli import exits
from danlu.cli import output as out
from danlu.cli.get import Kind, Wanted, show
from danlu.cli.options import Common
from danlu.cli.output import Format
from danlu.cli.session import connect
from danlu.cli.terminal import Messages, confirmed
from danlu.client.transport import Client


def list_all(kind: Kind, limit: int, form: Format, common: Common | None) -> int:
    """Prints a list of the platform that the command means."""
    messages = Messages()
    with connect(common, messages) as client:
        return show(client, kind, Wanted(limit=limit), form, messages)


def take_away(
    operation: str,
    path: Mapping[str, str],
    name: str,
    form: Format,
    common: Common | None,
    lost: Callable[[Client], str] | None = None,
) -> int:
    """Does what ends or removes one thing, whose ``name`` is as ``-o name`` prints it, and says what became of it.

    ``lost`` says what the caller loses by it, "" for nothing: a person at a terminal is asked first.
    """
    messages = Messages(quiet=form in ("json", "yaml"))
    with connect(common, messages) as client:
        if not willing(client, lost):
            return exits.FAILED
        gone = client.call(operation, path)
    out.made(gone, name, form)
    messages.say(gone.message)
    return 0


def willing(client: Client, lost: Callable[[Client], str] | None) -> bool:
    """Says whether to go on; what would be lost is looked up only where somebody can be asked."""
    if lost is None or not sys.stdin.isatty():
        return True
    what = lost(client)
    return not what or confirmed(what, yes=False)
