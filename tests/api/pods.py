"""A pod's runner and its server in one process: what the runner's channel sends goes through the real edge."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from danlu.database.engine import Transaction
from danlu.database.records import ATTEMPTS, CHECKPOINTS, JOBS
from danlu.domain.checkpoints import Checkpoint
from danlu.domain.jobs import AttemptState, JobState, Reason
from danlu.runner.carrying import Carrier, restore
from danlu.runner.channel import BINARY, JSON, Answer, Channel, Over, Refused, Torn
from danlu.runner.checkpoints import SETTLED_NS, Seals
from danlu.services.access import attempt_token
from tests.api.edge import ATTEMPT_KEY, Api
from tests.factories import make_attempt, make_task

Fault = Callable[[str, str], None]
"""Called before each request with its method and path; it may raise."""
DOWNLOADED_BYTES = 64 << 10


@dataclass
class Wire:
    """As Channel in runner/channel.py, of one attempt; what fails passingly is up to a test."""

    api: Api
    attempt_id: str
    fault: Fault = lambda _method, _path: None
    asked: list[str] = field(default_factory=list)
    sent: list[tuple[str, str, Any]] = field(default_factory=list)
    """Method, path and body of each call."""
    torn_at: int | None = None
    """Every download breaks off after so many bytes."""

    def close(self) -> None:
        """Nothing is kept open."""

    def call(
        self, method: str, path: str, body: Any = b"", *, query: dict[str, Any] | None = None, content: str = BINARY
    ) -> Answer:  # fmt: skip
        self.asked.append(f"{method} {path}")
        self.sent.append((method, path, body))
        self.fault(method, path)
        self.api.tokens["pod"] = attempt_token(ATTEMPT_KEY, self.attempt_id)
        target = f"/v1/attempts/{self.attempt_id}{path}" + (f"?{urlencode(query)}" if query else "")
        data = body if isinstance(body, bytes) else body.read()
        headers = {"Content-Type": content} if method in ("PUT", "POST") else {}
        answer = self.api.send(method, target, actor="pod", data=data, headers=headers)
        if answer.status >= 300:
            problem = answer.json()
            if problem["code"] in ("StaleAttempt", "NotAllowed"):
                raise Over(problem["detail"])
            assert answer.status < 500, problem
            raise Refused(answer.status, problem["code"], problem["detail"])
        return Answer(answer.status, answer.content, answer.headers)

    def json(self, method: str, path: str, body: Any = None, **more: Any) -> Any:
        data = b"" if body is None else json.dumps(body).encode()
        return self.json_of(self.call(method, path, data, content=JSON, **more))

    json_of = staticmethod(Channel.json_of)

    def download(self, path: str) -> Iterator[bytes]:
        body = io.BytesIO(self.call("GET", path).body)
        came = 0
        while piece := body.read(DOWNLOADED_BYTES):
            if self.torn_at is not None and came + len(piece) > self.torn_at:
                yield piece[: self.torn_at - came]
                raise Torn(f"{path} broke off")
            came += len(piece)
            yield piece


@dataclass
class Pod:
    """What a pod's runner is to its hooks; and the task's program, which saves and leaves."""

    wire: Wire
    task: str
    folder: str
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.attempt_id = self.wire.attempt_id
        self.order = {
            "checkpoint_dir": f"{self.folder}/checkpoints", "output_dir": f"{self.folder}/outputs", "pod": {},
            "attempt_id": self.attempt_id,
        }  # fmt: skip
        for name in ("checkpoints", "outputs"):
            Path(self.folder, name).mkdir(parents=True, exist_ok=True)
        self._carrier: Carrier | None = None
        self._seals: Seals | None = None
        self.now = 0

    def channel(self) -> Wire:
        return self.wire

    def log(self, text: str) -> None:
        self.said.append(text)

    @property
    def carrier(self) -> Carrier:
        self._carrier = self._carrier or Carrier(self)
        return self._carrier

    @property
    def checkpoints(self) -> Path:
        return Path(self.folder, "checkpoints")

    @property
    def outputs(self) -> Path:
        return Path(self.folder, "outputs")

    def restore(self) -> None:
        restore(self)

    def save(self, name: str, data: bytes) -> None:
        path = self.checkpoints / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def prove(self) -> None:
        """Two seconds pass in which nothing is written: the runner seals what is there."""
        self._seals = self._seals or Seals(str(self.checkpoints))
        for _ in range(2):
            self.now += SETTLED_NS
            self._seals.watch(self.now)

    def files(self) -> dict[str, bytes]:
        """Returns the files of the checkpoint folder that are not hidden."""
        found = [path for path in self.checkpoints.rglob("*") if path.is_file()]
        names = {str(path.relative_to(self.checkpoints)): path for path in found}
        return {name: path.read_bytes() for name, path in sorted(names.items()) if not name.startswith(".danlu")}


class Attempts:
    """Attempts of one job, one after the other, each of some tasks."""

    def __init__(self, api: Api, folder: Path, *tasks: str) -> None:
        self.api, self.folder, self.names = api, folder, tasks
        self.api.database.write(self._first)

    def _first(self, tx: Transaction) -> None:
        """Gives the job's attempt these tasks."""
        attempt = ATTEMPTS.require(tx, self.api.ids["attempt"])
        ATTEMPTS.put(tx, attempt, attempt.evolved(now=attempt.updated_at, tasks=self._tasks()))
        self.job_id, self.attempt_id, self.number = attempt.job_id, attempt.id, attempt.number

    def _tasks(self) -> tuple[Any, ...]:
        parts = [name.rpartition("-") for name in self.names]
        return tuple(make_task(role=role, index=int(index), rank=rank) for rank, (role, _, index) in enumerate(parts))

    def pod(self, task: str, **fault: Any) -> Pod:
        """Returns a fresh pod of the present attempt."""
        return Pod(Wire(self.api, self.attempt_id, **fault), task, str(self.folder / self.attempt_id / task))

    def next(self, *tasks: str) -> None:
        """Another attempt takes the present one's place, perhaps with other tasks."""
        self.names = tasks or self.names

        def work(tx: Transaction) -> None:
            job, old = JOBS.require(tx, self.job_id), ATTEMPTS.require(tx, self.attempt_id)
            now = old.updated_at
            ATTEMPTS.put(tx, old, old.moved(AttemptState.ENDED, now=now, reason=Reason.NODE_LOST, ended_at=now))
            queued = job.moved(JobState.QUEUED, now=now, reason=Reason.NODE_LOST)
            admitted = queued.moved(JobState.ADMITTED, now=now, reason=Reason.PLACED)
            starting = admitted.moved(JobState.STARTING, now=now, reason=Reason.LAUNCHING, attempts=job.attempts + 1)
            running = starting.moved(JobState.RUNNING, now=now, reason=Reason.STARTED)
            for before, after in ((job, queued), (queued, admitted), (admitted, starting), (starting, running)):
                JOBS.put(tx, before, after)
            new = make_attempt(running, self.number + 1, tasks=self._tasks())
            ATTEMPTS.add(tx, new)
            self.number, self.attempt_id = new.number, new.id

        self.api.database.write(work)

    def kept(self) -> list[Checkpoint]:
        return self.api.database.read(lambda tx: CHECKPOINTS.find(tx, owner=self.job_id, limit=1000))
