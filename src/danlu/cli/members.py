"""``danlu member``: who may do what in a project."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from cyclopts import App, Parameter

from danlu.api import MemberRequest, Paging
from danlu.cli import output as out
from danlu.cli import wording
from danlu.cli.get import Kind
from danlu.cli.nouns import list_all, take_away
from danlu.cli.options import Common, Limit, Output
from danlu.cli.session import connect
from danlu.cli.terminal import Messages
from danlu.client.lists import listed
from danlu.domain.actors import Role

MEMBERS: Final = Kind(
    "members", (), ("NAME", "ROLE", "AGE"), ("ADDED BY",),
    lambda client, wanted: listed(client, "members.list", Paging(), wanted.limit),
    lambda member, now: [member.name, str(member.role), wording.age(member.created_at, now), member.created_by],
    lambda member: f"member/{member.name}",
)  # fmt: skip
app = App(name="member", help="Members of a project, and their roles.", help_format="plaintext")


@app.command(name="ls")
def ls(*, limit: Limit = 100, output: Output = "table", common: Common | None = None) -> int:
    """List the project's members.

    Example: danlu member ls --project vision
    """
    return list_all(MEMBERS, limit, output, common)


@app.command(name="add")
def add(
    user: Annotated[str, Parameter(help="the user's name")],
    /,
    *,
    role: Annotated[
        Literal["viewer", "developer", "admin"],
        Parameter(help="viewer sees, developer runs, admin adds members too", show_default=False, show_choices=False),
    ] = "developer",
    output: Output = "table",
    common: Common | None = None,
) -> int:
    """Give a user a role in the project, instead of the one before; it holds at once. For the project's admins.

    Example: danlu member add ada --role developer --project vision
    """
    messages = Messages(quiet=output in ("json", "yaml"))
    with connect(common, messages) as client:
        member = client.call("members.set", {"user": user}, body=MemberRequest(role=Role(role)))
    out.made(member, f"member/{member.name}", output)
    messages.say(f"{member.name} is {member.role} of {member.project}")
    return 0


@app.command(name="rm")
def rm(
    user: Annotated[str, Parameter(help="the user's name")],
    /,
    *,
    output: Output = "table",
    common: Common | None = None,
) -> int:
    """Take a user out of the project, at once. What it made stays.

    Example: danlu member rm ada --project vision
    """
    return take_away("members.remove", {"user": user}, f"member/{user}", output, common)
