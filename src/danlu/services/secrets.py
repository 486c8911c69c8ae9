"""A project's secrets: given, listed by name, removed; opened for the attempts that need them.

A value is never changed: a new one takes its place, and the old one is kept, sealed, for as long as an attempt may have it,
to be redacted from what that attempt wrote.
"""

from __future__ import annotations

import builtins
import re

from danlu.api.bodies import Accepted, Paging
from danlu.database import queries
from danlu.database.engine import Database, Transaction
from danlu.database.records import ATTEMPTS, JOBS, SECRETS
from danlu.domain.ids import job_of_attempt
from danlu.domain.jobs import LIVE_JOB_STATES, Job
from danlu.domain.secrets import MAX_LINES_OF_AN_ATTEMPT, SECRET_PATTERN, HandedSecret, Secret, SecretRequest, lines_of
from danlu.domain.specs import JobSpec
from danlu.domain.validation import PATTERNS, nearest
from danlu.domain.views import Page
from danlu.errors import Conflict, InvalidRequest, InvalidSpec, NotFound, SecretUnavailable, VaultLocked
from danlu.services.context import Call
from danlu.services.vault import Vault

MAX_SECRETS = 200
"""So many has a project."""
MAX_OLD = 20
"""So many older values of one secret are kept for attempts that run."""
MAX_NAMED = 10
MAX_LIVE = 1_000
FOR_EVER = 2**63 - 1
SLACK_NS = 3600 * 1_000_000_000
"""How far the clock may have been set back between a launch and a replacement."""


def list(call: Call, query: Paging) -> Page[Secret]:
    """Returns the project's secrets without their values, the one that was changed last first."""
    page = call.platform.database.read(
        lambda tx: SECRETS.page(tx, limit=query.limit, cursor=query.cursor, project=call.project, replaced_at=None)
    )
    shown: builtins.list[Secret] = [_shown(secret) for secret in page.items]
    return Page[Secret](items=tuple(shown), next_cursor=page.next_cursor)


def set(call: Call, secret: str, body: SecretRequest) -> Secret:
    """Gives a secret a value. Attempts that run keep the one that they began with; the same value again changes nothing.

    Raises:
        InvalidRequest: that is no name.
        Conflict: the project has as many secrets as one may have, or running attempts use too many older values.
    """
    if not re.fullmatch(SECRET_PATTERN, secret):
        raise InvalidRequest(f"{secret[:63]!r} cannot be a secret's name: {PATTERNS[SECRET_PATTERN]}")
    platform, now = call.platform, call.platform.clock.now()
    secret_id, value = platform.new_id("s"), body.value.encode()
    sealed = platform.vault.seal(value, secret_id)

    def work(tx: Transaction) -> Secret:
        known = _current(tx, call.project, secret)
        if known is not None and _holds(platform.vault, known, value):
            return known
        if known is None and SECRETS.count(tx, project=call.project, replaced_at=None) >= MAX_SECRETS:
            raise Conflict(
                f"project {call.project} has {MAX_SECRETS} secrets already",
                next_step="remove one: danlu secret rm NAME",
            )
        if known is not None:
            _replace(tx, known, now, call.actor.name)
        if SECRETS.count(tx, project=call.project, name=secret) > MAX_OLD:
            raise Conflict(
                f"secret {secret} was replaced {MAX_OLD} times while attempts run that may use the older values",
                next_step="wait until they have ended, or stop them: danlu get jobs",
            )
        made = Secret(
            id=secret_id, project=call.project, name=secret, sealed=sealed, created_by=call.actor.name,
            created_at=now, updated_at=now,
        )  # fmt: skip
        SECRETS.add(tx, made, actor=call.actor.name)
        return made

    return _shown(call.write(work))


def remove(call: Call, secret: str) -> Accepted:
    """Removes a secret at once. What runs keeps what it began with; a job that needs it and waits will fail.

    Raises:
        NotFound: there is none of that name.
    """

    def work(tx: Transaction) -> None:
        known = _current(tx, call.project, secret)
        if known is None:
            raise _unknown(tx, call.project, secret)
        _replace(tx, known, call.platform.clock.now(), call.actor.name)

    call.write(work)
    live = call.platform.database.read(lambda tx: _live(tx, call.project))
    needed = [job.name for job in live if secret in _needed(job.spec)]
    told = f"secret {secret} is removed"
    if needed:
        more = f" and {len(needed) - MAX_NAMED} more" if len(needed) > MAX_NAMED else ""
        told += f"; it is needed by {', '.join(needed[:MAX_NAMED])}{more}: what runs keeps it, what starts later fails"
    return Accepted(message=told)


def require(tx: Transaction, project: str, spec: JobSpec) -> None:
    """Raises InvalidSpec where a job needs a secret that there is not."""
    known = queries.secret_names(tx, project) if spec.secrets else []
    for variable, use in spec.secrets.items():
        if use.secret not in known:
            error = _unknown(tx, project, use.secret)
            raise InvalidSpec(f"secrets.{variable}: {error.message}", next_step=error.next_step)


def handed(database: Database, vault: Vault, job: Job) -> tuple[HandedSecret, ...]:
    """Returns the values that an attempt of a job begins with.

    Raises:
        SecretUnavailable: one was removed after the job was submitted, or cannot be opened; or they have too many lines.
    """
    uses = job.spec.secrets
    if not uses:
        return ()
    found = database.read(lambda tx: {name: _current(tx, job.project, name) for name in _needed(job.spec)})
    given = []
    for variable, use in uses.items():
        secret = found[use.secret]
        if secret is None or secret.sealed is None:
            raise SecretUnavailable(
                f"secret {use.secret} was removed after the job was submitted; "
                f"give it a value again (danlu secret set {use.secret}), then danlu retry {job.name}"
            )
        try:
            value = vault.open(secret.sealed, secret.id).decode()
        except VaultLocked as error:
            raise SecretUnavailable(
                f"secret {use.secret} cannot be opened: it was sealed by the master key {secret.sealed.master}, and the "
                f"platform's is {vault.name}; restore that one, or give the secret a value again "
                f"(danlu secret set {use.secret}), then danlu retry {job.name}"
            ) from error
        given.append(HandedSecret(variable=variable, value=value, file=use.file))
    if (count := sum(lines_of(value) for value in {one.value for one in given})) > MAX_LINES_OF_AN_ATTEMPT:
        raise SecretUnavailable(
            f"the secrets of job {job.name} have {count:,} lines, of which {MAX_LINES_OF_AN_ATTEMPT:,} at most are hidden in "
            "output; give them fewer (one line, as base64: danlu secret set), then danlu retry " + job.name
        )
    return tuple(given)


def printable(database: Database, vault: Vault, attempt_id: str) -> tuple[str, ...]:
    """Returns every value that an attempt may have, to be redacted from what it wrote.

    Raises:
        VaultLocked: one of them cannot be opened.
    """

    def work(tx: Transaction) -> builtins.list[Secret]:
        job = JOBS.get(tx, job_of_attempt(attempt_id)[0])
        if job is None or not job.spec.secrets:
            return []
        return SECRETS.find(tx, project=job.project, name=tuple(_needed(job.spec)), limit=MAX_SECRETS * MAX_OLD)

    found = database.read(work)
    return tuple(vault.open(one.sealed, one.id).decode() for one in found if one.sealed is not None)


def forget_replaced(tx: Transaction, project: str) -> None:
    """Deletes the older values that no attempt can have any more whose output is not all kept."""
    if not queries.has_replaced_secrets(tx, project):
        return
    uncollected = ATTEMPTS.find(tx, project=project, collected=False, limit=queries.MAX_OPEN_ATTEMPTS)
    oldest = min((attempt.created_at for attempt in uncollected), default=None)
    queries.delete_replaced_secrets(tx, project, FOR_EVER if oldest is None else oldest - SLACK_NS)


def _current(tx: Transaction, project: str, name: str) -> Secret | None:
    return next(iter(SECRETS.find(tx, project=project, name=name, replaced_at=None, limit=1)), None)


def _replace(tx: Transaction, known: Secret, now: int, actor: str) -> None:
    SECRETS.put(tx, known, known.evolved(now=now, replaced_at=now), actor=actor)
    forget_replaced(tx, known.project)


def _holds(vault: Vault, known: Secret, value: bytes) -> bool:
    try:
        return known.sealed is not None and vault.open(known.sealed, known.id) == value
    except VaultLocked:
        return False


def _needed(spec: JobSpec) -> builtins.set[str]:
    return {use.secret for use in spec.secrets.values()}


def _live(tx: Transaction, project: str) -> builtins.list[Job]:
    return JOBS.find(tx, project=project, state=LIVE_JOB_STATES, limit=MAX_LIVE)


def _unknown(tx: Transaction, project: str, name: str) -> NotFound:
    known = {one.lower(): one for one in queries.secret_names(tx, project)}
    meant = nearest(name, known)
    near = "" if meant is None else f"did you mean {known[meant]}?"
    return NotFound(
        f"there is no secret {name[:63]!r} in project {project}",
        next_step=f"{near}   all of them: danlu secret ls   a new one: danlu secret set NAME".strip(),
    )


def _shown(secret: Secret) -> Secret:
    return secret.model_copy(update={"sealed": None})
