"""Access keys: made, listed, ended. Each belongs to a user; several at once let one be replaced without a gap."""

from __future__ import annotations

from danlu.api import Accepted, KeyExpiry, KeyMade, KeyRequest, OwnerQuery
from danlu.database.engine import Transaction
from danlu.database.records import KEYS
from danlu.domain.keys import AccessKey
from danlu.domain.users import PLATFORM, User
from danlu.domain.views import Page
from danlu.errors import Conflict, InvalidRequest, NotAllowed
from danlu.services import credentials
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
        Conflict: the user has as many as one may have, or the key is replaced already.
        NotAllowed: the key that it is to replace is not the one that signs.
    """
    platform, now = call.platform, call.platform.clock.now()
    secret = f"{SECRET_PREFIX}{platform.random_bits(SECRET_BITS):064x}"
    key_id = platform.new_id("k")
    sealed = platform.vault.seal(secret.encode(), key_id)

    def work(tx: Transaction) -> AccessKey:
        user = credentials.owner(tx, call, body.user)
        credentials.forget_ended(tx, call, KEYS, user)
        old = None if body.replaces is None else _replaced(tx, call, user, body)
        if KEYS.count(tx, user=user.id) >= MAX_KEYS:
            raise Conflict(f"{user.name} has {MAX_KEYS} access keys already", next_step="revoke one: danlu key rm KEY")
        if old is None:
            expires_at, name = credentials.end(tx, call, body.valid_for), body.name
        else:
            expires_at, name = None if old.expires_at is None else now + old.expires_at - old.created_at, old.name
        made = AccessKey(
            id=key_id, project=PLATFORM, user=user.id, name=name, sealed=sealed, created_by=call.actor.name,
            created_at=now, updated_at=now, expires_at=expires_at, replaces="" if old is None else old.id,
            bootstrap=old is not None and old.bootstrap,
        )  # fmt: skip
        KEYS.add(tx, made, actor=call.actor.name)
        return made

    return KeyMade(key=call.write(work).shown(), secret=secret)


def _replaced(tx: Transaction, call: Call, user: User, body: KeyRequest) -> AccessKey:
    """Returns the key that is to be replaced."""
    if body.name or body.valid_for is not None or body.user is not None:
        raise InvalidRequest(
            "a key that replaces another one has its name, its length of life and its user",
            next_step="leave out name, valid_for and user, or replaces",
        )
    old = KEYS.get(tx, call.actor.id)
    if old is None or old.id != body.replaces:
        raise NotAllowed("a key is replaced by itself only: by a request that it signs")
    for other in KEYS.find(tx, user=user.id, limit=credentials.MOST):
        if other.replaces == old.id:
            raise Conflict(
                f"access key {old.id} is replaced already: by {other.id}",
                next_step=f"use that one; if its secret is lost: danlu key rm {other.id}, then again",
            )
    return old


def expire(call: Call, key: str, body: KeyExpiry) -> AccessKey:
    """Lets a key end some time from now; never later than it would have."""

    def work(tx: Transaction) -> AccessKey:
        found, now = credentials.require(tx, call, KEYS, key), call.platform.clock.now()
        until = now + int(body.after * SECOND)
        if found.expires_at is not None and found.expires_at <= until:
            return found
        new = found.evolved(now=now, expires_at=until)
        KEYS.put(tx, found, new, actor=call.actor.name)
        return new

    return call.write(work).shown()


def revoke(call: Call, key: str) -> Accepted:
    """Ends a key at once. Revoking twice is an error of the second: there is nothing left to revoke.

    The platform's own key is kept as one that has ended: the next start must not take it for one that was lost.
    """

    def work(tx: Transaction) -> None:
        found, now = credentials.require(tx, call, KEYS, key), call.platform.clock.now()
        if found.bootstrap:
            KEYS.put(tx, found, found.evolved(now=now, expires_at=now), actor=call.actor.name)
        else:
            KEYS.remove(tx, found)

    call.write(work)
    return Accepted(message=f"access key {key} is revoked")
