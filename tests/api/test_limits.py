"""Limits at the edge: rates, shares, slow bodies, and input that costs more than it weighs."""

from __future__ import annotations

import json
import zlib
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.domain.actors import Actor
from danlu.errors import TooManyRequests
from danlu.server.auth import MAX_SUSPECTS
from danlu.server.limits import MAX_KNOWN, Limits, Rates, Turns, who
from tests.api.edge import Answer, Api

JSON = {"Content-Type": "application/json"}


def together(api: Api, actors: list[str | None], path: str = "/v1/whoami", headers: Any = None) -> list[Answer]:
    """Asks as each actor at the same time, by their tokens."""
    found: list[Answer] = []

    async def one(client: httpx2.AsyncClient, actor: str | None) -> None:
        proof = {} if actor is None else {"Authorization": f"Bearer {api.tokens.get(actor, actor)}"}
        answer = await client.get(path, headers={**proof, **(headers or {})})
        found.append(Answer(answer.status_code, answer.headers, answer.content))

    async def go() -> None:
        transport = httpx2.ASGITransport(app=api.gate)
        async with (
            httpx2.AsyncClient(transport=transport, base_url="http://danlu") as client,
            anyio.create_task_group() as group,
        ):
            for actor in actors:
                group.start_soon(one, client, actor)

    anyio.run(go)
    return found


@given(st.lists(st.floats(0, 10), max_size=60), st.integers(1, 10), st.floats(0.5, 20))
def test_nobody_gets_more_than_the_rate(pauses: list[float], burst: int, per_s: float) -> None:
    rates, now, taken = Rates(per_s, burst), 0.0, 0
    for pause in pauses:
        now += pause
        wait_s = rates.take("a", now)
        taken += not wait_s
        if wait_s:
            assert rates.empty("a", now)
            assert not rates.empty("b", now)
            assert not rates.empty("a", now + wait_s + 1e-6)
    assert taken <= burst + per_s * now + 1e-6


def test_who_is_known_is_bounded() -> None:
    rates = Rates(1, 2)
    for number in range(3 * MAX_KNOWN):
        assert rates.take(f"user-{number}", 0.0) == 0.0
    assert len(rates._left) <= MAX_KNOWN
    last = f"user-{3 * MAX_KNOWN - 1}"
    assert [rates.take(last, 0.0) == 0.0 for _ in range(2)] == [True, False]


def test_turns_are_given_back() -> None:
    turns = Turns(2, "things are open")
    with turns.one("a"), turns.one("a"), turns.one("b"):
        with pytest.raises(TooManyRequests, match="2 things are open already"), turns.one("a"):
            pass
        with turns.one("b"):
            pass
    assert not turns._taken


def test_who_asks_too_often_waits(api: Api) -> None:
    api.limit(requests_per_s=0.25, burst_requests=3)
    answers = [api.send("GET", "/v1/whoami", actor="member", signed=number % 2 == 0) for number in range(5)]
    assert [answer.status for answer in answers] == [200, 200, 200, 429, 429]  # over a key and a token: it is the user
    told = answers[-1].json()
    assert (told["code"], answers[-1].headers["retry-after"]) == (
        "TooManyRequests",
        str(told["details"]["retry_after_s"]),
    )
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 4
    assert "0.25 requests a second" in told["detail"]
    assert api.send("GET", "/v1/whoami", actor="viewer").status == 200
    assert api.send("GET", "/v1/jobs", actor=None, headers=JSON).status == 401


def test_attempts_are_limited_each_for_itself() -> None:
    assert who(Actor(id="k1", name="a", user="u1")) == who(Actor(id="t1", name="a", user="u1")) == "u1"
    assert who(Actor(id="j-1", name="j-1", attempt_id="j-1")) == "j-1"


def test_a_user_has_a_share_of_the_requests(api: Api) -> None:
    api.limit(requests=2)
    waits = f"/v1/jobs/{api.ids['job']}/wait?timeout_s=0.5"
    answers = together(api, ["member"] * 4 + ["viewer"] * 2, waits)
    assert sorted(answer.status for answer in answers) == [200] * 4 + [429] * 2
    assert [answer.status for answer in together(api, ["member"] * 2, waits)] == [200, 200]


def test_wrong_proofs_wait_for_each_other_and_right_ones_get_in(api: Api) -> None:
    api.limit(failures_per_s=0.01)
    assert {answer.status for answer in together(api, ["danlu_wrong"] * 20)} == {401}
    answers = together(api, ["danlu_wrong"] * (MAX_SUSPECTS + 30))
    assert {answer.status for answer in answers} == {401, 429}
    assert [answer.status for answer in together(api, ["member"])] == [200]
    assert {answer.status for answer in together(api, [None] * 200)} == {401}  # these cost nothing


def slowly(api: Api, pieces: list[bytes], pause_s: float, path: str, kind: str = "application/json") -> Answer:
    """Sends a body piece by piece."""
    left = list(pieces)

    class Slow:
        async def __call__(self, scope: Any, _receive: Any, send: Any) -> None:
            async def receive() -> dict[str, Any]:
                await anyio.sleep(pause_s)
                return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

            await api.gate(scope, receive, send)

    async def content() -> AsyncIterator[bytes]:
        yield b"instead of it"

    async def go() -> Answer:
        headers = {"Authorization": f"Bearer {api.tokens['admin']}", "Content-Type": kind}
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=Slow()), base_url="http://danlu") as client:
            answer = await client.put(path, content=content(), headers=headers)
            return Answer(answer.status_code, answer.headers, answer.content)

    return anyio.run(go)


@pytest.mark.parametrize("kind", ["application/json", "application/octet-stream"])
def test_a_body_that_does_not_come_is_not_waited_for(api: Api, kind: str) -> None:
    api.limit(body_silence_s=0.1)
    path = f"/v1/jobs/{api.new_id('j')}" if "json" in kind else f"/v1/blobs/{api.ids['address']}"
    answer = slowly(api, [b"x", b""], 30, path, kind)
    assert (answer.status, answer.json()["code"]) == (408, "TooSlow")
    assert "0.1 s" in answer.json()["detail"]


@pytest.mark.parametrize("kind", ["application/json", "application/octet-stream"])
def test_a_body_that_trickles_is_not_waited_for(api: Api, kind: str) -> None:
    api.limit(body_silence_s=0.2, body_bytes_per_s=1000)
    path = f"/v1/jobs/{api.new_id('j')}" if "json" in kind else f"/v1/blobs/{api.ids['address']}"
    answer = slowly(api, [b" "] * 1000, 0.02, path, kind)
    assert (answer.status, answer.json()["code"]) == (408, "TooSlow")
    assert "bytes of the body came in" in answer.json()["detail"]


def test_a_body_that_comes_fast_enough_is_waited_for(api: Api) -> None:
    api.limit(body_silence_s=0.2, body_bytes_per_s=1)
    body = json.dumps({"command": ["true"]}).encode()
    assert slowly(api, [body[:5], body[5:10], body[10:]], 0.1, f"/v1/jobs/{api.new_id('j')}").status == 201


NESTED = 100_000
DIGITS = "9" * 1_000_000
COSTLY = {
    "deep lists": b"[" * NESTED + b"]" * NESTED,
    "deep lists within": b'{"command": ["x"], "variables": ' + b"[" * NESTED + b"]" * NESTED + b"}",
    "deep objects": b'{"a":' * NESTED + b"1" + b"}" * NESTED,
    "never closed": b"[" * NESTED,
    "a long number": f'{{"command": ["x"], "priority": {DIGITS}}}'.encode(),
    "a long fraction": f'{{"command": ["x"], "cpu": 0.{DIGITS}, "x": 1}}'.encode(),
    "a long exponent": f'{{"command": ["x"], "cpu": 1e{DIGITS}}}'.encode(),
    "a long negative": f'{{"command": ["x"], "gpu": -{DIGITS}}}'.encode(),
    "an infinity": b'{"command": ["x"], "cpu": Infinity}',
    "no number": b'{"command": ["x"], "cpu": NaN}',
    "half of a pair": b'{"command": ["\\ud800"]}',
    "no text": b'{"command": ["\xff\xfe"]}',
    "a nought": b'{"command": ["a\\u0000b"]}',
    "many keys": ("{" + ",".join(f'"k{n}": 1' for n in range(100_000)) + "}").encode(),
    "one key often": ("{" + ",".join('"command": ["x"]' for _ in range(100_000)) + ', "x": 1}').encode(),
    "many words": json.dumps({"command": ["x"] * 500_000}).encode(),
    "a form": b"command=x",
    "another character set": '{"command": ["é"], "x": 1}'.encode("utf-16"),
    "too long": b" " * (4 * 2**20 + 1),
}


@pytest.mark.parametrize("body", COSTLY.values(), ids=COSTLY.keys())
@pytest.mark.parametrize("path", ["/v1/jobs/{job}", "/v1/users/eve", "/v1/environments", "/v1/blobs/splices"])
def test_what_costs_more_than_it_weighs_is_refused(api: Api, path: str, body: bytes) -> None:
    filled = path.format(job=api.new_id("j"))
    method = "PUT" if path.startswith(("/v1/jobs", "/v1/users")) else "POST"
    answer = api.send(method, filled, data=body, headers=JSON)
    assert 400 <= answer.status < 500, answer.content
    assert answer.json()["status"] == answer.status
    assert len(answer.content) < 20_000


@pytest.mark.parametrize("path", ["/v1/blobs", "/v1/blobs/{address}", "/v1/blobs/{address}/received"])
def test_what_is_inflated_is_bounded(api: Api, path: str) -> None:
    method = "POST" if path == "/v1/blobs" else "PUT"
    bomb = zlib.compress(bytes(100 * 2**20), 9)
    answer = api.send(method, path.format(**api.ids), data=bomb, headers={"Content-Encoding": "deflate"})
    assert (answer.status, answer.json()["code"]) == (413, "TooLarge")


def test_a_user_meets_no_limit_by_chance() -> None:
    found = Limits()
    assert found.requests_per_s >= 500
    assert found.burst_requests >= 1000
    assert found.streams < found.requests
