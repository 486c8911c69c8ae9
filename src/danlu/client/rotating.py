"""Replaces the access key by which a client calls, without a gap."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from danlu.api.bodies import KeyExpiry, KeyMade, KeyRequest
from danlu.client import profiles
from danlu.client.connection import KEY_FILE
from danlu.client.credentials import Credentials, write_bootstrap
from danlu.client.transport import Client
from danlu.errors import InvalidRequest

PROVEN_WITHIN_S: Final = 60.0
"""So long the old key works at least until the new one is proven and stored."""


def rotate(client: Client, after: KeyExpiry) -> tuple[KeyMade, str]:
    """Makes a new key, by which the old one ends after the overlap, and stores it where the old one came from.

    Whoever is killed in between leaves no old key without an end; and until the new one is stored, the old one works, for
    a minute at least. So of an overlap that is shorter the end is asked for at last.

    Returns:
        the new key, and where it is stored; "" where only the caller can do so.

    Raises:
        InvalidRequest: the client shows a token.
    """
    connection = client.connection
    old = connection.credentials.key_id
    if not old:
        raise InvalidRequest(
            "you call by a token, not by an access key", next_step="make a new one: danlu token create NAME"
        )
    made: KeyMade = client.call("keys.make", body=KeyRequest(replaces=old, overlap=max(after.after, PROVEN_WITHIN_S)))
    fresh = Credentials(made.secret, made.key.id)
    with Client(replace(connection, credentials=fresh), project=client.project) as tried:
        tried.call("access.whoami")
    where = ""
    if connection.home is not None:
        file = connection.home / KEY_FILE
        write_bootstrap(file, fresh)
        where = str(file)
    elif connection.profile:
        file, name = profiles.file_of(), connection.profile
        profiles.change(file, lambda known: known.with_key(name, file, fresh))
        where = f"profile {name}"
    if after.after < PROVEN_WITHIN_S:
        client.call("keys.expire", {"key": old}, body=after)
    return made, where
