"""What is kept from look to look is what a fresh look would find, on every database; and what has not changed is not read."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from sqlalchemy import Connection, event

from danlu.database import queries, reports
from danlu.database.engine import Database, Transaction
from danlu.database.kept import Kept
from danlu.database.records import ATTEMPTS, NODES
from danlu.domain.jobs import AttemptState, Reason
from danlu.domain.nodes import Node
from danlu.domain.reports import TaskReport
from danlu.domain.specs import JobSpec
from danlu.services.fitting import Empty
from tests.factories import Ids, make_attempt, make_job, make_node

GPUS = JobSpec.model_validate({"command": "true", "gpu": 4})


def reads(database: Database, table: str) -> list[str]:
    """Returns a list that grows by each statement that reads whole records of a table."""
    found: list[str] = []

    def see(connection: Connection, cursor: Any, statement: str, *rest: object) -> None:
        if f"{table}.body" in statement:
            found.append(statement)

    for engine in {database._engine, database._readers}:
        event.listen(engine, "before_cursor_execute", see)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_a_look_finds_what_a_fresh_one_finds(database: Database, seed: int) -> None:
    random, kept, number = Random(seed), Kept(NODES), 0
    for _ in range(30):
        found: list[Node] = database.read(lambda tx: NODES.find(tx, limit=1000))
        for _ in range(random.randrange(3)):
            number += 1
            name = f"node-{random.randrange(10)}-{number}"
            database.write(lambda tx, name=name: NODES.add(tx, make_node(name)))
        for node in random.sample(found, min(len(found), random.randrange(3))):
            if random.random() < 0.3:
                database.write(lambda tx, node=node: NODES.remove(tx, node))
            else:
                fresh = node.evolved(now=node.updated_at + 1, capacity=make_node(node.id, cpu=number).capacity)
                database.write(lambda tx, node=node, fresh=fresh: NODES.put(tx, node, fresh))
        wanted = database.read(lambda tx: NODES.find(tx, limit=1000))
        assert [*database.read(lambda tx: kept.look(tx, limit=1000)).values()] == wanted
        some = {node.id for node in random.sample(wanted, len(wanted) // 2)} | {"nobody"}
        named = database.read(lambda tx, some=some: Kept(NODES).named(tx, some))
        assert list(named) == sorted(some - {"nobody"})


def test_what_has_not_changed_is_not_read_again(database: Database) -> None:
    kept, nodes = Kept(NODES), [make_node(f"node-{number}") for number in range(1200)]
    database.write(lambda tx: NODES.add_all(tx, nodes))
    first = database.read(lambda tx: kept.look(tx, limit=5000))
    read = reads(database, "nodes")
    assert database.read(lambda tx: kept.look(tx, limit=5000)) is first
    assert read == []
    database.write(lambda tx: NODES.put(tx, nodes[7], nodes[7].evolved(now=nodes[7].updated_at + 1)))
    again = database.read(lambda tx: kept.look(tx, limit=5000))
    assert len(read) == 1
    assert [node.version for node in again.values()].count(2) == 1
    assert len(database.read(lambda tx: kept.look(tx, limit=10))) == 10


def test_what_is_removed_between_its_two_questions_is_not_there(postgresql: Database) -> None:
    node, kept = make_node(), Kept(NODES)
    postgresql.write(lambda tx: NODES.add(tx, node))
    postgresql.read(lambda tx: kept.look(tx, limit=10))
    newer = node.evolved(now=node.updated_at + 1)
    postgresql.write(lambda tx: NODES.put(tx, node, newer))
    done: list[bool] = []

    @event.listens_for(postgresql._engine, "before_cursor_execute")
    def between(connection: Connection, cursor: Any, statement: str, *rest: object) -> None:
        if "nodes.body" in statement and not done:
            done.append(True)
            postgresql.write(lambda tx: NODES.remove(tx, newer))

    assert postgresql.write(lambda tx: kept.look(tx, limit=10)) == {}
    assert done == [True]


def test_the_jobs_of_attempts_that_hold_something(database: Database) -> None:
    ids, known = Ids(), Kept(ATTEMPTS)
    jobs = [make_job(ids()) for _ in range(3)]
    attempts = [make_attempt(job) for job in jobs]

    def fill(tx: Transaction) -> None:
        queries.JOBS.add_all(tx, jobs)
        ATTEMPTS.add_all(tx, attempts)

    database.write(fill)
    assert database.read(lambda tx: queries.holding_attempts(tx, known=known)) == attempts
    ended = attempts[1].moved(AttemptState.ENDED, now=attempts[1].updated_at + 1, reason=Reason.COMPLETED)
    database.write(lambda tx: ATTEMPTS.put(tx, attempts[1], ended))
    assert database.read(lambda tx: queries.holding_attempts(tx, known=known)) == [attempts[0], attempts[2]]
    assert [*database.read(lambda tx: queries.holders(tx, Kept(queries.JOBS)))] == [jobs[0].id, jobs[2].id]


def test_reports_of_one_moment_are_told_apart(database: Database) -> None:
    heard, first, second = reports.Heard(), TaskReport(events=({"event": "runner", "at": 1},)), TaskReport()
    for said in (first, second, first):
        database.write(lambda tx, said=said: reports.put(tx, "j1-1", "main-0", said, 10))
        database.write(lambda tx, said=said: reports.put(tx, "j1-1", "main-1", said, 9))
        assert database.read(heard.look)["j1-1"]["main-0"].events == said.events
        assert database.read(heard.look)["j1-1"]["main-1"].events == said.events
    read = reads(database, "reports")
    assert set(database.read(heard.look)) == {"j1-1"}
    assert read == []
    database.write(lambda tx: reports.remove(tx, "j1-1"))
    assert database.read(heard.look) == {}


def test_whether_a_job_fits_is_asked_anew_of_nodes_that_changed(database: Database) -> None:
    empty, node = Empty(), make_node(h100=8)
    assert database.read(lambda tx: empty.never_fits(tx, GPUS)) is None  # nobody knows yet
    database.write(lambda tx: NODES.add(tx, node))
    for _ in range(2):
        assert database.read(lambda tx: empty.never_fits(tx, GPUS)) is None
    smaller = node.evolved(now=node.updated_at + 1, capacity=make_node(h100=2).capacity)
    database.write(lambda tx: NODES.put(tx, node, smaller))
    never = database.read(lambda tx: empty.never_fits(tx, GPUS))
    assert never is not None
    assert "the largest node here has" in never[0] or "this machine" in never[0], never


def test_what_a_cluster_has_no_gpu_for_is_not_told_to_declare_one(database: Database) -> None:
    pods = make_node().evolved(now=make_node().updated_at, executor="kubernetes")
    database.write(lambda tx: NODES.add(tx, pods))
    never = database.read(lambda tx: Empty().never_fits(tx, GPUS))
    assert never is not None
    assert "danlu up --gpus" not in never[1]
