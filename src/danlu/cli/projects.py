"""``danlu project``: what separates teams: members, jobs, data, limits."""

from __future__ import annotations

import time
from typing import Annotated, Final

from cyclopts import App, Parameter

from danlu.api.bodies import Paging, ProjectChange, ProjectRequest
from danlu.cli import output as out
from danlu.cli import wording
from danlu.cli.get import Kind
from danlu.cli.nouns import list_all
from danlu.cli.options import Common, Limit, Output, Words
from danlu.cli.session import connect
from danlu.cli.terminal import Messages
from danlu.client.lists import listed
from danlu.domain.isolation import Layer
from danlu.domain.validation import suggestion
from danlu.errors import InvalidRequest

PROJECTS: Final = Kind(
    "projects", (), ("NAME", "AGE"), ("NUMBER", "REQUIRES"),
    lambda client, wanted: listed(client, "projects.list", Paging(), wanted.limit),
    lambda project, now: [
        project.id, wording.age(project.created_at, now), str(project.number), ", ".join(project.require),
    ],
    lambda project: f"project/{project.id}",
)  # fmt: skip
app = App(name="project", help="Projects: members, jobs and data of their own.", help_format="plaintext")


@app.command(name="ls")
def ls(*, limit: Limit = 100, output: Output = "table", common: Common | None = None) -> int:
    """List the projects in which you may act.

    Example: danlu project ls
    """
    return list_all(PROJECTS, limit, output, common)


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


@app.command(name="set")
def change(
    *,
    require: Annotated[
        list[str] | None,
        Parameter(help="a layer of isolation without which no job starts; none: no such; repeatable"),
        Words,
    ] = None,
    output: Output = "table",
    common: Common | None = None,
) -> int:
    """Say what holds for the project's jobs from their next attempt on. For those who manage it.

    A job that cannot have a layer that is required fails instead of running with less. Which there are: danlu doctor. With
    memory-limit or cpu-limit each job has to ask: --memory, --cpu.

    Example: danlu project set --project vision --require seccomp --require hidden-processes
    """
    if require is None:
        raise InvalidRequest("there is nothing to set", next_step="danlu project set --require seccomp")
    names = [name for word in require for name in word.split(",") if name != "none"]
    for name in names:
        if name not in {*Layer}:
            raise InvalidRequest(
                f"{name!r} is no layer of isolation",
                next_step=f"{suggestion(name, [*Layer])}   there are {', '.join(Layer)}".strip(),
            )
    messages = Messages(quiet=output in ("json", "yaml"))
    with connect(common, messages) as client:
        made = client.call("projects.change", body=ProjectChange(require=tuple(Layer(name) for name in names)))
    out.made(made, f"project/{made.id}", output)
    messages.say(f"required of each attempt: {', '.join(made.require) or 'nothing'}")
    return 0
