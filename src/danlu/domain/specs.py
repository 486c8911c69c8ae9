"""What is asked of a job: its specification, and of it what each task needs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field, StringConstraints, field_validator, model_validator

from danlu.domain.arrays import ArraySpec
from danlu.domain.commands import Command, Variables, argv_of
from danlu.domain.dependencies import After
from danlu.domain.environments import PATH_PATTERN, PYTHON_PATTERN
from danlu.domain.frameworks import FRAMEWORKS, Framework, check_alone, check_roles, framework_of
from danlu.domain.git import GitState
from danlu.domain.ids import NAME_PATTERN
from danlu.domain.images import full_reference
from danlu.domain.priorities import Priority
from danlu.domain.records import Flag, Text, Value
from danlu.domain.resources import (
    GPU_KIND_PATTERN,
    Cores,
    GpuCount,
    GpusOrRange,
    MemoryBytes,
    Resources,
    Seconds,
    format_bytes,
    gpu_range,
)
from danlu.domain.roles import ALONE, MAX_STARTED_BYTES, RoleName, RoleSpec, task_resources
from danlu.domain.secrets import MAX_SECRETS_OF_A_JOB, SecretUses, check_variables
from danlu.domain.trees import ADDRESS_PATTERN
from danlu.domain.validation import suggestion

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
MAX_CHOICES: Final = 64
"""No range of GPUs has more sizes."""


NOTICE_SIGNALS: Final = ("TERM", "INT", "HUP", "USR1", "USR2")


def _notice_signal(given: object) -> str:
    name = given.removeprefix("SIG") if isinstance(given, str) else ""
    if name not in NOTICE_SIGNALS:
        raise ValueError(f"{given!r:.80} is no signal that a program can take as a notice: {', '.join(NOTICE_SIGNALS)}")
    return name


_Named = Annotated[str, StringConstraints(pattern=f"^(SIG)?({'|'.join(NOTICE_SIGNALS)})$")]
NoticeSignal = Annotated[str, BeforeValidator(_notice_signal, json_schema_input_type=_Named)]


class Retry(Value):
    """How often a failed job is repeated."""

    attempts: int = Field(default=1, ge=1, le=100, description="executions in all, the first included")
    backoff: Seconds | None = Field(default=None, description="wait this long before each repetition, e.g. 30s")


class JobSpec(Value):
    """What is asked for: a command, its code and environment, the resources it needs."""

    name: Name | None = Field(
        default=None, description="unique among the project's live jobs; made up when left out", examples=["mnist"]
    )
    command: Command | None = Field(
        default=None,
        description="a list of words, or one line for /bin/sh; needed unless each role has its own",
        examples=["python train.py"],
    )
    roles: dict[RoleName, RoleSpec] = Field(
        default_factory=dict, max_length=16,
        description="replica roles of a distributed job, started and ended together, e.g. {ps: {}, worker: {replicas: 2}}",
        examples=[{"worker": {"replicas": 2}}],
    )  # fmt: skip
    framework: str | None = Field(
        default=None, max_length=63,
        description="whose convention connects the roles: tensorflow, pytorch, jax, mpi, horovod, mxnet or none; "
        "left out: the environment's, or the one that the roles show",
        examples=["tensorflow"],
    )  # fmt: skip
    code: str | None = Field(
        default=None,
        pattern=ADDRESS_PATTERN,
        description="address of the code's tree; in a file, a folder's name",
        examples=["."],
    )
    git: GitState | None = Field(
        default=None,
        description="the repository's state that the code was sent from; filled in by the client",
        examples=[{"commit": "0123456789abcdef0123456789abcdef01234567", "branch": "main", "dirty": False}],
    )
    env: Text = Field(default="python", max_length=63, description="environment: danlu env ls")
    requirements: Text | None = Field(
        default=None,
        max_length=1_048_576,
        description="a requirements.txt as text, instead of a catalogue environment",
        examples=["numpy==2.0.2"],
    )
    python: str | None = Field(
        default=None, pattern=PYTHON_PATTERN, description="Python version, for requirements", examples=["3.11"]
    )
    interpreter: str | None = Field(
        default=None,
        max_length=4096,
        pattern=PATH_PATTERN,
        description="absolute path of the Python of env: host",
        examples=["/usr/bin/python3"],
    )
    image: str | None = Field(
        default=None,
        description="container image, instead of an environment, for example python:3.12",
        examples=["python:3.12"],
    )
    variables: Variables = Field(
        default_factory=dict,
        max_length=500,
        description="environment variables of the command",
        examples=[{"LR": "0.1"}],
    )
    secrets: SecretUses = Field(
        default_factory=dict, max_length=MAX_SECRETS_OF_A_JOB,
        description="the project's secrets that it needs: [HF_TOKEN], or variable: secret, or {secret: NAME, file: true}",
        examples=[{"HF_TOKEN": {"secret": "huggingface"}}],
    )  # fmt: skip
    cpu: Cores | None = Field(
        default=None, description="cores, for example 2 or 0.5, and no more; left out: it counts as 1 and has no limit"
    )
    memory: MemoryBytes | None = Field(
        default=None, description="for example 4GiB; a limit where the machine can set one"
    )
    gpu: GpusOrRange = Field(
        default=0, description="whole GPUs; a range such as 2..8: the most of these that is free when it starts"
    )
    gpu_min: GpuCount | None = Field(
        default=None, description="the least GPUs that each task starts with; gpu: 2..8 says both", examples=[2]
    )
    gpu_kind: str | None = Field(
        default=None, pattern=GPU_KIND_PATTERN, description="for example h100", examples=["h100"]
    )
    priority: Priority = Field(
        default=0, ge=-1000, le=1000, description="a higher one starts earlier; low is -100, normal 0, high 100"
    )
    hold: Flag = Field(default=False, description="it waits until it is released: danlu release")
    after: After = Field(
        default=(),
        description="jobs or arrays, by name or id, that have to have succeeded before; X:failed or X:any say it otherwise",
        examples=[["prepare"]],
    )
    array: ArraySpec | None = Field(
        default=None, description="many jobs that differ by DANLU_ARRAY_INDEX: 0-999, or 0-999%50 for 50 at once",
        examples=[{"indexes": "0-999", "parallel": 50}],
    )  # fmt: skip
    retry: Retry = Field(
        default_factory=Retry, description="how often a failed attempt is repeated", examples=[{"attempts": 3}]
    )
    max_time: Seconds | None = Field(
        default=None, description="an attempt that runs longer is ended, for example 2h", examples=["2h"]
    )
    grace: Seconds = Field(default=30.0, le=3600, description="time between SIGTERM and SIGKILL")
    notice: Seconds = Field(
        default=30.0, le=3600, description="time to write a checkpoint once it has to make way for another job"
    )
    notice_signal: NoticeSignal = Field(
        default="TERM", description="the signal that tells so to programs that handle it: TERM, INT, HUP, USR1 or USR2"
    )
    parse_metrics: Flag = Field(default=False, description="take printed `name: value` and `name=value` as metrics")
    log_limit: MemoryBytes = Field(default=2**30, description="what is kept of each attempt's output")
    labels: dict[Name, Annotated[Text, StringConstraints(max_length=255)]] = Field(
        default_factory=dict, max_length=64, description="names and texts of your own", examples=[{"team": "vision"}]
    )

    @model_validator(mode="before")
    @classmethod
    def _gpu_range(cls, given: Any) -> Any:
        gpus = given.get("gpu") if isinstance(given, Mapping) else None
        if not isinstance(gpus, str) or ".." not in gpus:
            return given
        least, most = gpu_range(gpus)
        if given.get("gpu_min") not in (None, least):
            raise ValueError(f"gpu: {gpus} and gpu_min: {given['gpu_min']!r:.80} are two answers: leave gpu_min out")
        return {**given, "gpu": most, "gpu_min": least if least < most else None}

    @field_validator("image")
    @classmethod
    def _whole_name(cls, image: str | None) -> str | None:
        return None if image is None else full_reference(image)

    @model_validator(mode="after")
    def _one_environment(self) -> JobSpec:
        if self.image is not None:
            given = [name for name in ("requirements", "python", "interpreter") if getattr(self, name) is not None]
            if self.env != "python" or given:
                other = "env" if self.env != "python" else given[0]
                raise ValueError(f"image and {other} exclude each other: what the job needs is in its image")
        if self.requirements is not None and self.env != "python":
            raise ValueError("env and requirements exclude each other: leave one of them out")
        if (self.interpreter is not None) != (self.env == "host"):
            raise ValueError("interpreter belongs to env: host, which needs it")
        return self

    @model_validator(mode="after")
    def _right_roles(self) -> JobSpec:
        if self.framework is not None and self.framework not in FRAMEWORKS:
            near = suggestion(self.framework, FRAMEWORKS)
            raise ValueError(
                f"framework {self.framework!r} is not known" + (f": {near}" if near else f": {', '.join(FRAMEWORKS)}")
            )
        if self.roles:
            check_roles(self.convention, self.gang_roles, has_command=self.command is not None)
            if (size := self.started_bytes) > MAX_STARTED_BYTES:
                raise ValueError(
                    f"roles: commands and variables of all {len(self.tasks):,} tasks are {format_bytes(size)} together; "
                    f"{format_bytes(MAX_STARTED_BYTES)} is the most: what all tasks share belongs into the job's own "
                    "variables, which count once, or into a file of its code"
                )
        else:
            check_alone(self.framework, has_command=self.command is not None)
        check_variables(self.secrets, self.variables, *(role.variables for role in self.roles.values()))
        if self.gpu_kind is not None and not any(shape.gpus for shape in self.shapes):
            raise ValueError("gpu_kind is set but gpu is 0")
        return self

    @model_validator(mode="after")
    def _right_range(self) -> JobSpec:
        if self.gpu_min is None:
            return self
        if not 1 <= self.gpu_min <= self.gpu:
            raise ValueError(f"gpu_min is {self.gpu_min} and gpu is {self.gpu}: it is at least 1, and at most gpu")
        if self.gpu - self.gpu_min >= MAX_CHOICES:
            raise ValueError(f"gpu: {self.gpu_min}..{self.gpu} has more than {MAX_CHOICES} sizes")
        own = next((name for name, role in self.roles.items() if role.gpu), None)
        if own is not None:
            raise ValueError(
                f"roles.{own}.gpu is {self.roles[own].gpu} and gpu is {self.gpu_min}..{self.gpu}: only tasks that have the "
                f"job's gpu can have a range; leave roles.{own}.gpu out, or write gpu as one number"
            )
        if not any(shape.gpus for shape in self.shapes):
            raise ValueError(f"gpu is {self.gpu_min}..{self.gpu}, but no task of its roles has a GPU")
        return self

    @property
    def convention(self) -> Framework:
        """The framework whose roles, variables and end rule hold."""
        return framework_of(self.framework, self.env, self.roles)

    @property
    def gang_roles(self) -> dict[str, RoleSpec]:
        """The roles that are named, and those that the framework adds; none where none is named."""
        return {**self.convention.implied, **self.roles} if self.roles else {}

    @property
    def tasks(self) -> tuple[TaskSpec, ...]:
        """The tasks of the gang, in rank order; one of role ``main`` where there are no roles."""
        found: list[TaskSpec] = []
        framework, roles = self.convention, self.gang_roles
        for name in framework.ordered(roles) if roles else (ALONE,):
            role = roles.get(name, RoleSpec())
            found += [
                TaskSpec(self, framework, role, name, index, len(found) + index) for index in range(role.replicas)
            ]
        return tuple(found)

    @property
    def shapes(self) -> tuple[Resources, ...]:
        """What each task of the gang needs, in rank order."""
        return tuple(task.resources for task in self.tasks)

    @property
    def choices(self) -> tuple[tuple[Resources, ...], ...]:
        """What the gang can run with, the most first: as ``shapes``, for each number of GPUs in its range."""
        least = self.gpu if self.gpu_min is None else self.gpu_min
        tasks = self.tasks
        return tuple(tuple(task.needs(gpus) for task in tasks) for gpus in range(self.gpu, least - 1, -1))

    @property
    def started_bytes(self) -> int:
        """How large commands and variables of its tasks are, as JSON; the job's variables count once."""
        size = len(json.dumps(self.variables))
        for name, role in self.gang_roles.items():
            task = TaskSpec(self, self.convention, role, name, 0, 0)
            size += role.replicas * len(json.dumps([task.argv, role.variables]))
        return size

    @property
    def ports(self) -> int:
        """How many ports it needs: each task of a gang needs an address."""
        return len(self.tasks) if self.roles else 0


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """One task that a job asks for: its role's specification, and for what that leaves out the job's."""

    job: JobSpec
    framework: Framework
    spec: RoleSpec
    role: str
    index: int
    rank: int

    @property
    def name(self) -> str:
        """``ROLE-INDEX``."""
        return f"{self.role}-{self.index}"

    @property
    def resources(self) -> Resources:
        """What it needs; the most of it, where the job has a range."""
        return self.needs(self.job.gpu)

    def needs(self, gpus: int) -> Resources:
        """Returns what it needs where each task that has the job's GPUs has so many."""
        own = self.spec.gpu
        if own is None:
            own = gpus if self.framework.rule(self.role).gpu else 0
        return task_resources(self.cpu, self.memory_bytes, own)

    @property
    def cpu(self) -> float | None:
        """Its limit in cores, if it has one."""
        return self.job.cpu if self.spec.cpu is None else self.spec.cpu

    @property
    def memory_bytes(self) -> int | None:
        """Its limit, if it has one."""
        return self.job.memory if self.spec.memory is None else self.spec.memory

    @property
    def argv(self) -> tuple[str, ...]:
        """Its command as words."""
        own = self.spec.command or self.framework.rule(self.role).command or self.job.command
        return argv_of(own or ())

    @property
    def variables(self) -> dict[str, str]:
        """The user's variables: the job's, and over them the role's."""
        return {**self.job.variables, **self.spec.variables}

    @property
    def linger_s(self) -> float:
        """How long it may go on once the job's result is known."""
        return self.framework.rule(self.role).linger_s if self.spec.linger is None else self.spec.linger

    @property
    def decides(self) -> bool:
        """Whether its end is part of the job's result."""
        return not self.job.roles or self.framework.decides(self.job.gang_roles, self.role, self.index)


def json_changes(old: JobSpec, changes: Mapping[str, Any]) -> JobSpec:
    """Returns ``old`` with some fields given anew, validated as a whole."""
    return JobSpec.model_validate({**old.model_dump(mode="json", exclude_defaults=True), **changes})
