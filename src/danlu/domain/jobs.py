"""A job: what was asked (JobSpec), what became of it (Job), its executions (Attempt) and their processes (Task)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Final

from pydantic import BeforeValidator, Field, StringConstraints, field_validator, model_validator

from danlu.domain.environments import PYTHON_PATTERN
from danlu.domain.ids import ID_PATTERN, NAME_PATTERN
from danlu.domain.records import Living, Ns, Said, Text, Value, storable
from danlu.domain.resources import Cores, GpuCount, MemoryBytes, Resources, Seconds
from danlu.domain.trees import ADDRESS_PATTERN

RESERVED_VARIABLES: Final = ("DANLU_",)
DEFAULT_CPU_MILLI: Final = 1000
INFRASTRUCTURE_ATTEMPTS: Final = 20
"""How often an attempt is repeated that was lost by no fault of the user's code, before the job fails."""

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
Argument = Annotated[str, StringConstraints(max_length=131_072)]


class JobState(StrEnum):
    """Where a job is. Few states; the reason tells the rest."""

    QUEUED = "queued"
    ADMITTED = "admitted"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class AttemptState(StrEnum):
    """Where one execution is. It holds its resources from placed until ended."""

    PLACED = "placed"
    LAUNCHING = "launching"
    RUNNING = "running"
    ENDING = "ending"
    ENDED = "ended"


class Reason(StrEnum):
    """Why a job or an attempt is where it is. Codes are never renamed."""

    # why a job waits
    PENDING_EVALUATION = "PendingEvaluation"
    WAITING_FOR_RESOURCES = "WaitingForResources"
    NO_MATCHING_FLAVOR = "NoMatchingFlavor"
    ENVIRONMENT_BUILDING = "EnvironmentBuilding"
    WAITING_FOR_RETRY = "WaitingForRetry"
    # why it moves on
    PLACED = "Placed"
    LAUNCHING = "Launching"
    STARTED = "Started"
    STOP_REQUESTED = "StopRequested"
    # why it ended
    COMPLETED = "Completed"
    STOPPED = "Stopped"
    PROCESS_FAILED = "ProcessFailed"
    KILLED_BY_SIGNAL = "KilledBySignal"
    OUT_OF_MEMORY = "OutOfMemory"
    COMMAND_NOT_FOUND = "CommandNotFound"
    MAX_TIME_EXCEEDED = "MaxTimeExceeded"
    ENVIRONMENT_FAILED = "EnvironmentFailed"
    LAUNCH_REJECTED = "LaunchRejected"
    # why an attempt is repeated
    ATTEMPT_FAILED = "AttemptFailed"
    RUNNER_LOST = "RunnerLost"
    NODE_LOST = "NodeLost"
    PREEMPTED = "Preempted"


LOST: Final = frozenset({Reason.RUNNER_LOST, Reason.NODE_LOST, Reason.PREEMPTED})
"""An attempt that ended so is repeated outside the user's retry budget."""

NEVER_RETRIED: Final = frozenset(
    {Reason.COMMAND_NOT_FOUND, Reason.MAX_TIME_EXCEEDED, Reason.LAUNCH_REJECTED, Reason.STOPPED, Reason.COMPLETED}
)
"""The next attempt would end the same way."""


class Desired(StrEnum):
    """What the user wants of a job; written by services only."""

    RUN = "run"
    STOP = "stop"


class Retry(Value):
    """How often a failed job is repeated."""

    attempts: int = Field(default=1, ge=1, le=100, description="executions in all, the first included")
    backoff: Seconds | None = Field(default=None, description="wait this long before each repetition, e.g. 30s")


def _words(command: object) -> object:
    if isinstance(command, str):
        return command
    if not isinstance(command, list | tuple):
        raise ValueError("it is neither a list of words nor one line")
    if any(not isinstance(word, str) for word in command):
        raise ValueError("one of its words is not a text: write numbers as texts too, for example '3'")
    return tuple(command)


def task_resources(cpu: float | None, memory_bytes: int | None, gpus: int) -> Resources:
    """Returns what a task counts as; ``cpu`` in cores."""
    cpu_milli = DEFAULT_CPU_MILLI if cpu is None else round(cpu * 1000)
    return Resources(cpu_milli=cpu_milli, memory_bytes=memory_bytes or 0, gpus=gpus)


class JobSpec(Value):
    """What is asked for: a command, its code and environment, the resources it needs."""

    name: Name | None = Field(default=None, description="unique among the project's live jobs; made up when left out")
    command: Annotated[str | tuple[Argument, ...], BeforeValidator(_words)] = Field(
        description="a list of words, or one line for /bin/sh"
    )
    code: str | None = Field(default=None, pattern=ADDRESS_PATTERN, description="address of the code's tree")
    env: Text = Field(default="python", max_length=63, description="environment: danlu env ls")
    requirements: Text | None = Field(
        default=None, max_length=1_048_576, description="a requirements.txt as text, instead of a catalogue environment"
    )
    python: str | None = Field(default=None, pattern=PYTHON_PATTERN, description="Python version, for requirements")
    interpreter: str | None = Field(
        default=None, max_length=4096, pattern=r"^/[^\x00]*$", description="absolute path of the Python of env: host"
    )
    variables: dict[str, Annotated[str, StringConstraints(max_length=131_072)]] = Field(
        default_factory=dict, max_length=500, description="environment variables of the command"
    )
    cpu: Cores | None = Field(
        default=None, description="cores, for example 2 or 0.5, and no more; left out: it counts as 1 and has no limit"
    )
    memory: MemoryBytes | None = Field(
        default=None, description="for example 4GiB; a limit where the machine can set one"
    )
    gpu: GpuCount = Field(default=0, description="whole GPUs")
    gpu_kind: str | None = Field(default=None, pattern=r"^[a-z0-9][-a-z0-9_.]{0,62}$", description="for example h100")
    priority: int = Field(default=0, ge=-1000, le=1000, description="a higher one starts earlier")
    retry: Retry = Field(default_factory=Retry)
    max_time: Seconds | None = Field(default=None, description="an attempt that runs longer is ended, for example 2h")
    grace: Seconds = Field(default=30.0, le=3600, description="time between SIGTERM and SIGKILL")
    parse_metrics: bool = Field(default=False, description="take printed `name: value` and `name=value` as metrics")
    log_limit: MemoryBytes = Field(default=2**30, description="what is kept of each attempt's output")
    labels: dict[Name, Annotated[Text, StringConstraints(max_length=255)]] = Field(default_factory=dict, max_length=64)

    @field_validator("command")
    @classmethod
    def _some_command(cls, command: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not command or not (command if isinstance(command, str) else command[0]).strip():
            raise ValueError("it is empty: give the words to run, for example python train.py")
        if len(command) > 131_072:
            raise ValueError("it has more than 131,072 words")
        if not all(map(storable, (command,) if isinstance(command, str) else command)):
            raise ValueError("it has a NUL or half a character (a lone surrogate)")
        return command

    @field_validator("variables")
    @classmethod
    def _usable_names(cls, variables: dict[str, str]) -> dict[str, str]:
        for name, value in variables.items():
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,254}", name) or not storable(value):
                raise ValueError(f"{name!r} cannot be a variable: letters, digits and _, and no NUL in its value")
            if name.startswith(RESERVED_VARIABLES):
                raise ValueError(
                    f"{name} is set by the platform: names from {' and '.join(RESERVED_VARIABLES)} are its own"
                )
        return variables

    @model_validator(mode="after")
    def _one_environment(self) -> JobSpec:
        if self.requirements is not None and self.env != "python":
            raise ValueError("env and requirements exclude each other: leave one of them out")
        if (self.interpreter is not None) != (self.env == "host"):
            raise ValueError("interpreter belongs to env: host, which needs it")
        if self.gpu_kind is not None and self.gpu == 0:
            raise ValueError("gpu_kind is set but gpu is 0")
        return self

    @property
    def argv(self) -> tuple[str, ...]:
        """The command as words; one line runs by ``/bin/sh -c``."""
        return ("/bin/sh", "-c", self.command) if isinstance(self.command, str) else self.command

    @property
    def shapes(self) -> tuple[Resources, ...]:
        """What each task of the gang needs, in rank order."""
        return (task_resources(self.cpu, self.memory, self.gpu),)


J = JobState


class Job(Living):
    """A job: its specification and its life."""

    KIND: ClassVar[str] = "job"
    MOVES: ClassVar[Mapping[JobState, frozenset[JobState]]] = {
        J.QUEUED: frozenset({J.QUEUED, J.ADMITTED, J.CANCELLED, J.FAILED}),
        J.ADMITTED: frozenset({J.STARTING, J.QUEUED, J.STOPPING}),
        J.STARTING: frozenset({J.RUNNING, J.QUEUED, J.STOPPING, J.SUCCEEDED, J.FAILED}),
        J.RUNNING: frozenset({J.QUEUED, J.STOPPING, J.SUCCEEDED, J.FAILED}),
        J.STOPPING: frozenset({J.CANCELLED, J.SUCCEEDED, J.FAILED}),
        J.SUCCEEDED: frozenset(),
        J.FAILED: frozenset(),
        J.CANCELLED: frozenset(),
    }

    id: str = Field(pattern=ID_PATTERN)
    name: Name
    spec: JobSpec
    state: JobState = J.QUEUED
    reason: Reason | None = Reason.PENDING_EVALUATION
    desired: Desired = Desired.RUN
    stop_grace_s: float | None = Field(default=None, description="the grace that was asked for with the stop, if any")
    priority: int = 0
    environment_id: str | None = Field(default=None, description="the environment it waits for or uses; None for host")
    attempts: int = Field(default=0, ge=0, description="the number of its newest attempt")
    failures: int = Field(default=0, ge=0, description="attempts that count against retry.attempts")
    losses: int = Field(default=0, ge=0, description="attempts lost by no fault of the code")
    queued_at: int = Field(ge=0, description="ns UTC; when it last began to wait")
    not_before: int = Field(default=0, ge=0, description="ns UTC; it does not start earlier")
    started_at: int | None = Field(default=None, description="ns UTC; the newest attempt's start")
    ended_at: int | None = Field(default=None, description="ns UTC")
    exit_code: int | None = Field(default=None, description="the newest attempt's; 128 + signal when killed")
    checkpoint_owner: str = Field(description="the job whose checkpoint folder it uses: itself, or the one it retries")
    retry_of: str | None = None
    created_by: str = ""


class Task(Value):
    """One process of an attempt: where it runs, with what, and how it ended."""

    role: str = "main"
    index: int = Field(default=0, ge=0)
    rank: int = Field(default=0, ge=0)
    node: str
    resources: Resources
    devices: tuple[int, ...] = Field(default=(), description="GPU indexes on the node, ascending")
    ports: tuple[int, ...] = ()
    started_at: Ns | None = None
    ended_at: Ns | None = None
    exit_code: int | None = Field(
        default=None, ge=0, le=255, description="as the process gave it; None when a signal ended it"
    )
    signal: int | None = Field(default=None, ge=1, le=64)
    oom: bool = False
    error: Said = Field(default="", description="why it could not be executed, or what ended it")
    peak_memory_bytes: int | None = Field(default=None, ge=0, lt=2**63)
    cpu_ns: Ns | None = Field(default=None, description="processor time of all its processes")

    @property
    def name(self) -> str:
        """``ROLE-INDEX``: names its log and its folder."""
        return f"{self.role}-{self.index}"


A = AttemptState


class Attempt(Living):
    """One execution of a job. Its id is the job's id and a number; it is never reused."""

    KIND: ClassVar[str] = "attempt"
    MOVES: ClassVar[Mapping[AttemptState, frozenset[AttemptState]]] = {
        A.PLACED: frozenset({A.LAUNCHING, A.ENDED}),
        A.LAUNCHING: frozenset({A.RUNNING, A.ENDING, A.ENDED}),
        A.RUNNING: frozenset({A.ENDING, A.ENDED}),
        A.ENDING: frozenset({A.ENDED}),
        A.ENDED: frozenset(),
    }

    state: AttemptState = A.PLACED
    reason: Reason | None = Reason.PLACED
    job_id: str
    number: int = Field(ge=1)
    executor: str
    tasks: tuple[Task, ...] = Field(min_length=1)
    started_at: int | None = None
    ended_at: int | None = None
    exit_code: int | None = None
    start: str = Field(
        default="cold", description="cold, or warm: forked from a process that had imported the framework"
    )
    limits: tuple[str, ...] = Field(default=(), description="the limits and isolation that are really in force")
    resumed_from: Said | None = Field(default=None, description="the checkpoint that it was handed")
    kept: Said = Field(
        default="", max_length=1000, description="what keeps its logs or outputs from being kept, if anything"
    )
    collected: bool = Field(default=False, description="its logs, metrics and outputs are all kept")


LIVE_JOB_STATES: Final = frozenset(state for state, following in Job.MOVES.items() if following)


def job_exit_code(job: Job) -> int:
    """Returns what ``danlu run`` and ``danlu wait`` exit with: the job's own code, 130 when cancelled, 1 without one."""
    if job.state is J.SUCCEEDED:
        return 0
    if job.state is J.CANCELLED:
        return 130
    return job.exit_code or 1


def name_from_command(command: str | tuple[str, ...]) -> str:
    """Returns a name's stem from a command: ``python train_mnist.py --lr 1`` gives ``train-mnist``."""
    words = command.split() if isinstance(command, str) else list(command)
    stems: list[str] = []
    for position, word in enumerate(words):
        stem = word.rsplit("/", 1)[-1]
        if position and words[position - 1] == "-m":
            return _as_name(word.split(".")[-1])
        if stem.endswith((".py", ".sh")):
            return _as_name(stem[:-3])
        stems.append(stem)
    return _as_name(stems[0] if stems else "job")


def _as_name(text: str) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:48].strip("-")
    return name or "job"


def json_changes(old: JobSpec, changes: Mapping[str, Any]) -> JobSpec:
    """Returns ``old`` with some fields given anew, validated as a whole."""
    return JobSpec.model_validate({**old.model_dump(mode="json", exclude_defaults=True), **changes})
