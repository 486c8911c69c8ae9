"""What the commands of several nouns do alike: list them, and take one away."""

from __future__ import annotations

from collections.abc import Mapping

from danlu.cli import output as out
from danlu.cli.get import Kind, Wanted, show
from danlu.cli.options import Common
from danlu.cli.output import Format
from danlu.cli.session import connect
from danlu.cli.terminal import Messages


def list_all(kind: Kind, limit: int, form: Format, common: Common | None) -> int:
    """Prints a list of the platform that the command means."""
    messages = Messages()
    with connect(common, messages) as client:
        return show(client, kind, Wanted(limit=limit), form, messages)


def take_away(operation: str, path: Mapping[str, str], name: str, form: Format, common: Common | None) -> int:
    """Does what ends or removes one thing, whose ``name`` is as ``-o name`` prints it, and says what became of it."""
    messages = Messages(quiet=form in ("json", "yaml"))
    with connect(common, messages) as client:
        gone = client.call(operation, path)
    out.made(gone, name, form)
    messages.say(gone.message)
    return 0
