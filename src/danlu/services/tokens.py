"""Bearer tokens: made, listed, revoked. For browsers and other programs that cannot sign."""

from __future__ import annotations

import builtins

from danlu.api import Accepted, OwnerQuery, TokenMade, TokenRequest
from danlu.database.engine import Transaction
from danlu.database.records import TOKENS
from danlu.domain.keys import Token
from danlu.domain.users import PLATFORM
from danlu.domain.views import Page
from danlu.errors import Conflict, NotFound
from danlu.services import projects
from danlu.services.access import TOKEN_PREFIX, digest
from danlu.services.context import Call
from danlu.services.keys import SECOND, owner

SECRET_BITS = 256
MAX_TOKENS = 100


def make(call: Call, body: TokenRequest) -> TokenMade:
    """Makes a token of the caller's own. Its secret is in the answer and nowhere else.

    Raises:
        NotFound: there is no such project, or the caller is no member of it.
        Conflict: the caller has as many as one may have.
    """
    platform, now = call.platform, call.platform.clock.now()
    if body.project is not None and (
        call.actor.standing(body.project) is None or not projects.exists(platform, body.project)
    ):
        raise NotFound(f"there is no project {body.project!r}")
    secret = f"{TOKEN_PREFIX}{platform.random_bits(SECRET_BITS):064x}"
    token_id = platform.new_id("t")

    def work(tx: Transaction) -> Token:
        user = owner(tx, call, None)
        if TOKENS.count(tx, user=user.id) >= MAX_TOKENS:
            raise Conflict(f"{user.name} has {MAX_TOKENS} tokens already", next_step="revoke one: danlu token rm TOKEN")
        token = Token(
            id=token_id, project=body.project or PLATFORM, user=user.id, name=body.name, digest=digest(secret),
            bound=body.project is not None, created_by=call.actor.name, created_at=now, updated_at=now,
            expires_at=None if body.valid_for is None else now + int(body.valid_for * SECOND),
        )  # fmt: skip
        TOKENS.add(tx, token, actor=call.actor.name)
        return token

    return TokenMade(token=_shown(call.write(work)), secret=secret)


def list(call: Call, query: OwnerQuery) -> Page[Token]:
    """Returns a user's tokens without their secrets, newest first."""

    def work(tx: Transaction) -> Page[Token]:
        user = owner(tx, call, query.user)
        return TOKENS.page(tx, limit=query.limit, cursor=query.cursor, user=user.id)

    page = call.platform.database.read(work)
    shown: builtins.list[Token] = [_shown(token) for token in page.items]
    return Page[Token](items=tuple(shown), next_cursor=page.next_cursor)


def revoke(call: Call, token: str) -> Accepted:
    """Ends a token at once. Revoking twice is an error of the second: there is nothing left to revoke."""

    def work(tx: Transaction) -> None:
        found = TOKENS.get(tx, token)
        own = found is not None and (call.actor.administrator or found.user == call.actor.user)
        if found is None or not own or call.actor.project is not None:
            raise NotFound(f"there is no token {token[:40]!r}", next_step="yours: danlu token ls")
        TOKENS.remove(tx, found)

    call.write(work)
    return Accepted(message=f"token {token} is revoked")


def _shown(token: Token) -> Token:
    return token.model_copy(update={"digest": ""})
