"""What a program does many times a second leaves no row for each time; what it may not do, and all else, does."""

from __future__ import annotations

import pytest

from danlu.api import BY_ID, OPERATIONS, Permission
from danlu.database.queries import Chosen, events_after
from danlu.domain.signing import SAFE_METHODS, Message, lowered
from danlu.domain.trees import address_of
from tests.api.edge import FILE, Api, bodies

NOT_TOLD = {operation.id for operation in OPERATIONS if not operation.audited}


def calls(api: Api, project: str | None = None) -> list[tuple[str, str]]:
    found = api.database.read(lambda tx: events_after(tx, 0, Chosen(project, kind="call"), limit=500))
    return [(event.reason or "", event.state) for event in found]


def test_only_what_moves_bytes_and_what_runners_say_is_not_told() -> None:
    moves = ("attempts.append", "blobs.append", "blobs.missing", "blobs.pack", "blobs.put", "blobs.splice",
             "results.append", "results.missing", "results.pack")  # fmt: skip
    says = ("artifacts.report", "checkpoints.register", "reports.put")  # records tell of these
    assert {*moves, *says} == NOT_TOLD
    assert all(BY_ID[one].method not in SAFE_METHODS for one in NOT_TOLD)


@pytest.mark.parametrize("operation", sorted(NOT_TOLD))
@pytest.mark.parametrize("signed", [False, True])
def test_what_moves_bytes_writes_no_row_for_each_call(api: Api, operation: str, signed: bool) -> None:
    of_attempts = BY_ID[operation].permission is Permission.ATTEMPT
    if of_attempts and signed:
        return  # an attempt has a token
    actor = "attempt" if of_attempts else "member"
    address = address_of(FILE)
    for _ in range(3):
        answer = api.call(operation, actor=actor, data=bodies(api)[operation], address=address, signed=signed)
        assert answer.status in (200, 201), answer.content
    assert calls(api) == []
    api.call("blobs.missing", actor="viewer", data=bodies(api)["blobs.missing"], signed=signed)
    assert calls(api) == [("blobs.missing", "NotAllowed")]


def test_a_signed_upload_is_done_once_all_the_same(api: Api) -> None:
    path, kind = f"/v1/blobs/{address_of(FILE)}", {"Content-Type": "application/octet-stream"}
    proof = api.keys["member"].headers(Message("PUT", "danlu", path, "", lowered(kind)), FILE)
    assert api.send("PUT", path, actor=None, data=FILE, headers={**kind, **proof}).status == 201
    assert api.send("PUT", path, actor=None, data=FILE, headers={**kind, **proof}).status == 401
