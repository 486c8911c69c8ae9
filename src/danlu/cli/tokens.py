"""``danlu token``: bearer tokens, for browsers and for programs that cannot sign."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from danlu.api.bodies import OwnerQuery, TokenRequest
from danlu.cli import output as out
from danlu.cli import wording
from danlu.cli.get import Kind
from danlu.cli.keys import expiry, no_names, request
from danlu.cli.nouns import list_all, take_away
from danlu.cli.options import Common, Limit, Output
from danlu.cli.session import connect
from danlu.cli.terminal import Messages
from danlu.client.lists import listed
from danlu.domain.keys import Token


def _row(token: Token, now: int) -> list[str]:
    good_for = token.project if token.bound else "all projects"
    return [token.id, token.name, good_for, wording.age(token.created_at, now), expiry(token.expires_at, now),
            token.created_by]  # fmt: skip


app = App(name="token", help="Bearer tokens, for what cannot sign.", help_format="plaintext")


def _tokens(user: str | None) -> Kind:
    query = OwnerQuery(user=user)
    return Kind(
        "tokens", (), ("TOKEN", "NAME", "GOOD FOR", "AGE", "ENDS"), ("MADE BY",),
        lambda client, wanted: listed(client, "tokens.list", query, wanted.limit), _row, lambda token: f"token/{token.id}",
    )  # fmt: skip


@app.command(name="ls")
def ls(
    *,
    user: Annotated[str | None, Parameter(help="of this user: for administrators")] = None,
    limit: Limit = 100,
    output: Output = "table",
    common: Common | None = None,
) -> int:
    """List your tokens; their secrets are shown nowhere.

    Example: danlu token ls
    """
    return list_all(_tokens(user), limit, output, common)


@app.command(name="create")
def create(
    name: Annotated[str, Parameter(help="what it is for")],
    /,
    *,
    project_only: Annotated[str | None, Parameter(help="good for this project alone")] = None,
    valid_for: Annotated[
        str | None, Parameter(help="for example 30d; without it, as long as that by which you call")
    ] = None,
    output: Output = "table",
    common: Common | None = None,
) -> int:
    """Make a token of your own, whose secret is printed this once.

    Example: danlu token create mlflow --project-only vision --valid-for 30d
    """
    no_names(output)
    body = request(TokenRequest, {"name": name, "project": project_only, "valid_for": valid_for})
    messages = Messages(quiet=output in ("json", "yaml"))
    with connect(common, messages) as client:
        made = client.call("tokens.make", body=body)
    if output in ("json", "yaml"):
        out.record(made, output)
        return 0
    out.write(made.secret)
    messages.say("this is shown only now. It goes into the header Authorization: Bearer, or into DANLU_TOKEN")
    messages.say(f"revoke it: danlu token rm {made.token.id}")
    return 0


@app.command(name="rm")
def rm(
    token: Annotated[str, Parameter(help="its id: danlu token ls")],
    /,
    *,
    output: Output = "table",
    common: Common | None = None,
) -> int:
    """Revoke a token, at once, and with it what was made by it, but not what calls here.

    Example: danlu token rm t1f2e3d4c5b6a7f8e9d0c1b2a3f
    """
    return take_away("tokens.revoke", {"token": token}, f"token/{token}", output, common)
