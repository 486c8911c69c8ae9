"""Every route of the application, asked by everybody: nothing is open, nothing of another project exists."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.routing import WebSocketRoute

from danlu.api import BY_ID, GRANTS, OPEN_PATHS, OPERATIONS, Kind, Operation, Permission
from danlu.database.engine import Database
from danlu.database.queries import Chosen, events_after
from danlu.domain.actors import Standing
from danlu.domain.signing import Message, lowered
from danlu.domain.trees import address_of
from tests.api.edge import Api, bodies

ACTORS = {
    "viewer": Standing.VIEWER, "member": Standing.DEVELOPER, "manager": Standing.ADMIN, "admin": Standing.ADMINISTRATOR,
    "attempt": Standing.ATTEMPT,
}  # fmt: skip
EVERYBODY = ("admin", "manager", "member", "viewer", "foreign", "attempt")
POLICY = {
    Permission.READ: {"viewer", "member", "manager", "admin"},
    Permission.WRITE: {"member", "manager", "admin"},
    Permission.MANAGE: {"manager", "admin"},
    Permission.ADMINISTER: {"admin"},
    Permission.SELF: {"viewer", "member", "manager", "admin", "foreign"},
    Permission.ATTEMPT: {"attempt"},
}
"""Who may, of those that the tests know: written down a second time, so that a change of the policy has to be meant."""
UNSAFE = [operation for operation in OPERATIONS if operation.method != "GET"]
EACH = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.id)
SOCKETS = [operation for operation in OPERATIONS if operation.kind is Kind.SOCKET]
EACH_SOCKET = pytest.mark.parametrize("operation", SOCKETS, ids=lambda operation: operation.id)
ALL_PROJECTS = {"platform.get", "nodes.list", "environments.legacy", "members.set"}
"""Of the platform, not of a project: a foreign project's member sees it too."""
OF_THE_PROJECT = {
    "jobs.list", "jobs.submit", "blobs.missing", "blobs.pack", "blobs.put", "blobs.received", "blobs.append", "blobs.prune",
    "environments.list", "environments.build", "environments.prune", "events.list", "events.stream", "top.get",
    "members.list", "projects.get", "projects.change", "secrets.list", "secrets.set", "quotas.list",
    "usage.report", "trace.get",
}  # fmt: skip
"""What names nothing that exists: for a foreign member it is about the foreign project."""


@pytest.fixture
def api(sqlite: Database, tmp_path: Path) -> Iterator[Api]:
    made = Api(sqlite, tmp_path)
    yield made
    made.edge.streams.end()
    made.opener.close()


def test_every_route_is_an_operation(api: Api) -> None:
    sockets = [route for route in api.app.routes if isinstance(route, WebSocketRoute)]
    requests = [route for route in api.app.routes if not isinstance(route, WebSocketRoute)]
    routes = {(method, route.path_format) for route in requests for method in route.methods or ()}
    documents = {("GET", "/v1/openapi.json"), ("HEAD", "/v1/openapi.json")}
    assert routes - documents == {(operation.method, operation.path) for operation in OPERATIONS}
    assert {route.path for route in sockets} == {operation.path for operation in SOCKETS}


@EACH
def test_a_stranger_gets_nothing(api: Api, operation: Operation) -> None:
    answer = api.call(operation.id, actor=None, data=bodies(api).get(operation.id))
    assert answer.status == 401
    assert answer.json()["code"] == "NotAuthenticated"


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/openapi.json", "/docs", "/redoc", "/v1/nothing", "/v1/jobs/", "//", "/%00"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "HEAD"])
def test_a_stranger_gets_nothing_anywhere(api: Api, method: str, path: str) -> None:
    assert api.send(method, path, actor=None).status == 401
    assert api.connect(path, actor=None).status == 401


@EACH_SOCKET
@pytest.mark.parametrize(
    ("actor", "headers", "status"),
    [
        (None, {}, 401),
        (None, {"Authorization": "Bearer wrong"}, 401),
        (None, {"Authorization": "Basic danlu_admin"}, 401),
        ("foreign", {}, 404),
        ("member", {"Danlu-Project": "other"}, 404),
        ("foreign", {"Danlu-Project": "default"}, 404),
        ("attempt", {}, 403),
        ("member", {}, 101),
        ("admin", {}, 101),
    ],
)
def test_a_web_socket_is_for_whom_the_operation_is(
    api: Api, operation: Operation, actor: str | None, headers: dict[str, str], status: int
) -> None:
    answer = api.connect(api.path(operation), actor=actor, headers=headers)
    assert answer.status == status
    assert answer.headers()["danlu-request-id"]
    if status != 101:
        assert answer.json()["status"] == status
        assert answer.headers()["content-type"] == "application/problem+json"


@pytest.mark.parametrize("path", ["/", "/v1/jobs", "/v1/nothing", *sorted(OPEN_PATHS)])
@pytest.mark.parametrize(("actor", "status"), [(None, 401), ("admin", 403)])
def test_nothing_else_is_a_web_socket(api: Api, path: str, actor: str | None, status: int) -> None:
    assert api.connect(path, actor=actor).status == status


@pytest.mark.parametrize("path", sorted(OPEN_PATHS))
def test_health_is_open(api: Api, path: str) -> None:
    answer = api.send("GET", path, actor=None)
    assert (answer.status, answer.content) == (200, b"ok\n")


@pytest.mark.parametrize(
    "header", ["Bearer", "Bearer ", "Bearer wrong", "Basic danlu_admin", "danlu_admin", "Bearer danlu_attempt_",
               "Bearer danlu_attempt_x_y", "Bearer " + "x" * 60_000]
)  # fmt: skip
def test_a_wrong_token_is_no_token(api: Api, header: str) -> None:
    assert api.send("GET", "/v1/jobs", actor=None, headers={"Authorization": header}).status == 401


@EACH
def test_a_foreign_project_sees_none_of_it(api: Api, operation: Operation) -> None:
    if not _finite(operation):
        return
    answer = api.call(operation.id, actor="foreign", data=bodies(api).get(operation.id))
    if operation.permission in (Permission.ADMINISTER, Permission.ATTEMPT):
        assert answer.status == 403
    elif operation.permission is Permission.SELF or operation.id in ALL_PROJECTS | OF_THE_PROJECT:
        assert answer.status < 500
        for known in (api.ids["job"], api.ids["environment"], api.ids["artifact"], api.ids["token"]):
            assert known.encode() not in answer.content or answer.status == 404 or operation.id == "jobs.submit"
    else:
        assert answer.status == 404


@EACH
def test_what_is_anothers_is_as_what_is_not_there(api: Api, operation: Operation) -> None:
    """Nobody learns from an answer that a thing of another project exists."""
    if "{" not in operation.path or operation.permission in (Permission.ADMINISTER, Permission.ATTEMPT):
        return
    if operation.id in {"jobs.submit", "blobs.put", "blobs.append", "blobs.received", "members.set", "secrets.set"}:
        return  # these name what is to be made

    def told(**ids: str) -> tuple[int, str]:
        answer = api.call(operation.id, actor="foreign", data=bodies(api).get(operation.id), **ids)
        problem = {k: v for k, v in answer.json().items() if k != "request_id"}
        text = json.dumps(problem)
        for one in (*ids.values(), *api.ids.values()):
            text = text.replace(one, "?")
        return answer.status, text

    name = operation.path.split("{")[1].split("}")[0]
    missing = {"job": api.new_id("j"), "environment": api.new_id("e"), "artifact": api.new_id("a"), "key": api.new_id("k"),
               "token": api.new_id("t"), "address": address_of(b"nowhere"), "user": "nobody", "secret": "NONE",
               "array": api.new_id("r"), "quota": "nothing"}  # fmt: skip
    theirs, none = told(), told(**{name: missing[name]})
    if name == "user":
        assert theirs[0] == none[0] == 404
        return
    assert theirs == none
    assert theirs[0] == 404


def _finite(operation: Operation) -> bool:
    return operation.id != "events.stream"


@EACH
def test_a_project_header_opens_nothing(api: Api, operation: Operation) -> None:
    if not _finite(operation):
        return
    answer = api.send(
        operation.method, api.path(operation), actor="manager", data=bodies(api).get(operation.id),
        headers={"Danlu-Project": "other"},
    )  # fmt: skip
    if operation.permission is Permission.SELF:  # these are of no project
        assert answer.status < 500
    else:
        assert answer.status == (403 if operation.permission is Permission.ADMINISTER else 404)


def test_the_policy_is_the_one_that_is_meant() -> None:
    for permission, who in POLICY.items():
        standings = {ACTORS[name] for name in who if name in ACTORS}
        if permission is Permission.SELF:
            standings = {Standing.USER, Standing.ADMINISTRATOR}
        assert GRANTS[permission] == standings
    assert set(GRANTS) == set(Permission)


@pytest.mark.parametrize("actor", EVERYBODY)
@EACH
def test_who_may_gets_what_was_promised_and_nobody_else(api: Api, operation: Operation, actor: str) -> None:
    if not _finite(operation):
        return
    ids = {"job": api.new_id("j")} if operation.id == "jobs.submit" else {}
    if operation.id in ("jobs.retry", "jobs.logs_stream", "jobs.wait"):
        ids = {"job": api.ids["ended"]}
    if operation.id == "jobs.hold":
        ids = {"job": api.waiting()}
    signed = actor != "attempt"
    answer = api.call(operation.id, actor=actor, data=bodies(api).get(operation.id), signed=signed, **ids)
    if actor == "foreign" and operation.permission not in (Permission.ADMINISTER, Permission.ATTEMPT):
        return  # another project's: see above
    if actor not in POLICY[operation.permission]:
        assert (answer.status, answer.json()["code"]) == (403, "NotAllowed")
        return
    if operation.kind is Kind.SOCKET:  # asked as a plain request; as what it is: see above
        assert (answer.status, answer.json()["code"]) == (426, "UpgradeRequired")
        return
    if operation.permission is Permission.SELF and ("{" in operation.path) and actor not in ("member", "admin"):
        assert answer.status == 404  # the key and the token are member's
        return
    assert answer.status == operation.status, answer.content
    expected = {Kind.JSON: "application/json", Kind.BYTES: "application/octet-stream", Kind.STREAM: "text/event-stream",
                Kind.TEXT: "text/plain; version=0.0.4"}  # fmt: skip
    assert answer.headers["content-type"].startswith(expected[operation.kind])


@pytest.mark.parametrize("operation", UNSAFE, ids=lambda operation: operation.id)
def test_nothing_is_done_twice_by_one_signature(api: Api, operation: Operation) -> None:
    if operation.permission is Permission.ATTEMPT:
        return
    ids = {"job": api.new_id("j")} if operation.id == "jobs.submit" else {}
    if operation.id == "jobs.retry":
        ids = {"job": api.ids["ended"]}
    if operation.id == "jobs.hold":
        ids = {"job": api.waiting()}
    content = bodies(api).get(operation.id)
    body = content if isinstance(content, bytes) else b"" if content is None else json.dumps(content).encode()
    kind = {"Content-Type": "application/octet-stream" if isinstance(content, bytes) else "application/json"}
    path = api.path(operation, **ids)
    headers = {**kind, **api.keys["admin"].headers(Message(operation.method, "danlu", path, "", lowered(kind)), body)}
    first = api.send(operation.method, path, actor=None, data=body, headers=headers)
    assert first.status == operation.status, first.content
    before = api.database.read(lambda tx: events_after(tx, 0, limit=10_000))
    again = api.send(operation.method, path, actor=None, data=body, headers=headers)
    assert (again.status, again.json()["code"]) == (401, "NotAuthenticated")
    assert api.database.read(lambda tx: events_after(tx, 0, limit=10_000)) == before
    calls = api.database.read(lambda tx: events_after(tx, 0, Chosen(kind="call"), limit=10_000))
    told = [(operation.id, "done", "admin")] if operation.audited else []
    assert [(call.reason, call.state, call.actor) for call in calls] == told


def test_the_document_names_every_operation(api: Api) -> None:
    document = api.send("GET", "/v1/openapi.json").json()
    named = {
        (method.upper(), path, one["operationId"])
        for path, found in document["paths"].items()
        for method, one in found.items()
    }
    assert named == {(operation.method, operation.path, operation.id) for operation in OPERATIONS}
    assert set(BY_ID) == {operation.id for operation in OPERATIONS}
