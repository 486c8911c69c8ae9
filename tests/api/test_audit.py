"""What is stored of who did what: to which thing, what exactly, and nothing that is secret."""

from __future__ import annotations

from typing import Any

import pytest

from danlu.api import BY_ID, OPERATIONS
from danlu.database.queries import Chosen, events_after
from danlu.domain.events import Event
from danlu.domain.users import PLATFORM
from tests.api.edge import Api

SECRET = "hunter2-hunter2"
DEEDS: list[tuple[str, dict[str, str], dict[str, Any], str]] = [
    ("members.set", {"user": "viewer"}, {"role": "admin"}, "role=admin"),
    ("members.set", {"user": "viewer"}, {"role": "viewer"}, "role=viewer"),
    ("users.make", {"user": "zoe"}, {"administrator": True}, "administrator=True"),
    ("users.change", {"user": "member"}, {"administrator": False}, "administrator=False"),
    (
        "keys.make",
        {},
        {"user": "member", "name": "mine", "valid_for": "30d"},
        "user=member name=mine valid_for=2592000.0",
    ),
    ("keys.make", {}, {}, ""),
    ("tokens.make", {}, {"name": "browser"}, "name=browser"),
    ("secrets.set", {"secret": "PASSWORD"}, {"value": SECRET}, ""),
]


def calls(api: Api) -> list[Event]:
    return api.database.read(lambda tx: events_after(tx, 0, Chosen(kind="call"), limit=1000))


@pytest.mark.parametrize(("operation", "ids", "body", "told"), DEEDS)
def test_what_exactly_was_done_is_told(
    api: Api, operation: str, ids: dict[str, str], body: dict[str, Any], told: str
) -> None:
    answer = api.call(operation, data=body, **ids)
    assert answer.status in (200, 201), answer.content
    (call,) = calls(api)
    assert (call.reason, call.state, call.message) == (operation, "done", told)
    assert SECRET not in str(api.database.read(lambda tx: events_after(tx, 0, limit=1000)))


def test_no_secret_is_told() -> None:
    told = {(operation.id, name) for operation in OPERATIONS for name in operation.tells}
    assert not {name for _, name in told} & {"value", "secret", "env", "environment", "command", "password"}
    assert all(name in operation.body.model_fields for operation in OPERATIONS for name in operation.tells)


def test_whose_door_was_tried_is_told(api: Api) -> None:
    path = api.path(BY_ID["jobs.stop"])
    refused = api.send("POST", path, actor="foreign", data={}, headers={"Danlu-Project": "default"})
    assert refused.status == 404
    (call,) = calls(api)
    assert (call.project, call.state, call.message) == (PLATFORM, "NotFound", "project=default")
