"""Two servers on one PostgreSQL: the leader is killed, stopped or ended; the other takes over, nothing is lost or done twice.

How long a takeover takes is measured by benchmarks/takeover.py; here it has to come.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.process.platform import Server, until
from tests.process.two_servers import Pair

TAKEOVER_S = 7.0
DURING_S = 60.0


@pytest.fixture
def pair(cluster: Any, home: Path) -> Iterator[Pair]:
    name = cluster.create("migrated")
    made = Pair(home.parent, cluster.url(name))
    made.start()
    yield made
    made.close()
    cluster.drop(name)


def metrics(server: Server) -> dict[str, float]:
    with server.client() as client, client.raw("GET", "/metrics") as (status, pieces):
        text = b"".join(pieces).decode()
    assert status == 200, text
    lines = (line.rpartition(" ") for line in text.splitlines() if line.startswith("danlu_leader"))
    return {name: float(value) for name, _, value in lines}


def log(server: Server) -> str:
    return server.home.with_name(server.home.name + ".log").read_text()


def test_the_leader_is_killed(pair: Pair) -> None:
    pair.submit()
    pair.wait_for_more(5)
    took_s = pair.takeover_s(pair.a.kill)
    pair.wait_for_more(5)
    pair.enough()
    assert took_s < TAKEOVER_S
    assert pair.wrong(pair.b) == []
    assert pair.leader(pair.b).epoch == 2


def test_the_leader_stands_still_and_wakes(pair: Pair) -> None:
    assert metrics(pair.a) == {"danlu_leader": 1, "danlu_leader_epoch": 1}
    assert metrics(pair.b) == {"danlu_leader": 0, "danlu_leader_epoch": 0}
    assert pair.a.process is not None
    pair.submit()
    pair.wait_for_more(5)
    took_s = pair.takeover_s(lambda: pair.a.process and pair.a.process.send_signal(signal.SIGSTOP))
    pair.wait_for_more(5)
    pair.a.process.send_signal(signal.SIGCONT)
    until(lambda: "does not lead any more: its term with epoch 1 is over" in log(pair.a), DURING_S, "it says so")
    until(lambda: "leads, with epoch 2; this server answers, and follows" in log(pair.a), DURING_S, "and who does")
    pair.wait_for_more(5)
    pair.enough()
    assert took_s < TAKEOVER_S
    assert metrics(pair.a) == {"danlu_leader": 0, "danlu_leader_epoch": 1}
    assert metrics(pair.b) == {"danlu_leader": 1, "danlu_leader_epoch": 2}
    told, itself = pair.leader(pair.a), pair.leader(pair.b)
    assert (told.place, told.epoch, told.since) == (itself.place, itself.epoch, itself.since)
    assert (told.here, itself.here) == (False, True)
    assert pair.wrong(pair.a) == []


def test_a_leader_that_is_ended_gives_the_lead_away(pair: Pair) -> None:
    assert pair.a.end() == 0
    began = time.monotonic()
    until(lambda: pair.leader(pair.b).here, DURING_S, "the other server leads")
    assert time.monotonic() - began < 1.5


def test_both_know_the_first_administrators_key(pair: Pair) -> None:
    keys = {(server.home / "keys" / "bootstrap").read_text() for server in pair.servers}
    assert len(keys) == 1
    for server in pair.servers:
        with server.client() as client:
            assert any(check.name == "leader" for check in client.call("platform.doctor").checks)


def test_where_jobs_are_the_machines_processes_there_is_one_server(cluster: Any, home: Path) -> None:
    name = cluster.create("migrated")
    environ = {"DANLU_DATABASE_URL": cluster.url(name), "DANLU_MASTER_KEY": "ab" * 32}
    first, second = (Server(home.parent / one, environ=environ) for one in ("one", "two"))
    try:
        assert first.start().get("ready")
        refused = second.start()["error"]
        assert refused["code"] == "AlreadyRunning"
        assert "the database belongs to the server" in refused["detail"]
        assert str(first.home) in refused["detail"]
        first.kill()
        assert first.start().get("ready")  # its own lease keeps it from nothing
    finally:
        for server in (first, second):
            server.close()
        cluster.drop(name)
