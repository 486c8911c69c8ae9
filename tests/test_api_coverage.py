"""Every route of the application, asked by everybody: nothing is open, nothing of another project exists."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.routing import WebSocketRoute

from danlu.api import BY_ID, OPEN_PATHS, OPERATIONS, Kind, Operation, Permission
from danlu.database.engine import Database
from tests.api.edge import Api, bodies

STATUS = {Permission.MEMBER: 200, Permission.ADMINISTRATOR: 200, Permission.ATTEMPT: 200}
EACH = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.id)
SOCKETS = [operation for operation in OPERATIONS if operation.kind is Kind.SOCKET]
EACH_SOCKET = pytest.mark.parametrize("operation", SOCKETS, ids=lambda operation: operation.id)
ALL_PROJECTS = {"platform.get", "nodes.list", "environments.legacy"}
"""Of the platform, not of a project: a foreign project's member sees it too."""
OF_THE_PROJECT = {
    "jobs.list", "jobs.submit", "blobs.missing", "blobs.pack", "blobs.put", "blobs.received", "blobs.append",
    "environments.list", "environments.build", "environments.prune", "events.list", "events.stream", "top.get",
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
        (None, {"Authorization": "Basic danlu_bootstrap"}, 401),
        ("foreign", {}, 404),
        ("member", {"Danlu-Project": "other"}, 404),
        ("foreign", {"Danlu-Project": "default"}, 404),
        ("attempt", {}, 403),
        ("member", {}, 101),
        ("bootstrap", {}, 101),
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
@pytest.mark.parametrize(("actor", "status"), [(None, 401), ("bootstrap", 403)])
def test_nothing_else_is_a_web_socket(api: Api, path: str, actor: str | None, status: int) -> None:
    assert api.connect(path, actor=actor).status == status


@pytest.mark.parametrize("path", sorted(OPEN_PATHS))
def test_health_is_open(api: Api, path: str) -> None:
    answer = api.send("GET", path, actor=None)
    assert (answer.status, answer.content) == (200, b"ok\n")


@pytest.mark.parametrize(
    "header", ["Bearer", "Bearer ", "Bearer wrong", "Basic danlu_bootstrap", "danlu_bootstrap", "Bearer danlu_attempt_",
               "Bearer danlu_attempt_x_y", "Bearer " + "x" * 60_000]
)  # fmt: skip
def test_a_wrong_token_is_no_token(api: Api, header: str) -> None:
    assert api.send("GET", "/v1/jobs", actor=None, headers={"Authorization": header}).status == 401


@EACH
def test_a_foreign_project_sees_none_of_it(api: Api, operation: Operation) -> None:
    answer = api.call(operation.id, actor="foreign", data=bodies(api).get(operation.id)) if _finite(operation) else None
    if answer is None:
        return
    if operation.permission is not Permission.MEMBER:
        assert answer.status == 403
    elif operation.id in ALL_PROJECTS | OF_THE_PROJECT:
        assert answer.status < 500
        for known in (api.ids["job"], api.ids["environment"], api.ids["artifact"]):
            assert known.encode() not in answer.content or operation.id == "jobs.submit"
    else:
        assert answer.status == 404


def _finite(operation: Operation) -> bool:
    return operation.id != "events.stream"


@EACH
def test_a_project_header_opens_nothing(api: Api, operation: Operation) -> None:
    answer = api.send(
        operation.method, api.path(operation), actor="member", data=bodies(api).get(operation.id),
        headers={"Danlu-Project": "other"},
    )  # fmt: skip
    assert answer.status in ((403, 404) if operation.permission is not Permission.MEMBER else (404,))


@EACH
def test_an_attempt_may_only_write_its_own_streams(api: Api, operation: Operation) -> None:
    answer = api.call(operation.id, actor="attempt", data=bodies(api).get(operation.id))
    assert answer.status == (200 if operation.permission is Permission.ATTEMPT else 403)


@EACH
def test_roles_are_kept_apart(api: Api, operation: Operation) -> None:
    if operation.permission is Permission.MEMBER:
        return
    answer = api.call(operation.id, actor="member", data=bodies(api).get(operation.id))
    assert answer.status == 403


@pytest.mark.parametrize("actor", ["bootstrap", "member"])
@EACH
def test_who_may_gets_what_was_promised(api: Api, operation: Operation, actor: str) -> None:
    if operation.permission is Permission.ATTEMPT or not _finite(operation):
        return
    if operation.permission is Permission.ADMINISTRATOR and actor == "member":
        return
    ids = {"job": api.new_id("j")} if operation.id == "jobs.submit" else {}
    if operation.id in ("jobs.retry", "jobs.logs_stream", "jobs.wait"):
        ids = {"job": api.ids["ended"]}
    answer = api.call(operation.id, actor=actor, data=bodies(api).get(operation.id), **ids)
    if operation.kind is Kind.SOCKET:  # asked as a plain request; as what it is: see above
        assert (answer.status, answer.json()["code"]) == (426, "UpgradeRequired")
        return
    assert answer.status == operation.status, answer.content
    expected = {Kind.JSON: "application/json", Kind.BYTES: "application/octet-stream", Kind.STREAM: "text/event-stream"}
    assert answer.headers["content-type"].startswith(expected[operation.kind])


def test_the_document_names_every_operation(api: Api) -> None:
    document = api.send("GET", "/v1/openapi.json").json()
    named = {
        (method.upper(), path, one["operationId"])
        for path, found in document["paths"].items()
        for method, one in found.items()
    }
    assert named == {(operation.method, operation.path, operation.id) for operation in OPERATIONS}
    assert set(BY_ID) == {operation.id for operation in OPERATIONS}
