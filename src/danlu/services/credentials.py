"""What access keys and tokens have in common: whose they are, who may see and end them, and when they end."""

from __future__ import annotations

from typing import Final, TypeVar

from danlu.api import OwnerQuery
from danlu.database.engine import Transaction
from danlu.database.records import USERS, Records
from danlu.domain.keys import AccessKey, Token
from danlu.domain.users import User
from danlu.domain.views import Page
from danlu.errors import InvalidRequest, NotAllowed, NotAuthenticated, NotFound
from danlu.services import access, users
from danlu.services.context import Call

SECOND: Final = 1_000_000_000
MOST: Final = 1000
CALLED: Final = {AccessKey.KIND: "access key", Token.KIND: "token"}
Credential = TypeVar("Credential", AccessKey, Token)


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


def end(tx: Transaction, call: Call, valid_for_s: float | None) -> int | None:
    """Returns when what the caller makes is to end (ns UTC); None: never. It does not outlive what it is made by.

    Raises:
        InvalidRequest: it is to live longer than what the caller calls by.
        NotAuthenticated: that is not valid any more.
    """
    now, by = call.platform.clock.now(), access.credential(tx, call.actor)
    if by is None:
        raise NotAuthenticated
    asked = None if valid_for_s is None else now + int(valid_for_s * SECOND)
    if by.expires_at is None or asked is None:
        return by.expires_at if asked is None else asked
    if asked > by.expires_at:
        left_s = max(0, by.expires_at - now) // SECOND
        raise InvalidRequest(
            f"valid_for: {valid_for_s:.0f}s is longer than the {CALLED[by.KIND]} lasts by which you call: {by.id} ends in "
            f"{left_s}s",
            next_step="leave it out, and the new one ends with that one; or call by one that lasts longer",
        )
    return asked


def forget_ended(tx: Transaction, call: Call, records: Records[Credential], user: User) -> None:
    """Deletes a user's that have ended. Of the platform's own key it stays known that it was revoked."""
    found, now = records.find(tx, user=user.id, limit=MOST), call.platform.clock.now()
    replaced = {getattr(one, "replaces", "") for one in found}
    for one in found:
        revoked = getattr(one, "bootstrap", False) and one.id not in replaced
        if access.over(one.expires_at, now) and not revoked:
            records.remove(tx, one)


def page(call: Call, records: Records[Credential], query: OwnerQuery) -> Page[Credential]:
    """Returns a user's, without what proves who has them, newest first."""

    def work(tx: Transaction) -> Page[Credential]:
        user = owner(tx, call, query.user)
        return records.page(tx, limit=query.limit, cursor=query.cursor, user=user.id)

    found = call.platform.database.read(work)
    return found.model_copy(update={"items": tuple(one.shown() for one in found.items)})


def require(tx: Transaction, call: Call, records: Records[Credential], credential_id: str) -> Credential:
    """Returns one that the caller may change.

    Raises:
        NotFound: there is none, or it is another's.
    """
    found, kind = records.get(tx, credential_id), records.model.KIND
    mine = found is not None and (call.actor.administrator or found.user == call.actor.user)
    if found is None or not mine or call.actor.project is not None:
        raise NotFound(f"there is no {CALLED[kind]} {credential_id[:40]!r}", next_step=f"yours: danlu {kind} ls")
    return found
