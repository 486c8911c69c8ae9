"""Limits at the edge: rates, shares, slow bodies, and input that costs more than it weighs."""

from __future__ import annotations

import contextlib
import json
import threading
import zlib
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from danlu.client.credentials import Credentials
from danlu.database import queries
from danlu.database.records import ATTEMPTS, JOBS
from danlu.domain.actors import Actor
from danlu.domain.events import CALL, Event
from danlu.domain.signing import Message
from danlu.errors import TooManyRequests
from danlu.server.limits import MAX_KNOWN, MAX_REQUESTS, MAX_STREAMS, Limits, Rates, Turns, who
from danlu.services.access import attempt_token
from danlu.services.vault import DECOY
from tests.api.edge import ATTEMPT_KEY, Answer, Api
from tests.api.test_signed import sent, signature
from tests.factories import make_attempt, make_job

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
    for number, pause in enumerate(pauses):
        now += pause
        wait_s = rates.take("a", now)
        taken += not wait_s
        if wait_s:
            assert rates.take("a", now + wait_s * 0.9) > 0
            assert rates.take(f"b{number}", now) == 0
    assert taken <= burst + per_s * now + 1e-6


def test_after_the_time_that_it_was_told_to_wait_one_gets_in() -> None:
    rates = Rates(0.5, 1)
    assert rates.take("a", 0.0) == 0
    assert rates.take("a", 1.0) == pytest.approx(1.0)
    assert rates.take("a", 2.0 + 1e-6) == 0


def test_who_is_known_is_bounded() -> None:
    rates = Rates(1, 2)
    for number in range(3 * MAX_KNOWN):
        assert rates.take(f"user-{number}", 0.0) == 0.0
    assert len(rates._left) <= MAX_KNOWN
    last = f"user-{3 * MAX_KNOWN - 1}"
    assert [rates.take(last, 0.0) == 0.0 for _ in range(2)] == [True, False]


def user(name: str) -> Actor:
    return Actor(id=f"k-{name}", name=name, user=f"u-{name}")


def attempt(job: str, project: str) -> Actor:
    return Actor(id=f"{job}-1", name=f"{job}-1", project=project, attempt_id=f"{job}-1")


ADA, BOB, EVE = user("ada"), user("bob"), user("eve")


def take(turns: Turns, stack: contextlib.ExitStack, actors: list[Actor]) -> int:
    """Takes a turn for each; returns how many there were."""
    taken = 0
    for actor in actors:
        with contextlib.suppress(TooManyRequests):
            stack.enter_context(turns.one(actor))
            taken += 1
    return taken


def test_turns_are_given_back() -> None:
    turns = Turns(2, 100, "things are open")
    with turns.one(ADA), turns.one(ADA), turns.one(BOB):
        with pytest.raises(TooManyRequests, match="of yours, 2 things are open already"), turns.one(ADA):
            pass
        with turns.one(BOB):
            pass
    with contextlib.ExitStack() as stack:
        assert take(turns, stack, [ADA] * 3 + [attempt("a", "vision")] * 3) == 4
    with contextlib.ExitStack() as stack:
        assert take(turns, stack, [ADA] * 3 + [attempt("a", "vision")] * 3) == 4
    assert not turns._taken


def test_all_of_them_together_are_bounded() -> None:
    turns = Turns(2, 3, "things are open")
    with contextlib.ExitStack() as stack:
        assert take(turns, stack, [ADA, ADA, BOB, BOB]) == 3
        with pytest.raises(TooManyRequests, match="3 things are open already"):
            turns.require(EVE)


def test_the_last_turns_are_for_administrators() -> None:
    turns, root = Turns(40, 32, "things are open"), EVE.model_copy(update={"administrator": True})
    with contextlib.ExitStack() as stack:
        assert take(turns, stack, [ADA] * 40) == 30
        with pytest.raises(TooManyRequests, match="30 things are open already"):
            turns.require(BOB)
        assert take(turns, stack, [root] * 3) == 2


def test_the_jobs_of_a_project_share_and_all_jobs_leave_half_to_people() -> None:
    turns = Turns(3, 10, "things are open")
    with contextlib.ExitStack() as stack:
        assert take(turns, stack, [attempt(str(number), "vision") for number in range(10)]) == 3
        with pytest.raises(TooManyRequests, match="of the jobs of vision, 3 things"):
            turns.require(attempt("one-more", "vision"))
        others = [attempt(str(number), f"project-{number}") for number in range(10)]
        assert take(turns, stack, others) == 2
        with pytest.raises(TooManyRequests, match="of all jobs, 5 things are open already"):
            turns.require(attempt("x", "y"))
        assert take(turns, stack, [ADA, ADA, BOB, BOB, EVE]) == 5


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


def test_whose_limits_count() -> None:
    assert who(Actor(id="k1", name="a", user="u1")) == who(Actor(id="t1", name="a", user="u1")) == "u1"
    assert who(attempt("j1", "vision")) == who(attempt("j2", "vision")) != who(attempt("j1", "speech"))


def another_attempt(api: Api) -> str:
    """Returns the token of an attempt of another job of the same project."""
    job = make_job(api.new_id("j"), name="another", attempts=1)
    attempt = make_attempt(job)
    api.database.write(lambda tx: (JOBS.add(tx, job), ATTEMPTS.add(tx, attempt)))
    return attempt_token(ATTEMPT_KEY, attempt.id)


def test_the_rate_is_one_for_all_jobs_of_a_project(api: Api) -> None:
    api.limit(requests_per_s=0.001, burst_requests=2)
    api.tokens["another"] = another_attempt(api)
    found = [
        api.send("GET", "/v1/whoami", actor=actor).status for actor in ("attempt", "another", "another", "attempt")
    ]
    assert (found[:2].count(429), found[2:]) == (0, [429, 429])
    assert api.send("GET", "/v1/whoami", actor="member").status == 200


def test_a_user_has_a_share_of_the_requests(api: Api) -> None:
    api.limit(requests=2)
    waits = f"/v1/jobs/{api.ids['job']}/wait?timeout_s=0.5"
    answers = together(api, ["member"] * 4 + ["viewer"] * 2, waits)
    assert sorted(answer.status for answer in answers) == [200] * 4 + [429] * 2
    assert [answer.status for answer in together(api, ["member"] * 2, waits)] == [200, 200]


def test_nothing_but_waiting_for_wishes_takes_no_turn(api: Api) -> None:
    """A job names its checkpoints as it likes."""
    api.limit(requests=0)
    own = f"/v1/attempts/{api.ids['attempt']}"
    asked = [
        ("GET", "/wishes"),
        ("PUT", "/checkpoints/wishes"),
        ("PUT", "/wishes"),
        ("GET", "/blobs/wishes"),
        ("GET", "/code"),
    ]
    found = [api.send(method, own + path, actor="attempt", headers=JSON).status for method, path in asked]
    assert found == [200, 429, 429, 429, 429]


def test_a_good_proof_gets_in_however_many_wrong_ones_come_with_it(api: Api) -> None:
    """From one address: behind a proxy, or on one machine, all people have the same."""
    wrong: list[str | None] = ["danlu_wrong"] * (MAX_REQUESTS + 100)
    answers = together(api, [*wrong, "member", None])
    assert sorted(answer.status for answer in answers) == [200] + [401] * (len(wrong) + 1)


def test_strangers_keep_few_threads_busy(api: Api) -> None:
    """Who is known is answered while all of theirs are looked at, however long that takes."""
    path, real, looks, over = "/v1/jobs", api.platform.vault, threading.Semaphore(0), threading.Event()
    assert [sent(api, "GET", path).status for _ in range(2)] == [200, 200]  # from now on its key is known

    class Slow:
        decoy = real.decoy

        def open(self, sealed: Any, of: str) -> bytes:
            if of == DECOY:
                looks.release()
                over.wait(60)
            return real.open(sealed, of)

    async def ask(client: httpx2.AsyncClient, credentials: Credentials, found: list[int]) -> None:
        headers = credentials.headers(Message("GET", "danlu", path))
        found.append((await client.get(path, headers=headers)).status_code)

    async def go() -> None:
        strangers: list[int] = []
        member: list[int] = []
        transport = httpx2.ASGITransport(app=api.gate)
        async with (
            httpx2.AsyncClient(transport=transport, base_url="http://danlu") as client,
            anyio.create_task_group() as group,
        ):
            try:
                for _ in range(100):
                    group.start_soon(ask, client, Credentials("wrong", api.new_id("k")), strangers)
                with anyio.fail_after(30):
                    while not looks.acquire(blocking=False):
                        await anyio.sleep(0)
                    await ask(client, api.keys["member"], member)
            finally:
                over.set()
        assert (member, set(strangers), len(strangers)) == ([200], {401}, 100)

    api.platform.vault = Slow()  # type: ignore[assignment]
    anyio.run(go)


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
    assert found.requests < MAX_REQUESTS // 2
    assert found.streams < MAX_STREAMS // 2


def calls(api: Api) -> list[Event]:
    return api.database.read(lambda tx: queries.events_after(tx, 0, queries.Chosen(kind=CALL), limit=1000))


@pytest.mark.parametrize(
    ("operation", "actor", "code"),
    [
        ("jobs.stop", "viewer", "NotAllowed"),
        ("jobs.stop", "member", "NotFound"),
        ("users.make", "member", "NotAllowed"),
    ],
)
def test_of_many_refusals_few_are_stored_and_the_others_counted(
    api: Api, operation: str, actor: str, code: str
) -> None:
    api.limit(burst_stored_refusals=3, stored_refusals_per_s=1e-9)
    for number in range(8):
        api.call(operation, job="nothing", user="eve", actor=actor, data={}, signed=number % 2 == 0)
    assert [event.state for event in calls(api)] == [code] * 3
    api.edge._refusals = Rates(1e-9, 1)  # as after a while
    api.call(operation, job="nothing", user="eve", actor=actor, data={})
    assert calls(api)[-1].message == "5 more were refused before it"
    assert [event.message for event in calls(api)[:-1]] == [""] * 3


def test_what_is_done_is_stored_whatever_was_refused_before(api: Api) -> None:
    api.limit(burst_stored_refusals=1, stored_refusals_per_s=1e-9)
    for _ in range(3):
        assert api.call("jobs.stop", job="nothing", actor="member", data={}).status == 404
    assert api.call("jobs.stop", actor="member", data={}).status < 300
    assert [event.state for event in calls(api)] == ["NotFound", "done"]


def test_what_is_refused_and_not_stored_is_used_up_all_the_same(api: Api) -> None:
    api.limit(burst_stored_refusals=1, stored_refusals_per_s=1e-9)
    path = f"/v1/jobs/{api.new_id('j')}/stop"
    body = b"{}"
    assert sent(api, "POST", path, body).status == 404
    headers = signature(api, "POST", path, body)
    once = api.send("POST", path, actor=None, data=body, headers=headers)
    again = api.send("POST", path, actor=None, data=body, headers=headers)
    assert (once.status, again.status) == (404, 401)


def test_what_the_rate_refuses_is_not_stored(api: Api) -> None:
    api.limit(requests_per_s=1e-9, burst_requests=2)
    answers = [api.call("jobs.stop", job="nothing", actor="member", data={}, signed=True).status for _ in range(10)]
    assert answers == [404] * 2 + [429] * 8
    assert len(calls(api)) == 2
