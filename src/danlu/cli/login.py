"""``danlu login`` and ``danlu logout``."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Final
from urllib.parse import urlsplit

from cyclopts import Parameter

from danlu.api.bodies import Identity
from danlu.cli import output as out
from danlu.cli.options import Common, Flag, Output
from danlu.cli.terminal import Messages, agreed
from danlu.client import certificates, profiles
from danlu.client.connection import Connection, is_loopback, require_url
from danlu.client.credentials import Credentials, sendable
from danlu.client.membership import projects_of, require_membership
from danlu.client.profiles import Profile
from danlu.client.transport import Client
from danlu.errors import InvalidRequest, NotAuthenticated, NotTrusted

MAX_SECRET: Final = 4096


def login(
    url: Annotated[str | None, Parameter(help="the platform's address, e.g. https://danlu.example.com:7070")] = None,
    /,
    *,
    key_id: Annotated[str | None, Parameter(help="the access key's id; asked for when left out")] = None,
    token: Annotated[bool, Parameter(help="a token instead of an access key"), Flag] = False,
    fingerprint: Annotated[
        str | None, Parameter(help="sha256:... of the only certificate to accept; danlu up prints it there")
    ] = None,
    output: Output = "table",
    common: Common | None = None,
) -> int:
    """Use a platform from now on: checks the key there, and stores it in a profile that becomes the current one.

    The secret is asked for; without a terminal it is the first line of stdin.

    Example: danlu login https://danlu.example.com:7070 --key-id k1f2e3d4c5b6a7f8e9d0c1b2a3f
    """
    common = common or Common()
    if (url is None) == (common.url is None):
        raise InvalidRequest("name one platform", next_step="danlu login https://danlu.example.com:7070")
    address = require_url(url or common.url or "")
    messages = Messages(quiet=output in ("json", "yaml"))
    file = profiles.file_of()
    _name(common.profile, address, profiles.read(file))  # what is wrong with it is told before anything is asked
    pinned = _pinned(address, fingerprint, messages)
    credentials = _asked(key_id, token=token)
    project = profiles.require_project(common.project) if common.project else ""
    with Client(Connection(address, credentials, fingerprint=pinned), notice=messages.say) as client:
        who = _whoami(client)
        if project:
            require_membership(client, who.name, project)
        else:
            project = _as_before(client, common.profile, address, profiles.read(file))
    made = Profile(address, credentials.secret, credentials.key_id, project, pinned)
    # the name is found anew: another login may have taken it meanwhile
    name = profiles.change(file, lambda now: now.with_one(_name(common.profile, address, now), made)).current
    if output in ("json", "yaml"):
        out.structured({"profile": name, "url": address, **who.model_dump(mode="json")}, output)
        return 0
    out.write(f"profile/{name}")
    messages.say(f"you are {who.name} at {address}; commands go there from now on")
    mine = ", ".join(f"{one.project} ({one.role})" for one in who.projects)
    none = "all projects" if who.administrator else "no project yet: an administrator adds you with danlu member add"
    messages.say(f"projects: {mine}" if mine else none)
    if project and not common.project:
        messages.say(f"commands mean project {project}, as before; another: danlu login {address} --project NAME")
    messages.say("back to the platform of this machine: danlu profile use local")
    for variable in ("DANLU_URL", profiles.PROFILE_VARIABLE, "DANLU_HOME"):
        if os.environ.get(variable):
            messages.say(f"{variable} is set, and comes before it: unset {variable}, or use --profile {name}", "yellow")
    return 0


def _name(given: str | None, address: str, known: profiles.Profiles) -> str:
    if given:
        return profiles.require_name(given)
    if same := known.of(address):
        return same
    name = (
        profiles.require_name(urlsplit(address).hostname or "") if ":" not in (urlsplit(address).hostname or "") else ""
    )
    if not name or name in known.by_name:
        raise InvalidRequest(
            f"say how the profile for {address} is to be called", next_step=f"danlu login {address} --profile NAME"
        )
    return name


def _as_before(client: Client, given: str | None, address: str, known: profiles.Profiles) -> str:
    """Returns the project of the profile that is replaced, where it is of this platform and who logs in may act there."""
    old = known.by_name.get(_name(given, address, known))
    if old is None or old.url != address or old.project not in projects_of(client):
        return ""
    return old.project


def _pinned(address: str, given: str | None, messages: Messages) -> str:
    """Returns the fingerprint of the only certificate that is to be accepted; "" where authorities decide."""
    if not address.startswith("https:"):
        if given:
            raise InvalidRequest(f"{address} has no certificate: it is no https address")
        if not is_loopback(address):
            messages.say(f"what is sent to {address} can be read on the way: it is no https address", "yellow")
        return ""
    if given:
        return certificates.parsed(given)
    shown, vouched = certificates.shown_by(address)
    if vouched:
        return ""
    step = f"compare it with what danlu up printed there, then: danlu login {address} --fingerprint {shown}"
    if not sys.stdin.isatty():
        raise NotTrusted(f"no authority vouches for the certificate of {address}: {shown}", next_step=step)
    messages.say(f"no authority vouches for the certificate of {address}. Its fingerprint is\n  {shown}")
    messages.say("danlu up has printed the right one there.")
    if not agreed("is it the same?"):
        raise NotTrusted(f"the certificate of {address} was not accepted; nothing was sent there", next_step=step)
    return shown


def _asked(key_id: str | None, *, token: bool) -> Credentials:
    """Returns what proves who calls: an id that may be typed, and a secret that is never shown."""
    import getpass

    terminal = sys.stdin.isatty()
    if token and key_id:
        raise InvalidRequest("--token and --key-id are two ways to log in", next_step="name one of them")
    if not token and key_id is None:
        if not terminal:
            raise InvalidRequest(
                "whose secret is it?",
                next_step="--key-id ID for an access key, --token for a token; the secret by stdin",
            )
        print("  access key id: ", end="", file=sys.stderr, flush=True)
        key_id = sys.stdin.readline(MAX_SECRET).strip()
    what = "token" if token else "secret"
    secret = getpass.getpass(f"  {what}: ", stream=sys.stderr) if terminal else sys.stdin.readline(MAX_SECRET)
    if not token:
        sendable(key_id or "", "the access key's id")
    return Credentials(sendable(secret.strip(), f"the {what}"), "" if token else key_id or "")


def _whoami(client: Client) -> Identity:
    try:
        found: Identity = client.call("access.whoami")
    except NotAuthenticated as error:
        raise NotAuthenticated(
            f"{client.url} does not accept this key: {error.message}",
            next_step="are id and secret whole, and of this platform? It may have ended or been revoked: ask for a new one. "
            "Nothing was stored",
            **error.details,
        ) from error
    return found


def logout(*, output: Output = "table", common: Common | None = None) -> int:
    """Forget the current profile, or the one that --profile names, with its key. The key itself goes on being valid.

    Example: danlu logout --profile company
    """
    common, file = common or Common(), profiles.file_of()
    if common.url:
        raise InvalidRequest("profiles are named", next_step="danlu logout --profile NAME   danlu profile ls")
    known = profiles.read(file)
    name = common.profile or known.current
    if name == profiles.LOCAL:
        raise InvalidRequest(
            "no profile is in use: the platform of this machine needs no login",
            next_step="danlu logout --profile NAME   danlu profile ls",
        )
    gone = known.require(name, file)
    left = profiles.change(file, lambda now: now.without(name))
    messages = Messages(quiet=output in ("json", "yaml"))
    if output in ("json", "yaml"):
        out.structured({"profile": name, "url": gone.url, "current": left.current}, output)
    else:
        out.write(f"profile/{name}")
    messages.say(f"the key of {gone.url} is forgotten here; it stays valid until it is revoked: danlu key rm")
    return 0
