"""Users: made, changed, removed by administrators."""

from __future__ import annotations

import re

from danlu.api.bodies import Paging, UserChange, UserRequest
from danlu.database.engine import Transaction
from danlu.database.records import KEYS, MEMBERS, TOKENS, USERS
from danlu.domain.ids import NAME_PATTERN
from danlu.domain.users import PLATFORM, User
from danlu.domain.views import Page
from danlu.errors import Conflict, InvalidRequest, NotFound
from danlu.services.context import Call

ALL = 100_000


def require_name(name: str, what: str) -> None:
    """Raises InvalidRequest unless a user or a project may be called so."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise InvalidRequest(
            f"{name[:80]!r} is no name for {what}", next_step="use small letters, digits and hyphens, 63 at most"
        )


def find(tx: Transaction, name: str) -> User:
    """Returns the user of that name.

    Raises:
        NotFound: there is none, or not any more.
    """
    found = next(iter(USERS.find(tx, name=name, limit=1)), None)
    if found is None or found.removed_at is not None:
        raise NotFound(f"there is no user {name[:63]!r}", next_step="all of them: danlu user ls")
    return found


def list(call: Call, query: Paging) -> Page[User]:
    """Returns everybody, newest first; who was removed too."""
    return call.platform.database.read(lambda tx: USERS.page(tx, limit=query.limit, cursor=query.cursor))


def make(call: Call, user: str, body: UserRequest) -> User:
    """Makes a user, who can do nothing yet: it needs an access key, and a role in a project.

    Raises:
        Conflict: there was one of that name, or there is one who is something else.
    """
    require_name(user, "a user")
    now = call.platform.clock.now()

    def work(tx: Transaction) -> User:
        known = next(iter(USERS.find(tx, name=user, limit=1)), None)
        if known is not None and known.removed_at is not None:
            raise Conflict(
                f"there was a user {user}, whose name stands in what happened: nobody else gets it",
                next_step="choose another name",
            )
        if known is not None:
            if known.administrator != body.administrator:
                raise Conflict(f"there is a user {user} already", next_step=f"change it: danlu user set {user} --help")
            return known
        made = User(
            id=call.platform.new_id("u"), project=PLATFORM, name=user, administrator=body.administrator,
            created_by=call.actor.name, created_at=now, updated_at=now,
        )  # fmt: skip
        USERS.add(tx, made, actor=call.actor.name)
        return made

    return call.write(work)


def change(call: Call, user: str, body: UserChange) -> User:
    """Makes a user an administrator, or not any more; it holds from the next request on.

    Raises:
        Conflict: it is the last administrator.
    """

    def work(tx: Transaction) -> User:
        found = find(tx, user)
        if found.administrator == body.administrator:
            return found
        _require_another(tx, found)
        new = found.evolved(now=call.platform.clock.now(), administrator=body.administrator)
        USERS.put(tx, found, new, actor=call.actor.name)
        return new

    return call.write(work)


def remove(call: Call, user: str) -> User:
    """Removes a user with all keys, tokens and memberships, at once. Jobs and data are their projects': they stay.

    Raises:
        Conflict: it is the last administrator.
    """

    def work(tx: Transaction) -> User:
        found = find(tx, user)
        _require_another(tx, found)
        for key in KEYS.find(tx, user=found.id, limit=ALL):
            KEYS.remove(tx, key)
        for token in TOKENS.find(tx, user=found.id, limit=ALL):
            TOKENS.remove(tx, token)
        for member in MEMBERS.find(tx, user=found.id, limit=ALL):
            MEMBERS.remove(tx, member)
        now = call.platform.clock.now()
        gone = found.evolved(now=now, administrator=False, removed_at=now)
        USERS.put(tx, found, gone, actor=call.actor.name)
        return gone

    return call.write(work)


def _require_another(tx: Transaction, user: User) -> None:
    if not user.administrator:
        return
    others = (one for one in USERS.find(tx, limit=ALL) if one.administrator and one.removed_at is None)
    if not any(one.id != user.id for one in others):
        raise Conflict(
            f"{user.name} is the last administrator",
            next_step="make another one first: danlu user create NAME --administrator",
        )
