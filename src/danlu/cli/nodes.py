"""``danlu nodes``."""

from __future__ import annotations

from danlu.cli.get import BY_NAME, Wanted, show
from danlu.cli.options import Common, Output
from danlu.cli.session import connect
from danlu.cli.terminal import Messages


def nodes(*, output: Output = "table", common: Common | None = None) -> int:
    """Show the machines, what they have and what is free.

    Example: danlu nodes -o wide
    """
    messages = Messages()
    with connect(common, messages) as client:
        return show(client, BY_NAME["nodes"], Wanted(), output, messages)
