"""In which projects somebody may act, as the platform sees it."""

from __future__ import annotations

from danlu.api.bodies import Paging
from danlu.client.lists import listed
from danlu.client.transport import Client
from danlu.domain.validation import suggestion
from danlu.errors import NotFound


def projects_of(client: Client) -> list[str]:
    """Returns the names of the projects in which who calls may act: an administrator in all."""
    found, _ = listed(client, "projects.list", Paging(), 0)
    return [project.id for project in found]


def require_membership(client: Client, name: str, project: str) -> None:
    """Raises NotFound where the user who calls, called ``name``, may not act in a project, or there is none."""
    known = projects_of(client)
    if project not in known:
        hint = suggestion(project, known)
        none = "an administrator adds you: danlu member add"
        raise NotFound(
            f"there is no project {project!r} in which {name} may act",
            next_step=f"{hint}   {'yours: danlu project ls' if known else none}".strip(),
        )
