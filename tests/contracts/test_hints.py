"""Servers of one PostgreSQL hint to each other; a hint that is lost only lengthens a wait."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from danlu.controllers.loop import Loop
from danlu.database import postgresql
from danlu.database.engine import Database
from danlu.database.hints import Hints
from danlu.database.records import JOBS
from danlu.errors import AlreadyRunning
from danlu.services.context import Hub
from tests.conftest import Cluster
from tests.databases import add
from tests.factories import Ids, make_job

WAIT_S = 30.0


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


def sessions(url: str) -> list[int]:
    """Returns the sessions that listen."""
    with closing(postgresql.connect(url)) as connection:
        query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        return [row[0] for row in connection.execute(query).fetchall()]


def end_sessions(url: str) -> None:
    with closing(postgresql.connect(url)) as connection:
        query = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        connection.execute(query)


def test_a_write_on_one_server_wakes_a_controller_of_another(url: str) -> None:
    here, there = Database.open(url), Database.open(url)
    seen: list[int] = []
    looked = threading.Event()

    def step() -> float:
        seen.append(there.read(JOBS.count))
        looked.set()
        return 1e6  # it never looks again by itself

    with server(url) as one, server(url) as other:
        loop = Loop("test", step, other, "jobs")
        loop.start()
        try:
            for number in range(1, 4):
                assert looked.wait(WAIT_S)
                looked.clear()
                add(here, make_job(name=f"job-{number}", job_id=Ids(seed=number)() if False else None, checkpoint_owner=f"o{number}"))
                one.notify("jobs")
            assert looked.wait(WAIT_S)
        finally:
            assert loop.stop(WAIT_S)
    assert seen[0] == 0
    here.close()
    there.close()
