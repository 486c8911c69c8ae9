"""Signed requests at the real edge: what is wrong gets nothing and learns nothing; what is right is done once."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import anyio
import anyio.to_thread
import httpx2
import pytest

from danlu.api import Permission
from danlu.api.bodies import EventsQuery, MemberRequest
from danlu.database.engine import Transaction
from danlu.database.queries import Chosen, events_after
from danlu.database.records import JOBS, KEYS, MEMBERS, TOKENS
from danlu.domain.actors import Role
from danlu.domain.events import Event
from danlu.domain.signing import SKEW_S, Message, content_digest, lowered, sign
from danlu.runner import frames
from danlu.server import streams
from danlu.server.app import build
from danlu.server.auth import Gate
from danlu.server.limits import Limits
from danlu.services import access, keys, members, users
from danlu.services.context import Call
from tests.api.edge import ATTEMPT_KEY, Answer, Api

SECOND = 1_000_000_000
JSON = {"Content-Type": "application/json"}
SPEC = json.dumps({"command": ["python", "train.py"]}).encode()
ENDS_S = 20.0


class Clock:
    """Tells what it is told, for as long as it is told anything."""

    def __init__(self) -> None:
        self.off_s = 0

    def now(self) -> int:
        return time.time_ns() + self.off_s * SECOND

    wall = now


def signature(api: Api, method: str, path: str, body: bytes = b"", *, actor: str = "member", once: bool = False,
              headers: dict[str, str] | None = None) -> dict[str, str]:  # fmt: skip
    """Returns all headers of a signed request."""
    given = {**(JSON if body else {}), **(headers or {})}
    target, _, query = path.partition("?")
    message = Message(method, "danlu", target, query, lowered(given))
    return {**given, **api.keys[actor].headers(message, body, once=once)}


def sent(api: Api, method: str, path: str, body: bytes = b"", **options: Any) -> Answer:
    return api.send(method, path, actor=None, data=body or None, headers=signature(api, method, path, body, **options))


def raw(api: Api, method: str, path: str, headers: dict[str, str], pieces: list[bytes]) -> Answer:
    """Sends a body in pieces, without its length."""

    async def content() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async def go() -> Answer:
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=api.gate), base_url="http://danlu") as client:
            answer = await client.request(method, path, content=content(), headers=headers)
            return Answer(answer.status_code, answer.headers, answer.content)

    return anyio.run(go)


def submit_path(api: Api) -> str:
    return f"/v1/jobs/{api.new_id('j')}"


def as_admin(api: Api, project: str = "default") -> Call:
    return Call(api.platform, _actor(api, "admin"), project)


def _actor(api: Api, name: str) -> Any:
    return access.bearer(api.platform, api.tokens[name])


def test_who_signs_is_known(api: Api) -> None:
    answer = sent(api, "GET", "/v1/whoami")
    assert (answer.status, answer.json()["name"], answer.json()["by"]) == (200, "member", api.keys["member"].key_id)
    path = submit_path(api)
    assert sent(api, "PUT", path, SPEC).status == 201
    assert sent(api, "GET", path + "/wait?timeout_s=0", headers={"Danlu-Project": "default"}).status == 200


def _changed(headers: dict[str, str], name: str, change: Callable[[str], str]) -> dict[str, str]:
    return {**headers, name: change(headers[name])}


def _expired(api: Api) -> dict[str, str]:
    def work(tx: Transaction) -> None:
        key = KEYS.require(tx, api.keys["member"].key_id)
        KEYS.put(tx, key, key.evolved(now=time.time_ns(), expires_at=time.time_ns() - 1))

    api.database.write(work)
    return {}


def _revoked(api: Api) -> dict[str, str]:
    keys.revoke(as_admin(api), api.keys["member"].key_id)
    return {}


def _removed(api: Api) -> dict[str, str]:
    users.remove(as_admin(api), "member")
    return {}


WRONG: dict[str, Callable[[Api, dict[str, str], str], dict[str, str]]] = {
    "nothing": lambda _api, headers, _path: JSON,
    "another signature": lambda _api, headers, _path: _changed(headers, "Signature", lambda s: "danlu=:" + "A" * 43 + "=:"),
    "no signature": lambda _api, headers, _path: {k: v for k, v in headers.items() if k != "Signature"},
    "no input": lambda _api, headers, _path: {k: v for k, v in headers.items() if k != "Signature-Input"},
    "no sense": lambda _api, headers, _path: _changed(headers, "Signature-Input", lambda _: "x" * 1000),
    "an unknown key": lambda api, headers, _path: _changed(
        headers, "Signature-Input", lambda s: s.replace(api.keys["member"].key_id, api.new_id("k"))
    ),
    "another's key": lambda api, headers, _path: _changed(
        headers, "Signature-Input", lambda s: s.replace(api.keys["member"].key_id, api.keys["foreign"].key_id)
    ),
    "a key that is none": lambda api, headers, _path: _changed(
        headers, "Signature-Input", lambda s: s.replace(api.keys["member"].key_id, "' OR 1=1 --")
    ),
    "an expired key": lambda api, headers, _path: {**headers, **_expired(api)},
    "a revoked key": lambda api, headers, _path: {**headers, **_revoked(api)},
    "a removed user": lambda api, headers, _path: {**headers, **_removed(api)},
    "another project": lambda _api, headers, _path: {**headers, "Danlu-Project": "other"},
    "both proofs": lambda api, headers, _path: {**headers, "Authorization": f"Bearer {api.tokens['member']}"},
    "another digest": lambda _api, headers, _path: {**headers, "Content-Digest": content_digest(b"{}")},
    "another type": lambda _api, headers, _path: {**headers, "Content-Type": "application/octet-stream"},
    "a wrong token": lambda _api, headers, _path: {**JSON, "Authorization": "Bearer danlu_wrong"},
    "a forged attempt": lambda api, headers, _path: {
        **JSON, "Authorization": f"Bearer {access.attempt_token(b'x' * 32, api.ids['attempt'])}"
    },
}  # fmt: skip


def uniform(answer: Answer) -> dict[str, Any]:
    """Returns what a stranger is told, without what differs each time."""
    told: dict[str, Any] = answer.json()
    assert answer.status == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert told.pop("request_id") == answer.headers["danlu-request-id"]
    assert abs(told["details"].pop("server_time") - time.time_ns()) < 7200 * SECOND
    return told


@pytest.mark.parametrize("wrong", WRONG)
def test_whatever_is_wrong_the_answer_is_the_same(api: Api, wrong: str) -> None:
    path = submit_path(api)
    headers = WRONG[wrong](api, signature(api, "PUT", path, SPEC), path)
    answer = api.send("PUT", path, actor=None, data=SPEC, headers=headers)
    assert uniform(answer) == uniform(api.send("GET", "/v1/jobs", actor=None))
    assert api.database.read(lambda tx: JOBS.get(tx, path.rpartition("/")[2])) is None


@pytest.mark.parametrize("cut", [[b"{}"], [SPEC, b" "], [SPEC[:-1], b"]"], [SPEC[1:]], [], [b"", SPEC, SPEC]])
@pytest.mark.parametrize("path", ["/v1/jobs/{job}", "/v1/blobs/{address}", "/v1/users/eve", "/v1/keys/{key}"])
def test_a_body_that_was_not_signed_does_nothing(api: Api, path: str, cut: list[bytes]) -> None:
    method = "DELETE" if "keys" in path else "PUT"
    filled = path.format(**{**api.ids, "job": api.new_id("j")})
    raw_type = {"Content-Type": "application/octet-stream"} if "blobs" in path else {}
    headers = signature(api, method, filled, SPEC, actor="admin", headers=raw_type)
    before = api.database.read(lambda tx: events_after(tx, 0, limit=10_000))
    assert uniform(raw(api, method, filled, headers, cut)) == uniform(api.send("GET", "/v1/jobs", actor=None))
    assert uniform(api.send(method, filled, actor=None, data=b"".join(cut), headers=headers))
    assert api.database.read(lambda tx: events_after(tx, 0, limit=10_000)) == before


def test_a_body_comes_in_any_pieces(api: Api) -> None:
    path = submit_path(api)
    pieces = [SPEC[at : at + 1] for at in range(len(SPEC))]
    assert raw(api, "PUT", path, signature(api, "PUT", path, SPEC), pieces).status == 201


@pytest.mark.parametrize("pieces", [[b"{}"], [b"", b"x"]])
def test_what_reads_has_no_body_that_was_not_signed(api: Api, pieces: list[bytes]) -> None:
    headers = signature(api, "GET", "/v1/jobs")
    assert uniform(api.send("GET", "/v1/jobs", actor=None, data=b"".join(pieces), headers=headers))
    assert uniform(raw(api, "GET", "/v1/jobs", headers, pieces))
    body = signature(api, "GET", "/v1/jobs", b"{}")
    assert api.send("GET", "/v1/jobs", actor=None, data=b"{}", headers=body).status == 200


@pytest.mark.parametrize("query", ["", "?limit=1", "?limit=2&limit=3", "?", "?limit=%32", "?LIMIT=2", "?limit=2&"])
def test_a_query_is_signed_as_it_is_sent(api: Api, query: str) -> None:
    headers = signature(api, "GET", "/v1/jobs?limit=2")
    assert api.send("GET", "/v1/jobs?limit=2", actor=None, headers=headers).status == 200
    assert api.send("GET", "/v1/jobs" + query, actor=None, headers=headers).status == 401


@pytest.mark.parametrize(
    ("off_s", "status"), [(0, 200), (SKEW_S - 1, 200), (SKEW_S + 2, 401), (-SKEW_S, 200), (-SKEW_S - 2, 401)]
)
def test_clocks_may_differ_and_the_servers_is_told(api: Api, off_s: int, status: int) -> None:
    """A signature that lives for no second: so what is measured is the difference that is allowed."""
    clock = Clock()
    api.platform.clock = clock
    clock.off_s = off_s
    created_s = int(time.time())
    key = api.keys["member"]
    made = sign(Message("GET", "danlu", "/v1/jobs"), key.key_id, key.secret.encode(), created_s=created_s)
    if off_s > 0:  # it is the end of its life that counts
        clock.off_s = off_s + 300
    answer = api.send("GET", "/v1/jobs", actor=None, headers=made)
    assert answer.status == status
    if status == 401:
        told = answer.json()["details"]["server_time"]
        assert abs(told - time.time_ns() - clock.off_s * SECOND) < 60 * SECOND


def test_nothing_is_done_twice_by_another_server_either(api: Api, tmp_path: Any) -> None:
    path = submit_path(api)
    headers = signature(api, "PUT", path, SPEC)
    assert api.send("PUT", path, actor=None, data=SPEC, headers=headers).status == 201
    # after a restart: everything anew but for the database
    platform = type(api.platform)(
        database=api.database, blobs=api.platform.blobs, streams=api.platform.streams, clock=Clock(),
        random_bits=api.platform.random_bits, facts=api.platform.facts, attempt_key=ATTEMPT_KEY,
        vault=type(api.platform.vault)(b"m" * 32, __import__("secrets").token_bytes),
    )  # fmt: skip
    app, _ = build(platform, tmp_path, api.opener)
    api.gate = Gate(app, platform, lambda: True)
    assert uniform(api.send("PUT", path, actor=None, data=SPEC, headers=headers))
    assert sent(api, "PUT", path, SPEC).status == 201  # signed anew, it is the same job


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("PUT", "/v1/users/eve", b"{}", 403), ("POST", "/v1/jobs/nothing/stop", b"{}", 404),
        ("DELETE", "/v1/keys/nothing", b"", 404), ("PUT", "/v1/members/nobody", b'{"role": "viewer"}', 403),
        ("POST", "/v1/jobs/over/retry", b'{"id": "no id"}', 400),
    ],
)  # fmt: skip
def test_what_was_refused_is_refused_for_ever(api: Api, method: str, path: str, body: bytes, status: int) -> None:
    """Else who has kept the request could wait until it is allowed."""
    headers = signature(api, method, path, body)
    first = api.send(method, path, actor=None, data=body or None, headers=headers)
    assert first.status in (status, 422)
    assert uniform(api.send(method, path, actor=None, data=body or None, headers=headers))
    calls = api.database.read(lambda tx: events_after(tx, 0, Chosen(kind="call"), limit=100))
    assert [(call.state, call.actor) for call in calls] == [(first.json()["code"], "member")]


def test_a_project_that_one_is_no_member_of_does_not_see_it_later(api: Api) -> None:
    path = submit_path(api)
    headers = signature(api, "PUT", path, SPEC, headers={"Danlu-Project": "other"})
    assert api.send("PUT", path, actor=None, data=SPEC, headers=headers).status == 404
    members.set(as_admin(api, "other"), "member", MemberRequest(role=Role.ADMIN))
    assert uniform(api.send("PUT", path, actor=None, data=SPEC, headers=headers))
    assert sent(api, "PUT", path, SPEC, headers={"Danlu-Project": "other"}).status == 201


def test_a_web_socket_is_opened_once(api: Api) -> None:
    path, host = f"/v1/jobs/{api.ids['job']}/session", {"host": "danlu"}
    wanted = frames.REQUEST + b'{"command": ["true"]}'
    headers = {**host, **signature(api, "GET", path, wanted, once=True, headers={})}
    assert api.connect(path, wanted, actor=None, headers=headers, stay=True).status == 101
    assert api.connect(path, wanted, actor=None, headers=headers, stay=True).status == 401
    plain = {**host, **signature(api, "GET", path)}
    assert api.connect(path, actor=None, headers=plain).status == 401  # without a nonce
    gone = f"/v1/jobs/{api.ids['ended']}/session"
    refused = {**host, **signature(api, "GET", gone, once=True)}
    assert api.connect(gone, actor=None, headers=refused).status == 409
    assert api.connect(gone, actor=None, headers=refused).status in (401, 409)
    calls = api.database.read(lambda tx: events_after(tx, 0, Chosen(kind="call"), limit=100))
    assert [call.state for call in calls] == ["done", "NotRunning"]


@pytest.mark.parametrize("take", [_expired, _revoked, _removed])
def test_what_was_proven_before_is_not_believed_afterwards(api: Api, take: Callable[[Api], Any]) -> None:
    key = api.keys["member"].key_id
    assert [sent(api, "GET", "/v1/whoami").status for _ in range(3)] == [200] * 3
    assert key in api.platform.proofs  # the last two were answered without a look
    take(api)
    assert sent(api, "GET", "/v1/whoami").status == 401


def test_a_key_that_expires_ends_though_nothing_is_written(api: Api) -> None:
    def work(tx: Transaction) -> None:
        key = KEYS.require(tx, api.keys["member"].key_id)
        KEYS.put(tx, key, key.evolved(now=time.time_ns(), expires_at=time.time_ns() + 3600 * SECOND))

    api.database.write(work)
    api.platform.clock = clock = Clock()
    assert [sent(api, "GET", "/v1/whoami").status for _ in range(3)] == [200] * 3
    clock.off_s = 299  # the signer's clock is not this one's
    assert sent(api, "GET", "/v1/whoami").status == 200
    proof = api.platform.proofs[api.keys["member"].key_id]
    found = proof.key.evolved(now=time.time_ns(), expires_at=time.time_ns() + 1)
    api.platform.proofs[found.id] = replace(proof, key=found)
    assert sent(api, "GET", "/v1/whoami").status == 200  # it is looked up: what is stored counts


def test_a_demoted_member_is_one_from_the_next_request_on(api: Api) -> None:
    assert sent(api, "PUT", submit_path(api), SPEC).status == 201
    members.set(as_admin(api), "member", MemberRequest(role=Role.VIEWER))
    answer = sent(api, "PUT", submit_path(api), SPEC)
    assert (answer.status, answer.json()["code"]) == (403, "NotAllowed")
    assert "viewer" in answer.json()["detail"]
    assert sent(api, "GET", "/v1/jobs").status == 200
    members.remove(as_admin(api), "member")
    assert sent(api, "GET", "/v1/jobs", headers={"Danlu-Project": "default"}).status == 404


def _demote(api: Api) -> None:
    members.set(as_admin(api), "member", MemberRequest(role=Role.VIEWER))


def _leave(api: Api) -> None:
    members.remove(as_admin(api), "member")


def _revoke(api: Api) -> None:
    _revoked(api)


def _remove(api: Api) -> None:
    _removed(api)


def _revoke_token(api: Api) -> None:
    def work(tx: Transaction) -> None:
        TOKENS.remove(tx, next(iter(TOKENS.find(tx, digest=access.digest(api.tokens["member"]), limit=1))))

    api.database.write(work)


def _none(_api: Api) -> None:
    """Nothing is taken from anybody."""


@pytest.fixture
def soon(api: Api) -> None:
    """What is looked at every two seconds is looked at all the time."""
    api.limit(look_s=0.01)


def test_what_is_open_is_looked_at_often_enough() -> None:
    assert Limits().look_s * 2 <= 5.0


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(
    ("take", "code"),
    [(_demote, "NotAllowed"), (_leave, "NotFound"), (_revoke, "NotAuthenticated"), (_remove, "NotAuthenticated")],
)
def test_an_upload_is_of_whom_it_still_may_be(api: Api, take: Callable[[Api], None], code: str) -> None:
    """Let in by its head; what it was let in by is taken while its body comes."""
    path = submit_path(api)
    for target, body, kind in ((path, SPEC, {}), (f"/v1/blobs/{api.ids['address']}", b"print('hello')\n",
                                                 {"Content-Type": "application/octet-stream"})):  # fmt: skip
        api_headers = signature(api, "PUT", target, body, headers={"Danlu-Project": "default", **kind})
        taken = iter([take]) if target == path else iter([])

        async def pieces(body: bytes = body, taken: Any = taken) -> AsyncIterator[bytes]:
            yield body[:1]
            for one in taken:
                await anyio.to_thread.run_sync(one, api)
            await anyio.sleep(0.05)
            yield body[1:]

        async def go(target: str = target, headers: dict[str, str] = api_headers, pieces: Any = pieces) -> Answer:
            transport = httpx2.ASGITransport(app=_Lazily(api.gate, pieces()))
            async with httpx2.AsyncClient(transport=transport, base_url="http://danlu") as client:
                answer = await client.request("PUT", target, content=b"".join([b"x"]), headers=headers)
                return Answer(answer.status_code, answer.headers, answer.content)

        answer = anyio.run(go)
        assert answer.json()["code"] == code
    assert api.database.read(lambda tx: JOBS.get(tx, path.rpartition("/")[2])) is None


class _Lazily:
    """Gives an application its body as it is made."""

    def __init__(self, app: Any, pieces: AsyncIterator[bytes]) -> None:
        self._app, self._pieces = app, pieces

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def received() -> dict[str, Any]:
            async for piece in self._pieces:
                return {"type": "http.request", "body": piece, "more_body": True}
            return {"type": "http.request", "body": b"", "more_body": False}

        await self._app(scope, received, send)


STREAMS = ["/v1/jobs/{job}/logs/stream", "/v1/events/stream", "/v1/jobs/{job}/wait?timeout_s=50"]


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(
    ("take", "signed", "code"),
    [
        (_revoke, True, "NotAuthenticated"), (_remove, True, "NotAuthenticated"), (_leave, True, "NotFound"),
        (_revoke_token, False, "NotAuthenticated"), (_leave, False, "NotFound"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", STREAMS)
def test_a_stream_ends_with_what_it_was_opened_by(
    api: Api, take: Callable[[Api], None], signed: bool, code: str, path: str
) -> None:
    path = path.format(**api.ids)
    project = {"Danlu-Project": "default"}
    headers = signature(api, "GET", path, headers=project) if signed else {
        **project, "Authorization": f"Bearer {api.tokens['member']}"
    }  # fmt: skip

    async def later() -> None:
        await anyio.sleep(0.2)
        await anyio.to_thread.run_sync(take, api)

    async def go() -> bytes:
        with anyio.fail_after(ENDS_S):
            async with anyio.create_task_group() as group:
                group.start_soon(later)
                transport = httpx2.ASGITransport(app=api.gate)
                async with httpx2.AsyncClient(transport=transport, base_url="http://danlu") as client:
                    return (await client.get(path, headers=headers)).content

    told = anyio.run(go)
    problem = json.loads(told.rpartition(b"data: ")[2]) if b"event: error" in told else json.loads(told)
    assert problem["code"] == code


@pytest.mark.usefixtures("soon")
def test_a_stream_of_whom_nothing_was_taken_goes_on(api: Api) -> None:
    """The look itself ends nothing: else what is above would say nothing."""
    user = _actor(api, "member")

    async def go() -> None:
        watch = streams.Watch(Call(api.platform, user, "default"), Permission.WRITE, 0.01)
        for _ in range(5):
            await anyio.sleep(0.02)
            assert (await watch.call()).actor == user

    anyio.run(go)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(
    ("take", "code"),
    [(_demote, "NotAllowed"), (_leave, "NotFound"), (_revoke_token, "NotAuthenticated"), (_remove, "NotAuthenticated")],
)
def test_a_session_ends_with_what_it_was_opened_by(api: Api, take: Callable[[Api], None], code: str) -> None:
    api.opener.says, api.opener.stays = b"", True
    opened = api.opener.open_session

    def open_session(*given: Any) -> Any:
        made = opened(*given)
        take(api)
        return made

    api.opener.open_session = open_session  # type: ignore[method-assign]
    wanted = frames.REQUEST + b'{"command": ["sleep", "1000"]}'
    path = f"/v1/jobs/{api.ids['job']}/session"
    answer = api.connect(path, wanted, actor="member", stay=True, headers={"Danlu-Project": "default"})
    assert json.loads(answer.frames()[-1][1:])["code"] == code
    with api.opener.kept[-1] as ours:
        ours.settimeout(ENDS_S)
        while ours.recv(65_536):  # what ran there is told that nobody is there any more
            pass


def test_calls_are_seen_with_their_outcome(api: Api) -> None:
    path = submit_path(api)
    sent(api, "PUT", path, SPEC)
    found: list[Event] = api.database.read(lambda tx: events_after(tx, 0, Chosen(kind="call"), limit=10))
    assert [(one.reason, one.state, one.actor) for one in found] == [("jobs.submit", "done", "member")]
    assert EventsQuery(kind="call").kind == "call"
    assert api.database.read(lambda tx: MEMBERS.find(tx, limit=10))
