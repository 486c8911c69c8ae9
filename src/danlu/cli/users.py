"""``danlu user``: who may call the platform."""

from __future__ import annotations

from typing import Annotated, Any, Final

from cyclopts import App, Parameter

from danlu.api.bodies import KeyRequest, OwnerQuery, Paging, UserChange, UserRequest
from danlu.cli import exits, wording
from danlu.cli import output as out
from danlu.cli.get import Kind
from danlu.cli.keys import no_names, tell_secret
from danlu.cli.nouns import list_all
from danlu.cli.options import Common, Flag, Limit, Output, Yes
from danlu.cli.session import connect
from danlu.cli.terminal import Messages, confirmed
from danlu.client.lists import listed
from danlu.domain.users import User
from danlu.errors import InvalidRequest

Name = Annotated[str, Parameter(help="the user's name")]


def _row(user: User, now: int) -> list[str]:
    state = "removed" if user.removed_at is not None else "active"
    return [user.name, state, "yes" if user.administrator else "-", wording.age(user.created_at, now), user.created_by,
            user.id]  # fmt: skip


USERS: Final = Kind(
    "users", (), ("NAME", "STATE", "ADMINISTRATOR", "AGE"), ("MADE BY", "ID"),
    lambda client, wanted: listed(client, "users.list", Paging(), wanted.limit), _row, lambda user: f"user/{user.name}",
)  # fmt: skip
app = App(name="user", help="Users of the platform. For administrators.", help_format="plaintext")


@app.command(name="ls")
def ls(*, limit: Limit = 100, output: Output = "table", common: Common | None = None) -> int:
    """List everybody, newest first.

    Example: danlu user ls
    """
    return list_all(USERS, limit, output, common)


@app.command(name="create")
def create(
    name: Annotated[str, Parameter(help="small letters, digits and hyphens")],
    /,
    *,
    administrator: Annotated[bool, Parameter(help="of the whole platform"), Flag] = False,
    key: Annotated[
        bool, Parameter(negative="--no-key", help="--no-key makes no first access key", show_default=False)
    ] = True,
    output: Output = "table",
    common: Common | None = None,
) -> int:
    """Make a user and its first access key, whose secret is printed this once.

    The user may do nothing yet: add it to a project with danlu member add.

    Example: danlu user create ada
    """
    if key:
        no_names(output, "--no-key")
    messages = Messages(quiet=output in ("json", "yaml"))
    with connect(common, messages) as client:
        user: User = client.call("users.make", {"user": name}, body=UserRequest(administrator=administrator))
        known, _ = listed(client, "keys.list", OwnerQuery(user=name), 1) if key else ([], False)
        made = client.call("keys.make", body=KeyRequest(user=name, name="first")) if key and not known else None
        url = client.url
    if output in ("json", "yaml"):
        facts: dict[str, Any] = {"user": user.model_dump(mode="json")}
        if made is not None:
            facts |= made.model_dump(mode="json")
        out.structured(facts, output)
    elif made is None:
        out.write(f"user/{user.name}")
    else:
        tell_secret(messages, made, url, user.name)
    if known:
        messages.say(f"{name} was there already, with an access key; another one: danlu key create --user {name}")
    messages.say(f"give it a role in a project: danlu member add {name} --project PROJECT --role developer")
    return 0


@app.command(name="set", usage="Usage: danlu user set NAME --administrator | --no-administrator [FLAGS]")
def change(
    name: Name,
    /,
    *,
    administrator: Annotated[
        bool | None, Parameter(help="of the whole platform, or not any more", show_default=False)
    ] = None,
    output: Output = "table",
    common: Common | None = None,
) -> int:
    """Make a user an administrator of the platform, or not any more; it holds at once.

    Example: danlu user set ada --administrator
    """
    if administrator is None:
        raise InvalidRequest(
            "say what to change", next_step=f"danlu user set {name} --administrator   or: --no-administrator"
        )
    with connect(common) as client:
        user = client.call("users.change", {"user": name}, body=UserChange(administrator=administrator))
    out.made(user, f"user/{user.name}", output)
    return 0


@app.command(name="rm")
def rm(name: Name, /, *, yes: Yes = False, output: Output = "table", common: Common | None = None) -> int:
    """Take everything from a user, at once and for ever: keys, tokens, memberships. Jobs go on; the name stays taken.

    Example: danlu user rm ada
    """
    messages = Messages(quiet=output in ("json", "yaml"))
    with connect(common, messages) as client:
        lost = f"{name} loses all keys, tokens and memberships at once. It is final: the name is never free again."
        if not confirmed(lost, yes=yes):
            return exits.FAILED
        user = client.call("users.remove", {"user": name})
    out.made(user, f"user/{user.name}", output)
    messages.say(f"nothing of {user.name} is accepted any more; its jobs and data are the projects', and stay")
    return 0
