"""Bearer tokens of a project: made, listed, revoked."""

from __future__ import annotations

import builtins

from danlu.api import Accepted, Paging, TokenMade, TokenRequest
from danlu.database.engine import Transaction
from danlu.database.records import TOKENS
from danlu.domain.actors import Token
from danlu.domain.views import Page
from danlu.errors import NotFound
from danlu.services.access import TOKEN_PREFIX, digest
from danlu.services.context import Call

SECRET_BITS = 256


def make(call: Call, body: TokenRequest) -> TokenMade:
    """Makes a token. Its secret is in the answer and nowhere else."""
    platform = call.platform
    secret = f"{TOKEN_PREFIX}{platform.random_bits(SECRET_BITS):064x}"
    now = platform.clock.now()
    token = Token(
        id=platform.new_id("t"),
        project=call.project,
        name=body.name,
        digest=digest(secret),
        created_by=call.actor.id,
        created_at=now,
        updated_at=now,
        expires_at=None if body.valid_for is None else now + int(body.valid_for * 1_000_000_000),
    )
    platform.database.write(lambda tx: TOKENS.add(tx, token, actor=call.actor.id))
    return TokenMade(token=_shown(token), secret=secret)


def list(call: Call, query: Paging) -> Page[Token]:
    """Returns the project's tokens, newest first."""
    page = call.platform.database.read(
        lambda tx: TOKENS.page(tx, limit=query.limit, cursor=query.cursor, project=call.project)
    )
    shown: builtins.list[Token] = [_shown(token) for token in page.items]
    return Page[Token](items=tuple(shown), next_cursor=page.next_cursor)


def revoke(call: Call, token: str) -> Accepted:
    """Ends a token at once. Revoking twice is an error of the second: there is nothing left to revoke."""

    def work(tx: Transaction) -> None:
        found = TOKENS.get(tx, token)
        if found is None or found.project != call.project:
            raise NotFound(f"there is no token {token}")
        TOKENS.remove(tx, found)

    call.platform.database.write(work)
    return Accepted(message=f"token {token} is revoked")


def _shown(token: Token) -> Token:
    return token.model_copy(update={"digest": ""})
