"""One server leads, on each database: the lease, and that a write of an earlier epoch is refused."""

from __future__ import annotations

import inspect
import pkgutil
import threading
import time
import typing
from functools import partial
from importlib import import_module
from typing import Any

import pytest

import danlu.controllers
from danlu.controllers.leader import LedExecutor
from danlu.database import leadership
from danlu.database.engine import Database, Transaction
from danlu.database.leadership import FOREVER, SECOND, Candidate, Fenced, Lease, Term
from danlu.database.records import PROJECTS
from danlu.errors import LeadershipLost
from danlu.executors.base import Capabilities, Executor, Spools
from tests.databases import WAIT_S, together
from tests.factories import make_project

A, B = Candidate("a", "machine-a", "folder-a"), Candidate("b", "machine-b", "folder-b")


def take(database: Database, who: Candidate, lease_s: float = 60.0, **how: Any) -> Lease | None:
    return database.write(partial(leadership.take, who=who, lease_s=lease_s, **how))


def led(database: Database, who: Candidate, lease_s: float = 60.0) -> Term:
    lease = take(database, who, lease_s)
    assert lease is not None
    return Term(lease, FOREVER)


def add(name: str, tx: Transaction) -> None:
    PROJECTS.add(tx, make_project(name, number=PROJECTS.count(tx)))


def exists(database: Database, name: str) -> bool:
    return database.read(lambda tx: PROJECTS.get(tx, name)) is not None


def test_nobody_leads_before_somebody_has_asked(database: Database) -> None:
    assert database.read(leadership.newest) is None
    lease = take(database, A)
    assert lease is not None
    assert (lease.epoch, lease.holder, lease.place) == (1, "a", "machine-a")
    found = database.read(leadership.newest)
    assert found is not None
    assert found._replace(left_ns=0) == lease._replace(left_ns=0)
    assert abs(found.since - time.time_ns()) < WAIT_S * SECOND


def test_a_lease_keeps_others_away_until_it_ends(postgresql: Database) -> None:
    first = take(postgresql, A)
    assert first is not None
    assert take(postgresql, B) is None
    assert postgresql.write(partial(leadership.renew, lease=first, lease_s=0.0))  # at once
    second = take(postgresql, B)
    assert second is not None
    assert second.epoch == first.epoch + 1
    assert not postgresql.write(partial(leadership.renew, lease=first, lease_s=60.0))
    postgresql.write(partial(leadership.release, lease=first))  # is not its own any more
    assert take(postgresql, A) is None
    postgresql.write(partial(leadership.release, lease=second))
    assert take(postgresql, A) is not None


def test_its_own_lease_keeps_nobody_from_a_new_epoch(postgresql: Database) -> None:
    first, again = take(postgresql, A), take(postgresql, A)
    assert first is not None
    assert again is not None
    assert again.epoch == first.epoch + 1


def test_what_a_killed_server_of_the_same_folder_has_left_is_taken_at_the_start(postgresql: Database) -> None:
    take(postgresql, A)
    risen = A._replace(holder="a again")
    assert take(postgresql, risen) is None
    assert take(postgresql, B, starting=True) is None
    assert take(postgresql, risen, starting=True) is not None


def test_the_owner_of_a_sqlite_file_leads_at_once_and_for_ever(sqlite: Database) -> None:
    assert take(sqlite, A, lease_s=0.0) is not None
    lease = take(sqlite, B)
    assert lease is not None
    assert (lease.epoch, lease.until) == (2, FOREVER)
    assert sqlite.write(partial(leadership.renew, lease=lease, lease_s=0.0))


@pytest.mark.parametrize("ahead_s", [3600.0, 5e9])
def test_a_lease_of_a_clock_that_was_put_back_keeps_nobody(postgresql: Database, ahead_s: float) -> None:
    """As after another machine has become the database's, or of a file's server."""
    old = take(postgresql, A)
    assert old is not None
    postgresql.write(partial(leadership.renew, lease=old, lease_s=ahead_s))
    found = postgresql.read(leadership.newest)
    assert found is not None
    assert found.left_ns == 0
    assert take(postgresql, B) is not None


def test_of_many_that_begin_at_once_one_leads(postgresql: Database) -> None:
    found = together(8, lambda number: take(postgresql, Candidate(f"s{number}", "")))
    assert [one.epoch for one in found if one is not None] == [1]


def test_a_write_of_an_earlier_epoch_is_refused(database: Database) -> None:
    old = Fenced(database, led(database, A, lease_s=0.0))
    old.write(partial(add, "before"))
    new = Fenced(database, led(database, B))
    with pytest.raises(LeadershipLost, match=r"epoch 1 was refused: machine-b leads with epoch 2"):
        old.write(partial(add, "late"))
    new.write(partial(add, "new"))
    assert [exists(database, name) for name in ("before", "late", "new")] == [True, False, True]
    assert old.read(lambda tx: PROJECTS.get(tx, "new")) is not None


def test_what_a_term_is_over_for_is_not_tried(database: Database) -> None:
    term = led(database, A)
    term.end()
    with pytest.raises(LeadershipLost, match="the term with epoch 1 is over"):
        Fenced(database, term).write(partial(add, "late"))
    assert not exists(database, "late")


def test_a_takeover_waits_for_a_write_that_was_first(postgresql: Database) -> None:
    old = Fenced(postgresql, led(postgresql, A, lease_s=0.0))
    inside, go_on = threading.Event(), threading.Event()
    seen: list[bool] = []

    def slow(tx: Transaction) -> None:
        add("first", tx)
        inside.set()
        assert go_on.wait(WAIT_S)

    def takes() -> None:
        def work(tx: Transaction) -> None:
            assert leadership.take(tx, B, 60.0) is not None
            seen.append(PROJECTS.get(tx, "first") is not None)

        postgresql.write(work)

    writer = threading.Thread(target=old.write, args=(slow,))
    taker = threading.Thread(target=takes)
    writer.start()
    assert inside.wait(WAIT_S)
    taker.start()
    _until_somebody_waits(postgresql)
    go_on.set()
    for thread in (writer, taker):
        thread.join(WAIT_S)
    assert seen == [True]


def test_a_write_that_was_second_finds_the_new_epoch(postgresql: Database) -> None:
    old = Fenced(postgresql, led(postgresql, A, lease_s=0.0))
    refused: list[Exception] = []

    def late() -> None:
        try:
            old.write(partial(add, "late"))
        except LeadershipLost as error:
            refused.append(error)

    writer = threading.Thread(target=late)

    def takes(tx: Transaction) -> None:
        assert leadership.take(tx, B, 60.0) is not None
        writer.start()
        _until_somebody_waits(postgresql)

    postgresql.write(takes)
    writer.join(WAIT_S)
    assert len(refused) == 1
    assert not exists(postgresql, "late")


def test_a_renewal_does_not_wait_for_writes(postgresql: Database) -> None:
    term = led(postgresql, A)

    def slow(tx: Transaction) -> None:
        add("slow", tx)
        assert postgresql.write(partial(leadership.renew, lease=term.lease, lease_s=60.0))  # while this is not stored

    Fenced(postgresql, term).write(slow)
    assert exists(postgresql, "slow")


def test_who_stands_still_in_a_write_keeps_nobody(cluster: Any) -> None:
    """As a server that was stopped: its transaction is undone, and the lead is taken; what it tries again is refused."""
    name = cluster.create("migrated")
    database, other = Database.open(cluster.url(name), write_pause_ms=200), Database.open(cluster.url(name))
    try:
        old = Fenced(database, led(database, A, lease_s=0.0))

        def still(tx: Transaction) -> None:
            add("still", tx)
            assert take(other, B) is not None

        with pytest.raises(LeadershipLost):
            old.write(still)
        assert not exists(database, "still")
    finally:
        for one in (database, other):
            one.close()
        cluster.drop(name)


def test_a_term_is_over_before_others_can_lead_if_it_is_not_renewed(database: Database) -> None:
    clock = Stepped()
    lease = take(database, A, lease_s=5.0)
    assert lease is not None
    term = Term(lease, 4 * SECOND, clock)
    fenced = Fenced(database, term)
    clock.at = 3 * SECOND
    fenced.write(partial(add, "before"))
    term.prolong(6 * SECOND)
    clock.at = 5 * SECOND
    fenced.write(partial(add, "prolonged"))
    clock.at = 6 * SECOND
    assert not term.leads
    term.prolong(100 * SECOND)  # its machine stood still, and now the database answers
    with pytest.raises(LeadershipLost):
        fenced.write(partial(add, "late"))
    with pytest.raises(LeadershipLost):
        fenced.require()
    assert [exists(database, name) for name in ("before", "prolonged", "late")] == [True, True, False]


EFFECTS = {"launch", "stop", "forget", "collected"}
HARMLESS = {"capacity", "observe", "open_session", "pending", "outputs", "checkpoint_owners", "checkpoint_bytes"}


@pytest.mark.parametrize("name", sorted(EFFECTS | HARMLESS))
def test_an_executor_hears_nothing_from_who_does_not_lead(name: str, sqlite: Database) -> None:
    heard: list[str] = []

    class Hears:
        capabilities = Capabilities(name="hears")

        def __getattr__(self, name: str) -> Any:
            return lambda *_, **__: heard.append(name)

    term = led(sqlite, A)
    executor: Any = LedExecutor(Hears(), term)  # type: ignore[arg-type]
    call = partial(getattr(executor, name), **dict.fromkeys(inspect.signature(getattr(executor, name)).parameters))
    call()
    assert heard == [name]
    term.end()
    if name in EFFECTS:
        with pytest.raises(LeadershipLost):
            call()
    else:
        call()
    assert len(heard) == (1 if name in EFFECTS else 2)


def test_each_call_of_an_executor_is_an_effect_or_harmless() -> None:
    calls = {name for one in (Executor, Spools) for name, _ in inspect.getmembers(one, inspect.isfunction)}
    assert {name for name in calls if not name.startswith("_")} == EFFECTS | HARMLESS


class Stepped:
    """A clock that is set by hand."""

    at = 0

    def __call__(self) -> int:
        return self.at


def _until_somebody_waits(database: Database) -> None:
    deadline = time.monotonic() + WAIT_S
    statement = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    while not database.read(lambda tx: tx.connection.exec_driver_sql(statement).scalar_one()):
        assert time.monotonic() < deadline


def controllers() -> list[type]:
    modules = [
        import_module(f"danlu.controllers.{one.name}") for one in pkgutil.iter_modules(danlu.controllers.__path__)
    ]
    found = [one for module in modules for _, one in inspect.getmembers(module, inspect.isclass)]
    return sorted({one for one in found if one.__name__.endswith("Controller")}, key=lambda one: one.__name__)


@pytest.mark.parametrize("controller", controllers(), ids=lambda one: one.__name__)
def test_no_controller_can_be_given_more_than_the_fenced_database(controller: type) -> None:
    """mypy holds the composition against this."""
    parameters = inspect.signature(controller).parameters
    hints = typing.get_type_hints(controller.__init__)
    assert hints["database"] is Fenced
    for name in parameters:
        assert Database not in (hints[name], *typing.get_args(hints[name])), name
        assert not hasattr(hints[name], "database"), f"{name} has a way to the database of its own"


def test_there_are_controllers_to_look_at() -> None:
    assert len(controllers()) >= 8
