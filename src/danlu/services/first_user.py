"""The first administrator, who is there from the first start on, and the key by which the platform's owner is it."""

from __future__ import annotations

import secrets

from danlu.database import queries
from danlu.database.engine import Database, Transaction
from danlu.database.records import KEYS, SECRETS, USERS
from danlu.domain.ids import RANDOM_BITS, make_id
from danlu.domain.keys import AccessKey
from danlu.domain.users import FIRST_USER, PLATFORM, User
from danlu.errors import PlatformError
from danlu.services.keys import SECRET_PREFIX
from danlu.services.vault import KEY_BYTES, Vault

KEY_NAME = "bootstrap"
ALL = 1_000_000


def settle(
    database: Database, vault: Vault, known: tuple[str, str] | None, now: int, *, new_master: bool
) -> tuple[str, str] | None:
    """Makes the first administrator and its access key, if there is none.

    Args:
        database: the platform's.
        vault: which is to open what was sealed before.
        known: the access key that the data folder holds: (id, secret); where it holds none, a new one takes its place: who
            owns the data folder owns the platform.
        now: ns UTC.
        new_master: go on though what another master key has sealed is lost.

    Returns:
        a new key, which is stored but nowhere told yet; None where the one that is known stays.

    Raises:
        PlatformError: the master key is not the one that what is stored was sealed with.
    """
    foreign = database.read(lambda tx: _sealed_by_others(tx, vault))
    secrets_too = database.read(lambda tx: queries.secrets_sealed_by_others(tx, vault.name))
    if (foreign or secrets_too) and not new_master:
        raise PlatformError(
            f"the master key is {vault.name}, but {foreign} access keys and {secrets_too} secrets were sealed by another one",
            next_step="restore keys/master of the data folder, or name it: DANLU_MASTER_KEY_FILE=FILE. If it is lost: "
            "danlu up --new-master-key, after which those keys are refused and everybody needs new ones, and each secret "
            "has to be set again",
        )
    if foreign or secrets_too:  # nobody can use them any more, and the next start must not ask again
        database.write(lambda tx: _give_up_sealed_by_others(tx, vault, now))
    if known is not None and database.read(lambda tx: _is_settled(tx, vault, known[0])):
        return None
    key = known or (make_id("k", now, secrets.randbits(RANDOM_BITS)), SECRET_PREFIX + secrets.token_hex(KEY_BYTES))
    stored = database.write(lambda tx: _store(tx, vault, key, now, fresh=known is None))
    return key if stored and known is None else None


def _sealed_by_others(tx: Transaction, vault: Vault) -> int:
    """Returns how many values another master key has sealed; the first administrator's own is known otherwise."""
    return len(_foreign(tx, vault))


def _foreign(tx: Transaction, vault: Vault) -> list[AccessKey]:
    keys = (key for key in KEYS.find(tx, limit=ALL) if key.name != KEY_NAME)
    return [key for key in keys if key.sealed is not None and key.sealed.master != vault.name]


def _give_up_sealed_by_others(tx: Transaction, vault: Vault, now: int) -> None:
    """Removes keys that prove nothing any more; a secret's name means nothing until it is set again."""
    for key in _foreign(tx, vault):
        KEYS.remove(tx, key)
    for secret in SECRETS.find(tx, replaced_at=None, limit=ALL):
        if secret.sealed is not None and secret.sealed.master != vault.name:
            SECRETS.put(tx, secret, secret.evolved(now=now, replaced_at=now))


def _is_settled(tx: Transaction, vault: Vault, key_id: str) -> bool:
    """Says whether the key can be used, or was revoked and is to stay so."""
    found = KEYS.get(tx, key_id)
    if found is None:
        return any(user.administrator for user in USERS.find(tx, limit=ALL))
    return found.sealed is not None and found.sealed.master == vault.name


def _store(tx: Transaction, vault: Vault, key: tuple[str, str], now: int, *, fresh: bool) -> bool:
    """Stores the first administrator and the key, instead of an older one; returns False where that user was removed."""
    key_id, secret = key
    user = next(iter(USERS.find(tx, name=FIRST_USER, limit=1)), None)
    if user is None:
        user = User(
            id=make_id("u", now, secrets.randbits(RANDOM_BITS)), project=PLATFORM, name=FIRST_USER,
            administrator=True, created_by=FIRST_USER, created_at=now, updated_at=now,
        )  # fmt: skip
        USERS.add(tx, user)
    if user.removed_at is not None:
        return False
    for old in KEYS.find(tx, user=user.id, limit=ALL):
        if old.id == key_id or (fresh and old.name == KEY_NAME):
            KEYS.remove(tx, old)
    made = AccessKey(
        id=key_id, project=PLATFORM, user=user.id, name=KEY_NAME, sealed=vault.seal(secret.encode(), key_id),
        created_by=FIRST_USER, created_at=now, updated_at=now,
    )  # fmt: skip
    KEYS.add(tx, made)
    return True
