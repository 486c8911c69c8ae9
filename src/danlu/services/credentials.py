"""What access keys and tokens have in common: whose they are, who may see and end them, and when they end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

from danlu.api.bodies import OwnerQuery
from danlu.database.engine import Transaction
from danlu.database.records import KEYS, TOKENS, USERS, Records
from danlu.domain.keys import AccessKey, Revoked, Token
from danlu.domain.users import User
from danlu.domain.views import Page
from danlu.errors import InvalidRequest, NotAllowed, NotFound
from danlu.services import access, users
from danlu.services.context import Call

SECOND: Final = 1_000_000_000
MOST: Final = 1000
TOLD: Final = 10
"""So many credentials are named in one message."""
CALLED: Final = {AccessKey.KIND: "access key", Token.KIND: "token"}
Credential = TypeVar("Credential", AccessKey, Token)


def owner(tx: Transaction, call: Call, name: str | None) -> User:
    """Returns the user of that name, or who calls.

    Raises:
        NotAllowed: it is another's name, and the caller no administrator; or a token that is bound to a project calls.
        NotAuthenticated: what the caller calls by was revoked while its request came.
    """
    actor = call.actor
    if actor.project is not None:
        raise NotAllowed("this token is good for one project only: it can see and make no keys or tokens")
    actor = access.user_again(tx, actor, call.platform.clock.now())
    if name is not None and name != actor.name and not actor.administrator:
        raise NotAllowed("keys and tokens of others are for administrators")
    return USERS.require(tx, actor.user) if name is None else users.find(tx, name)


def acting(tx: Transaction, call: Call) -> AccessKey | Token:
    """Returns by what the caller calls, which has a new version from then on.

    So nobody can revoke it beside this transaction and not see what is made in it: one of the two fails.

    Raises:
        NotAuthenticated: it is not valid any more.
        VersionConflict: it is being changed at the same time.
    """
    now = call.platform.clock.now()
    return _put(tx, access.credential(tx, call.actor, now), now)


def end(call: Call, by: AccessKey | Token, valid_for_s: float | None) -> int | None:
    """Returns when what is made ``by`` something is to end (ns UTC); None: never. It does not outlive that.

    Raises:
        InvalidRequest: it is to live longer.
    """
    now = call.platform.clock.now()
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
            _forget(tx, records.require(tx, one.id), now)  # it has changed if what it was made by was forgotten


def _forget(tx: Transaction, one: AccessKey | Token, now: int) -> None:
    """Deletes one. What its user has made by it counts as made by what that was made by: no chain of makers is broken."""
    for made in _made_by(tx, one):
        _put(tx, made, now, made_by=one.made_by)
    if isinstance(one, AccessKey):
        KEYS.remove(tx, one)
    else:
        TOKENS.remove(tx, one)


def _put(tx: Transaction, one: AccessKey | Token, now: int, **changes: object) -> AccessKey | Token:
    new = one.evolved(now=now, **changes)
    if isinstance(one, AccessKey):
        KEYS.put(tx, one, new)  # type: ignore[arg-type]
    else:
        TOKENS.put(tx, one, new)  # type: ignore[arg-type]
    return new


def _made_by(tx: Transaction, one: AccessKey | Token) -> list[AccessKey | Token]:
    """Returns what its own user has made by it."""
    return [
        *KEYS.find(tx, user=one.user, made_by=one.id, limit=MOST),
        *TOKENS.find(tx, user=one.user, made_by=one.id, limit=MOST),
    ]


def revoke(tx: Transaction, call: Call, one: AccessKey | Token) -> Revoked:
    """Ends one at once, and with it what its user has made by it, and by that in turn; but never what calls here.

    It is revoked because somebody else has it, most likely, who may have made these. Keys that it has made for other users
    are with those, and what has replaced it with who has asked for that, most likely: they go on, and are named.

    The platform's own key is kept as one that has ended: the next start must not take it for one that was lost.
    """
    now, family = call.platform.clock.now(), [one]
    for parent in family:  # it grows meanwhile
        family += [made for made in _made_by(tx, parent) if made.id != call.actor.id]
    made_for = KEYS.find(tx, made_by={member.id for member in family}, limit=MOST)
    left = [key for key in KEYS.find(tx, user=one.user, limit=MOST) if key.replaces == one.id]
    left += [key for key in made_for if key.user != one.user]
    left = [key for key in left if not access.over(key.expires_at, now)]
    ended = tuple(member.id for member in family[1:] if not access.over(member.expires_at, now))
    for member in reversed(family):  # what was made before what it was made by
        if isinstance(member, AccessKey) and member.bootstrap:
            _put(tx, member, now, expires_at=now)
        else:
            _forget(tx, member, now)
    said = f"{CALLED[one.KIND]} {one.id} is revoked"
    if ended:
        said += f", and what was made by it: {_some(ended)}"
    if left:
        whose = [f"{key.id} ({_why_left(tx, one, key)})" for key in left[: TOLD + 1]]
        said += f"; what goes on: {_some(whose)}; to end one too: danlu key rm KEY"
    return Revoked(message=said, ended=ended, left=tuple(key.id for key in left))


def _why_left(tx: Transaction, one: AccessKey | Token, key: AccessKey) -> str:
    return "has replaced it" if key.user == one.user else f"made for {USERS.require(tx, key.user).name}"


def _some(texts: Sequence[str]) -> str:
    return ", ".join(texts[:TOLD]) + " ..." * (len(texts) > TOLD)


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
        NotAuthenticated: what the caller calls by was revoked while its request came.
    """
    found, kind, actor = records.get(tx, credential_id), records.model.KIND, call.actor
    if actor.project is None:
        actor = access.user_again(tx, actor, call.platform.clock.now())
    mine = found is not None and (actor.administrator or found.user == actor.user)
    if found is None or not mine or actor.project is not None:
        raise NotFound(f"there is no {CALLED[kind]} {credential_id[:40]!r}", next_step=f"yours: danlu {kind} ls")
    return found
