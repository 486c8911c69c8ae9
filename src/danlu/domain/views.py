"""What is computed when it is read: logs, metrics, the reasons for waiting, the platform itself. Never stored."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Generic, TypeVar

from pydantic import Field

from danlu.domain.arrays import ArrayState
from danlu.domain.environments import Environment
from danlu.domain.jobs import Job, JobState, Reason
from danlu.domain.nodes import Node
from danlu.domain.quotas import Quota
from danlu.domain.records import Ns, Value
from danlu.domain.resources import Resources
from danlu.domain.waits import Ahead, AskedLater, MakesWay, QuotaLine, Room, Smaller, Start

T = TypeVar("T")


class Page(Value, Generic[T]):
    """Part of a list. ``next_cursor`` asks for what follows; None at the end."""

    items: tuple[T, ...]
    next_cursor: str | None = None


class LogChunk(Value):
    """Stamped lines of one task, whole lines only, as danlu.runner.formats writes them."""

    attempt: int = Field(ge=1, description="the attempt's number")
    task: str
    data: str


class LogPage(Value):
    """Log lines in order per task. ``cursor`` goes on from here; ``done``: nothing more will ever follow."""

    chunks: tuple[LogChunk, ...]
    cursor: str
    done: bool


class TextPage(Value):
    """Part of a growing text."""

    text: str
    offset: int = Field(ge=0, description="where the next part begins, in bytes")
    done: bool


class Series(Value):
    """One metric: ``steps``, ``times`` (ns UTC) and ``values`` side by side, in order of arrival.

    With more points than were asked for, each bucket keeps its smallest and largest value: no peak is ever left out.
    """

    name: str
    task: str = Field(default="", description="which task of a gang recorded it; empty where the job has one task")
    count: int = Field(description="points recorded in all")
    steps: tuple[float | None, ...]
    times: tuple[int, ...]
    values: tuple[float, ...]
    smallest: float | None
    largest: float | None
    last: float | None


class Metrics(Value):
    """A job's metrics over all its attempts."""

    series: tuple[Series, ...]


class NodeUse(Value):
    """A node, what is given away of it and what is free."""

    node: Node
    used: Resources
    free: Resources
    free_gpus: tuple[int, ...] = Field(description="indexes of the GPUs that nobody holds")


class QuotaUse(Value):
    """A quota and what its project, or all projects below its group, hold now; amounts as the quota's."""

    quota: Quota
    used: dict[str, int] = Field(
        description="held by attempts that have not ended, by resource, and stored; what is 0 is left out"
    )
    effective: dict[str, int] = Field(
        default={},
        description="the most that can be held, the limits of the groups above too; what has none is left out",
    )
    over: dict[str, int] = Field(
        default={},
        description="how much is held above the limit: so much is given back before anything starts, or is stored",
    )
    warnings: tuple[str, ...] = Field(default=(), description="what cannot be kept although it was accepted")


class GpuUse(Value):
    """One GPU that a task holds, with what the driver says of it; None where it says nothing."""

    index: int = Field(ge=0)
    percent: float | None = Field(default=None, description="of the last moment in which it computed something")
    memory_bytes: int | None = Field(default=None, description="in use, of all processes")


class TaskUse(Value):
    """What a running task asked for, and what it used when its runner last measured it; None: not measured yet."""

    task: str
    rank: int
    node: str
    asked: Resources
    ended: bool = Field(default=False, description="its process has ended; the attempt has not")
    measured_at: Ns | None = Field(default=None, description="ns UTC")
    cpu_cores: float | None = Field(default=None, description="busy on average since the measurement before")
    memory_bytes: int | None = None
    gpus: tuple[GpuUse, ...] = ()


class JobUse(Value):
    """A running job's newest attempt and what its tasks use."""

    job_id: str
    name: str
    state: JobState
    attempt: int
    started_at: Ns | None = None
    tasks: tuple[TaskUse, ...]


class Waiting(Value):
    """A job that waits."""

    job_id: str
    name: str
    reason: Reason | None
    queued_at: Ns
    asks: tuple[Resources, ...]


class NodeLoad(Value):
    """A node, what is given away of it, and what all its tasks together used when they were last measured."""

    use: NodeUse
    cpu_cores: float
    memory_bytes: int


class Top(Value):
    """What is in use now: nodes by all projects, jobs of one project."""

    at: Ns = Field(description="when it was asked, ns UTC")
    nodes: tuple[NodeLoad, ...]
    jobs: tuple[JobUse, ...] = Field(description="at most 500, oldest first")
    waiting: tuple[Waiting, ...] = Field(description="at most 100, oldest first")
    waiting_count: int = Field(description="how many wait in all")


class Why(Value):
    """Why a job is where it is. All but ``job``, ``asks`` and ``explanation`` is of one that waits for room."""

    job: Job
    asks: tuple[Resources, ...]
    explanation: tuple[str, ...] = Field(description="sentences with the numbers, the most important first")
    since: Ns | None = Field(default=None, description="ns UTC; since when it waits for this reason")
    position: int | None = Field(
        default=None,
        description="1 for the next one to start, of those of all projects; None where room is not what it lacks",
    )
    of: int | None = Field(default=None, description="how many wait for room in all, of all projects")
    ahead: tuple[Ahead, ...] = Field(default=(), description="the jobs before it, at most 20, the next one first")
    quotas: tuple[QuotaLine, ...] = Field(default=(), description="of its project, then of the groups above it")
    room: tuple[Room, ...] = ()
    makes_way: tuple[MakesWay, ...] = ()
    asked_later: AskedLater | None = Field(default=None, description="None: that is not what it waits for")
    would_start: tuple[Smaller, ...] = Field(default=(), description="at most 5 shapes that would start now")
    start: Start | None = None
    nodes: tuple[NodeUse, ...] = ()


class ArrayWhy(Value):
    """How far a job array is, and why the next one of its elements waits; None where none waits."""

    state: ArrayState
    next: Why | None = None


class TracedJob(Value):
    """What is recorded of a job for a simulation: when it came, what it asked for, how long it ran."""

    id: str
    project: str
    priority: int
    submitted_at: Ns
    first_started_at: Ns | None = Field(default=None, description="ns UTC; when its first attempt had its resources")
    ended_at: Ns | None = None
    ran_ns: int = Field(ge=0, description="how long its attempts had their resources, all together; without waits")
    attempts: int = Field(ge=0)
    tasks: int = Field(ge=1)
    gpus: int = Field(ge=0, description="of all tasks together, as cpu_milli and memory_bytes")
    gpu_kind: str | None = None
    cpu_milli: int = Field(ge=0)
    memory_bytes: int = Field(ge=0)
    declared_ns: int | None = Field(default=None, description="how long an attempt may run at most: max_time")


class EnvironmentEntry(Value):
    """A line of ``danlu env ls``: a catalogue entry, or an environment made from requirements."""

    name: str
    description: str
    python: str
    environment: Environment | None = Field(description="the built or building one; None: built when first asked for")


class EnvironmentDetails(Value):
    """All about one environment: what is in it, what it sets, where it is, who uses it."""

    name: str
    description: str
    python: str = Field(description="the interpreter's version; the full one once it is built")
    environment: Environment | None = Field(description="the newest one that was asked for; None: none yet")
    packages: tuple[str, ...] = Field(
        description="NAME==VERSION of each; empty where that is known only once it is built"
    )
    variables: dict[str, str] = Field(description="set for its jobs, unless they set them themselves")
    read_at_import: tuple[str, ...] = Field(
        description="variables that its packages read when they are imported: a job that sets one starts cold"
    )
    preload: tuple[str, ...] = Field(description="modules that a warm start has imported already")
    frameworks: tuple[str, ...] = Field(description="frameworks for whose gangs it has the packages")
    program: str = Field(description="a small training that shows that it works; empty for requirements")
    folder: str = Field(description="where it is on the server; empty where it is not")
    used_by: tuple[str, ...] = Field(description="names of live jobs that use it, at most 20")
    last_asked_at: int | None = Field(description="ns UTC; when a job last asked for it")


class EnvironmentText(Value):
    """An environment as a file: its lock, or a recipe for a container image."""

    name: str
    python: str
    text: str


class Pruned(Value):
    """Environments that were given up, or would be; their folders and images are removed soon after."""

    environments: tuple[Environment, ...]
    size_bytes: int = Field(description="of them all, as if each had its files alone: what they share is counted twice")
    dry_run: bool


class PrunedBlobs(Value):
    """Blobs that are removed in the next minutes, or would be."""

    blobs: int
    size_bytes: int
    dry_run: bool


class Ran(StrEnum):
    """How a framework of 2018 runs today."""

    ENVIRONMENT = "environment"
    IMAGE = "image"
    SUCCESSOR = "successor"


class FrameworkOf2018(Value):
    """One of the thirteen frameworks that a platform of 2018 offered, and how it runs today."""

    name: str
    runs: Ran
    by: str = Field(description="the environment, the image or the successor")
    how: str = Field(description="what to do, and what to expect")


class Leading(Value):
    """The server whose controllers work; all others of the platform answer too."""

    place: str = Field(description="its machine, process and data folder")
    epoch: int = Field(description="how often the lead was taken until then")
    since: int = Field(description="ns UTC, by the database's clock")
    here: bool = Field(description="it is the server that answers this")
    left_s: float = Field(
        description="how long others wait for it, if nothing is heard of it; 0: nobody leads now, one will in a moment"
    )


class PlatformStatus(Value):
    """The platform that answers."""

    version: str
    url: str
    home: str
    started_at: int
    database: str
    isolation: str = Field(description="how jobs are kept apart: separate users, or one user")
    jobs: dict[str, int] = Field(description="how many jobs are in each state")
    nodes: tuple[NodeUse, ...]
    warnings: tuple[str, ...] = ()
    leader: Leading | None = Field(
        default=None, description="administrators are told, where several servers can have the database"
    )


class Problem(Value):
    """An error as RFC 9457 has it."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    next_step: str = ""
    details: dict[str, Any] = Field(default_factory=dict)
    request_id: str = ""
