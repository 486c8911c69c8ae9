"""Valid records for tests: seeded ids, explicit times, no clock."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from danlu.domain.actors import Role
from danlu.domain.arrays import JobArray, array_id
from danlu.domain.artifacts import Artifact, TaskOutputs
from danlu.domain.checkpoints import Checkpoint
from danlu.domain.environments import Environment, EnvironmentSource
from danlu.domain.ids import RANDOM_BITS, attempt_id, make_id
from danlu.domain.jobs import Attempt, Job, Task
from danlu.domain.keys import AccessKey, Token
from danlu.domain.nodes import NODE_PROJECT, Gpu, Node, NodeCapacity
from danlu.domain.prices import Price
from danlu.domain.projects import Project
from danlu.domain.quotas import Quota
from danlu.domain.resources import Resources
from danlu.domain.secrets import Secret
from danlu.domain.specs import JobSpec
from danlu.domain.trees import Entry, address_of, encode
from danlu.domain.users import PLATFORM, Member, User

SECOND = 1_000_000_000
NOW = 1_700_000_000 * SECOND
GIB = 2**30


class Ids:
    """Makes ids that sort in the order in which they are made, the same ones for the same seed."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._made = 0

    def __call__(self, letter: str = "j") -> str:
        self._made += 1
        return make_id(letter, NOW + self._made * 1_000_000, self._random.getrandbits(RANDOM_BITS))


def make_spec(**fields: Any) -> JobSpec:
    return JobSpec.model_validate({"command": ["python", "train.py"], **fields})


def make_job(job_id: str | None = None, *, now: int = NOW, **fields: Any) -> Job:
    """Returns a queued job; fields of its specification go by ``spec``, a mapping or a JobSpec."""
    job_id = job_id or Ids()()
    spec = fields.pop("spec", {})
    return Job.model_validate(
        {
            "id": job_id,
            "project": "default",
            "name": f"job-{job_id[-8:]}",
            "spec": spec if isinstance(spec, JobSpec) else make_spec(**spec),
            "queued_at": now,
            "checkpoint_owner": job_id,
            "created_by": "admin",
            "created_at": now,
            "updated_at": now,
            **fields,
        }
    )


def make_array(first: Job, *, now: int = NOW, **fields: Any) -> JobArray:
    return JobArray.model_validate(
        {
            "id": array_id(first.id), "project": first.project, "name": "sweep", "first": first.id, "size": 1, "stored": 1,
            "created_at": now, "updated_at": now, **fields,
        }
    )  # fmt: skip


def make_task(**fields: Any) -> Task:
    return Task.model_validate({"node": "node-1", "resources": Resources(cpu_milli=1000), **fields})


def make_attempt(job: Job, number: int = 1, *, now: int = NOW, **fields: Any) -> Attempt:
    return Attempt.model_validate(
        {
            "id": attempt_id(job.id, number),
            "project": job.project,
            "job_id": job.id,
            "number": number,
            "executor": "simulated",
            "tasks": (make_task(),),
            "created_at": now,
            "updated_at": now,
            **fields,
        }
    )


def make_capacity(name: str = "node-1", *, cpu: float = 8, memory: int = 32 * GIB, **gpus: int) -> NodeCapacity:
    """Returns a machine; GPUs are given by kind, for example ``h100=4``."""
    kinds = [kind for kind, count in gpus.items() for _ in range(count)]
    return NodeCapacity(
        name=name,
        cpu_milli=round(cpu * 1000),
        memory_bytes=memory,
        gpus=tuple(Gpu(index=index, kind=kind) for index, kind in enumerate(kinds)),
    )


def make_node(name: str = "node-1", *, now: int = NOW, **capacity: Any) -> Node:
    return Node(
        id=name,
        project=NODE_PROJECT,
        executor="simulated",
        capacity=make_capacity(name, **capacity),
        created_at=now,
        updated_at=now,
    )


def make_environment(environment_id: str | None = None, *, now: int = NOW, **fields: Any) -> Environment:
    return Environment.model_validate(
        {
            "id": environment_id or Ids()("e"),
            "project": "default",
            "name": "python",
            "source": EnvironmentSource(catalogue="python", python="3.11"),
            "source_digest": "0" * 64,
            "created_at": now,
            "updated_at": now,
            **fields,
        }
    )


def make_project(name: str = "default", number: int = 0, *, now: int = NOW) -> Project:
    return Project(id=name, project=name, number=number, created_at=now, updated_at=now)


def make_quota(name: str = "default", *, now: int = NOW, **fields: Any) -> Quota:
    return Quota.model_validate({"id": name, "project": PLATFORM, "created_at": now, "updated_at": now, **fields})


def make_user(user_id: str | None = None, *, now: int = NOW, **fields: Any) -> User:
    return User.model_validate(
        {
            "id": user_id or Ids()("u"), "project": PLATFORM, "name": "alice", "created_by": "admin",
            "created_at": now, "updated_at": now, **fields,
        }
    )  # fmt: skip


def make_member(
    user: User, project: str = "default", role: Role = Role.DEVELOPER, *, member_id: str = "", now: int = NOW
) -> Member:
    return Member(
        id=member_id or Ids()("m"), project=project, user=user.id, name=user.name, role=role, created_by="admin",
        created_at=now, updated_at=now,
    )  # fmt: skip


def make_key(user: str, key_id: str | None = None, *, now: int = NOW, **fields: Any) -> AccessKey:
    return AccessKey.model_validate(
        {
            "id": key_id or Ids()("k"), "project": PLATFORM, "user": user, "created_by": "admin", "created_at": now,
            "updated_at": now, **fields,
        }
    )  # fmt: skip


def make_token(token_id: str | None = None, *, now: int = NOW, **fields: Any) -> Token:
    return Token.model_validate(
        {
            "id": token_id or Ids()("t"),
            "project": "default",
            "name": "ci",
            "digest": "f" * 64,
            "created_by": "admin",
            "created_at": now,
            "updated_at": now,
            **fields,
        }
    )


def make_secret(secret_id: str | None = None, *, now: int = NOW, **fields: Any) -> Secret:
    return Secret.model_validate(
        {
            "id": secret_id or Ids()("s"), "project": "default", "name": "HF_TOKEN", "created_by": "admin",
            "created_at": now, "updated_at": now, **fields,
        }
    )  # fmt: skip


def make_price(price_id: str | None = None, *, now: int = NOW, **fields: Any) -> Price:
    return Price.model_validate(
        {
            "id": price_id or Ids()("p"), "project": PLATFORM, "resource": "gpu/h100", "per_hour": "2.50",
            "currency": "USD", "valid_from": 0, "created_by": "admin", "created_at": now, "updated_at": now, **fields,
        }
    )  # fmt: skip


def make_artifact(artifact_id: str | None = None, *, now: int = NOW, **fields: Any) -> Artifact:
    job = Ids()()
    return Artifact.model_validate(
        {
            "id": artifact_id or Ids()("a"),
            "project": "default",
            "job_id": job,
            "attempt_id": attempt_id(job, 1),
            "tree": "sha256:" + "a" * 64,
            "partial": False,
            "files": 1,
            "size_bytes": 1,
            "created_at": now,
            "updated_at": now,
            **fields,
        }
    )


def make_checkpoint(checkpoint_id: str | None = None, *, now: int = NOW, **fields: Any) -> Checkpoint:
    job = Ids()()
    return Checkpoint.model_validate(
        {
            "id": checkpoint_id or Ids()("c"), "project": "default", "owner": job, "attempt_id": attempt_id(job, 1),
            "task": "main-0", "rank": 0, "name": "step-1", "tree": "sha256:" + "a" * 64, "at": now, "size_bytes": 1,
            "created_at": now, "updated_at": now, **fields,
        }
    )  # fmt: skip


def make_outputs(outputs_id: str | None = None, *, now: int = NOW, **fields: Any) -> TaskOutputs:
    return TaskOutputs.model_validate(
        {
            "id": outputs_id or Ids()("o"), "project": "default", "attempt_id": attempt_id(Ids()(), 1), "task": "main-0",
            "tree": "sha256:" + "a" * 64, "created_at": now, "updated_at": now, **fields,
        }
    )  # fmt: skip


def write_files(root: Path, files: dict[str, str | bytes]) -> Path:
    """Writes files by relative path, with the folders above them, and returns ``root``."""
    root.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


class Trees(dict[str, bytes]):
    """Blobs by address, with a folder's node made from its entries."""

    def file(self, name: str, data: bytes, mode: int = 0o644) -> Entry:
        self[address_of(data)] = data
        return Entry(name, "file", address_of(data), mode, len(data))

    def folder(self, *entries: Entry) -> str:
        node = encode(entries)
        self[address_of(node)] = node
        return address_of(node)
