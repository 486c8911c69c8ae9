"""``danlu key``: access keys, by which the command line and programs sign."""

from __future__ import annotations

import re
import time
from typing import Annotated, Any, TypeVar

from cyclopts import App, Parameter
from pydantic import BaseModel, ValidationError

from danlu.api.bodies import KeyExpiry, KeyMade, KeyRequest, OwnerQuery
from danlu.cli import output as out
from danlu.cli import wording
from danlu.cli.get import Kind
from danlu.cli.nouns import list_all, take_away
from danlu.cli.options import Common, Limit, Output, Yes
from danlu.cli.output import Format
from danlu.cli.session import connect
from danlu.cli.terminal import Messages
from danlu.client import rotating
from danlu.client.lists import listed
from danlu.client.transport import Client
from danlu.domain.keys import AccessKey
from danlu.domain.validation import invalid_spec
from danlu.errors import InvalidRequest, InvalidSpec

Model = TypeVar("Model", bound=BaseModel)
app = App(name="key", help="Access keys: an id, and a secret that signs.", help_format="plaintext")


def request(model: type[Model], fields: dict[str, Any], **flags: str) -> Model:
    """Returns a request of the fields that were given; ``flags``: by which flag a field is given, where not by its own name.

    One in capital letters is no flag, but a word of the command.

    Raises:
        InvalidSpec: a value cannot be so.
    """
    try:
        return model.model_validate({name: value for name, value in fields.items() if value is not None})
    except ValidationError as error:
        told = invalid_spec(error, model)
        for name in fields:
            flag = flags.get(name, name).replace("_", "-")
            word = flag if flag.isupper() else f"--{flag}"
            told.message = re.sub(rf"(^|; ){name}:", rf"\1{word}:", told.message)
        told.args = (told.message,)
        raise told from error


def no_names(form: Format, also: str = "") -> None:
    """Raises InvalidRequest where a secret that is shown only once would be lost."""
    if form == "name":
        raise InvalidRequest(
            "-o name would lose the secret, which is shown only once", next_step=f"use -o json   {also}".strip()
        )


def tell_secret(messages: Messages, made: KeyMade, url: str, user: str) -> None:
    """Prints a new key, and how to use it."""
    out.labelled("user", [user])
    out.labelled("key id", [made.key.id])
    out.labelled("secret", [made.secret])
    if made.key.expires_at is not None:
        out.labelled("ends", [expiry(made.key.expires_at, time.time_ns())])
    messages.say("the secret is shown only now; it is asked for by:")
    messages.say(f"danlu login {url} --key-id {made.key.id}")


def expiry(at: int | None, now: int) -> str:
    """Returns in how long something ends."""
    if at is None:
        return "never"
    return "ended" if at <= now else f"in {wording.duration((at - now) / wording.SECOND_NS)}"


def _row(key: AccessKey, now: int) -> list[str]:
    used = "never" if key.last_used_at is None else f"{wording.age(key.last_used_at, now)} ago"
    return [
        key.id, key.name or "-", wording.age(key.created_at, now), used, expiry(key.expires_at, now), key.created_by
    ]  # fmt: skip


def _keys(user: str | None) -> Kind:
    query = OwnerQuery(user=user)
    return Kind(
        "access keys", (), ("KEY", "NAME", "AGE", "USED", "ENDS"), ("MADE BY",),
        lambda client, wanted: listed(client, "keys.list", query, wanted.limit), _row, lambda key: f"key/{key.id}",
    )  # fmt: skip


@app.command(name="ls")
def ls(
    *,
    user: Annotated[str | None, Parameter(help="of this user: for administrators")] = None,
    limit: Limit = 100,
    output: Output = "table",
    common: Common | None = None,
) -> int:
    """List your access keys; their secrets are shown nowhere.

    Example: danlu key ls
    """
    return list_all(_keys(user), limit, output, common)


@app.command(name="create")
def create(
    *,
    name: Annotated[str | None, Parameter(help="what it is for")] = None,
    valid_for: Annotated[
        str | None, Parameter(help="for example 90d; without it, as long as the key by which you call")
    ] = None,
    user: Annotated[str | None, Parameter(help="for this user: administrators only")] = None,
    output: Output = "table",
    common: Common | None = None,
) -> int:
    """Make an access key, whose secret is printed this once.

    Example: danlu key create --name ci --valid-for 90d
    """
    no_names(output)
    body = request(KeyRequest, {"name": name, "valid_for": valid_for, "user": user})
    messages = Messages(quiet=output in ("json", "yaml"))
    with connect(common, messages) as client:
        made: KeyMade = client.call("keys.make", body=body)
        whose = user or client.call("access.whoami").name
        if output in ("json", "yaml"):
            out.record(made, output)
        else:
            tell_secret(messages, made, client.url, whose)
    return 0


@app.command(name="rm")
def rm(
    key: Annotated[str, Parameter(help="its id: danlu key ls")],
    /,
    *,
    yes: Yes = False,
    output: Output = "table",
    common: Common | None = None,
) -> int:
    """Revoke an access key, at once, and with it what its user has made by it, but not what calls here.

    Keys that it has made for other users, and one that has replaced it, go on: they are named.

    Example: danlu key rm k1f2e3d4c5b6a7f8e9d0c1b2a3f
    """

    def lost(client: Client) -> str:
        if client.call("access.whoami").by != key:
            return ""
        return (
            f"{key} is the key by which you call: at once nothing more is accepted from here.\n"
            "to go on with a new one instead: danlu key rotate"
        )

    return take_away("keys.revoke", {"key": key}, f"key/{key}", output, common, None if yes else lost)


@app.command(name="rotate")
def rotate(
    *,
    overlap: Annotated[str, Parameter(help="so long the old key still works")] = "1d",
    output: Output = "table",
    common: Common | None = None,
) -> int:
    """Replace the access key by which you call with a new one; the old one ends after the overlap.

    The new one has its name, and lives as long from now as the old one was to: one that was made for 90d, 90d again.
    Where the key lies in a profile, or is the one of this machine's platform, the new one is stored there. Elsewhere it is
    printed, this once.

    Example: danlu key rotate --overlap 7d
    """
    no_names(output)
    try:
        after = request(KeyExpiry, {"after": overlap}, after="overlap")
    except InvalidSpec as error:
        error.next_step = f"{error.next_step}   without any overlap: rotate, then danlu key rm OLD".strip()
        raise
    messages = Messages(quiet=output in ("json", "yaml"))
    with connect(common, messages) as client:
        whose, old, url = client.call("access.whoami").name, client.connection.credentials.key_id, client.url
        made, where = rotating.rotate(client, after)
    if output in ("json", "yaml"):
        shown = {"key": made.key.model_dump(mode="json")} if where else made.model_dump(mode="json")
        out.structured({**shown, "stored": where or None}, output)
    elif where:
        out.write(f"key/{made.key.id}")
        messages.say(f"the new key is stored in {where}")
    else:
        tell_secret(messages, made, url, whose)
    ends = expiry(time.time_ns() + int(after.after * wording.SECOND_NS), time.time_ns())
    messages.say(f"the old key {old} ends {ends}, the new one {expiry(made.key.expires_at, time.time_ns())}")
    return 0
