"""Servers of one PostgreSQL hint to each other; a hint that is lost only lengthens a wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest

from danlu.controllers.loop import Loop
from danlu.database import postgresql
from danlu.database.engine import Database
from danlu.database.hints import Hints
from danlu.database.records import JOBS
from danlu.errors import AlreadyRunning, DatabaseUnavailable
from danlu.services.context import Hub
from tests.conftest import Cluster
from tests.databases import add
from tests.factories import Ids, make_job

WAIT_S = 30.0
NEVER_S = 1e6


@pytest.fixture
def url(cluster: Cluster) -> Iterator[str]:
    name = cluster.create("migrated")
    yield cluster.url(name)
    cluster.drop(name)


@contextmanager
def server(url: str) -> Iterator[Hub]:
    """What a server hints and hears by."""
    hub = Hub()
    hints = Hints(url, hub.notify, hub.notify_all)
    hints.start()
    hub.listen(hints.send)
    try:
        yield hub
    finally:
        hints.close()


def ask(url: str, query: str) -> list[object]:
    with closing(postgresql.connect(url)) as connection:
        return [row[0] for row in connection.execute(query.encode()).fetchall()]


OTHERS = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


def follows(url: str, hub: Hub, look_s: float, hint: Callable[[], None]) -> None:
    """Stores three jobs from elsewhere, and waits until a controller of the hub's server has seen each of them."""
    here, there = Database.open(url), Database.open(url)
    arrived = [threading.Event() for _ in range(4)]

    def step() -> float:
        arrived[there.read(JOBS.count)].set()
        return look_s

    loop, ids = Loop("test", step, hub, "jobs"), Ids()
    loop.start()
    try:
        for number in range(4):
            assert arrived[number].wait(WAIT_S), f"job {number} was not seen"
            if number < 3:
                add(here, make_job(ids()))
                hint()
    finally:
        assert loop.stop(WAIT_S)
        here.close()
        there.close()


def test_a_write_on_one_server_wakes_a_controller_of_another(url: str) -> None:
    with server(url) as one, server(url) as other:
        follows(url, other, NEVER_S, lambda: one.notify("jobs"))


def test_without_hints_it_is_seen_when_somebody_looks(url: str) -> None:
    follows(url, Hub(), 0.02, lambda: None)


def test_a_hint_goes_to_the_others_once(url: str) -> None:
    with server(url) as one, server(url) as other, server(url) as third:
        for topic in ("jobs", "logs", "x" * 1000):
            one.notify(topic)
        one.notify("last")
        for hub in (other, third):
            assert [hub.wait(topic, 0, WAIT_S) for topic in ("jobs", "logs", "last")] == [1, 1, 1]
            assert hub.count("x" * 1000) == 0
        other.notify("back")
        assert one.wait("back", 0, WAIT_S) == 1
        assert [one.count(topic) for topic in ("jobs", "logs", "last")] == [1, 1, 1], "its own come back to nobody"


def test_a_server_whose_connection_was_cut_looks_at_everything_and_hears_again(url: str) -> None:
    with server(url) as one, server(url) as other:
        seen = {(hub, topic): hub.count(topic) for hub in (one, other) for topic in ("jobs", "attempts")}
        ask(url, f"SELECT pg_terminate_backend(pid) {OTHERS}")
        for (hub, topic), count in seen.items():
            assert hub.wait(topic, count, WAIT_S) > count, "hints may have been lost meanwhile"
        told = other.count("jobs")
        one.notify("jobs")
        assert other.wait("jobs", told, WAIT_S) > told


def test_many_hints_never_block_and_are_told_together(url: str) -> None:
    with server(url) as one, server(url) as other:
        for number in range(20_000):
            one.notify(f"topic-{number % 50}")
        one.notify("up-to-here")  # of hints that are told together, the last
        assert other.wait("up-to-here", 0, WAIT_S) == 1
        assert all(1 <= other.count(f"topic-{number}") <= 400 for number in range(50))


def test_each_server_has_one_connection_by_which_it_is_known(url: str) -> None:
    with server(url), server(url):
        assert ask(url, f"SELECT count(*) {OTHERS}") == [2]
        with closing(postgresql.connect(url)) as connection:
            assert postgresql.servers(connection) == 2
    assert ask(url, f"SELECT count(*) {OTHERS}") == [0]


def test_no_server_starts_while_somebody_needs_the_database_alone(url: str) -> None:
    hints = Hints(url, lambda _topic: None, lambda: None)
    with postgresql.alone(url), pytest.raises(AlreadyRunning, match="danlu db command"):
        hints.start()
    hints.start()
    with pytest.raises(AlreadyRunning, match="a server"), postgresql.alone(url):
        pass
    hints.close()
    hints.send("jobs")
    hints.close()
    with postgresql.alone(url):
        pass


def test_a_database_that_does_not_answer_is_told() -> None:
    hints = Hints("postgresql://danlu@/none?host=/nowhere", lambda _topic: None, lambda: None)
    with pytest.raises(DatabaseUnavailable, match="postgresql://danlu@/none"):
        hints.start()
    hints.close()
