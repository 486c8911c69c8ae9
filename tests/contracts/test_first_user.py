"""The platform's own key and the database: which of them is believed, on each database."""

from __future__ import annotations

import secrets

import pytest

from danlu.database.engine import Database
from danlu.database.records import KEYS, SECRETS, USERS
from danlu.domain.keys import AccessKey
from danlu.domain.users import FIRST_USER
from danlu.errors import PlatformError
from danlu.services import first_user
from danlu.services.first_user import Settled
from danlu.services.vault import Vault
from tests.factories import NOW, Ids, make_key, make_secret

VAULT = Vault(b"m" * 32, secrets.token_bytes)
OTHER = Vault(b"o" * 32, secrets.token_bytes)
UNKNOWN = ("k" + "0" * 26, "danlu_sk_other")


def settle(
    database: Database, known: tuple[str, str] | None, *, vault: Vault = VAULT, new_master: bool = False
) -> Settled:
    return first_user.settle(database, vault, known, NOW, new_master=new_master)


def keys(database: Database) -> list[AccessKey]:
    return database.read(lambda tx: KEYS.find(tx, limit=10))


def change(database: Database, key_id: str, **fields: object) -> None:
    def work(tx: object) -> None:
        old = KEYS.require(tx, key_id)  # type: ignore[arg-type]
        KEYS.put(tx, old, old.evolved(now=NOW, **fields))  # type: ignore[arg-type]

    database.write(work)


def test_the_first_start_makes_the_key_and_others_leave_it(database: Database) -> None:
    key, told = settle(database, None)
    assert key is not None
    assert told == ""
    assert settle(database, key) == Settled()
    assert [(one.id, one.bootstrap) for one in keys(database)] == [(key[0], True)]
    assert settle(database, None).key != key  # its file is gone
    assert len(keys(database)) == 1


def test_a_key_beside_an_empty_database_is_taken(database: Database) -> None:
    assert settle(database, UNKNOWN) == Settled()
    assert settle(database, UNKNOWN) == Settled()
    assert [one.id for one in keys(database)] == [UNKNOWN[0]]


@pytest.mark.parametrize("why", ["unknown", "secret", "rotated"])
def test_a_key_that_is_not_the_databases_is_replaced(database: Database, why: str) -> None:
    key, _ = settle(database, None)
    assert key is not None
    if why == "rotated":
        user = database.read(lambda tx: USERS.find(tx, limit=1))[0]
        database.write(lambda tx: KEYS.add(tx, make_key(user.id, Ids()("k"), bootstrap=True, replaces=key[0])))
        change(database, key[0], expires_at=NOW)
    known = {"unknown": UNKNOWN, "secret": (key[0], "danlu_sk_other"), "rotated": key}[why]
    settled = settle(database, known)
    assert settled.key is not None
    assert settled.key[0] not in (key[0], known[0])
    assert known[0] in settled.told
    assert settled.key[0] in settled.told
    assert [one.id for one in keys(database)] == [settled.key[0]]
    assert settle(database, settled.key) == Settled()


def test_a_key_that_was_revoked_is_not_made_again(database: Database) -> None:
    key, _ = settle(database, None)
    assert key is not None
    change(database, key[0], expires_at=NOW)
    for _ in range(2):
        settled = settle(database, key)
        assert settled.key is None
        assert "remove keys/bootstrap" in settled.told
    assert settle(database, None).key is not None


def test_where_the_first_user_was_removed_its_key_is_not_made_again(database: Database) -> None:
    key, _ = settle(database, None)
    assert key is not None

    def work(tx: object) -> None:
        user = USERS.find(tx, name=FIRST_USER, limit=1)[0]  # type: ignore[arg-type]
        USERS.put(tx, user, user.evolved(now=NOW, removed_at=NOW, administrator=False))  # type: ignore[arg-type]
        KEYS.remove(tx, KEYS.require(tx, key[0]))  # type: ignore[arg-type]

    database.write(work)
    settled = settle(database, key)
    assert settled.key is None
    assert "user admin was removed" in settled.told
    assert settle(database, None) == Settled()
    assert keys(database) == []


@pytest.mark.parametrize(
    ("many", "secret", "said"),
    [
        (1, False, "but 1 access key was sealed"),
        (2, False, "but 2 access keys were sealed"),
        (0, True, "but 1 secret was sealed"),
        (1, True, "but 1 access key and 1 secret were sealed"),
    ],
)
def test_no_name_makes_a_key_the_platforms_own(database: Database, many: int, secret: bool, said: str) -> None:
    key, _ = settle(database, None)
    user, ids = database.read(lambda tx: USERS.find(tx, limit=1))[0], Ids()
    for _ in range(many):
        made = ids("k")
        named = make_key(user.id, made, name="bootstrap", sealed=VAULT.seal(b"s", made))
        database.write(lambda tx, named=named: KEYS.add(tx, named))
    if secret:
        one = ids("s")
        database.write(lambda tx: SECRETS.add(tx, make_secret(one, sealed=VAULT.seal(b"s", one))))
    with pytest.raises(PlatformError, match=said):
        settle(database, key, vault=OTHER)
    settle(database, key, vault=OTHER, new_master=True)
    assert [one.id for one in keys(database)] == [key[0]]  # type: ignore[index]
    assert settle(database, key, vault=OTHER) == Settled()


def test_a_key_of_the_first_user_that_is_called_so_is_left_when_the_file_is_gone(database: Database) -> None:
    settle(database, None)
    user = database.read(lambda tx: USERS.find(tx, limit=1))[0]
    mine = make_key(user.id, Ids()("k"), name="bootstrap")
    database.write(lambda tx: KEYS.add(tx, mine))
    settle(database, None)
    assert mine.id in [one.id for one in keys(database)]
