"""The way from a server to the played cluster, without a network: requests are lost, slow, or answered with an error."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from threading import Event
from typing import Any
from urllib.parse import urlencode

from danlu.executors.kubernetes.client import TIMEOUT_S
from tests.cluster import Answer, Cluster
from tests.simulation.faults import SECOND, Killed, Time

ERRORS = (
    (500, "InternalError", "etcdserver: request timed out"),
    (429, "TooManyRequests", "the server has received too many requests"),
    (503, "ServiceUnavailable", "the server is currently unable to handle the request"),
    (409, "Conflict", "the object has been modified"),
    (410, "Expired", "the provided continue parameter is too old"),
)


@dataclass
class Reply:
    """See httpx2.Response: what of it the client uses."""

    status_code: int
    content: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    ended: Callable[[], object] = lambda: None

    @property
    def text(self) -> str:
        return self.content.decode()

    def json(self) -> Any:
        return json.loads(self.content)

    def read(self) -> bytes:
        return self.content

    def iter_lines(self) -> Iterator[str]:
        yield from self.text.splitlines()
        self.ended()

    def close(self) -> None:
        pass


@dataclass
class Trouble:
    """What is wrong with the cluster's API, and until when (ns)."""

    down_until: int = 0
    slow_until: int = 0
    erring_until: int = 0
    erring: float = 0.0
    """how often (0..1) an answer is an error at any time, or the server is killed as it asks"""


@dataclass
class Wire:
    """See httpx2.Client: what of it the client of the API uses."""

    cluster: Cluster
    time: Time
    random: Random
    trouble: Trouble
    between: Callable[[], None]
    """somebody else acts"""
    posted: Callable[[str, Any], None] = lambda _kind, _item: None
    stopping: Event | None = None
    """of the watch that is open"""

    def request(
        self, method: str, path: str, *, params: Mapping[str, Any] | None = None, content: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:  # fmt: skip
        del headers
        trouble, now = self.trouble, self.time.now()
        self.time.at += SECOND // 1000
        if trouble.down_until > now:
            raise ConnectionRefusedError("the API server is down")
        self.between()
        answer_lost = method != "GET" and self.random.random() < 3 * trouble.erring
        if trouble.slow_until > now:
            took_s = self.random.choice([0.5, 3.0, TIMEOUT_S + 1])
            self.time.at += int(min(took_s, TIMEOUT_S) * SECOND)
            answer_lost = answer_lost or took_s > TIMEOUT_S
        before = self._error(now)
        self._perhaps_killed()
        if before is not None:
            return before
        url = path + ("?" + urlencode(params) if params else "")
        reply = self._answer(method, url, None if content is None else json.loads(content))
        self._perhaps_killed()
        if answer_lost and self.random.random() < 0.5:
            return refusal(*ERRORS[0])  # an error, though it was done
        if answer_lost:
            raise TimeoutError("no answer")
        return reply

    def _answer(self, method: str, url: str, body: Any) -> Reply:
        try:
            found = self.cluster.handle(method, url, body)
        except Answer as answer:
            return refusal(answer.status, answer.reason, answer.message)
        if method == "POST":
            self.posted(url.rsplit("/", 1)[-1], found)
        return Reply(200, found if isinstance(found, bytes) else json.dumps(found).encode())

    def _error(self, now: int) -> Reply | None:
        often = 0.7 if self.trouble.erring_until > now else self.trouble.erring
        return refusal(*self.random.choice(ERRORS)) if self.random.random() < often else None

    def _perhaps_killed(self) -> None:
        if self.random.random() < self.trouble.erring / 40:
            raise Killed

    def build_request(self, method: str, path: str, *, params: Mapping[str, Any], timeout: float) -> str:
        del method, timeout
        return path + "?" + urlencode(params)

    def send(self, request: str, *, stream: bool) -> Reply:
        """Opens a watch, which is cut, or ended in good order; either way it is not begun again."""
        del stream
        assert self.stopping is not None
        if self.trouble.down_until > self.time.now() or self._error(self.time.at) is not None:
            self.stopping.set()
            raise ConnectionResetError("the watch was cut")
        return Reply(200, self.cluster.watch(request), ended=self.stopping.set)

    def close(self) -> None:
        pass


def refusal(status: int, reason: str, message: str) -> Reply:
    said = {"kind": "Status", "reason": reason, "message": message, "code": status}
    return Reply(status, json.dumps(said).encode())
