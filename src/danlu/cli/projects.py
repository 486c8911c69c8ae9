"""``danlu project``: what separates teams: members, jobs, data, limits."""

from __future__ import annotations

import time
from typing import Annotated, Final

from cyclopts import App, Parameter

from danlu.api import Paging, ProjectRequest
from danlu.cli import output as out
from danlu.cli import wording
from danlu.cli.get import Kind, Wanted, show
from danlu.cli.options import Common, Limit, Output
from danlu.cli.session import connect
from danlu.cli.terminal import Messages
from danlu.client.lists import listed

PROJECTS: Final = Kind(
    "projects", (), ("NAME", "AGE"), ("NUMBER",),
    lambda client, wanted: listed(client, "projects.list", Paging(), wanted.limit),
    lambda project, now: [project.id, wording.age(project.created_at, now), str(project.number)],
    lambda project: f"project/{project.id}",
)  # fmt: skip
app = App(name="project", help="Projects: members, jobs and data of their own.", help_format="plaintext")


@app.command(name="ls")
def ls(*, limit: Limit = 100, output: Output = "table", common: Common | None = None) -> int:
    """List the projects in which you may act.

    Example: danlu project ls
    """
    messages = Messages()
    with connect(common, messages) as client:
        return show(client, PROJECTS, Wanted(limit=limit), output, messages)


@app.command(name="create")
def create(
    name: Annotated[str, Parameter(help="small letters, digits and hyphens")],
    /,
    *,
    output: Output = "table",
    common: Common | None = None,
) -> int:
    """Make a project, unless it is there. For administrators.

    Example: danlu project create vision
    """
    messages = Messages(quiet=output in ("json", "yaml"))
    with connect(common, messages) as client:
        made = client.call("projects.make", {"name": name}, body=ProjectRequest())
    out.made(made, f"project/{made.id}", output)
    if made.created_at < time.time_ns() - wording.SECOND_NS * 3600:
        messages.say(f"{made.id} was there already")
    else:
        messages.say(f"add who works there: danlu member add USER --project {made.id}")
    return 0
