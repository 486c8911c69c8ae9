"""Who calls: signatures and tokens become actors. Nothing here trusts an address, a header or a name."""

from __future__ import annotations

import hashlib
import hmac
import logging
from dataclasses import replace
from typing import Final

from danlu.api import GRANTS, Permission
from danlu.api.bodies import Identity, Membership
from danlu.database.engine import Transaction
from danlu.database.records import ATTEMPTS, JOBS, KEYS, MEMBERS, TOKENS, USERS
from danlu.domain.actors import Actor, Standing
from danlu.domain.ids import job_of_attempt
from danlu.domain.jobs import Attempt, AttemptState, Job
from danlu.domain.keys import AccessKey, Token
from danlu.domain.signing import Claim
from danlu.domain.users import PLATFORM, Member, User
from danlu.errors import DanluError, NotAllowed, NotAuthenticated, NotFound, StaleAttempt, VaultLocked, VersionConflict
from danlu.services.context import Call, Platform, Proof
from danlu.services.vault import DECOY

LOG: Final = logging.getLogger("danlu.services")
SECOND: Final = 1_000_000_000
USE_NOTED_NS: Final = 60 * SECOND
"""When a key was last used is noted as often as this: a write for each request would cost more than the request."""
TOKEN_PREFIX = "danlu_"  # noqa: S105 - lets secret scanners recognise a leaked token
ATTEMPT_PREFIX = "danlu_attempt_"
MAX_MEMBERSHIPS = 10_000
MAX_PROOFS: Final = 1000
PROVING: Final = (AccessKey.KIND, User.KIND, Member.KIND)
"""Upon what it depends whose a signature is, and what that user may do."""


def digest(secret: str) -> str:
    """Returns what is stored of a token: SHA-256, hex. Tokens are random, so no salt or slow hash is needed."""
    return hashlib.sha256(secret.encode()).hexdigest()


def attempt_token(key: bytes, attempt_id: str) -> str:
    """Returns an attempt's token: an HMAC of its id, so that it is known again after a restart without being stored."""
    mac = hmac.new(key, attempt_id.encode(), hashlib.sha256).hexdigest()
    return f"{ATTEMPT_PREFIX}{attempt_id}_{mac}"


def known(platform: Platform, claim: Claim) -> Actor | None:
    """Returns whose access key has signed, if that is known without a look at the database; None: ``signed`` must look."""
    now, proof = platform.clock.now(), platform.proofs.get(claim.key_id)
    if proof is None or proof.written != platform.database.written(PROVING):
        return None
    key = proof.key
    fresh = now - (key.last_used_at or 0) <= USE_NOTED_NS and not over(key.expires_at, now)
    current = claim.current(platform.clock.wall() // SECOND)
    return proof.actor if fresh and current and claim.proven(proof.secret) else None


def signed(platform: Platform, claim: Claim) -> Actor:
    """Returns whose access key has signed.

    Raises:
        NotAuthenticated: nobody's that is valid now. Nothing is looked up before the proof but the key, and where there is
            none, another one is opened in its place: the same error after the same work, whatever was wrong.
    """
    now, written = platform.clock.now(), platform.database.written(PROVING)
    wall_s = platform.clock.wall() // SECOND

    def work(tx: Transaction) -> tuple[AccessKey | None, Actor | None, bytes]:
        key = KEYS.get(tx, claim.key_id)
        sealed, of = (platform.vault.decoy, DECOY) if key is None or key.sealed is None else (key.sealed, key.id)
        secret = platform.vault.open(sealed, of)
        if not (claim.proven(secret) and claim.current(wall_s)) or key is None or over(key.expires_at, now):
            return None, None, b""
        return key, _user(tx, key.user, key.id, None), secret

    try:
        key, actor, secret = platform.database.read(work)
    except VaultLocked as error:
        LOG.error("%s", error.message)
        raise NotAuthenticated from error
    if key is None or actor is None:
        raise NotAuthenticated
    if now - (key.last_used_at or 0) > USE_NOTED_NS:
        _note_use(platform, key, now)
    elif written is not None:
        if len(platform.proofs) >= MAX_PROOFS:
            platform.proofs.clear()
        platform.proofs[key.id] = Proof(written, key, secret, actor)
    return actor


def _note_use(platform: Platform, key: AccessKey, now: int) -> None:
    used = key.evolved(now=now, last_used_at=now)
    try:
        platform.database.write(lambda tx: KEYS.put(tx, key, used))
    except VersionConflict:  # another request has noted it, or it was revoked
        return
    except DanluError as error:  # a full disk, above all, must not keep anybody from looking
        LOG.warning("that key %s was used is not noted: %s", key.id, error.message)


def bearer(platform: Platform, secret: str) -> Actor:
    """Returns who holds this token.

    Raises:
        NotAuthenticated: nobody does, or it has expired. The same error whatever was wrong.
        StaleAttempt: it is the token of an attempt that has ended.
    """
    if secret.startswith(ATTEMPT_PREFIX):
        return _attempt(platform, secret)
    now, found = platform.clock.now(), digest(secret)

    def work(tx: Transaction) -> Actor | None:
        token = next(iter(TOKENS.find(tx, digest=found, limit=1)), None)
        if token is None or over(token.expires_at, now):
            return None
        return _user(tx, token.user, token.id, token.project if token.bound else None)

    actor = platform.database.read(work)
    if actor is None:
        raise NotAuthenticated
    return actor


def _user(tx: Transaction, user_id: str, by: str, project: str | None) -> Actor | None:
    user = USERS.get(tx, user_id)
    if user is None or user.removed_at is not None:
        return None
    found = MEMBERS.find(tx, user=user.id, limit=MAX_MEMBERSHIPS)
    roles = {member.project: member.role for member in found if project in (None, member.project)}
    return Actor(id=by, name=user.name, user=user.id, administrator=user.administrator, roles=roles, project=project)


def over(expires_at: int | None, now: int) -> bool:
    """Says whether something has ended."""
    return expires_at is not None and expires_at <= now


def _attempt(platform: Platform, secret: str) -> Actor:
    attempt_id = secret.removeprefix(ATTEMPT_PREFIX).rpartition("_")[0]
    if not hmac.compare_digest(secret.encode(), attempt_token(platform.attempt_key, attempt_id).encode()):
        raise NotAuthenticated
    found = _of_attempt(platform, attempt_id)
    if found is None:
        raise NotAuthenticated
    return found


def _of_attempt(platform: Platform, attempt_id: str) -> Actor | None:
    try:
        job_id, _ = job_of_attempt(attempt_id)
    except ValueError:
        return None
    attempt = platform.database.read(lambda tx: ATTEMPTS.get(tx, attempt_id))
    job = platform.database.read(lambda tx: JOBS.get(tx, job_id))
    if attempt is None or job is None:
        return None
    _require_current(job, attempt)
    return Actor(id=attempt_id, name=attempt_id, project=attempt.project, attempt_id=attempt_id)


def _require_current(job: Job, attempt: Attempt) -> None:
    if job.attempts != attempt.number or (attempt.state is AttemptState.ENDED and attempt.collected):
        raise StaleAttempt(f"attempt {attempt.id} is over; the job's current attempt is {job.attempts}")


def current(tx: Transaction, attempt_id: str, *, stores: bool = False) -> tuple[Job, Attempt]:
    """Returns a job and its attempt, as they are in a transaction.

    Args:
        tx: the transaction.
        attempt_id: the attempt.
        stores: something of that attempt is stored: it does not end, and nothing takes its place, before that is.

    Raises:
        StaleAttempt: it has ended, or another one took its place, since the request was let in.
    """
    look = (ATTEMPTS.hold, JOBS.hold) if stores else (ATTEMPTS.require, JOBS.require)
    attempt = look[0](tx, attempt_id)
    job = look[1](tx, attempt.job_id)
    _require_current(job, attempt)
    return job, attempt


def again(platform: Platform, actor: Actor) -> Actor:
    """Returns who an actor is by now: what it has proven may have been taken from it since.

    Raises:
        NotAuthenticated: its key or token, or its user, is not valid any more.
        StaleAttempt: it is an attempt that has ended.
    """
    if actor.attempt_id is None:
        return platform.database.read(lambda tx: user_again(tx, actor, platform.clock.now()))
    found = _of_attempt(platform, actor.attempt_id)
    if found is None:
        raise NotAuthenticated
    return found


def user_again(tx: Transaction, actor: Actor, now: int) -> Actor:
    """Returns as ``again`` does, within a transaction, who a user is by now."""
    by = credential(tx, actor, now)
    found = _user(tx, by.user, by.id, actor.project)
    if found is None:
        raise NotAuthenticated
    return found


def credential(tx: Transaction, actor: Actor, now: int) -> AccessKey | Token:
    """Returns by what a user calls.

    Raises:
        NotAuthenticated: it was revoked since, or has ended.
    """
    found = KEYS.get(tx, actor.id) or TOKENS.get(tx, actor.id)
    if found is None or over(found.expires_at, now):
        raise NotAuthenticated
    return found


def permitted(call: Call, permission: Permission) -> None:
    """Raises unless who calls may do this here.

    Raises:
        NotFound: there is no such project, or it is another's.
        NotAllowed: the actor's standing there does not allow it.
    """
    standing = _of_the_platform(call.actor) if call.project == PLATFORM else call.actor.standing(call.project)
    if standing is None:
        raise no_project(call.project)
    authorize(call.actor, standing, permission, call.project)


def no_project(name: str) -> NotFound:
    """Returns what is said of a project that is not there, and of another's."""
    return NotFound(f"there is no project {name[:63]!r}", next_step="yours: danlu project ls")


def renewed(call: Call, permission: Permission) -> Call:
    """Returns a call that goes on for long as the same one made now.

    Raises:
        DanluError: as a new request would be refused with.
    """
    found = replace(call, actor=again(call.platform, call.actor))
    permitted(found, permission)
    return found


def _of_the_platform(actor: Actor) -> Standing:
    if actor.attempt_id is not None:
        return Standing.ATTEMPT
    return Standing.ADMINISTRATOR if actor.sees_all else Standing.USER


def authorize(actor: Actor, standing: Standing, permission: Permission, project: str) -> None:
    """Raises NotAllowed unless a standing in a project has the permission. What no rule allows is refused."""
    if standing in GRANTS.get(permission, frozenset()):
        return
    needed = " or ".join(sorted(GRANTS[permission]))
    if project == PLATFORM:
        raise NotAllowed(
            f"{actor.name} is {standing} of the platform; this is for {needed}",
            next_step="ask an administrator of the platform",
        )
    raise NotAllowed(
        f"{actor.name} is {standing} in project {project}; this is for {needed}",
        next_step=f"ask one of them: danlu member ls --project {project}",
    )


def whoami(call: Call) -> Identity:
    """Returns who calls, and the role in each project."""
    actor = call.actor
    seen = [name for name in sorted(actor.roles) if actor.standing(name) is not None]
    return Identity(
        name=actor.name, administrator=actor.administrator, by=actor.id, server_time=call.platform.clock.wall(),
        projects=tuple(Membership(project=name, role=actor.roles[name]) for name in seen),
    )  # fmt: skip
