"""The first administrator, who is there from the first start on, and the key by which the platform's owner is it.

Who can read the data folder owns the platform: the key lies there, and where it and the database do not belong together, as
after a backup of one of them was put back, a new one takes its place. A key that was revoked stays so.

Administrators may take its rights from the first user, or remove it, and a restart leaves that as it is. But the owner who
takes the key's file away, or goes on without the master key, is let in again as an administrator, whatever the database says:
else a platform whose administrators have all lost their keys could be administered by nobody any more.

Servers that share a database and a master key, and keep nothing of their own, take the key from the database. For them the
owner asks for another one in so many words, as a file that is missing says nothing.
"""

from __future__ import annotations

import logging
import secrets
from enum import Enum, auto
from typing import Final, NamedTuple

from danlu.database import queries
from danlu.database.engine import Database, Transaction
from danlu.database.records import KEYS, SECRETS, TOKENS, USERS, add_event
from danlu.domain.events import Event
from danlu.domain.ids import RANDOM_BITS, make_id
from danlu.domain.keys import AccessKey
from danlu.domain.users import FIRST_USER, PLATFORM, User
from danlu.errors import PlatformError, VaultLocked
from danlu.services.access import over
from danlu.services.keys import SECRET_PREFIX
from danlu.services.vault import KEY_BYTES, Vault

LOG: Final = logging.getLogger("danlu.services")
KEY_NAME: Final = "bootstrap"
FILE: Final = f"keys/{KEY_NAME}"
ALL: Final = 1_000_000
NEW_KEY: Final = f"danlu down, then remove {FILE} of the data folder, then danlu up"
NEW_SHARED_KEY: Final = "python -m danlu.server.offline first-key, where a server runs"


class Settled(NamedTuple):
    """A new key, which is stored but nowhere told yet, or None; and what the owner is to know, or ""."""

    key: tuple[str, str] | None = None
    told: str = ""


class _State(Enum):
    """How the key that the data folder holds and the database go together."""

    GOOD = auto()
    MISSING = auto()
    """The folder holds none."""
    UNSTORED = auto()
    """Nobody is in the database yet, or the key was sealed by a master key that is lost: it is stored (again)."""
    UNKNOWN = auto()
    """The database has another one, or none: one of the two is of another time."""
    ENDED = auto()
    """It was revoked, or its end was asked for."""


def settle(
    database: Database, vault: Vault, known: tuple[str, str] | None, now: int, *, new_master: bool, shared: bool = False
) -> Settled:
    """Makes the first administrator and its access key, where they are not there.

    Args:
        database: the platform's.
        vault: which is to open what was sealed before.
        known: the access key that the data folder holds: (id, secret).
        now: ns UTC.
        new_master: go on though what another master key has sealed is lost.
        shared: other servers have the same database: it is the database's key that is taken, unless it has ended.

    Raises:
        PlatformError: the master key is not the one that what is stored was sealed with.
    """
    foreign = database.read(lambda tx: len(_foreign(tx, vault)))
    secrets_too = database.read(lambda tx: queries.secrets_sealed_by_others(tx, vault.name))
    if (foreign or secrets_too) and not new_master:
        lost = [_counted(foreign, "access key")] * bool(foreign) + [_counted(secrets_too, "secret")] * bool(secrets_too)
        raise PlatformError(
            f"the master key is {vault.name}, but {' and '.join(lost)} {'was' if foreign + secrets_too == 1 else 'were'} "
            "sealed by another one",
            next_step="restore keys/master of the data folder (where it was missing, a start has made another one in its "
            "place), or name it: DANLU_MASTER_KEY_FILE=FILE. If it is lost: "
            "danlu up --new-master-key, after which those keys are refused and everybody needs new ones, and each secret "
            "has to be set again",
        )

    def work(tx: Transaction) -> Settled:
        queries.lock(tx, "first key")  # servers that start at the same time make one
        if foreign or secrets_too:  # nobody can use them any more, and the next start must not ask again
            _give_up_sealed_by_others(tx, vault, now)
        state = _state(tx, vault, known, now)
        if shared and state in (_State.MISSING, _State.UNKNOWN) and USERS.count(tx):
            found = _shared(tx, vault, now, new_master=new_master)
            if found is not None:
                return found
        by_owner = state in (_State.MISSING, _State.UNSTORED) or bool(foreign)
        return _settled(tx, vault, known, state, now, by_owner=by_owner)

    good = database.read(lambda tx: _state(tx, vault, known, now)) is _State.GOOD
    settled = Settled() if good and not (foreign or secrets_too) else database.write(work)
    if settled.told:
        LOG.warning("%s", settled.told)
    return settled


def _shared(tx: Transaction, vault: Vault, now: int, *, new_master: bool) -> Settled | None:
    """Returns the database's own key; None where it was sealed by a master key that is given up."""
    found = [key for key in KEYS.find(tx, limit=ALL) if key.bootstrap and not over(key.expires_at, now)]
    key = max(found, key=lambda one: one.created_at, default=None)
    if key is None or key.sealed is None:
        return Settled(told=f"the first administrator's access key has ended; for a new one: {NEW_SHARED_KEY}")
    if key.sealed.master != vault.name:
        if new_master:
            return None
        raise PlatformError(
            f"the master key is {vault.name}, but the first administrator's access key was sealed by another one",
            next_step="give all servers of a database the same master key; if it is lost: --new-master-key",
        )
    return Settled((key.id, vault.open(key.sealed, key.id).decode()))


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _foreign(tx: Transaction, vault: Vault) -> list[AccessKey]:
    """Returns the keys that another master key has sealed, but for the platform's own, which the data folder holds too."""
    keys = (key for key in KEYS.find(tx, limit=ALL) if not key.bootstrap)
    return [key for key in keys if key.sealed is not None and key.sealed.master != vault.name]


def _give_up_sealed_by_others(tx: Transaction, vault: Vault, now: int) -> None:
    """Removes keys that prove nothing any more; a secret's name means nothing until it is set again."""
    for key in _foreign(tx, vault):
        KEYS.remove(tx, key)
    for secret in SECRETS.find(tx, replaced_at=None, limit=ALL):
        if secret.sealed is not None and secret.sealed.master != vault.name:
            SECRETS.put(tx, secret, secret.evolved(now=now, replaced_at=now))


def _state(tx: Transaction, vault: Vault, known: tuple[str, str] | None, now: int) -> _State:
    if known is None:
        return _State.MISSING
    found = KEYS.get(tx, known[0])
    if found is None or found.sealed is None:
        return _State.UNKNOWN if USERS.count(tx) else _State.UNSTORED
    ended, lost = over(found.expires_at, now), found.sealed.master != vault.name
    if lost and not ended:
        return _State.UNSTORED
    try:
        same = lost or vault.open(found.sealed, found.id) == known[1].encode()
    except VaultLocked:
        same = False
    if same and not ended:
        return _State.GOOD
    others = KEYS.find(tx, user=found.user, limit=ALL)
    rotated = any(other.bootstrap and not over(other.expires_at, now) for other in others)
    return _State.ENDED if same and not rotated else _State.UNKNOWN


def _settled(
    tx: Transaction, vault: Vault, known: tuple[str, str] | None, state: _State, now: int, *, by_owner: bool
) -> Settled:
    if state is _State.ENDED and known is not None:
        return Settled(
            told=f"the access key {known[0]} in {FILE} was revoked: nobody can call by it; for a new one: {NEW_KEY}"
        )
    first, restored = next(iter(USERS.find(tx, name=FIRST_USER, limit=1)), None), ""
    if first is not None and by_owner and not first.administrator:
        first, restored = _restored(tx, first, now)
    if first is not None and first.removed_at is not None:
        others = sorted(user.name for user in USERS.find(tx, limit=ALL) if user.administrator)
        return Settled(
            told=f"user {FIRST_USER} was removed, and {FILE} with it: nobody can call by it; "
            f"administrators are {', '.join(others)}; for who owns the platform to be one again: {NEW_KEY}"
        )
    if state is _State.GOOD:
        return Settled(told=restored)
    if state is _State.UNSTORED and known is not None:
        _store(tx, vault, first, known, now)
        return Settled(told=restored)
    key = (make_id("k", now, secrets.randbits(RANDOM_BITS)), SECRET_PREFIX + secrets.token_hex(KEY_BYTES))
    _store(tx, vault, first, key, now)
    if first is None:
        return Settled(key)
    why = f"there was no {FILE}"
    if state is _State.UNKNOWN and known is not None:
        why = (
            f"the access key {known[0]} in {FILE} is not the database's: one of them is of another time, as after a backup "
            "was put back"
        )
    told = f"{why}; a new one, {key[0]}, takes its place"
    if restored:
        told += f"; {restored}"
    elif not first.administrator:
        told += f"; user {FIRST_USER} is no administrator: to be one again: {NEW_KEY}"
    event = Event(
        at=now, project=PLATFORM, kind=AccessKey.KIND, object_id=key[0], state="created", reason="BootstrapKeyReplaced",
        message=told,
    )  # fmt: skip
    add_event(tx, event)
    return Settled(key, told)


def _restored(tx: Transaction, first: User, now: int) -> tuple[User, str]:
    """Makes the first user an administrator again; returns it, and what is told of it."""
    lost = "was no administrator any more" if first.removed_at is None else "was removed"
    again = first.evolved(now=now, administrator=True, removed_at=None)
    USERS.put(tx, first, again)
    told = f"user {FIRST_USER}, who {lost}, is an administrator again, as who owns the data folder asks for it"
    others = [key for key in KEYS.find(tx, user=first.id, limit=ALL) if not key.bootstrap]
    if number := len(others) + TOKENS.count(tx, user=first.id):
        told += f"; its other keys and tokens ({number}) are an administrator's too: danlu key ls, danlu token ls"
    event = Event(
        at=now, project=PLATFORM, kind=User.KIND, object_id=first.id, state="changed", reason="FirstUserRestored",
        message=told,
    )  # fmt: skip
    add_event(tx, event)
    return again, told


def _store(tx: Transaction, vault: Vault, first: User | None, key: tuple[str, str], now: int) -> None:
    """Stores the key as the only one of its kind, and the first administrator."""
    key_id, secret = key
    if first is None:
        first = User(
            id=make_id("u", now, secrets.randbits(RANDOM_BITS)), project=PLATFORM, name=FIRST_USER,
            administrator=True, created_by=FIRST_USER, created_at=now, updated_at=now,
        )  # fmt: skip
        USERS.add(tx, first)
    for old in KEYS.find(tx, user=first.id, limit=ALL):
        if old.id == key_id or old.bootstrap:
            KEYS.remove(tx, old)
    made = AccessKey(
        id=key_id, project=PLATFORM, user=first.id, name=KEY_NAME, sealed=vault.seal(secret.encode(), key_id),
        created_by=FIRST_USER, created_at=now, updated_at=now, bootstrap=True,
    )  # fmt: skip
    KEYS.add(tx, made)
