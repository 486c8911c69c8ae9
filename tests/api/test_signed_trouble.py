"""Signed requests when something is wrong beside them: who breaks off, and a disk that is full."""

from __future__ import annotations

import json
import time
from typing import Any

import anyio
import pytest

from danlu.errors import StorageFull
from danlu.runner import frames
from danlu.server.clock import SystemClock
from tests.api.edge import Api
from tests.api.test_signed import SECOND, SPEC, sent, signature, submit_path


def test_a_handshake_is_used_up_even_by_who_says_nothing_after_it(api: Api) -> None:
    """Else whoever has seen it could come later, and name a command of its own."""
    path = f"/v1/jobs/{api.ids['job']}/session"
    headers = {"host": "danlu", **signature(api, "GET", path, once=True)}
    assert api.connect(path, actor=None, headers=headers).status == 101
    mine = frames.REQUEST + b'{"command": ["sh", "-c", "id"]}'
    assert api.connect(path, mine, actor=None, headers=headers).status == 401
    assert api.opener.asked == []


def test_a_handshake_carries_no_command_but_its_own(api: Api) -> None:
    path = f"/v1/jobs/{api.ids['job']}/session"
    theirs, mine = (frames.REQUEST + json.dumps({"command": [name]}).encode() for name in ("true", "id"))
    for signed, said, asked in ((theirs, mine, ()), (b"", mine, ()), (theirs, theirs, ("true",))):
        headers = {"host": "danlu", **signature(api, "GET", path, signed, once=True)}
        told = api.connect(path, said, actor=None, headers=headers, stay=True).frames()[-1]
        assert json.loads(told[1:])["status"] == (409 if asked else 401)
        assert [request.command for _, _, request in api.opener.asked] == ([asked] if asked else [])


@pytest.mark.parametrize("set_s", [-86_400, -600, 600, 86_400])
def test_whoever_sets_the_clock_locks_nobody_out(api: Api, set_s: int) -> None:
    """Time that never goes back is right for records. A signer has the machine's."""
    wall = time.time_ns() - set_s * SECOND
    api.platform.clock = SystemClock(lambda: wall)
    wall = time.time_ns()
    assert sent(api, "GET", "/v1/jobs", headers={"Danlu-Project": "default"}).status == 200
    assert sent(api, "GET", "/v1/jobs", headers={"Danlu-Project": "default"}).status == 200  # what is known by now too
    path = submit_path(api)
    headers = signature(api, "PUT", path, SPEC)
    assert [api.send("PUT", path, actor=None, data=SPEC, headers=headers).status for _ in range(2)] == [201, 401]


HOSTS: dict[str, tuple[list[str], str]] = {
    "the platform's": (["danlu"], "danlu"),
    "a proxy's": (["Backend:7070"], "backend:7070"),
    "none": ([], ""),
    "two": (["danlu", "danlu"], ""),
    "no text": (["d\xe4nlu"], ""),
    "a long one": (["d" * 256], ""),
}


@pytest.mark.parametrize("hosts", HOSTS)
@pytest.mark.parametrize("proof", ["none", "a wrong token", "a signature for the platform"])
def test_a_stranger_is_told_the_host_that_was_asked_for(api: Api, hosts: str, proof: str) -> None:
    """It is what arrived, and the same whatever was wrong; who has signed for another one can see that a proxy changes it."""
    given, told = HOSTS[hosts]
    proofs = {
        "none": {}, "a wrong token": {"authorization": "Bearer danlu_wrong"},
        "a signature for the platform": {} if told == "danlu" else signature(api, "GET", "/v1/jobs"),
    }  # fmt: skip
    headers = [(b"host", host.encode("latin-1")) for host in given]
    headers += [(name.lower().encode(), value.encode()) for name, value in proofs[proof].items()]
    status, answer = asked(api, "GET", "/v1/jobs", headers)
    assert (status, answer["details"]["authority"]) == (401, told)


def asked(api: Api, method: str, path: str, headers: list[tuple[bytes, bytes]]) -> tuple[int, Any]:
    """Sends a request with headers that no client would send; returns the status and what was said."""
    answers: list[Any] = []
    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
        "scheme": "http", "http_version": "1.1", "server": ("danlu", 80), "client": ("test", 1), "headers": headers,
        "asgi": {"version": "3.0", "spec_version": "2.3"},
    }  # fmt: skip

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        answers.append(message)

    async def go() -> None:
        await api.gate(scope, receive, send)

    anyio.run(go)
    return answers[0]["status"], json.loads(b"".join(answer.get("body", b"") for answer in answers))


SITES = {
    "http://danlu": True, "https://DANLU": True, "http://evil.example": False, "null": False, "http://danlu.evil": False,
    "http://danlu:7070": False, "": False, "danlu": False,
}  # fmt: skip


@pytest.mark.parametrize("site", SITES)
def test_a_page_of_another_site_changes_nothing(api: Api, site: str) -> None:
    origin, let_in = {"Origin": site}, SITES[site]
    stop, session = f"/v1/jobs/{api.ids['job']}/stop", f"/v1/jobs/{api.ids['job']}/session"
    token = {"Authorization": f"Bearer {api.tokens['member']}"}
    assert api.send("GET", "/v1/jobs", actor="member", headers=origin).status == 200
    socket = api.connect(session, headers={"Host": "danlu", **token, **origin}, actor=None)
    assert socket.status == (101 if let_in else 403)
    answers = [
        api.send("POST", stop, actor="member", data={}, headers=origin, signed=signed) for signed in (True, False)
    ]
    assert [answer.status for answer in answers] == [202 if let_in else 403] * 2
    if not let_in:
        assert repr(site) in answers[0].json()["detail"]
        assert api.job(api.ids["job"]).desired == "run"


def test_a_page_under_a_name_that_leads_here_is_a_stranger(api: Api) -> None:
    """Nothing in a browser says by itself who its reader is: so it needs no list of names to tell such a page from others."""
    signed = {k.lower().encode(): v.encode() for k, v in signature(api, "GET", "/v1/jobs").items()}
    for host in (b"danlu", b"evil.example"):
        page = [(b"host", host), (b"origin", b"http://" + host), (b"cookie", b"session=1; token=danlu_member")]
        assert asked(api, "GET", "/v1/jobs", page)[0] == 401
        status, _ = asked(api, "GET", "/v1/jobs", [*page, *signed.items()])
        assert status == (200 if host == b"danlu" else 401)


def test_a_full_disk_keeps_nobody_from_looking(api: Api) -> None:
    """That a key was used cannot be noted then."""
    real = api.platform.database

    class Full:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def write(self, _work: Any) -> Any:
            raise StorageFull("the disk of the platform is full")

    api.platform.database = Full()  # type: ignore[assignment]
    try:
        assert sent(api, "GET", "/v1/jobs", headers={"Danlu-Project": "default"}).status == 200
        assert sent(api, "PUT", submit_path(api), SPEC, headers={"Danlu-Project": "default"}).status == 507
    finally:
        api.platform.database = real


def test_what_no_operation_takes_is_refused_each_time_and_does_nothing(api: Api) -> None:
    """It is refused before it is looked up whose project it is, so its nonce is not used: there is nothing to repeat."""
    path, body = submit_path(api), b'{"command": 3}'
    headers = signature(api, "PUT", path, body, headers={"Danlu-Project": "default"})
    for _ in range(2):
        assert api.send("PUT", path, actor=None, data=body, headers=headers).status == 422
    assert api.send("GET", path, actor="admin").status == 404
