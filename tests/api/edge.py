"""A platform behind its real edge, without controllers or processes: what is written stays as it was asked."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx2

from danlu.api import BY_ID, Operation
from danlu.blobs.local import LocalBlobs
from danlu.blobs.streams import StreamKey, Streams
from danlu.database.engine import Database, Transaction
from danlu.database.records import ARTIFACTS, ATTEMPTS, ENVIRONMENTS, JOBS, NODES, PROJECTS, TOKENS
from danlu.domain.ids import make_id
from danlu.domain.jobs import AttemptState, Job, JobState, Reason
from danlu.domain.trees import Entry, address_of, encode
from danlu.server.app import build
from danlu.server.auth import Gate
from danlu.services.access import attempt_token, digest
from danlu.services.context import Platform, PlatformFacts
from tests.factories import (
    NOW,
    make_artifact,
    make_attempt,
    make_environment,
    make_job,
    make_node,
    make_project,
    make_token,
)

BOOTSTRAP = "danlu_bootstrap"
ATTEMPT_KEY = b"k" * 32
FILE = b"print('hello')\n"


class SystemClock:
    def now(self) -> int:
        return time.time_ns()


@dataclass
class Answer:
    status: int
    headers: Any
    content: bytes

    def json(self) -> Any:
        return json.loads(self.content)


@dataclass
class Api:
    """Calls a platform as this or that actor."""

    database: Database
    folder: Path
    ids: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        facts = PlatformFacts(home=str(self.folder), started_at=NOW, isolation="one user", host_environment=True)
        self.platform = Platform(
            database=self.database, blobs=LocalBlobs(self.folder / "blobs"), streams=Streams(self.folder / "blobs"),
            clock=SystemClock(), random_bits=secrets.randbits, facts=facts, attempt_key=ATTEMPT_KEY,
            bootstrap_digest=digest(BOOTSTRAP), url="http://danlu",
        )  # fmt: skip
        self.app, self.edge = build(self.platform, self.folder)
        self.gate = Gate(self.app, self.platform, lambda: True)
        self.tokens = {"bootstrap": BOOTSTRAP, "member": "danlu_member", "foreign": "danlu_foreign"}
        self.database.write(self._fill)
        self.tokens["attempt"] = attempt_token(ATTEMPT_KEY, self.ids["attempt"])
        for blob in (FILE, self.node):
            self.platform.blobs.put_many("default", [(address_of(blob), blob)])
        environment = StreamKey("default", self.ids["environment"], "build", "log")
        self.platform.streams.append(environment, 0, b"resolved\n")

    def _fill(self, tx: Transaction) -> None:
        """Stores one thing of every kind, in project default; project other has a token."""
        self.node = encode([Entry("a.py", "file", address_of(FILE), 0o644, len(FILE))])
        PROJECTS.add(tx, make_project("default", 0))
        PROJECTS.add(tx, make_project("other", 1))
        NODES.add(tx, make_node(cpu=4, gpu=2))
        for name, project in (("member", "default"), ("foreign", "other")):
            TOKENS.add(tx, make_token(self.new_id("t"), name=name, project=project, digest=digest(self.tokens[name])))
        token = make_token(self.new_id("t"), digest="0" * 64)
        TOKENS.add(tx, token)
        job = make_job(self.new_id("j"), name="train")
        JOBS.add(tx, job)
        admitted = job.moved(JobState.ADMITTED, now=NOW, reason=Reason.PLACED)
        starting = admitted.moved(JobState.STARTING, now=NOW, reason=Reason.LAUNCHING, attempts=1)
        running = starting.moved(JobState.RUNNING, now=NOW, reason=Reason.STARTED)
        for old, new in ((job, admitted), (admitted, starting), (starting, running)):
            JOBS.put(tx, old, new)
        attempt = make_attempt(running)
        launching = attempt.moved(AttemptState.LAUNCHING, now=NOW, reason=Reason.LAUNCHING)
        ATTEMPTS.add(tx, attempt)
        ATTEMPTS.put(tx, attempt, launching)
        artifact = make_artifact(self.new_id("a"), job_id=job.id, attempt_id=attempt.id)
        ARTIFACTS.add(tx, artifact)
        environment = make_environment(self.new_id("e"))
        ENVIRONMENTS.add(tx, environment)
        ended = make_job(self.new_id("j"), name="over")
        JOBS.add(tx, ended)
        JOBS.put(tx, ended, ended.moved(JobState.CANCELLED, now=NOW, reason=Reason.STOPPED, ended_at=NOW))
        self.ids |= {
            "job": job.id, "ended": ended.id, "attempt": attempt.id, "artifact": artifact.id, "token": token.id,
            "environment": environment.id, "address": address_of(FILE), "task": "main-0", "stream": "log",
        }  # fmt: skip

    @staticmethod
    def new_id(letter: str) -> str:
        return make_id(letter, time.time_ns(), secrets.randbits(82))

    def send(self, method: str, path: str, *, actor: str | None = "bootstrap", data: Any = None,
             headers: dict[str, str] | None = None) -> Answer:  # fmt: skip
        """Sends a request as an actor (None: as a stranger)."""
        sent = dict(headers or {})
        if actor is not None:
            sent["Authorization"] = f"Bearer {self.tokens[actor]}"
        if isinstance(data, bytes):
            sent.setdefault("Content-Type", "application/octet-stream")
            content = data
        else:
            content = b"" if data is None else json.dumps(data).encode()
            if data is not None:
                sent.setdefault("Content-Type", "application/json")

        async def go() -> Answer:
            transport = httpx2.ASGITransport(app=self.gate)
            async with httpx2.AsyncClient(transport=transport, base_url="http://danlu") as client:
                answer = await client.request(method, path, content=content, headers=sent)
                return Answer(answer.status_code, answer.headers, answer.content)

        return anyio.run(go)

    def path(self, operation: Operation, **changed: str) -> str:
        return operation.path.format(**{**self.ids, **changed})

    def call(self, operation_id: str, *, actor: str | None = "bootstrap", data: Any = None, query: str = "",
             **ids: str) -> Answer:  # fmt: skip
        operation = BY_ID[operation_id]
        return self.send(operation.method, self.path(operation, **ids) + query, actor=actor, data=data)

    def submit(self, actor: str = "bootstrap", **spec: Any) -> Answer:
        return self.call(
            "jobs.submit", job=self.new_id("j"), actor=actor, data={"command": ["python", "train.py"], **spec}
        )

    def job(self, job_id: str) -> Job:
        return self.database.read(lambda tx: JOBS.require(tx, job_id))


def bodies(api: Api) -> dict[str, Any]:
    """A right body for each operation that takes one."""
    piece = b"1700000000000000000 o. hello\n"
    return {
        "platform.stop": {"jobs": False},
        "jobs.submit": {"command": ["python", "train.py"]},
        "jobs.stop": {},
        "jobs.retry": {"id": api.new_id("j")},
        "blobs.missing": {"addresses": [api.ids["address"], address_of(b"new")]},
        "blobs.pack": b"",
        "blobs.put": FILE,
        "environments.build": {"env": "python"},
        "tokens.make": {"name": "ci"},
        "attempts.append": piece,
    }
