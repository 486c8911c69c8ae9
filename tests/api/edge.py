"""A platform behind its real edge, without controllers or processes: what is written stays as it was asked."""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx2

from danlu.api import BY_ID, Operation
from danlu.blobs.local import LocalBlobs
from danlu.blobs.local_streams import LocalStreams
from danlu.blobs.streams import StreamKey
from danlu.client.credentials import Credentials
from danlu.database.engine import Database, Transaction
from danlu.database.records import (
    ARRAYS,
    ARTIFACTS,
    ATTEMPTS,
    ENVIRONMENTS,
    JOBS,
    KEYS,
    MEMBERS,
    NODES,
    PRICES,
    PROJECTS,
    QUOTAS,
    SECRETS,
    TOKENS,
    USERS,
)
from danlu.domain.actors import Role
from danlu.domain.environments import Archive, EnvironmentReason, EnvironmentSource, EnvironmentState
from danlu.domain.ids import make_id
from danlu.domain.jobs import AttemptState, Job, JobState, Reason
from danlu.domain.sessions import SessionRequest
from danlu.domain.signing import Message, lowered
from danlu.domain.trees import Entry, address_of, encode
from danlu.errors import NotRunning
from danlu.server.app import build
from danlu.server.auth import Gate
from danlu.server.clock import SystemClock
from danlu.server.limits import Limits
from danlu.services.access import attempt_token, digest
from danlu.services.context import Platform, PlatformFacts
from danlu.services.vault import Vault
from tests.factories import (
    NOW,
    make_array,
    make_artifact,
    make_attempt,
    make_environment,
    make_job,
    make_key,
    make_member,
    make_node,
    make_price,
    make_project,
    make_quota,
    make_secret,
    make_token,
    make_user,
)

ADMIN = "danlu_admin"
MEMBERS_OF: dict[str, tuple[str, Role]] = {
    "viewer": ("default", Role.VIEWER), "member": ("default", Role.DEVELOPER), "manager": ("default", Role.ADMIN),
    "foreign": ("other", Role.ADMIN),
}  # fmt: skip
"""Whom a test can be, beside ``admin``, who administers the platform: the project and the role in it."""
ATTEMPT_KEY = b"k" * 32
FILE = b"print('hello')\n"
STAY_S = 30.0


class Runners:
    """Plays a runner's end of a session: what was to be said is said; without that, nobody is let in."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, SessionRequest]] = []
        self.says: bytes | None = None
        self.stays = False
        self.kept: list[socket.socket] = []

    def open_session(self, attempt_id: str, task: str, request: SessionRequest) -> socket.socket:
        self.asked.append((attempt_id, task, request))
        if self.says is None:
            raise NotRunning("nothing runs here")
        ours, theirs = socket.socketpair()
        self.kept.append(ours)
        threading.Thread(target=self._say, args=(ours, self.says), daemon=True).start()
        return theirs

    def _say(self, ours: socket.socket, says: bytes) -> None:
        with contextlib.suppress(OSError):  # the other side need not listen to all of it
            ours.sendall(says)
            if not self.stays:
                ours.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Lets go of what no test has heard."""
        for ours in self.kept:
            ours.close()

    def heard(self) -> bytes:
        """Returns what came, once the other side has gone."""
        heard = b""
        with self.kept.pop() as ours:
            while data := ours.recv(65_536):
                heard += data
        return heard


@dataclass
class Answer:
    status: int
    headers: Any
    content: bytes

    def json(self) -> Any:
        return json.loads(self.content)


@dataclass
class Connected:
    """What a web socket was answered."""

    messages: list[dict[str, Any]]

    @property
    def status(self) -> int:
        """101, or what it was refused with."""
        first = self.messages[0]
        return 101 if first["type"] == "websocket.accept" else int(first.get("status", 403))

    def headers(self) -> dict[str, str]:
        return {name.decode().lower(): value.decode() for name, value in self.messages[0]["headers"]}

    def json(self) -> Any:
        """The body of a refusal."""
        return json.loads(b"".join(m["body"] for m in self.messages if m["type"] == "websocket.http.response.body"))

    def frames(self) -> list[bytes]:
        return [m["bytes"] for m in self.messages if m["type"] == "websocket.send"]


@dataclass
class Api:
    """Calls a platform as this or that actor."""

    database: Database
    folder: Path
    ids: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        facts = PlatformFacts(home=str(self.folder), started_at=NOW, isolation="one user", host_environment=True)
        self.platform = Platform(
            database=self.database, blobs=LocalBlobs(self.folder / "blobs"), streams=LocalStreams(self.folder / "blobs"),
            clock=SystemClock(), random_bits=secrets.randbits, facts=facts, attempt_key=ATTEMPT_KEY,
            vault=Vault(b"m" * 32, secrets.token_bytes), url="http://danlu",
        )  # fmt: skip
        self.opener = Runners()
        self.app, self.edge = build(self.platform, self.folder, self.opener)
        self.gate = Gate(self.app, self.platform, lambda: True)
        self.tokens = {"admin": ADMIN, **{name: f"danlu_{name}" for name in MEMBERS_OF}}
        self.keys: dict[str, Credentials] = {}
        self.database.write(self._fill)
        self.tokens["attempt"] = attempt_token(ATTEMPT_KEY, self.ids["attempt"])
        for blob in (FILE, self.node):
            self.platform.blobs.put_many("default", [(address_of(blob), blob)])
        environment = StreamKey("default", self.ids["environment"], "build", "log")
        self.platform.streams.append(environment, 0, b"resolved\n")

    def limit(self, **limits: Any) -> None:
        """Builds the edge again, with other limits."""
        found = Limits(**limits)
        self.app, self.edge = build(self.platform, self.folder, self.opener, found)
        self.gate = Gate(self.app, self.platform, lambda: True, found)

    def _fill(self, tx: Transaction) -> None:
        """Stores one thing of every kind, in project default; project other has a token."""
        self.node = encode([Entry("a.py", "file", address_of(FILE), 0o644, len(FILE))])
        PROJECTS.add(tx, make_project("default", 0))
        PROJECTS.add(tx, make_project("other", 1))
        QUOTAS.add(tx, make_quota("default"))
        NODES.add(tx, make_node(cpu=4, gpu=2))
        for name in self.tokens:
            user = make_user(self.new_id("u"), name=name, administrator=name == "admin")
            USERS.add(tx, user)
            bound = {"user": user.id, "project": "", "bound": False}
            TOKENS.add(tx, make_token(self.new_id("t"), digest=digest(self.tokens[name]), **bound))
            key = self.new_id("k")
            self.keys[name] = Credentials(f"secret-of-{name}", key)
            sealed = self.platform.vault.seal(self.keys[name].secret.encode(), key)
            KEYS.add(tx, make_key(user.id, key, sealed=sealed))
            if name in MEMBERS_OF:
                MEMBERS.add(tx, make_member(user, *MEMBERS_OF[name], member_id=self.new_id("m")))
        owner = next(iter(USERS.find(tx, name="member", limit=1)))
        token = make_token(self.new_id("t"), user=owner.id, digest="0" * 64)
        TOKENS.add(tx, token)
        key = make_key(owner.id, self.new_id("k"))
        KEYS.add(tx, key)
        secret = self.new_id("s")
        SECRETS.add(tx, make_secret(secret, name="HF_TOKEN", sealed=self.platform.vault.seal(b"hf_0123456789", secret)))
        price = make_price(self.new_id("p"), resource="memory")
        PRICES.add(tx, price)
        packed = make_environment(
            self.new_id("e"), name="requirements-eeeeeeee", source=EnvironmentSource(requirements="six\n", python="3.11"),
            source_digest="e" * 64, lock_digest="2" * 64, state=EnvironmentState.READY, reason=EnvironmentReason.BUILT,
            archive=Archive(address=address_of(FILE), size_bytes=len(FILE), unpacked_bytes=1, files=1),
        )  # fmt: skip
        ENVIRONMENTS.add(tx, packed)
        job = make_job(self.new_id("j"), name="train", environment_id=packed.id)
        JOBS.add(tx, job)
        admitted = job.moved(JobState.ADMITTED, now=NOW, reason=Reason.PLACED)
        starting = admitted.moved(JobState.STARTING, now=NOW, reason=Reason.LAUNCHING, attempts=1)
        running = starting.moved(JobState.RUNNING, now=NOW, reason=Reason.STARTED)
        for old, new in ((job, admitted), (admitted, starting), (starting, running)):
            JOBS.put(tx, old, new)
        attempt = make_attempt(running)
        launching = attempt.moved(AttemptState.LAUNCHING, now=NOW, reason=Reason.LAUNCHING)
        going = launching.moved(AttemptState.RUNNING, now=NOW, reason=Reason.STARTED)
        ATTEMPTS.add(tx, attempt)
        ATTEMPTS.put(tx, attempt, launching)
        ATTEMPTS.put(tx, launching, going)
        artifact = make_artifact(self.new_id("a"), job_id=job.id, attempt_id=attempt.id)
        ARTIFACTS.add(tx, artifact)
        environment = make_environment(self.new_id("e"))
        ENVIRONMENTS.add(tx, environment)
        ended = make_job(self.new_id("j"), name="over")
        JOBS.add(tx, ended)
        JOBS.put(tx, ended, ended.moved(JobState.CANCELLED, now=NOW, reason=Reason.STOPPED, ended_at=NOW))
        array = make_array(ended)
        ARRAYS.add(tx, array)
        self.ids |= {
            "job": job.id, "ended": ended.id, "attempt": attempt.id, "artifact": artifact.id, "token": token.id,
            "key": key.id, "user": "member", "name": "default", "environment": environment.id,
            "address": address_of(FILE), "task": "main-0", "stream": "log", "secret": "HF_TOKEN", "array": array.id,
            "quota": "default", "price": price.id, "packed": packed.id,
        }  # fmt: skip

    @staticmethod
    def new_id(letter: str) -> str:
        return make_id(letter, time.time_ns(), secrets.randbits(82))

    def send(self, method: str, path: str, *, actor: str | None = "admin", data: Any = None,
             headers: dict[str, str] | None = None, signed: bool = False) -> Answer:  # fmt: skip
        """Sends a request as an actor (None: as a stranger), by its token or signed by its key."""
        sent = dict(headers or {})
        if actor is not None and not signed:
            sent["Authorization"] = f"Bearer {self.tokens[actor]}"
        if isinstance(data, bytes):
            sent.setdefault("Content-Type", "application/octet-stream")
            content = data
        else:
            content = b"" if data is None else json.dumps(data).encode()
            if data is not None:
                sent.setdefault("Content-Type", "application/json")

        if actor is not None and signed:
            target, _, query = path.partition("?")
            message = Message(method, "danlu", target, query, lowered(sent))
            sent |= self.keys[actor].headers(message, content)

        async def go() -> Answer:
            transport = httpx2.ASGITransport(app=self.gate)
            async with httpx2.AsyncClient(transport=transport, base_url="http://danlu") as client:
                answer = await client.request(method, path, content=content, headers=sent)
                return Answer(answer.status_code, answer.headers, answer.content)

        return anyio.run(go)

    def connect(self, path: str, *sent: bytes, actor: str | None = "admin", stay: bool = False,
                headers: dict[str, str] | None = None) -> Connected:  # fmt: skip
        """Opens a web socket as an actor, sends messages, and goes, or stays until it is closed; returns the answers."""
        target, _, query = path.partition("?")
        given = {k.lower(): v for k, v in (headers or {}).items()}
        if actor is not None:
            given["authorization"] = f"Bearer {self.tokens[actor]}"
        scope = {
            "type": "websocket", "path": target, "raw_path": target.encode(), "query_string": query.encode(),
            "root_path": "", "scheme": "ws", "headers": [(k.encode(), v.encode()) for k, v in given.items()],
            "subprotocols": [], "server": ("danlu", 80), "client": ("test", 1), "asgi": {"version": "3.0"},
            "extensions": {"websocket.http.response": {}},
        }  # fmt: skip
        messages: list[dict[str, Any]] = [{"type": "websocket.connect"}]
        messages += [{"type": "websocket.receive", "bytes": data} for data in sent]
        answered: list[dict[str, Any]] = []

        async def go() -> None:
            closed = anyio.Event()

            async def receive() -> dict[str, Any]:
                if messages:
                    return messages.pop(0)
                if stay:
                    await closed.wait()
                return {"type": "websocket.disconnect", "code": 1005}

            async def send(message: Any) -> None:
                answered.append(message)
                if message["type"] == "websocket.close":
                    closed.set()

            with anyio.fail_after(STAY_S):
                await self.gate(scope, receive, send)

        anyio.run(go)
        return Connected(answered)

    def path(self, operation: Operation, **changed: str) -> str:
        return operation.path.format(**{**self.ids, **changed})

    def call(self, operation_id: str, *, actor: str | None = "admin", data: Any = None, query: str = "",
             signed: bool = False, **ids: str) -> Answer:  # fmt: skip
        operation = BY_ID[operation_id]
        path = self.path(operation, **ids) + query
        return self.send(operation.method, path, actor=actor, data=data, signed=signed)

    def submit(self, actor: str = "admin", **spec: Any) -> Answer:
        return self.call(
            "jobs.submit", job=self.new_id("j"), actor=actor, data={"command": ["python", "train.py"], **spec}
        )

    def waiting(self) -> str:
        """Stores a job that waits, by no call, and returns its id."""
        job = make_job(self.new_id("j"))
        self.database.write(lambda tx: JOBS.add(tx, job))
        return job.id

    def job(self, job_id: str) -> Job:
        return self.database.read(lambda tx: JOBS.require(tx, job_id))


def bodies(api: Api) -> dict[str, Any]:
    """A right body for each operation that takes one."""
    piece = b"1700000000000000000 o. hello\n"
    return {
        "platform.stop": {"jobs": False},
        "jobs.submit": {"command": ["python", "train.py"]},
        "jobs.stop": {},
        "arrays.stop": {},
        "arrays.retry": {"id": api.new_id("j")},
        "jobs.retry": {"id": api.new_id("j")},
        "blobs.missing": {"addresses": [api.ids["address"], address_of(b"new")]},
        "blobs.pack": b"",
        "blobs.put": FILE,
        "blobs.splice": {
            "splices": [
                {
                    "address": address_of(FILE),
                    "base": address_of(FILE),
                    "head_bytes": 1,
                    "middle": FILE[1:].decode(),
                    "tail_bytes": 0,
                },
            ]
        },
        "blobs.append": FILE,
        "blobs.prune": {},
        "environments.build": {"env": "python"},
        "environments.prune": {},
        "projects.make": {},
        "projects.change": {"require": []},
        "quotas.set": {"limit": {"gpu": 8}},
        "users.make": {},
        "users.change": {"administrator": False},
        "members.set": {"role": "developer"},
        "keys.make": {},
        "keys.expire": {"after": "1d"},
        "tokens.make": {"name": "ci"},
        "secrets.set": {"value": "hf_another_one"},
        "prices.set": {"resource": "gpu/h100", "per_hour": "2.50"},
        "attempts.append": piece,
        "reports.put": {"events": [{"event": "started", "at": 1, "task": "main-0"}]},
        "results.missing": {"addresses": [api.ids["address"], address_of(b"new")]},
        "results.pack": b"",
        "results.append": FILE,
        "artifacts.report": {"tree": address_of(api.node)},
        "checkpoints.register": {"task": "main-0", "tree": address_of(api.node), "at": NOW},
    }
