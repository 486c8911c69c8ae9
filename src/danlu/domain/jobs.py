"""A job: what became of what was asked (Job), its executions (Attempt) and their processes (Task)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from enum import StrEnum
from typing import ClassVar, Final, Self, TypeVar

from pydantic import Field

from danlu.domain.arrays import ArrayPlace
from danlu.domain.dependencies import Dependency
from danlu.domain.ids import ID_PATTERN
from danlu.domain.records import Flag, Living, Ns, Said, Value
from danlu.domain.resources import Resources
from danlu.domain.specs import JobSpec, Name, TaskSpec
from danlu.errors import Conflict

INFRASTRUCTURE_ATTEMPTS: Final = 20
"""How often an attempt is repeated that was lost by no fault of the user's code, before the job fails."""


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
    TOPOLOGY_PLACEMENT_FAILED = "TopologyPlacementFailed"
    WAITING_FOR_QUOTA = "WaitingForQuota"
    EXCEEDS_MAX_QUOTA = "ExceedsMaxQuota"
    WAITING_FOR_PREEMPTED_WORKLOADS = "WaitingForPreemptedWorkloads"
    ENVIRONMENT_BUILDING = "EnvironmentBuilding"
    IMAGE_PULLING = "ImagePulling"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    UNSCHEDULABLE = "Unschedulable"
    POD_REFUSED = "PodRefused"
    POD_NOT_READY = "PodNotReady"
    WAITING_FOR_RETRY = "WaitingForRetry"
    ON_HOLD = "OnHold"
    WAITING_FOR_DEPENDENCY = "WaitingForDependency"
    WAITING_FOR_ARRAY = "WaitingForArray"
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
    DEPENDENCY_FAILED = "DependencyFailed"
    LAUNCH_REJECTED = "LaunchRejected"
    SECRET_UNAVAILABLE = "SecretUnavailable"  # noqa: S105 - a reason
    # why an attempt is repeated
    ATTEMPT_FAILED = "AttemptFailed"
    RUNNER_LOST = "RunnerLost"
    NODE_LOST = "NodeLost"
    EVICTED = "Evicted"
    POD_DELETED = "PodDeleted"
    START_TIMEOUT = "StartTimeout"
    PREEMPTED = "Preempted"
    PORT_TAKEN = "PortTaken"


LOST: Final = frozenset(
    {
        Reason.RUNNER_LOST, Reason.NODE_LOST, Reason.EVICTED, Reason.POD_DELETED, Reason.START_TIMEOUT, Reason.PREEMPTED,
        Reason.PORT_TAKEN,
    }
)  # fmt: skip
"""An attempt that ended so is repeated outside the user's retry budget; all but the preempted ones count as losses."""

KEEPS_PODS: Final = frozenset(
    {Reason.IMAGE_PULL_FAILED, Reason.UNSCHEDULABLE, Reason.POD_REFUSED, Reason.POD_NOT_READY}
)
"""What keeps an attempt that was launched from running, for as long as it does."""

NEVER_RETRIED: Final = frozenset(
    {
        Reason.COMMAND_NOT_FOUND, Reason.MAX_TIME_EXCEEDED, Reason.LAUNCH_REJECTED, Reason.SECRET_UNAVAILABLE,
        Reason.STOPPED, Reason.COMPLETED,
    }
)  # fmt: skip
"""The next attempt would end the same way."""


class Desired(StrEnum):
    """What the user wants of a job; written by services only."""

    RUN = "run"
    STOP = "stop"


J = JobState


class Estimate(Value):
    """When a job would start, as it was estimated when it first waited for room: what became of it corrects later ones."""

    told_at: Ns
    starts_at: Ns = Field(description="ns UTC; not corrected by what became of others")


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
    held: Flag = Field(default=False, description="it waits until it is released")
    after: tuple[Dependency, ...] = Field(default=(), description="what has to have ended before it may start")
    array: ArrayPlace | None = Field(default=None, description="which element of a job array it is")
    array_id: str | None = Field(default=None, description="that array's id")
    environment_id: str | None = Field(default=None, description="the environment it waits for or uses; None for host")
    attempts: int = Field(default=0, ge=0, description="the number of its newest attempt")
    gpus: int | None = Field(
        default=None, ge=0, description="how many GPUs its newest attempt has, or had; None: there was none yet"
    )
    failures: int = Field(default=0, ge=0, description="attempts that count against retry.attempts")
    losses: int = Field(default=0, ge=0, description="attempts lost by no fault of the code")
    preemptions: int = Field(default=0, ge=0, description="how often it had to make way for another job")
    preempted_at: int | None = Field(default=None, description="ns UTC; when it last had to")
    saves: bool = Field(
        default=False, description="when it last had to make way it wrote a checkpoint at the notice: nothing was lost"
    )
    attained: int = Field(
        default=0, ge=0, description="service of its ended attempts: ns x thousandths of a GPU, without GPUs of a core"
    )
    estimate: Estimate | None = Field(default=None, description="of few jobs, as much as there was time for")
    queued_at: int = Field(
        ge=0, description="ns UTC; when it last began to wait by its own doing: one that made way keeps its place"
    )
    not_before: int = Field(default=0, ge=0, description="ns UTC; it does not start earlier")
    started_at: int | None = Field(default=None, description="ns UTC; the newest attempt's start")
    ended_at: int | None = Field(default=None, description="ns UTC")
    exit_code: int | None = Field(default=None, description="the newest attempt's; 128 + signal when killed")
    checkpoint_owner: str = Field(description="the job whose checkpoint folder it uses: itself, or the one it retries")
    retry_of: str | None = None
    created_by: str = ""

    def asked_to_stop(self, *, now: int, grace_s: float | None) -> Self:
        """Returns it with the wish that it stops; itself where it has ended, or that was wished before with this grace."""
        if not self.live or (self.desired is Desired.STOP and grace_s in (None, self.stop_grace_s)):
            return self
        return self.evolved(now=now, desired=Desired.STOP, stop_grace_s=grace_s or self.stop_grace_s)

    @property
    def may_be_held(self) -> bool:
        """Whether it waits, and is to go on."""
        return self.state is J.QUEUED and self.desired is Desired.RUN

    def with_hold(self, held: bool, *, now: int) -> Self:
        """Returns it held or let go; itself where it is so.

        Raises:
            Conflict: only what waits can be held.
        """
        if held == self.held:
            return self
        if held and not self.may_be_held:
            how = "is being stopped" if self.live and self.desired is Desired.STOP else f"is {self.state}"
            raise Conflict(
                f"job {self.name} {how}: only a job that waits can be held",
                next_step=f"danlu stop {self.name}, later danlu retry {self.name}: it goes on from its newest checkpoint"
                if self.live else f"danlu retry {self.name} --hold",
            )  # fmt: skip
        return self.evolved(now=now, held=held)


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
    stopped: bool = Field(
        default=False,
        description="it was ended: the job's result was known, another task had failed, or somebody asked",
    )
    restarts: int = Field(default=0, ge=0, description="how often it was started again by itself")
    port_taken: int | None = Field(
        default=None, ge=1, le=65535, description="its leased port that a stranger listens on"
    )
    last_lines: Said = Field(default="", max_length=4096, description="the last of what a failed task wrote")
    error: Said = Field(default="", description="why it could not be executed, or what ended it")
    peak_memory_bytes: int | None = Field(default=None, ge=0, lt=2**63)
    cpu_ns: Ns | None = Field(default=None, description="processor time of all its processes")

    @property
    def name(self) -> str:
        """``ROLE-INDEX``: names its log and its folder."""
        return f"{self.role}-{self.index}"


T = TypeVar("T", Task, TaskSpec)


def chosen(
    tasks: Iterable[T], names: Collection[str] = (), roles: Collection[str] = (), ranks: Collection[int] = ()
) -> tuple[T, ...]:
    """Returns the tasks that are named by any of these, in their order; all where nothing is named."""
    every = tuple(tasks)
    if not (names or roles or ranks):
        return every
    return tuple(task for task in every if task.name in names or task.role in roles or task.rank in ranks)


class Preemption(Value):
    """That an attempt has to make way: for whom, why, and until when it has time to save what it has done."""

    at: Ns
    deadline: Ns = Field(description="ns UTC; what runs then is ended")
    for_job: str = Field(description="the id of the job that gets its place; empty to members of another project")
    for_project: str
    for_name: str = Field(default="", description="that job's name, where it is of the same project")
    why: Said = Field(default="", max_length=1000, description="told to the owner: names nothing of another project")
    lost_s: float = Field(default=0.0, ge=0, description="work that it would lose, as estimated when it was decided")

    @property
    def whom(self) -> str:
        """For whom, as the attempt's owner may know it."""
        return f"job {self.for_name}" if self.for_name else "a job of another project"


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
    saved_at: int | None = Field(
        default=None, description="ns UTC; when its newest proven checkpoint was complete: what it did before is kept"
    )
    saved_as: Said = Field(default="", max_length=255, description="that checkpoint's name")
    preemption: Preemption | None = Field(default=None, description="that it has to make way, if it has")
    seen_at: int | None = Field(default=None, description="ns UTC; the last sign of life of one that has ended")
    kept: Said = Field(
        default="", max_length=1000, description="what keeps its logs or outputs from being kept, if anything"
    )
    collected: bool = Field(default=False, description="its logs, metrics and outputs are all kept")


def waits_since(job: Job) -> int:
    """Returns since when a job that is queued waits (ns UTC); its place in the queue may be an older one."""
    return max(job.queued_at, job.preempted_at or 0)


LIVE_JOB_STATES: Final = frozenset(state for state, following in Job.MOVES.items() if following)


def reached(job: Job, wanted: JobState | None) -> bool:
    """Says whether a job is in a state; None: has ended. One that has succeeded was running, even if nobody saw it."""
    if wanted is None:
        return not job.live
    return job.state is wanted or (wanted is J.RUNNING and job.state is J.SUCCEEDED)


def job_exit_code(job: Job) -> int:
    """Returns what ``danlu run`` and ``danlu wait`` exit with: the job's own code, 130 when cancelled, 1 without one."""
    if job.state is J.SUCCEEDED:
        return 0
    if job.state is J.CANCELLED:
        return 130
    return job.exit_code or 1
