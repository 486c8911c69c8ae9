"""Bearer tokens: made, listed, revoked. For browsers and other programs that cannot sign."""

from __future__ import annotations

from danlu.api.bodies import OwnerQuery, TokenMade, TokenRequest
from danlu.database.engine import Transaction
from danlu.database.records import TOKENS
from danlu.domain.keys import Revoked, Token
from danlu.domain.users import PLATFORM
from danlu.domain.views import Page
from danlu.errors import Conflict, NotFound
from danlu.services import credentials, projects
from danlu.services.access import TOKEN_PREFIX, digest
from danlu.services.context import Call

SECRET_BITS = 256
MAX_TOKENS = 100


def make(call: Call, body: TokenRequest) -> TokenMade:
    """Makes a token of the caller's own, which does not outlive what it is made by. Its secret is in the answer only.

    Raises:
        NotFound: there is no such project, or the caller is no member of it.
        Conflict: the caller has as many as one may have.
        NotAuthenticated: what it is made by was revoked while the request came.
    """
    platform, now = call.platform, call.platform.clock.now()
    if body.project is not None and (
        call.actor.standing(body.project) is None or not projects.exists(platform, body.project)
    ):
        raise NotFound(f"there is no project {body.project!r}")
    secret = f"{TOKEN_PREFIX}{platform.random_bits(SECRET_BITS):064x}"
    token_id = platform.new_id("t")

    def work(tx: Transaction) -> Token:
        user = credentials.owner(tx, call, None)
        credentials.forget_ended(tx, call, TOKENS, user)
        by = credentials.acting(tx, call)
        if TOKENS.count(tx, user=user.id) >= MAX_TOKENS:
            raise Conflict(f"{user.name} has {MAX_TOKENS} tokens already", next_step="revoke one: danlu token rm TOKEN")
        token = Token(
            id=token_id, project=body.project or PLATFORM, user=user.id, name=body.name, digest=digest(secret),
            bound=body.project is not None, created_by=call.actor.name, created_at=now, updated_at=now,
            expires_at=credentials.end(call, by, body.valid_for), made_by=by.id,
        )  # fmt: skip
        TOKENS.add(tx, token, actor=call.actor.name)
        return token

    return TokenMade(token=call.write(work).shown(), secret=secret)


def list(call: Call, query: OwnerQuery) -> Page[Token]:
    """Returns a user's tokens without their secrets, newest first."""
    return credentials.page(call, TOKENS, query)


def revoke(call: Call, token: str) -> Revoked:
    """Ends a token at once, and what it has made. Revoking twice is an error of the second: nothing is left to revoke."""
    return call.write(lambda tx: credentials.revoke(tx, call, credentials.require(tx, call, TOKENS, token)))
