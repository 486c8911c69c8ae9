"""Access keys: made, listed, ended. Each belongs to a user; several at once let one be replaced without a gap."""

from __future__ import annotations

from danlu.api.bodies import KeyExpiry, KeyMade, KeyRequest, OwnerQuery
from danlu.database.engine import Transaction
from danlu.database.records import KEYS
from danlu.domain.keys import AccessKey, Revoked, Token
from danlu.domain.users import PLATFORM
from danlu.domain.views import Page
from danlu.errors import Conflict, InvalidRequest, NotAllowed
from danlu.services import access, credentials
from danlu.services.context import Call
from danlu.services.credentials import SECOND

SECRET_BITS = 256
SECRET_PREFIX = "danlu_sk_"  # noqa: S105 - lets secret scanners recognise a leaked one
MAX_KEYS = 20


def list(call: Call, query: OwnerQuery) -> Page[AccessKey]:
    """Returns a user's access keys without their secrets, newest first."""
    return credentials.page(call, KEYS, query)


def make(call: Call, body: KeyRequest) -> KeyMade:
    """Makes an access key. Its secret is in the answer and, sealed, in the database.

    It does not outlive what it is made by, unless it replaces that: then it lives as long from now as that one was to.

    Raises:
        InvalidRequest: it is to live longer than what it is made by; or what replaces another one is to be different.
        Conflict: the user has as many as one may have, or the key is replaced already.
        NotAllowed: the key that it is to replace is not the one that signs.
        NotAuthenticated: what it is made by was revoked while the request came.
    """
    if body.overlap is not None and body.replaces is None:
        raise InvalidRequest(
            "overlap is how long the key still works that is replaced, and none is", next_step="name it: replaces"
        )
    platform, now = call.platform, call.platform.clock.now()
    secret = f"{SECRET_PREFIX}{platform.random_bits(SECRET_BITS):064x}"
    key_id = platform.new_id("k")
    sealed = platform.vault.seal(secret.encode(), key_id)

    def work(tx: Transaction) -> AccessKey:
        user = credentials.owner(tx, call, body.user)
        credentials.forget_ended(tx, call, KEYS, user)
        by = credentials.acting(tx, call)
        old = None if body.replaces is None else _replaced(tx, call, by, body)
        if KEYS.count(tx, user=user.id) >= MAX_KEYS:
            raise Conflict(f"{user.name} has {MAX_KEYS} access keys already", next_step="revoke one: danlu key rm KEY")
        if old is None:
            expires_at, name = credentials.end(call, by, body.valid_for), body.name
        else:
            expires_at, name = now + old.successor_ns if old.successor_ns else None, old.name
        made = AccessKey(
            id=key_id, project=PLATFORM, user=user.id, name=name, sealed=sealed, created_by=call.actor.name,
            created_at=now, updated_at=now, expires_at=expires_at, made_by=by.id if old is None else old.made_by,
            replaces="" if old is None else old.id, bootstrap=old is not None and old.bootstrap,
        )  # fmt: skip
        KEYS.add(tx, made, actor=call.actor.name)
        return made

    return KeyMade(key=call.write(work).shown(), secret=secret)


def _replaced(tx: Transaction, call: Call, by: AccessKey | Token, body: KeyRequest) -> AccessKey:
    """Returns the key that is to be replaced, which ends after the overlap from then on."""
    if body.name or body.valid_for is not None or body.user is not None:
        raise InvalidRequest(
            "a key that replaces another one has its name, its length of life and its user",
            next_step="leave out name, valid_for and user, or replaces",
        )
    if by.id != body.replaces or not isinstance(by, AccessKey):
        raise NotAllowed("a key is replaced by itself only: by a request that it signs")
    now, until = call.platform.clock.now(), by.expires_at
    for other in KEYS.find(tx, user=by.user, limit=credentials.MOST):
        if other.replaces == by.id and not access.over(other.expires_at, now):
            raise Conflict(
                f"access key {by.id} is replaced already: by {other.id}",
                next_step=f"use that one; if its secret is lost: danlu key rm {other.id}, then again",
            )
    life = by.successor_ns
    if life is None:  # nothing was to replace it before, so that its end is the planned one
        life = 0 if by.expires_at is None else by.expires_at - by.created_at
    if body.overlap is not None:
        overlap_ends = now + int(body.overlap * SECOND)
        until = overlap_ends if until is None else min(until, overlap_ends)
    new = by.evolved(now=now, expires_at=until, successor_ns=life)
    KEYS.put(tx, by, new, actor=call.actor.name)
    return new


def expire(call: Call, key: str, body: KeyExpiry) -> AccessKey:
    """Lets a key end some time from now; never later than it would have. What it has made goes on."""

    def work(tx: Transaction) -> AccessKey:
        found, now = credentials.require(tx, call, KEYS, key), call.platform.clock.now()
        until = now + int(body.after * SECOND)
        if found.expires_at is not None and found.expires_at <= until:
            return found
        new = found.evolved(now=now, expires_at=until)
        KEYS.put(tx, found, new, actor=call.actor.name)
        return new

    return call.write(work).shown()


def revoke(call: Call, key: str) -> Revoked:
    """Ends a key at once, and what it has made. Revoking twice is an error of the second: nothing is left to revoke."""
    return call.write(lambda tx: credentials.revoke(tx, call, credentials.require(tx, call, KEYS, key)))
