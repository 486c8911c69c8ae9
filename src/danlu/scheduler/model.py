"""What a decision depends on and what it says: jobs that wait, attempts that hold something, the policy, the plan.

Times are ns UTC, durations ns. Everything here is a value; `state.py` keeps them up to date and decides.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field

from danlu.domain.jobs import Reason
from danlu.domain.quotas import asks_of
from danlu.domain.resources import Resources

SECOND_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Shape:
    """What a gang asks for: one entry a task, the GPU kind that all of them need, and how many ports."""

    tasks: tuple[Resources, ...]
    gpu_kind: str | None = None
    ports: int = 0
    rate: int = field(init=False, compare=False)
    """How fast it attains service: its GPUs, in thousandths; without GPUs its thousandths of cores."""
    asks: Mapping[str, int] = field(init=False, compare=False, repr=False)
    """What it counts as, as far as that is known before it has its place: ``domain.quotas.asks_of``."""
    _hash: int = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        rate = 1000 * sum(task.gpus for task in self.tasks) or sum(task.cpu_milli for task in self.tasks)
        object.__setattr__(self, "rate", rate)
        object.__setattr__(self, "asks", asks_of(self.tasks, self.gpu_kind))
        object.__setattr__(self, "_hash", hash((self.tasks, self.gpu_kind, self.ports)))  # it is looked up often

    def __hash__(self) -> int:
        return self._hash


@dataclass(frozen=True, slots=True)
class Policy:
    """What the order and preemption go by.

    Attributes:
        half_life: how long it takes until what a project had counts half.
        levels: service, in ns x thousandths of a GPU, from which on a job stands behind those that had less (Tiresias, 2019).
        min_runtime: an attempt that began more recently is never asked to make way.
        max_lost_part: who makes way only because others had less loses at most this part of what the attempt did.
        preempts: whether anybody is asked to make way.
        kept_for: for how many of the first waiting jobs resources are kept.
        preempts_for: for how many of them others are asked to make way in one decision.
    """

    half_life: int = 24 * 3600 * SECOND_NS
    levels: tuple[int, ...] = tuple(1000 * SECOND_NS * gpu_s for gpu_s in (3600, 4 * 3600, 16 * 3600, 64 * 3600))
    min_runtime: int = 300 * SECOND_NS
    max_lost_part: float = 0.1
    preempts: bool = True
    kept_for: int = 4
    preempts_for: int = 4

    def level(self, service: int) -> int:
        """Returns how many steps back a job with this service stands."""
        return bisect_right(self.levels, service)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A job that could start now if there were room.

    Attributes:
        shapes: what it can run with, the one that it would rather have first; most jobs have one.
        attained: service of its attempts so far: time x ``Shape.rate``, in ns x thousandths of a GPU.
        duration: how long it runs at most, where its user has said so.
        array: the job array that it belongs to, of which at most ``parallel`` hold something at once.
        keeps: it writes a checkpoint when it is told to make way, so that nothing of it is lost.
        version: of the record, for who tells the scheduler.
    """

    id: str
    project: str
    priority: int
    queued_at: int
    shapes: tuple[Shape, ...]
    attained: int = 0
    duration: int | None = None
    array: str | None = None
    parallel: int = 0
    keeps: bool = False
    version: int = 0


@dataclass(frozen=True, slots=True)
class Seat:
    """Where one task of a gang goes."""

    node: str
    devices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Running:
    """An attempt that holds its resources.

    Attributes:
        shape, seats: what it holds and where, in rank order.
        attained: service of the job's attempts before this one.
        ends_by: when it ends at the latest, where its user has said so.
        saved_at: what it had done by then is kept by a checkpoint; None: all of it would be lost.
        yields_to: the job that it was asked to make way for; None: it was not asked.
        keeps: as ``Waiting.keeps``.
    """

    id: str
    job_id: str
    project: str
    priority: int
    queued_at: int
    placed_at: int
    shape: Shape
    seats: tuple[Seat, ...]
    attained: int = 0
    ends_by: int | None = None
    saved_at: int | None = None
    yields_to: str | None = None
    array: str | None = None
    keeps: bool = False
    since: int = field(init=False, compare=False, repr=False)
    """from then on what it did would be lost"""

    def __post_init__(self) -> None:
        kept = self.placed_at if self.saved_at is None else max(self.saved_at, self.placed_at)
        object.__setattr__(self, "since", kept)  # it is looked at often

    def service(self, now: int) -> int:
        """Returns the job's service so far, as ``Waiting.attained``."""
        return self.attained + max(0, now - self.placed_at) * self.shape.rate

    def lost(self, now: int) -> int:
        """Returns the service that would be lost if it ended now."""
        return 0 if self.keeps or now <= self.since else (now - self.since) * self.shape.rate

    def lost_s(self, now: int) -> float:
        """Returns for how long it would have worked in vain if it ended now."""
        return self.lost(now) / (self.shape.rate or 1) / SECOND_NS


@dataclass(frozen=True, slots=True)
class Placement:
    """A job that starts now; one seat a task of ``shape``, in rank order."""

    job_id: str
    seats: tuple[Seat, ...]
    shape: Shape


@dataclass(frozen=True, slots=True)
class Preemption:
    """An attempt that is to make way, for which job, why, and what would be lost: as ``Running.lost``, and in seconds."""

    attempt_id: str
    for_job: str
    why: str
    lost: int
    lost_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do: who starts where, who makes way, why the others wait (a code and its arithmetic).

    ``again_at``: something would be decided otherwise then, although nothing else changes; None: never.
    """

    placements: tuple[Placement, ...] = ()
    preemptions: tuple[Preemption, ...] = ()
    waits: Mapping[str, tuple[Reason, str]] = field(default_factory=dict)
    again_at: int | None = None
