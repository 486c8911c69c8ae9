"""Keys and tokens: what a credential makes neither outlives it nor may more; a key's place is taken by one other."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from danlu.client.credentials import Credentials
from danlu.database.records import KEYS, TOKENS
from danlu.services.access import digest
from tests.api.edge import Answer, Api

DAY_NS = 86_400 * 1_000_000_000


def ending(api: Api, by: str, actor: str = "member") -> tuple[int, Callable[..., Answer]]:
    """Lets an actor's token or key end in 30 days; returns when, and a way to call by it."""
    now = time.time_ns()

    def work(tx: Any) -> int:
        records: Any = TOKENS if by == "token" else KEYS
        found: Any = (
            TOKENS.find(tx, digest=digest(api.tokens[actor]), limit=1)[0]
            if by == "token"
            else KEYS.require(tx, api.keys[actor].key_id)
        )
        new = found.evolved(now=now, created_at=now - 60 * DAY_NS, expires_at=now + 30 * DAY_NS)
        records.put(tx, found, new)
        return int(new.expires_at)

    end = api.database.write(work)
    return end, lambda operation, **data: api.call(operation, actor=actor, data=data, signed=by == "key")


@pytest.mark.parametrize("by", ["token", "key"])
@pytest.mark.parametrize(("actor", "whose"), [("member", {}), ("admin", {}), ("admin", {"user": "viewer"})])
def test_what_a_credential_makes_does_not_outlive_it(api: Api, by: str, actor: str, whose: dict[str, str]) -> None:
    end, call = ending(api, by, actor)
    assert call("keys.make", **whose).json()["key"]["expires_at"] == end
    sooner = call("keys.make", valid_for="29d", **whose).json()["key"]["expires_at"]
    assert end - 2 * DAY_NS < sooner < end
    longer = call("keys.make", valid_for="31d", **whose)
    assert longer.status == 400
    assert "ends in 2591" in longer.json()["detail"]
    if whose:
        return
    assert call("tokens.make", name="ci").json()["token"]["expires_at"] == end
    assert call("tokens.make", name="ci", project="default").json()["token"]["expires_at"] == end
    assert call("tokens.make", name="ci", valid_for="1d").json()["token"]["expires_at"] < end
    assert call("tokens.make", name="ci", valid_for="31d").status == 400


def test_what_has_no_end_makes_what_has_none(api: Api) -> None:
    for signed in (False, True):
        assert api.call("keys.make", actor="member", data={}, signed=signed).json()["key"]["expires_at"] is None
        made = api.call("tokens.make", actor="member", data={"name": "ci", "valid_for": "900d"}, signed=signed)
        assert made.json()["token"]["expires_at"] > time.time_ns() + 899 * DAY_NS


def test_a_key_is_replaced_by_one_that_lives_as_long(api: Api) -> None:
    end, call = ending(api, "key")
    old = api.keys["member"].key_id
    made = call("keys.make", replaces=old).json()
    assert abs(made["key"]["expires_at"] - made["key"]["created_at"] - 90 * DAY_NS) < 1_000_000
    assert made["key"]["replaces"] == old
    again = call("keys.make", replaces=old)
    assert again.status == 409
    assert made["key"]["id"] in again.json()["next_step"]
    assert call("keys.make").json()["key"]["expires_at"] == end  # what does not replace it ends with it
    api.keys["member"] = Credentials(made["secret"], made["key"]["id"])
    assert call("keys.make", replaces=old).status == 403
    assert api.call("keys.revoke", key=made["key"]["id"], actor="member").status == 200


def test_only_the_key_that_signs_is_replaced_and_as_it_is(api: Api) -> None:
    end, call = ending(api, "key")
    old = api.keys["member"].key_id
    for actor, signed in (("admin", True), ("member", False), ("admin", False)):
        refused = api.call("keys.make", actor=actor, signed=signed, data={"replaces": old})
        assert refused.status == 403, (actor, signed)
    for more in ({"name": "x"}, {"valid_for": "1d"}, {"user": "member"}):
        assert call("keys.make", replaces=old, **more).status == 400
    assert end


@pytest.mark.parametrize(("what", "most", "asked"), [("keys", 20, {}), ("tokens", 100, {"name": "ci"})])
def test_what_has_ended_makes_room(api: Api, what: str, most: int, asked: dict[str, str]) -> None:
    """Else a key that is rotated each month could be no more after two years."""
    records: Any = KEYS if what == "keys" else TOKENS
    first = api.call(f"{what}.list", actor="viewer").json()["items"]
    for number in range(len(first), most):
        assert api.call(f"{what}.make", actor="viewer", data=asked).status == 201, number
    assert api.call(f"{what}.make", actor="viewer", data=asked).status == 409
    one = api.call(f"{what}.list", actor="viewer").json()["items"][0]["id"]

    def end(tx: Any) -> None:
        found = records.require(tx, one)
        records.put(tx, found, found.evolved(now=time.time_ns(), expires_at=1))

    api.database.write(end)
    assert api.call(f"{what}.make", actor="viewer", data=asked).status == 201
    assert one not in [found["id"] for found in api.call(f"{what}.list", actor="viewer").json()["items"]]
