"""What takes the lead, holds it and gives it away, at PostgreSQL."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from danlu.controllers.leader import Leader, Pace
from danlu.controllers.loop import Loop
from danlu.database import leadership, postgresql
from danlu.database.engine import Database
from danlu.database.leadership import Candidate, Lease, Term
from danlu.server.main import candidate
from danlu.services.context import Hub
from tests.databases import WAIT_S, together

SHORT = Pace(lease_s=2.0, renew_s=0.02, margin_s=0.5)
LONG = Pace(lease_s=300.0, renew_s=90.0, margin_s=60.0, look_s=3600.0)


class Servers:
    """Servers of one database, as far as they lead. What one hints at, all that were made later hear."""

    def __init__(self, database: Database) -> None:
        self.database, self.hubs, self.leaders = database, list[Hub](), list[Leader]()

    def make(self, name: str, pace: Pace, begin: Callable[[Term], Sequence[Any]] = lambda _: ()) -> Leader:
        hub = Hub()
        for other in self.hubs:
            other.listen(hub.notify)
        self.hubs.append(hub)
        platform: Any = SimpleNamespace(database=self.database, hub=hub)
        self.leaders.append(Leader(platform, Candidate(name, f"machine-{name}"), begin, pace=pace))
        return self.leaders[-1]

    def led(self) -> Lease:
        found = self.database.read(leadership.newest)
        assert found is not None
        return found


@pytest.fixture
def servers(postgresql: Database) -> Iterator[Servers]:
    made = Servers(postgresql)
    yield made
    for leader in made.leaders:
        leader.stop(WAIT_S)


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not happened():
        assert time.monotonic() < deadline


def test_the_lease_is_renewed_while_controllers_are_made_however_long_that_takes(servers: Servers) -> None:
    """They look at a whole cluster first. Else a term would be over before it begins, on each server, for ever."""

    def slow(_term: Term) -> Sequence[Loop]:
        first = servers.led().until
        until(lambda: servers.led().until > first)
        return ()

    leader = servers.make("a", SHORT, slow)
    assert leader.take() is None
    renewed = servers.led().until
    until(lambda: servers.led().until > renewed)  # nor does it end before the server serves
    assert servers.led().epoch == 1


def test_a_term_whose_controllers_cannot_be_made_is_over(servers: Servers) -> None:
    failed = list[Term]()

    def fails_once(term: Term) -> Sequence[Loop]:
        if not failed:
            failed.append(term)
            raise RuntimeError("as planted")
        return ()

    leader = servers.make("a", SHORT, fails_once)
    with pytest.raises(RuntimeError, match="planted"):
        leader.take()
    assert not failed[0].leads
    leader.start()
    until(lambda: servers.led().epoch == 2)


def test_renewals_do_not_wait_for_the_connections_of_others(servers: Servers) -> None:
    many = postgresql.CONNECTIONS_KEPT + postgresql.CONNECTIONS_MORE
    inside, renewed = threading.Barrier(many + 1), threading.Event()

    def work(_tx: object) -> None:
        inside.wait(WAIT_S)
        assert renewed.wait(WAIT_S)

    def one(number: int) -> None:
        if number < many:
            servers.database.write(work)
        else:
            inside.wait(WAIT_S)
            try:
                servers.make("a", SHORT).take()
                first = servers.led().until
                until(lambda: servers.led().until > first)
            finally:
                renewed.set()

    assert together(many + 1, one) == [None] * (many + 1)


class Asked:
    """A loop whose step ends once all loops were asked to end."""

    def __init__(self, asked: set[Asked], all_of_them: int) -> None:
        self._asked, self._all = asked, all_of_them

    def start(self) -> None:
        pass

    def stop(self, _timeout_s: float) -> bool:
        self._asked.add(self)
        return len(self._asked) == self._all


def test_all_loops_are_asked_to_end_before_one_is_waited_for(servers: Servers) -> None:
    asked = set[Asked]()
    leader = servers.make("a", LONG, lambda _: [Asked(asked, 3) for _ in range(3)])
    leader.take()
    assert leader.stop(WAIT_S)
    assert servers.led().left_ns == 0


def test_who_is_told_that_the_lead_was_given_away_takes_it_at_once(servers: Servers) -> None:
    first, second = servers.make("a", LONG), servers.make("b", LONG)
    first.take()
    first.start()
    second.start()
    until(lambda: second._told)  # it has looked, and looks again in an hour
    assert first.stop(WAIT_S)
    until(lambda: servers.led().epoch == 2)
    assert servers.led().holder == "b"


def test_stopped_twice_at_once_it_is_given_away_once_and_stays_so(servers: Servers) -> None:
    leader = servers.make("a", SHORT)
    leader.take()
    leader.start()
    assert together(2, lambda _: leader.stop(WAIT_S)) == [True, True]
    assert servers.led().left_ns == 0


def test_controllers_that_were_still_being_made_at_the_end_do_not_begin(servers: Servers) -> None:
    begun, stopped, terms, started = threading.Event(), threading.Event(), list[Term](), list[str]()

    def slow(term: Term) -> Sequence[Any]:
        terms.append(term)
        begun.set()
        assert stopped.wait(WAIT_S)
        return [SimpleNamespace(start=lambda: started.append("a loop"), stop=lambda _timeout_s: True)]

    leader = servers.make("a", SHORT, slow)
    leader.start()
    assert begun.wait(WAIT_S)
    leader.stop(0.0)
    stopped.set()
    leader._thread.join(WAIT_S)
    assert started == []
    assert not terms[0].leads


def test_a_folder_without_a_boots_id_is_not_taken_for_another_machines(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    first, second = (candidate(tmp_path, "b7f3") for _ in range(2))
    assert first.folder == second.folder != ""
    assert first.holder != second.holder
    assert candidate(tmp_path, "").folder == ""
