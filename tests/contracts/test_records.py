"""Records, events and queries: the same on SQLite and PostgreSQL."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from danlu.database import queries
from danlu.database.engine import Database, Transaction
from danlu.database.records import (
    ALL,
    ARRAYS,
    ARTIFACTS,
    ATTEMPTS,
    CHECKPOINTS,
    ENVIRONMENTS,
    JOBS,
    KEYS,
    MEMBERS,
    NODES,
    OUTPUTS,
    PRICES,
    PROJECTS,
    QUOTAS,
    SECRETS,
    TOKENS,
    USERS,
    Records,
)
from danlu.domain.environments import EnvironmentReason, EnvironmentState
from danlu.domain.events import Event
from danlu.domain.jobs import AttemptState, Desired, JobState, Reason
from danlu.domain.records import Record
from danlu.domain.resources import MAX_BYTES
from danlu.errors import (
    Conflict,
    DatabaseUnavailable,
    InvalidRequest,
    NameTaken,
    NotFound,
    VersionConflict,
)
from tests.databases import WAIT_S, add, ended, together
from tests.factories import (
    NOW,
    SECOND,
    Ids,
    make_array,
    make_artifact,
    make_attempt,
    make_checkpoint,
    make_environment,
    make_job,
    make_key,
    make_member,
    make_node,
    make_outputs,
    make_price,
    make_project,
    make_quota,
    make_secret,
    make_task,
    make_token,
    make_user,
)

# every noun


@pytest.mark.parametrize(
    ("records", "record"),
    [
        (JOBS, make_job(spec={"gpu": 2, "gpu_kind": "h100", "variables": {"A": "é\n\U0001f525"}}, retry_of="jx")),
        (
            ATTEMPTS,
            make_attempt(
                make_job(),
                tasks=(make_task(devices=(0, 3), ports=(20000,), exit_code=1, signal=9, oom=True, error="x"),),
                limits=("cpu", "memory"),
                resumed_from="step-1",
            ),
        ),
        (ARRAYS, make_array(make_job(), size=9, stopped=True)),
        (NODES, make_node(h100=4)),
        (PROJECTS, make_project()),
        (QUOTAS, make_quota(parent="research", limit={"memory": MAX_BYTES}, guarantee={"gpu/h100": 1})),
        (USERS, make_user(administrator=True)),
        (MEMBERS, make_member(make_user())),
        (KEYS, make_key("u", sealed={"master": "m", "key": "k", "value": "v"}, last_used_at=NOW)),
        (TOKENS, make_token(expires_at=NOW, bound=False)),
        (SECRETS, make_secret(sealed={"master": "m", "key": "k", "value": "v"}, replaced_at=NOW)),
        (PRICES, make_price(valid_until=NOW)),
        (ENVIRONMENTS, make_environment(lock_digest="d" * 64, build_s=1.5, packages=3)),
        (ARTIFACTS, make_artifact(skipped=("a: socket",), size_bytes=2**60)),
        (CHECKPOINTS, make_checkpoint(name="é" * 255, size_bytes=2**60)),
        (OUTPUTS, make_outputs(skipped=("a: socket",))),
    ],
    ids=lambda value: value.model.KIND if isinstance(value, Records) else "",
)
def test_a_record_comes_back_as_it_was_stored(database: Database, records: Records[Any], record: Record) -> None:
    database.write(lambda tx: records.add(tx, record))
    assert database.read(lambda tx: records.get(tx, record.id)) == record
    newer = record.evolved(now=NOW + SECOND)
    database.write(lambda tx: records.put(tx, record, newer))
    assert database.read(lambda tx: records.require(tx, record.id)) == newer
    with pytest.raises(VersionConflict):
        database.write(lambda tx: records.remove(tx, record))
    database.write(lambda tx: records.remove(tx, newer))
    assert database.read(lambda tx: records.get(tx, record.id)) is None
    with pytest.raises(NotFound, match=record.id):
        database.read(lambda tx: records.require(tx, record.id))


def test_every_noun_is_in_the_test_above() -> None:
    assert {records.model.KIND for records in ALL} == {
        "job", "attempt", "node", "project", "user", "member", "key", "token", "secret", "environment", "quota",
        "artifact", "price", "array", "checkpoint", "outputs",
    }  # fmt: skip


texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=20)
words = texts.filter(lambda word: bool(word.strip()))
specs = st.fixed_dictionaries(
    {"command": words | st.lists(texts, min_size=1, max_size=4).filter(lambda found: bool(found[0].strip()))},
    optional={
        "name": st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True),
        "requirements": texts,
        "variables": st.dictionaries(
            st.from_regex(r"[A-CE-KM-Z_][A-Za-z0-9_]{0,9}", fullmatch=True), texts, max_size=3
        ),
        "cpu": st.integers(1, 10**9).map(lambda milli: milli / 1000),
        "memory": st.integers(1, MAX_BYTES),
        "gpu": st.integers(0, 4096),
        "priority": st.integers(-1000, 1000),
        "retry": st.fixed_dictionaries({"attempts": st.integers(1, 100), "backoff": st.none() | st.floats(1, 1e8)}),
        "max_time": st.floats(0.001, 315_360_000),
        "labels": st.dictionaries(st.from_regex(r"[a-z]{1,9}", fullmatch=True), texts, max_size=3),
        "parse_metrics": st.booleans(),
        "framework": st.just("none"),
        "roles": st.dictionaries(
            st.from_regex(r"[a-l][a-z0-9]{0,9}", fullmatch=True),
            st.fixed_dictionaries(
                {"replicas": st.integers(1, 5)},
                optional={
                    "command": words,
                    "cpu": st.integers(1, 9),
                    "gpu": st.integers(0, 8),
                    "restarts": st.integers(0, 9),
                },
            ),
            max_size=3,
        ),
    },
)
_SEEN = Ids(7)


@settings(max_examples=40)
@given(fields=specs, stop_grace_s=st.none() | st.floats(0.001, 3600))
def test_every_specification_survives_the_round_trip(
    database: Database, fields: dict[str, Any], stop_grace_s: float | None
) -> None:
    job = make_job(_SEEN(), spec=fields, stop_grace_s=stop_grace_s)
    add(database, job)
    found = database.read(lambda tx: JOBS.require(tx, job.id))
    assert found == job
    row = next(row for row in database.read(queries.queued_jobs) if row.id == job.id)
    assert row.shapes == job.spec.shapes
    assert (row.gpu_kind, row.priority, row.reason) == (None, 0, "PendingEvaluation")


# events


def events(database: Database, after: int = 0, **where: Any) -> list[Event]:
    return database.read(lambda tx: queries.events_after(tx, after, queries.Chosen(**where), limit=100))


def test_each_move_has_its_event_and_no_move_has_none(database: Database) -> None:
    job = make_job()
    database.write(lambda tx: JOBS.add(tx, job, actor="alice"))
    moved = job.moved(JobState.ADMITTED, now=NOW + 1, reason=Reason.PLACED, message="on node-1")
    database.write(lambda tx: JOBS.put(tx, job, moved))
    same = moved.evolved(now=NOW + 2, priority=3)
    database.write(lambda tx: JOBS.put(tx, moved, same))
    stop = same.evolved(now=NOW + 3, desired=Desired.STOP)
    database.write(lambda tx: JOBS.put(tx, same, stop, actor="bob"))
    found = [(e.at, e.state, e.previous, e.reason, e.message, e.actor) for e in events(database)]
    assert found == [
        (NOW, "queued", None, "PendingEvaluation", "", "alice"),
        (NOW + 1, "admitted", "queued", "Placed", "on node-1", ""),
        (NOW + 3, "admitted", "admitted", "DesiredStop", "", "bob"),
    ]
    assert {e.object_id for e in events(database)} == {job.id}


def test_work_that_failed_leaves_no_event(database: Database) -> None:
    def work(tx: Transaction) -> None:
        JOBS.add(tx, make_job())
        raise LookupError

    with pytest.raises(LookupError):
        database.write(work)
    stale = make_job()
    with pytest.raises(VersionConflict):
        database.write(lambda tx: JOBS.put(tx, stale, ended(stale)))
    assert events(database) == []


def test_events_are_read_by_project_and_object(database: Database) -> None:
    ids = Ids()
    first, second = make_job(ids()), make_job(ids(), project="other")
    add(database, first, second)
    database.write(lambda tx: NODES.add(tx, make_node()))
    assert [e.object_id for e in events(database, project="other")] == [second.id]
    assert [e.object_id for e in events(database, object_id=first.id)] == [first.id]
    all_of_them = events(database)
    assert [e.seq for e in all_of_them] == sorted({e.seq for e in all_of_them})
    assert events(database, all_of_them[-1].seq) == []
    assert events(database, 2**70) == []
    assert [e.at >= NOW for e in events(database, since=NOW)] == [True] * len(all_of_them)
    assert events(database, since=NOW + 1) == []


def test_a_reader_never_misses_a_late_commit(postgresql: Database) -> None:
    """Whoever began first or wrote first: once an event is seen, no event with a lower number appears."""
    ids = Ids()
    both_written = threading.Barrier(2)

    def work(tx: Transaction, wait_for: threading.Event | None) -> None:
        JOBS.add(tx, make_job(ids()))
        both_written.wait(WAIT_S)
        if wait_for is not None:
            assert wait_for.wait(WAIT_S)

    quick_is_done = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(postgresql.write, lambda tx: work(tx, quick_is_done))
        postgresql.write(lambda tx: work(tx, None))
        seen = events(postgresql)
        quick_is_done.set()
        slow.result(WAIT_S)
    late = events(postgresql, seen[-1].seq)
    assert [len(seen), len(late)] == [1, 1]
    assert [e.seq for e in events(postgresql)] == [seen[0].seq, late[0].seq]


def test_who_gives_numbers_to_events_is_alone(postgresql: Database) -> None:
    """The commit of one whose events have numbers comes before anybody else's events get theirs."""
    ids, numbered, finish = Ids(), threading.Event(), threading.Event()

    def slow(tx: Transaction) -> None:
        JOBS.add(tx, make_job(ids()))
        tx.store_events()
        tx.events.clear()
        numbered.set()
        assert finish.wait(WAIT_S)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(postgresql.write, slow)
        assert numbered.wait(WAIT_S)
        second = pool.submit(add, postgresql, make_job(ids()))
        assert events(postgresql) == []
        assert not second.done()
        finish.set()
        first.result(WAIT_S)
        second.result(WAIT_S)
    assert len(events(postgresql)) == 2


def test_a_reader_who_follows_sees_every_event_once(database: Database) -> None:
    ids, lock = Ids(), threading.Lock()
    seen: list[Event] = []
    over = threading.Event()

    def follow() -> None:
        last = False
        while True:
            last = over.is_set()
            seen.extend(events(database, seen[-1].seq if seen else 0))
            if last:
                return

    def write(_number: int) -> None:
        for _ in range(10):
            with lock:
                job = make_job(ids())
            add(database, job)

    reader = threading.Thread(target=follow)
    reader.start()
    results = together(6, write)
    over.set()
    reader.join(WAIT_S)
    seen.extend(events(database, seen[-1].seq if seen else 0))
    assert results == [None] * 6
    assert len(seen) == len({e.object_id for e in seen}) == 60


# reading


def test_pages_are_complete_while_jobs_are_added(database: Database) -> None:
    ids = Ids()
    jobs = [make_job(ids()) for _ in range(25)]
    add(database, *jobs)
    found: list[str] = []
    cursor = None
    while True:
        page = database.read(lambda tx, cursor=cursor: JOBS.page(tx, limit=4, cursor=cursor, project="default"))  # type: ignore[misc]
        found += [job.id for job in page.items]
        add(database, make_job(ids()))
        if page.next_cursor is None:
            break
        cursor = page.next_cursor
    assert found == [job.id for job in reversed(jobs)]


@pytest.mark.parametrize("cursor", ["é", "a\0", "a\n"])
def test_a_cursor_that_was_never_given_out_is_refused(database: Database, cursor: str) -> None:
    with pytest.raises(InvalidRequest, match="cursor"):
        database.read(lambda tx: JOBS.page(tx, limit=1, cursor=cursor))


def test_ids_are_in_the_order_of_their_bytes(database: Database) -> None:
    names = ["Z", "a", "a-b", "a-c", "ab", "b"]
    for name in reversed(names):
        database.write(lambda tx, name=name: NODES.add(tx, make_node(name)))  # type: ignore[misc]
    assert [node.id for node in database.read(lambda tx: NODES.find(tx, limit=10))] == names
    page = database.read(lambda tx: NODES.page(tx, limit=10, cursor="ab"))
    assert [node.id for node in page.items] == ["a-c", "a-b", "a", "Z"]


def test_records_are_found_by_their_columns(database: Database) -> None:
    ids = Ids()
    jobs = [make_job(ids(), priority=number % 3, environment_id="e" if number % 2 else None) for number in range(6)]
    add(database, *jobs)

    def find(**where: Any) -> list[int]:
        return [jobs.index(job) for job in database.read(lambda tx: JOBS.find(tx, limit=10, **where))]

    assert find(priority=1) == [1, 4]
    assert find(priority=(0, 2)) == [0, 2, 3, 5]
    assert find(environment_id=None) == [0, 2, 4]
    assert find(state=frozenset(JobState), priority=2, descending=True) == [5, 2]
    assert find(state=()) == []
    assert database.read(lambda tx: JOBS.count(tx, priority=0)) == 2
    with pytest.raises(TypeError, match="no column spec"):
        find(spec=1)


def test_a_read_cannot_write(database: Database) -> None:
    with pytest.raises(DatabaseUnavailable, match="read"):
        database.read(lambda tx: JOBS.add(tx, make_job()))
    assert database.read(JOBS.count) == 0
    add(database, make_job())


def test_a_read_sees_one_moment(database: Database) -> None:
    ids = Ids()
    add(database, make_job(ids()))

    def work(tx: Transaction) -> tuple[int, int, int]:
        before = JOBS.count(tx)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(add, database, make_job(ids())).result(WAIT_S)
        return before, JOBS.count(tx), len(queries.events_after(tx, 0, limit=10))

    assert database.read(work) == (1, 1, 1)
    assert database.read(JOBS.count) == 2


# queries


def test_jobs_are_counted_by_state(database: Database) -> None:
    ids = Ids()
    jobs = [make_job(ids()) for _ in range(3)]
    add(database, *jobs)
    database.write(lambda tx: JOBS.put(tx, jobs[0], ended(jobs[0])))
    assert database.read(queries.job_counts) == {"queued": 2, "cancelled": 1}
    assert {row.id for row in database.read(queries.queued_jobs)} == {jobs[1].id, jobs[2].id}


def test_a_queued_job_is_told_with_all_that_the_scheduler_needs(database: Database) -> None:
    job = make_job(
        spec={"cpu": "500m", "memory": 2**60, "gpu": 3, "gpu_kind": "h100"}, priority=-5, not_before=NOW + 1,
        environment_id="e1", desired=Desired.STOP,
    )  # fmt: skip
    add(database, job)
    [row] = database.read(queries.queued_jobs)
    assert row.shapes == job.spec.shapes
    assert row._asdict() == {
        "id": job.id, "project": "default", "priority": -5, "queued_at": NOW, "not_before": NOW + 1,
        "environment_id": "e1", "reason": "PendingEvaluation", "desired": "stop", "version": 1,
        "cpu": 0.5, "memory": 2**60, "gpu": 3, "gpu_kind": "h100", "env": "python", "framework": None, "roles": "{}",
        "gpu_min": None, "max_time": None, "held": False, "waits_for": "[]", "array_id": None, "parallel": None,
        "attained": 0, "saves": False,
    }  # fmt: skip


def test_a_queued_gang_has_its_shapes_in_rank_order(database: Database) -> None:
    roles = {"worker": {"replicas": 2, "gpu": 1, "memory": "1GiB"}, "ps": {"cpu": 0.5}, "chief": {"command": "true"}}
    ids = Ids()
    jobs = [
        make_job(ids(), spec={"roles": roles, "gpu": 2}),
        make_job(ids(), spec={"roles": {"b": {}, "a": {"replicas": 3, "cpu": 2}}, "framework": "none", "cpu": 4}),
        make_job(ids(), spec={"roles": {"worker": {"replicas": 2}}, "env": "tensorflow-1"}),
    ]
    add(database, *jobs)
    assert {row.id: row.shapes for row in database.read(queries.queued_jobs)} == {
        job.id: job.spec.shapes for job in jobs
    }
    assert [task.name for task in jobs[0].spec.tasks] == ["chief-0", "worker-0", "worker-1", "ps-0"]
    assert [need.gpus for need in jobs[0].spec.shapes] == [2, 1, 1, 0]


def test_attempts_that_hold_something_or_are_not_collected(database: Database) -> None:
    ids = Ids()
    attempts = [make_attempt(make_job(ids())) for _ in range(4)]
    database.write(lambda tx: [ATTEMPTS.add(tx, attempt) for attempt in attempts])
    for attempt, collected in ((attempts[1], False), (attempts[2], True)):
        over = attempt.moved(AttemptState.ENDED, now=NOW, reason=Reason.COMPLETED, collected=collected)
        database.write(lambda tx, attempt=attempt, over=over: ATTEMPTS.put(tx, attempt, over))  # type: ignore[misc]
    holding = [attempt.id for attempt in database.read(queries.holding_attempts)]
    assert holding == [attempts[0].id, attempts[3].id]
    uncollected = database.read(lambda tx: queries.uncollected_attempts(tx, 10))
    assert [attempt.id for attempt in uncollected] == [attempts[0].id, attempts[1].id, attempts[3].id]
    assert len(database.read(lambda tx: queries.uncollected_attempts(tx, 1))) == 1


def test_no_number_is_given_twice(database: Database) -> None:
    def count(_number: int) -> list[int]:
        return [database.write(lambda tx: queries.next_number(tx, "default", "job/train")) for _ in range(5)]

    numbers = [number for found in together(8, count) for number in found]
    assert sorted(numbers) == list(range(1, 41))
    assert database.write(lambda tx: queries.next_number(tx, "other", "job/train")) == 1


def test_an_environment_is_one_per_project_and_source(database: Database) -> None:
    ids = Ids()
    first = make_environment(ids("e"))
    database.write(lambda tx: ENVIRONMENTS.add(tx, first))
    with pytest.raises(Conflict):
        database.write(lambda tx: ENVIRONMENTS.add(tx, make_environment(ids("e"))))
    database.write(lambda tx: ENVIRONMENTS.add(tx, make_environment(ids("e"), project="other")))
    building = first.moved(EnvironmentState.BUILDING, now=NOW, reason=EnvironmentReason.BUILDING)
    database.write(lambda tx: ENVIRONMENTS.put(tx, first, building))
    assert database.read(lambda tx: ENVIRONMENTS.find(tx, state="building", limit=9)) == [building]


# secrets


def test_a_secrets_name_has_one_value_now_and_older_ones(database: Database) -> None:
    ids, sealed = Ids(7), {"master": "ours", "key": "k", "value": "v"}
    for n in range(3):
        old = make_secret(ids("s"), name="A", replaced_at=NOW + n, sealed={**sealed, "master": "lost"})
        database.write(lambda tx, old=old: SECRETS.add(tx, old))
    for name, project, master in (("A", "default", "ours"), ("b", "default", "theirs"), ("A", "other", "ours")):
        new = make_secret(ids("s"), name=name, project=project, sealed={**sealed, "master": master})
        database.write(lambda tx, new=new: SECRETS.add(tx, new))
    with pytest.raises(Conflict):
        database.write(lambda tx: SECRETS.add(tx, make_secret(ids("s"), name="A")))

    def known(tx: Transaction) -> tuple[list[str], int, bool, bool]:
        return (
            queries.secret_names(tx, "default"), queries.secrets_sealed_by_others(tx, "ours"),
            queries.has_replaced_secrets(tx, "default"), queries.has_replaced_secrets(tx, "other"),
        )  # fmt: skip

    assert database.read(known) == (["A", "b"], 1, True, False)
    database.write(lambda tx: queries.delete_replaced_secrets(tx, "default", NOW + 2))
    assert database.read(lambda tx: SECRETS.count(tx, project="default")) == 3
    database.write(lambda tx: queries.delete_replaced_secrets(tx, "default", 2**63 - 1))
    assert database.read(known) == (["A", "b"], 1, False, False)


def test_of_several_records_all_are_stored_or_none_and_the_name_that_is_taken_is_told(database: Database) -> None:
    ids = Ids()
    add(database, make_job(ids(), name="b"))

    def work(tx: Transaction) -> int:
        with pytest.raises(NameTaken, match="'b'"):
            JOBS.add_all(tx, [make_job(ids(), name=name) for name in ("a", "b", "c")])
        return JOBS.count(tx)

    assert database.write(work) == 1
