"""Signed requests when something is wrong beside them: who breaks off, and a disk that is full."""

from __future__ import annotations

import json
import time
from typing import Any

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
