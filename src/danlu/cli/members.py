"""``danlu member``: who may do what in a project."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from cyclopts import App, Parameter

from danlu.api.bodies import MemberRequest, Paging
from danlu.cli import exits, wording
from danlu.cli import output as out
from danlu.cli.get import Kind
from danlu.cli.nouns import list_all, take_away, willing
from danlu.cli.options import Common, Limit, Output, Yes, again
from danlu.cli.session import connect
from danlu.cli.terminal import Messages
from danlu.client.lists import listed
from danlu.client.transport import Client
from danlu.domain.actors import Role
from danlu.domain.users import Member
from danlu.errors import InvalidRequest

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
        Literal["viewer", "developer", "admin"] | None,
        Parameter(
            help="viewer sees, developer runs, admin adds members too; left out for who is no member yet: developer",
            show_choices=False,
        ),
    ] = None,
    yes: Yes = False,
    output: Output = "table",
    common: Common | None = None,
) -> int:
    """Give a user a role in the project; it holds at once. For the project's admins.

    The role of who is a member already is changed only by --role.

    Example: danlu member add ada --role developer --project vision
    """
    messages = Messages(quiet=output in ("json", "yaml"))
    with connect(common, messages) as client:
        if role is None:
            _keep_role(client, user, common)
        elif role != "admin" and not willing(client, None if yes else lambda asked: _lost(asked, user)):
            return exits.FAILED
        member = client.call("members.set", {"user": user}, body=MemberRequest(role=Role(role or Role.DEVELOPER)))
    out.made(member, f"member/{member.name}", output)
    messages.say(f"{member.name} is {member.role} of {member.project}")
    return 0


def _members(client: Client) -> dict[str, Member]:
    found, _ = listed(client, "members.list", Paging(), 0)
    return {member.name: member for member in found}


def _keep_role(client: Client, user: str, common: Common | None) -> None:
    """Raises InvalidRequest where a user would lose the role that it has without anybody having said so."""
    known = _members(client).get(user)
    if known is not None and known.role is not Role.DEVELOPER:
        raise InvalidRequest(
            f"{user} is {known.role} of {known.project} already",
            next_step=f"to change that: danlu member add {user} --role developer{again(common)}",
        )


def _lost(client: Client, user: str) -> str:
    """Says what follows where a project's only admin takes the role from himself; "" for everybody else."""
    who = client.call("access.whoami")
    if who.name != user or who.administrator:
        return ""
    admins = [member for member in _members(client).values() if member.role is Role.ADMIN]
    if [member.name for member in admins] != [user]:
        return ""
    return (
        f"you are the only admin of {admins[0].project}: afterwards nobody there can add members or give roles,\n"
        "you neither; only an administrator of the platform can make somebody its admin again."
    )


@app.command(name="rm")
def rm(
    user: Annotated[str, Parameter(help="the user's name")],
    /,
    *,
    yes: Yes = False,
    output: Output = "table",
    common: Common | None = None,
) -> int:
    """Take a user out of the project, at once. What it made stays.

    Example: danlu member rm ada --project vision
    """
    path, name = {"user": user}, f"member/{user}"
    return take_away("members.remove", path, name, output, common, None if yes else lambda asked: _lost(asked, user))
