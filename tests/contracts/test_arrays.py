"""What the scheduler and the lists ask of arrays and dependencies: the same on SQLite and PostgreSQL."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, event

from danlu.database import queries
from danlu.database.engine import Database, Transaction
from danlu.database.records import ARRAYS, ATTEMPTS, JOBS
from danlu.domain.arrays import array_id
from danlu.domain.jobs import Job, JobState, Reason
from tests.factories import Ids, make_array, make_attempt, make_job


def element(ids: Ids, index: int, array: str, **fields: Any) -> Job:
    place = {"name": "sweep", "index": index, "size": 2, "parallel": 7}
    return make_job(ids(), name=f"sweep-{index}", array=place, array_id=array, **fields)


def ended(tx: Transaction, job: Job, state: JobState) -> None:
    JOBS.put(tx, job, job.moved(state, now=job.updated_at, reason=Reason.STOPPED))


def test_what_waits_is_told_whole(database: Database) -> None:
    ids = Ids()
    roles = {"ps": {}, "worker": {"replicas": 2}}
    spec = {"gpu": "1..3", "max_time": "2h", "roles": roles, "framework": "tensorflow"}
    after = [{"id": ids(), "name": "prepare", "condition": "any"}]
    plain = make_job(ids())
    job = element(ids, 3, array_id(plain.id), spec=spec, held=True, after=after)
    database.write(lambda tx: [JOBS.add(tx, one) for one in (plain, job)])
    rows = {row.id: row for row in database.read(queries.queued_jobs)}
    found = rows[job.id]
    assert (found.held, found.after, found.array_id, found.parallel) == (True, job.after, job.array_id, 7)
    assert (found.choices, found.shapes, found.ports) == (job.spec.choices, job.spec.shapes, job.spec.ports)
    assert found.duration == 7200 * 10**9
    alone = rows[plain.id]
    assert (alone.held, alone.after, alone.array_id, alone.parallel, alone.duration) == (False, (), None, None, None)
    assert alone.choices == plain.spec.choices


def test_an_array_has_ended_once_all_of_it_has(database: Database) -> None:
    ids = Ids()
    first = make_job(ids())
    array = make_array(first, size=2, stored=2)
    good, bad = element(ids, 0, array.id), element(ids, 1, array.id)

    def fill(tx: Transaction) -> None:
        ARRAYS.add(tx, array)
        JOBS.add_all(tx, [good, bad, first])
        ended(tx, good, JobState.CANCELLED)

    def states() -> dict[str, str]:
        return database.read(lambda tx: queries.ended_states(tx, [array.id, good.id, bad.id, ids()]))

    database.write(fill)
    assert states() == {good.id: "cancelled"}
    database.write(lambda tx: ended(tx, bad, JobState.FAILED))
    assert states() == {good.id: "cancelled", bad.id: "failed", array.id: "failed"}
    again = element(ids, 0, array.id, retry_of=good.id)
    database.write(lambda tx: JOBS.add(tx, again))
    assert array.id not in states()  # it goes on
    elements = database.read(lambda tx: queries.array_elements(tx, array.id))
    assert {index: (one.id, one.state) for index, one in elements.items()} == {
        0: (again.id, "queued"), 1: (bad.id, "failed"),
    }  # fmt: skip


def test_as_long_as_an_element_lives_the_others_are_not_read(database: Database) -> None:
    """It is asked at each step of the scheduler: of 10,000 elements 50 ms."""
    ids = Ids()
    first = make_job(ids())
    array = make_array(first, size=2, stored=2)
    some = [element(ids, index, array.id) for index in range(2)]
    database.write(lambda tx: (ARRAYS.add(tx, array), JOBS.add_all(tx, some), ended(tx, some[0], JobState.FAILED)))
    asked: list[str] = []

    def heard(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        asked.append(statement)

    event.listen(Engine, "before_cursor_execute", heard)
    try:
        assert database.read(lambda tx: queries.ended_states(tx, [array.id])) == {}
    finally:
        event.remove(Engine, "before_cursor_execute", heard)
    assert ["LIMIT" in one for one in asked if "FROM jobs" in one] == [True]


def test_elements_that_hold_something_are_counted(database: Database) -> None:
    ids = Ids()
    first = make_job(ids())
    some = [element(ids, index, array_id(first.id)) for index in range(3)]

    def fill(tx: Transaction) -> None:
        JOBS.add_all(tx, [first, *some])
        for job in (first, *some[:2]):
            ATTEMPTS.add(tx, make_attempt(job))

    database.write(fill)
    assert database.read(queries.arrays_holding) == {array_id(first.id): 2}


def test_a_list_has_one_line_of_an_array(database: Database) -> None:
    ids = Ids()
    first = make_job(ids())
    array = array_id(first.id)
    head = first.model_copy(update={"array_id": array})
    others = [element(ids, index, array) for index in range(1, 4)]
    plain = make_job(ids())
    database.write(lambda tx: JOBS.add_all(tx, [head, *others, plain]))
    page = database.read(lambda tx: JOBS.page(tx, limit=10, cursor=None, only=(queries.FOLDED,), project="default"))
    assert [job.id for job in page.items] == [plain.id, head.id]
    taken = database.read(lambda tx: queries.live_names_like(tx, "default", "sweep-"))
    assert taken == {"sweep-1", "sweep-2", "sweep-3"}
    live = database.read(lambda tx: queries.live_elements(tx, array, head.id, 2))
    assert [job.id for job in live] == [job.id for job in others[:2]]
