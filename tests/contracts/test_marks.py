"""A platform's bytes are where its database knows that they are, or no server starts."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from danlu.blobs.base import Blobs
from danlu.database.engine import Database
from danlu.domain.trees import address_of
from danlu.errors import DataDamaged, PlatformError
from danlu.services.marks import require_same
from tests.databases import together
from tests.stores import Store

P = "default"


@pytest.fixture
def other_database(tmp_path: Path) -> Iterator[Database]:
    (tmp_path / "other.db").touch()
    database = Database.open(f"sqlite:///{tmp_path / 'other.db'}")
    yield database
    database.close()


def put(blobs: Blobs) -> None:
    blobs.put(P, address_of(b"1"), io.BytesIO(b"1"))


def start(store: Store, database: Database) -> Blobs:
    """Starts a server, as far as this goes."""
    blobs = store.blobs()
    require_same(blobs, database, "the place")
    return blobs


def test_a_platform_goes_on_where_its_bytes_are(store: Store, database: Database) -> None:
    put(start(store, database))
    assert start(store, database).read(P, address_of(b"1")) == b"1"


def test_of_servers_that_start_at_once_none_is_refused(store: Store, postgresql: Database) -> None:
    found = together(8, lambda _: start(store, postgresql))
    assert {found[0].mark()} == {one.mark() for one in found}


def test_another_place_is_refused_until_it_is_said_that_the_bytes_are_lost(
    new_store: Callable[[], Store], database: Database
) -> None:
    put(start(new_store(), database))
    elsewhere = new_store()
    with pytest.raises(PlatformError, match="are not in the place: it has no mark of a platform") as refused:
        start(elsewhere, database)
    assert elsewhere.blobs().empty()
    number = refused.value.next_step.partition("write ")[2].split()[0]
    elsewhere.blobs().set_mark(int(number))
    start(elsewhere, database)


def test_another_platforms_place_is_refused(
    store: Store, new_store: Callable[[], Store], database: Database, other_database: Database
) -> None:
    """What one prunes the other one may need."""
    put(start(store, database))
    with pytest.raises(PlatformError, match="the place has another platform's bytes"):
        start(store, other_database)
    start(new_store(), other_database)
    with pytest.raises(PlatformError, match="it has another platform's mark"):
        start(store, other_database)


def test_a_first_start_that_was_broken_off_is_repeated(store: Store, database: Database) -> None:
    store.blobs().set_mark(7)  # and the database was not told
    assert start(store, database).mark() == 7


def test_what_is_there_already_without_a_mark_is_the_platforms(store: Store, database: Database) -> None:
    put(store.blobs())
    assert start(store, database).mark() is not None


def test_a_mark_that_cannot_be_read_is_not_taken_for_none(store: Store, database: Database) -> None:
    blobs = start(store, database)
    assert blobs.set_mark(1) == blobs.mark() != 1
    store.change(".platform", lambda _: b"?")
    with pytest.raises(DataDamaged, match=r"/\.platform does not tell"):
        start(store, database)
