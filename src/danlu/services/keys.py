"""Access keys: made, listed, ended. Each belongs to a user; several at once let one be replaced without a gap."""

from __future__ import annotations

import builtins

from danlu.api import Accepted, KeyExpiry, KeyMade, KeyRequest, OwnerQuery
from danlu.database.engine import Transaction
from danlu.database.records import KEYS, USERS
from danlu.domain.keys import AccessKey
from danlu.domain.users import PLATFORM, User
from danlu.domain.views import Page
from danlu.errors import Conflict, NotAllowed, NotFound
from danlu.services import users
from danlu.services.context import Call

SECRET_BITS = 256
SECRET_PREFIX = "danlu_sk_"  # noqa: S105 - lets secret scanners recognise a leaked one
MAX_KEYS = 20
SECOND = 1_000_000_000


def owner(tx: Transaction, call: Call, name: str | None) -> User:
    """Returns the user of that name, or who calls.

    Raises:
        NotAllowed: it is another's name, and the caller no administrator; or a token that is bound to a project calls.
    """
    if call.actor.project is not None:
        raise NotAllowed("this token is good for one project only: it can see and make no keys or tokens")
    if name is not None and name != call.actor.name and not call.actor.administrator:
        raise NotAllowed("keys and tokens of others are for administrators")
    return USERS.require(tx, call.actor.user) if name is None else users.find(tx, name)


def list(call: Call, query: OwnerQuery) -> Page[AccessKey]:
    """Returns a user's access keys without their secrets, newest first."""

    def work(tx: Transaction) -> Page[AccessKey]:
        user = owner(tx, call, query.user)
        return KEYS.page(tx, limit=query.limit, cursor=query.cursor, user=user.id)

    page = call.platform.database.read(work)
    shown: builtins.list[AccessKey] = [_shown(key) for key in page.items]
    return Page[AccessKey](items=tuple(shown), next_cursor=page.next_cursor)


def make(call: Call, body: KeyRequest) -> KeyMade:
    """Makes an access key. Its secret is in the answer and, sealed, in the database.

    Raises:
        Conflict: the user has as many as one may have.
    """
    platform, now = call.platform, call.platform.clock.now()
    secret = f"{SECRET_PREFIX}{platform.random_bits(SECRET_BITS):064x}"
    key_id = platform.new_id("k")
    sealed = platform.vault.seal(secret.encode(), key_id)

    def work(tx: Transaction) -> AccessKey:
        user = owner(tx, call, body.user)
        if KEYS.count(tx, user=user.id) >= MAX_KEYS:
            raise Conflict(f"{user.name} has {MAX_KEYS} access keys already", next_step="revoke one: danlu key rm KEY")
        made = AccessKey(
            id=key_id, project=PLATFORM, user=user.id, name=body.name, sealed=sealed, created_by=call.actor.name,
            created_at=now, updated_at=now,
            expires_at=None if body.valid_for is None else now + int(body.valid_for * SECOND),
        )  # fmt: skip
        KEYS.add(tx, made, actor=call.actor.name)
        return made

    return KeyMade(key=_shown(call.write(work)), secret=secret)


def expire(call: Call, key: str, body: KeyExpiry) -> AccessKey:
    """Lets a key end some time from now; never later than it would have."""

    def work(tx: Transaction) -> AccessKey:
        found, now = _require(tx, call, key), call.platform.clock.now()
        until = now + int(body.after * SECOND)
        if found.expires_at is not None and found.expires_at <= until:
            return found
        new = found.evolved(now=now, expires_at=until)
        KEYS.put(tx, found, new, actor=call.actor.name)
        return new

    return _shown(call.write(work))


def revoke(call: Call, key: str) -> Accepted:
    """Ends a key at once. Revoking twice is an error of the second: there is nothing left to revoke."""
    call.write(lambda tx: KEYS.remove(tx, _require(tx, call, key)))
    return Accepted(message=f"access key {key} is revoked")


def _require(tx: Transaction, call: Call, key: str) -> AccessKey:
    found = KEYS.get(tx, key)
    if (
        found is None
        or call.actor.project is not None
        or not (call.actor.administrator or found.user == call.actor.user)
    ):
        raise NotFound(f"there is no access key {key[:40]!r}", next_step="yours: danlu key ls")
    return found


def _shown(key: AccessKey) -> AccessKey:
    return key.model_copy(update={"sealed": None})
