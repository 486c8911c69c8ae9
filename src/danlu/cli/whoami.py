"""``danlu whoami``."""

from __future__ import annotations

from danlu.api.bodies import Identity
from danlu.cli import output as out
from danlu.cli.options import Common, Output
from danlu.cli.session import connect
from danlu.cli.terminal import Messages
from danlu.client.membership import require_membership


def whoami(*, output: Output = "table", common: Common | None = None) -> int:
    """Show who you are for the platform, by which key, and your role in each project.

    With --project it fails where you may not act in that project.

    Example: danlu whoami
    """
    with connect(common, Messages()) as client:
        found: Identity = client.call("access.whoami")
        if common is not None and common.project:
            require_membership(client, found.name, common.project)
        url = client.url
    if output in ("json", "yaml"):
        out.structured({**found.model_dump(mode="json"), "url": url}, output)
    elif output == "name":
        out.write(f"user/{found.name}")
    else:
        out.write(f"{found.name} at {url}" + ("   administrator of the platform" if found.administrator else ""))
        out.labelled("by", [found.by])
        mine = [f"{one.project}: {one.role or 'no member'}" for one in found.projects]
        out.labelled("projects", mine or ["all" if found.administrator else "none yet: an admin adds you"])
    return 0
