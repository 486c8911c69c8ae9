"""The platform's own key and the database: which of them is believed, on each database."""

from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor

import pytest

from danlu.database.engine import Database, Transaction
from danlu.database.queries import Chosen, events_after
from danlu.database.records import KEYS, SECRETS, USERS
from danlu.domain.keys import AccessKey
from danlu.domain.users import FIRST_USER, PLATFORM
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


def lose(database: Database, how: str) -> None:
    """Does what administrators do: "demoted" or "removed", with all of its keys."""

    def work(tx: Transaction) -> None:
        user = USERS.find(tx, name=FIRST_USER, limit=1)[0]
        if how == "demoted":
            USERS.put(tx, user, user.evolved(now=NOW, administrator=False))
            return
        USERS.put(tx, user, user.evolved(now=NOW, removed_at=NOW, administrator=False))
        for key in KEYS.find(tx, user=user.id, limit=10):
            KEYS.remove(tx, key)

    database.write(work)


def is_administrator(database: Database) -> bool:
    user = database.read(lambda tx: USERS.find(tx, name=FIRST_USER, limit=1))[0]
    return user.administrator and user.removed_at is None


def restored(database: Database) -> list[str]:
    """Returns what the events tell of the first user's return."""
    found = database.read(lambda tx: events_after(tx, 0, Chosen(PLATFORM), limit=100))
    return [event.message for event in found if event.reason == "FirstUserRestored"]


@pytest.mark.parametrize("how", ["demoted", "removed"])
def test_what_administrators_have_done_to_the_first_user_stays_while_the_key_is_there(
    database: Database, how: str
) -> None:
    key, _ = settle(database, None)
    lose(database, how)
    settled = settle(database, key)
    assert settled.key is None
    assert (settled.told == "") == (how == "demoted")
    if settled.told:
        assert "user admin was removed" in settled.told
        assert "then remove keys/bootstrap" in settled.told
    unknown = settle(database, UNKNOWN)  # whoever has made it end by a request must not make more of it by a restart
    assert "then remove keys/bootstrap" in unknown.told
    assert (unknown.key is None) == (how == "removed")
    assert not is_administrator(database)
    assert restored(database) == []


@pytest.mark.parametrize("how", ["demoted", "removed"])
def test_who_takes_the_key_away_is_an_administrator_again(database: Database, how: str) -> None:
    key, _ = settle(database, None)
    lose(database, how)
    settled = settle(database, None)
    assert settled.key not in (None, key)
    assert is_administrator(database)
    (told,) = restored(database)
    assert told in settled.told
    assert settle(database, settled.key) == Settled()
    assert settle(database, None).key is not None
    assert len(restored(database)) == 1  # once


@pytest.mark.parametrize("sealed_by", ["the lost one", "this one"])
@pytest.mark.parametrize("how", ["demoted", "removed"])
def test_who_goes_on_without_the_master_key_is_an_administrator_again(
    database: Database, how: str, sealed_by: str
) -> None:
    """All other keys end then: nobody else could let anybody in."""
    key, _ = settle(database, None, vault=VAULT if sealed_by == "the lost one" else OTHER)
    lose(database, how)
    made = Ids()("k")
    ada = make_key(Ids()("u"), made, sealed=VAULT.seal(b"s", made))
    database.write(lambda tx: KEYS.add(tx, ada))
    with pytest.raises(PlatformError, match="1 access key was sealed"):
        settle(database, key, vault=OTHER)
    assert not is_administrator(database)
    settled = settle(database, key, vault=OTHER, new_master=True)
    assert is_administrator(database)
    assert "user admin, who was" in settled.told
    now = settled.key or key
    assert (now == key) == (how == "demoted")
    assert [one.id for one in keys(database)] == [now[0]]  # type: ignore[index]
    assert settle(database, now, vault=OTHER) == Settled()


def test_whose_key_alone_was_sealed_by_a_lost_master_key_is_an_administrator_again(database: Database) -> None:
    key, _ = settle(database, None)
    lose(database, "demoted")
    assert "user admin, who was no administrator any more" in settle(database, key, vault=OTHER).told
    assert is_administrator(database)


def test_it_is_told_which_other_keys_are_an_administrators_again(database: Database) -> None:
    settle(database, None)
    user = database.read(lambda tx: USERS.find(tx, limit=1))[0]
    database.write(lambda tx: KEYS.add(tx, make_key(user.id, Ids()("k"))))
    lose(database, "demoted")
    assert "its other keys and tokens (1) are an administrator's too" in settle(database, None).told


def test_a_key_that_was_revoked_stays_so_without_the_master_key(database: Database) -> None:
    key, _ = settle(database, None)
    assert key is not None
    change(database, key[0], expires_at=NOW)
    settled = settle(database, key, vault=OTHER, new_master=True)
    assert settled.key is None
    assert "was revoked" in settled.told
    assert [one.expires_at for one in keys(database)] == [NOW]
    assert settle(database, None, vault=OTHER).key is not None


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


# servers that share a database


def shared(database: Database, *, vault: Vault = VAULT, new_master: bool = False) -> Settled:
    return first_user.settle(database, vault, None, NOW, new_master=new_master, shared=True)


def test_servers_of_one_database_have_one_key(database: Database) -> None:
    key, _ = shared(database)
    assert key is not None
    assert shared(database) == Settled(key)
    assert settle(database, key) == Settled()
    assert [one.id for one in keys(database)] == [key[0]]


def test_servers_that_start_at_the_same_time_make_one_key(database: Database) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = {one.key for one in pool.map(lambda _: shared(database), range(4))}
    assert len(found) == 1
    assert [one.id for one in keys(database)] == [key[0] for key in found if key is not None]


def test_a_shared_key_that_has_ended_comes_back_only_where_it_is_asked_for(database: Database) -> None:
    key, _ = shared(database)
    assert key is not None
    change(database, key[0], expires_at=NOW)
    for _ in range(2):
        found = shared(database)
        assert found.key is None
        assert "first-key" in found.told
    assert len(keys(database)) == 1
    fresh, _ = settle(database, None)
    assert shared(database).key == fresh != key


def test_a_server_with_another_master_key_takes_no_part(database: Database) -> None:
    key, _ = shared(database)
    with pytest.raises(PlatformError, match="sealed by another one"):
        shared(database, vault=OTHER)
    assert [one.id for one in keys(database)] == [key[0]]  # type: ignore[index]
    fresh, _ = shared(database, vault=OTHER, new_master=True)
    assert fresh is not None
    assert fresh != key
    assert shared(database, vault=OTHER).key == fresh
