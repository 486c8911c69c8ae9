"""Who calls: bearer tokens become actors. Nothing here trusts an address, a header or a name."""

from __future__ import annotations

import hashlib
import hmac

from danlu.api import Permission
from danlu.database.records import ATTEMPTS, JOBS, TOKENS
from danlu.domain.actors import Actor, Role
from danlu.domain.ids import job_of_attempt
from danlu.domain.jobs import AttemptState
from danlu.errors import NotAllowed, NotAuthenticated, StaleAttempt
from danlu.services.context import Platform

TOKEN_PREFIX = "danlu_"  # noqa: S105 - lets secret scanners recognise a leaked token
ATTEMPT_PREFIX = "danlu_attempt_"
ROLES: dict[Permission, frozenset[Role]] = {
    Permission.MEMBER: frozenset({Role.MEMBER, Role.ADMINISTRATOR}),
    Permission.ADMINISTRATOR: frozenset({Role.ADMINISTRATOR}),
    Permission.ATTEMPT: frozenset({Role.ATTEMPT}),
}


def digest(secret: str) -> str:
    """Returns what is stored of a token: SHA-256, hex. Tokens are random, so no salt or slow hash is needed."""
    return hashlib.sha256(secret.encode()).hexdigest()


def attempt_token(key: bytes, attempt_id: str) -> str:
    """Returns an attempt's token: an HMAC of its id, so that it is known again after a restart without being stored."""
    mac = hmac.new(key, attempt_id.encode(), hashlib.sha256).hexdigest()
    return f"{ATTEMPT_PREFIX}{attempt_id}_{mac}"


def authenticate(platform: Platform, secret: str) -> Actor:
    """Returns who holds this token.

    Raises:
        NotAuthenticated: nobody does, or it has expired. The same error whatever was wrong.
        StaleAttempt: it is the token of an attempt that has ended.
    """
    if secret.startswith(ATTEMPT_PREFIX):
        return _attempt(platform, secret)
    found = digest(secret)
    if hmac.compare_digest(found, platform.bootstrap_digest):
        return Actor(id="bootstrap", role=Role.ADMINISTRATOR, project=None)
    tokens = platform.database.read(lambda tx: TOKENS.find(tx, digest=found, limit=1))
    if not tokens or (tokens[0].expires_at is not None and tokens[0].expires_at <= platform.clock.now()):
        raise NotAuthenticated
    return Actor(id=tokens[0].id, role=Role.MEMBER, project=tokens[0].project)


def _attempt(platform: Platform, secret: str) -> Actor:
    attempt_id = secret.removeprefix(ATTEMPT_PREFIX).rpartition("_")[0]
    if not hmac.compare_digest(secret.encode(), attempt_token(platform.attempt_key, attempt_id).encode()):
        raise NotAuthenticated
    try:
        job_id, number = job_of_attempt(attempt_id)
    except ValueError:
        raise NotAuthenticated from None
    attempt = platform.database.read(lambda tx: ATTEMPTS.get(tx, attempt_id))
    job = platform.database.read(lambda tx: JOBS.get(tx, job_id))
    if attempt is None or job is None:
        raise NotAuthenticated
    if job.attempts != number or (attempt.state is AttemptState.ENDED and attempt.collected):
        raise StaleAttempt(f"attempt {attempt_id} is over; the job's current attempt is {job.attempts}")
    return Actor(id=attempt_id, role=Role.ATTEMPT, project=attempt.project, attempt_id=attempt_id)


def authorize(actor: Actor, permission: Permission) -> None:
    """Raises NotAllowed unless the actor's role has the permission. What no rule allows is refused."""
    if actor.role not in ROLES.get(permission, frozenset()):
        raise NotAllowed(f"{actor.id} is {actor.role}; this needs {permission}")
