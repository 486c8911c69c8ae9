"""What is revoked is over: also while its request comes, and with what it has made."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import anyio.to_thread
import httpx2
import pytest

from danlu.api.bodies import UserChange
from danlu.client.credentials import Credentials
from danlu.database.records import KEYS, TOKENS
from danlu.services import keys, users
from danlu.services.access import digest
from tests.api.edge import Api
from tests.api.test_signed import as_admin, signature

DAY_NS = 86_400 * 1_000_000_000


def change(api: Api, key_id: str, **fields: Any) -> None:
    def work(tx: Any) -> None:
        found = KEYS.require(tx, key_id)
        KEYS.put(tx, found, found.evolved(now=time.time_ns(), **fields))

    api.database.write(work)


def interrupted(
    api: Api, path: str, asked: dict[str, str], headers: dict[str, str], meanwhile: Callable[[], Any]
) -> int:
    """Sends a request whose head is let in before something happens, and its body after it; returns the status."""
    body = json.dumps(asked).encode()

    async def content() -> AsyncIterator[bytes]:
        yield body[:1]
        await anyio.to_thread.run_sync(meanwhile)
        yield body[1:]

    async def go() -> int:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=api.gate), base_url="http://danlu") as client:
            return (await client.post(path, content=content(), headers=headers)).status_code

    return anyio.run(go)


@pytest.mark.parametrize("bootstrap", [True, False])
@pytest.mark.parametrize("what", ["replaces", "key", "token", "another's end"])
def test_a_key_that_is_revoked_while_its_request_comes_makes_nothing(api: Api, bootstrap: bool, what: str) -> None:
    """The platform's own key stays known when it is revoked, as one that has ended."""
    key = api.keys["member"].key_id
    change(api, key, bootstrap=bootstrap)
    path, asked = {
        "replaces": ("/v1/keys", {"replaces": key}),
        "key": ("/v1/keys", {"name": "mine"}),
        "token": ("/v1/tokens", {"name": "mine"}),
        "another's end": (f"/v1/keys/{api.ids['key']}/expire", {"after": "1ms"}),
    }[what]
    before = api.database.read(lambda tx: (KEYS.count(tx), TOKENS.count(tx)))
    headers = signature(api, "POST", path, json.dumps(asked).encode())
    assert interrupted(api, path, asked, headers, lambda: keys.revoke(as_admin(api), key)) == 401
    after = api.database.read(lambda tx: (KEYS.count(tx), TOKENS.count(tx)))
    assert after == (before[0] - (not bootstrap), before[1])


def test_who_is_no_administrator_any_more_when_the_body_is_here_makes_no_key_for_others(api: Api) -> None:
    users.change(as_admin(api), "manager", UserChange(administrator=True))
    asked, headers = {"user": "viewer"}, {"Authorization": f"Bearer {api.tokens['manager']}"}

    def demoted() -> None:
        users.change(as_admin(api), "manager", UserChange(administrator=False))

    assert interrupted(api, "/v1/keys", asked, {**headers, "Content-Type": "application/json"}, demoted) == 403


def by(api: Api, made: dict[str, Any]) -> str:
    """Lets a test be whoever a credential makes it; returns as which actor."""
    name = (made.get("key") or made["token"])["id"]
    if "key" in made:
        api.keys[name] = Credentials(made["secret"], name)
    else:
        api.tokens[name] = made["secret"]
    return str(name)


def make(api: Api, actor: str, what: str = "keys", **asked: str) -> str:
    """Makes a key or a token by an actor's key, or by its token where it has no key; returns its id."""
    answer = api.call(f"{what}.make", actor=actor, data={"name": "x"} | asked, signed=actor in api.keys)
    assert answer.status == 201, answer.content
    return by(api, answer.json())


def works(api: Api, name: str) -> bool:
    status = api.send("GET", "/v1/whoami", actor=name, signed=name in api.keys).status
    assert status in (200, 401)
    return status == 200


def test_what_a_revoked_key_has_made_ends_with_it(api: Api) -> None:
    child, token = make(api, "member"), make(api, "member", "tokens")
    grandchild, of_token = make(api, child, "tokens"), make(api, token)
    theirs = make(api, "member")
    rotated = api.call("keys.make", actor=theirs, signed=True, data={"replaces": theirs, "overlap": "1ms"}).json()
    assert "overlap" not in rotated["key"]
    successor = by(api, rotated)  # of a child: so is it
    before = make(api, "viewer")
    ended = [child, token, grandchild, of_token, successor]
    assert all(works(api, name) for name in ended)
    told = api.call("keys.revoke", key=api.keys["member"].key_id, actor="admin").json()
    assert sorted(told["ended"]) == sorted(ended)
    assert all(name in told["message"] for name in ended)
    assert told["left"] == []
    assert [works(api, name) for name in ended] == [False] * 5
    assert works(api, before)
    assert api.send("GET", "/v1/whoami", actor="member").status == 200  # a token that it has not made


def test_what_a_revoked_token_has_made_ends_with_it(api: Api) -> None:
    token = make(api, "member", "tokens")
    child = make(api, token)
    told = api.call("tokens.revoke", token=token, actor="member").json()
    assert told["ended"] == [child]
    assert not works(api, child)


def test_what_calls_is_not_ended_by_what_it_revokes(api: Api) -> None:
    """Who makes a new key by the old one, and revokes the old one by the new one, has the new one."""
    new = make(api, "member")
    other, mine = make(api, "member"), make(api, new, "tokens")
    told = api.call("keys.revoke", key=api.keys["member"].key_id, actor=new, signed=True).json()
    assert told["ended"] == [other]
    assert works(api, new)
    assert works(api, mine)
    assert api.call("keys.revoke", key=new, actor=new, signed=True).json()["ended"] == [mine]
    assert not works(api, mine)


def test_keys_for_others_and_what_has_replaced_it_go_on_and_are_named(api: Api) -> None:
    admins = api.keys["admin"].key_id
    for_viewer = make(api, "admin", user="viewer")
    successor = by(api, api.call("keys.make", actor="admin", signed=True, data={"replaces": admins}).json())
    told = api.call("keys.revoke", key=admins, actor="admin").json()
    assert told == {
        "message": f"access key {admins} is revoked; what goes on: {successor} (has replaced it), {for_viewer} (made for "
        "viewer); to end one too: danlu key rm KEY",
        "ended": [], "left": [successor, for_viewer],
    }  # fmt: skip
    assert works(api, successor)
    assert works(api, for_viewer)


def test_no_chain_of_makers_is_broken_by_an_end_in_between(api: Api) -> None:
    """Else who has a key for a minute makes one by one that ends, and keeps it whatever is revoked."""
    child = make(api, "member")
    grandchild, token = make(api, child), make(api, child, "tokens")
    newest = make(api, grandchild, "tokens")
    for one in (child, grandchild):
        change(api, one, expires_at=1)
    make(api, "member")  # forgets what has ended
    assert api.database.read(lambda tx: [KEYS.get(tx, one) for one in (child, grandchild)]) == [None, None]
    told = api.call("keys.revoke", key=api.keys["member"].key_id, actor="member").json()
    assert {token, newest} <= set(told["ended"])
    assert not works(api, token)
    assert not works(api, newest)


def test_an_end_that_was_planned_ends_nothing_else(api: Api) -> None:
    token = make(api, "member", "tokens")
    assert api.call("keys.expire", key=api.keys["member"].key_id, actor="admin", data={"after": "1ms"}).status == 200
    assert works(api, token)


@pytest.mark.parametrize("bootstrap", [True, False])
def test_a_key_is_replaced_and_its_end_is_set_at_once(api: Api, bootstrap: bool) -> None:
    """A client that is killed after it leaves no old key without an end, and the next one can begin again."""
    key, now = api.keys["member"].key_id, time.time_ns()
    change(api, key, bootstrap=bootstrap)

    def rotate(overlap: str) -> tuple[str, int | None, int]:
        answer = api.call("keys.make", actor="member", signed=True, data={"replaces": key, "overlap": overlap})
        assert answer.status == 201, answer.content
        old = api.database.read(lambda tx: KEYS.require(tx, key))
        made = answer.json()["key"]
        life = None if made["expires_at"] is None else made["expires_at"] - made["created_at"]
        return made["id"], life, round((old.expires_at - now) / DAY_NS)  # type: ignore[operator]

    made, life, ends_days = rotate("2d")
    assert (life, ends_days) == (None, 2)
    assert api.call("keys.revoke", key=made, actor="member").status == 200  # its secret was lost
    made, life, ends_days = rotate("9d")
    assert (life, ends_days) == (None, 2)  # never later; and the new one lives as long as if it were the first
    assert api.call("keys.revoke", key=made, actor="member").status == 200
    change(api, key, created_at=now - 60 * DAY_NS, expires_at=now + 30 * DAY_NS, successor_ns=None)
    for _ in range(2):
        made, life, ends_days = rotate("2d")
        assert (life, ends_days) == (90 * DAY_NS, 2)
        assert api.call("keys.revoke", key=made, actor="member").status == 200


def test_an_overlap_is_of_a_key_that_is_replaced(api: Api) -> None:
    answer = api.call("keys.make", actor="member", signed=True, data={"overlap": "1d"})
    assert answer.status == 400
    assert "replaces" in answer.json()["next_step"]


def test_a_token_says_by_what_it_was_made(api: Api) -> None:
    token = make(api, "member", "tokens")
    found = api.database.read(lambda tx: TOKENS.find(tx, digest=digest(api.tokens[token]), limit=1))[0]
    assert found.made_by == api.keys["member"].key_id
