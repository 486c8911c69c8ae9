"""The whole OpenAPI document, tried with what it allows and what it does not: 2,000 signed requests.

``DANLU_FUZZ_SEED`` tries others; the seed is told where something is found.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2
import hypothesis
import pytest
import requests
import schemathesis
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from danlu.api import OPERATIONS, Operation, Permission
from danlu.database.engine import Database
from danlu.domain.signing import Message, lowered
from tests.api.edge import Api

SEED: Final = int(os.environ.get("DANLU_FUZZ_SEED", "9421"))
CASES: Final = 2000
EACH: Final = -(-CASES // (2 * len(OPERATIONS)))
MAX_TARGET: Final = 60_000
CHECKS: Final = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance,
    response_schema_conformance,
]  # fmt: skip

HARD: Final = frozenset({
    "sessions.open", "jobs.submit", "jobs.retry", "arrays.retry", "members.set", "members.remove",
    "keys.expire", "keys.revoke", "tokens.revoke", "users.change", "users.remove",
    *(operation.id for operation in OPERATIONS if operation.permission is Permission.ATTEMPT),
})  # fmt: skip
"""These need more than what is allowed: things that belong together, and were not removed by another operation before."""


class Fuzzed:
    """A platform, its document, and one client in one event loop."""

    def __init__(self, api: Api, portal: BlockingPortal) -> None:
        self.api, self.portal = api, portal
        api.limit(requests_per_s=1e9, burst_requests=10**9)
        api.edge.streams.end()  # so that each answer has an end
        self.document = api.send("GET", "/v1/openapi.json").json()
        self.schema = schemathesis.openapi.from_dict(self.document)
        refusals = self.schema.config.checks.negative_data_rejection.expected_statuses
        self.schema.config.checks.negative_data_rejection.expected_statuses = [
            *refusals,
            "413",
        ]  # too much is refused too
        self.client = httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=api.gate, raise_app_exceptions=False), base_url="http://danlu"
        )
        self.answers: dict[str, set[int]] = {}

    def send(self, case: Any, operation: Operation) -> httpx2.Response:
        """Sends a case, signed, as the platform's administrator."""
        given = case.as_transport_kwargs(base_url="http://danlu")
        given = {k: v for k, v in given.items() if k in ("method", "url", "headers", "params", "json", "data", "files")}
        prepared = requests.Request(**given).prepare()
        body = prepared.body or b""
        body = body.encode() if isinstance(body, str) else body
        headers = {k: v for k, v in prepared.headers.items() if k.lower() not in ("content-length", "accept-encoding")}
        parts = urlsplit(str(prepared.url))
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        hypothesis.assume(len(target) < MAX_TARGET)
        path, _, query = target.partition("?")
        message = Message(
            prepared.method or "", "danlu", path, query, lowered({k: _text(v) for k, v in headers.items()})
        )
        proof = self.api.keys["admin"].headers(message, body)

        async def go() -> httpx2.Response:
            return await self.client.request(prepared.method or "", target, content=body, headers={**headers, **proof})

        answer = self.portal.call(go)
        self.answers.setdefault(operation.id, set()).add(answer.status_code)
        return answer


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzed]:
    folder: Path = tmp_path_factory.mktemp("fuzzed")
    database = Database.open(f"sqlite:///{folder / 'danlu.db'}")
    api = Api(database, folder)
    with start_blocking_portal() as portal:
        made = Fuzzed(api, portal)
        yield made
        portal.call(made.client.aclose)
    api.opener.close()
    database.close()


def _can_be_wrong(operation: Operation) -> bool:
    """Says whether there is anything that the document does not allow: names in paths are any text, raw bodies any bytes."""
    return operation.query is not None or operation.body not in (None, bytes)


def _tried(fuzzed: Fuzzed, operation: Operation, mode: GenerationMode, cases: int) -> None:
    described = fuzzed.schema[operation.path][operation.method]
    checks = CHECKS if mode is GenerationMode.POSITIVE else [*CHECKS, negative_data_rejection]

    @hypothesis.seed(SEED)
    @settings(max_examples=cases, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(described.as_strategy(generation_mode=mode), st.booleans())
    def tried(case: Any, known: bool) -> None:
        if known:  # of a thing that is there
            ids = {**fuzzed.api.ids, **({"job": fuzzed.api.ids["ended"]} if operation.id == "jobs.wait" else {})}
            if operation.id == "jobs.hold":
                ids["job"] = fuzzed.api.waiting()
            case.path_parameters = {name: ids[name] for name in case.path_parameters or {}}
            case.headers.pop("Danlu-Project", None)
        case.validate_response(fuzzed.send(case, operation), checks=checks)

    print(f"seed {SEED}: DANLU_FUZZ_SEED tries others")
    tried()


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.id)
def test_what_the_document_allows_is_answered_as_it_says(fuzzed: Fuzzed, operation: Operation) -> None:
    _tried(fuzzed, operation, GenerationMode.POSITIVE, EACH if _can_be_wrong(operation) else 2 * EACH)
    if operation.id not in HARD:  # what only ever refuses says little
        assert operation.status in fuzzed.answers[operation.id]


@pytest.mark.parametrize("operation", [*filter(_can_be_wrong, OPERATIONS)], ids=lambda operation: operation.id)
def test_what_the_document_does_not_allow_is_refused(fuzzed: Fuzzed, operation: Operation) -> None:
    _tried(fuzzed, operation, GenerationMode.NEGATIVE, EACH)
