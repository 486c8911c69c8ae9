"""What is answered again without a look: only what is still true, and only to whom it may be said."""

from __future__ import annotations

from typing import Any

import pytest

from danlu.api import OPERATIONS, Operation
from danlu.database.records import ARRAYS, ARTIFACTS, ATTEMPTS, JOBS, Records
from danlu.server.answers import MAX_ANSWER_BYTES, MAX_ANSWERS, Answers
from tests.api.edge import Api

REMEMBERED = [operation for operation in OPERATIONS if operation.reads]
RECORDS: dict[str, Records[Any]] = {records.model.KIND: records for records in (JOBS, ARRAYS, ATTEMPTS, ARTIFACTS)}


@pytest.fixture
def looks(api: Api) -> list[int]:
    """Counts looks at the database."""
    found = [0]
    real = api.platform.database

    class Counting:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def read(self, work: Any) -> Any:
            found[0] += 1
            return real.read(work)

    api.platform.database = Counting()  # type: ignore[assignment]
    api.limit(requests_per_s=1e9)
    return found


def asked(api: Api, operation: Operation, actor: str = "member", **more: Any) -> Any:
    return api.send(operation.method, api.path(operation), actor=actor, **more)


@pytest.mark.parametrize("operation", REMEMBERED, ids=lambda operation: operation.id)
def test_what_nobody_has_written_is_looked_up_once(api: Api, looks: list[int], operation: Operation) -> None:
    first = asked(api, operation)
    who_alone = looks[0]
    answers = [asked(api, operation, actor) for actor in ("member", "viewer", "manager", "admin")]
    assert {answer.content for answer in answers} == {first.content}  # nothing of it is of who asks
    assert first.status == 200
    remembered = api.platform.database.dialect == "sqlite"  # PostgreSQL has other writers
    assert looks[0] - who_alone == (4 if remembered else 8)  # a token is looked at each time


@pytest.mark.parametrize("operation", REMEMBERED, ids=lambda operation: operation.id)
def test_a_foreigner_is_not_told_what_was_said_before(api: Api, operation: Operation) -> None:
    assert asked(api, operation).status == 200
    foreign = asked(api, operation, "foreign", headers={"Danlu-Project": "other"})
    if operation.id == "jobs.list":
        assert foreign.json()["items"] == []
    else:
        assert foreign.status == 404
    assert asked(api, operation, "foreign", headers={"Danlu-Project": "default"}).status == 404


@pytest.mark.parametrize(
    ("operation", "kind"),
    [(operation, kind) for operation in REMEMBERED for kind in operation.reads],
    ids=lambda one: one if isinstance(one, str) else one.id,
)
def test_what_was_written_is_told_at_once(api: Api, operation: Operation, kind: str) -> None:
    api.limit(requests_per_s=1e9)
    before = asked(api, operation).content
    old = api.database.read(lambda tx: RECORDS[kind].require(tx, api.ids[kind]))
    api.database.write(lambda tx: RECORDS[kind].put(tx, old, old.evolved(now=old.updated_at + 1)))
    after = asked(api, operation).content
    told = f'"version":{old.version + 1}'.encode()
    assert after == before or told in after
    if kind == operation.reads[-1]:  # what it is a list of
        assert told in after


def test_the_questions_are_told_apart(api: Api) -> None:
    first, second = (api.submit().json()["id"] for _ in range(2))
    assert api.call("jobs.get", job=first).json()["id"] == first
    assert api.call("jobs.get", job=second).json()["id"] == second
    pages = {n: len(api.call("jobs.list", query=f"?limit={n}").json()["items"]) for n in (1, 2, 1, 2)}
    assert pages == {1: 1, 2: 2}


def test_what_is_kept_is_bounded() -> None:
    answers = Answers()
    answers.keep("long", 1, b"x" * (MAX_ANSWER_BYTES + 1))
    answers.keep("of several writers", None, b"x")
    assert (answers.get("long", 1), answers.get("of several writers", None)) == (None, None)
    for number in range(MAX_ANSWERS):
        answers.keep(number, 1, b"x")
    assert answers.get(0, 1) == b"x"
    answers.keep("one more", 1, b"x")
    assert (answers.get(0, 1), answers.get(1, 1), answers.get(0, 2)) == (b"x", None, None)
