"""The seam between the platform and what runs processes: orders go down, observations come up.

An executor knows nothing of jobs, queues or databases. It launches attempts by id (idempotently), tells the whole truth
about what it holds, stops and forgets. Two errors only: ``ExecutorUnavailable`` (try again) and ``LaunchRejected`` (the
attempt fails; the reason goes to the user).
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, Protocol

from pydantic import Field

from danlu.domain.environments import Interpreter, PodEnvironment
from danlu.domain.images import Image
from danlu.domain.isolation import Layer
from danlu.domain.jobs import Attempt, Job, Reason, Task
from danlu.domain.nodes import NodeCapacity
from danlu.domain.notices import Notice as Notice
from danlu.domain.records import Ns, Said, Value
from danlu.domain.secrets import HandedSecret
from danlu.domain.sessions import SessionRequest


class Capabilities(Value):
    """What an executor can do, as data."""

    name: str
    layers: tuple[Layer, ...] = Field(default=(), description="the layers of isolation that attempts can have")
    no_layers: dict[str, str] = Field(default_factory=dict, description="why they cannot have the others")
    host_environment: bool = False
    sessions: bool = False
    shared: bool = Field(default=False, description="several servers can use it: what it holds is no server's own")
    images: str = Field(
        default="", description="the engine that runs container images and its version; empty: none can"
    )
    no_images: str = Field(default="", description="why there is none")
    archives: bool = Field(
        default=False, description="attempts run where no environment was built: they need it packed, or an image of it"
    )


class LaunchOrder(Value):
    """Everything that is needed to start one attempt. The same order twice starts it once."""

    job: Job
    attempt: Attempt
    interpreter: Interpreter | None
    image: Image | None = Field(default=None, description="run in a container of it, instead of with an interpreter")
    environment: PodEnvironment | None = Field(
        default=None, description="how the pods have it, where the executor needs archives; see capabilities"
    )
    project_number: int = Field(ge=0, description="picks the user id where the server is root")
    require: tuple[str, ...] = Field(default=(), description="layers of isolation without which it must not start")
    url: str = Field(description="the platform's address, for the SDK inside the job")
    token: str = Field(repr=False, description="the attempt's own token; never in argv, logs or the database")
    secrets: tuple[HandedSecret, ...] = Field(
        default=(), repr=False, description="handed on through memory: never in argv, a file on a disk, or a log"
    )


class Phase(StrEnum):
    """What an executor sees of an attempt."""

    STARTING = "starting"
    RUNNING = "running"
    ENDED = "ended"
    LOST = "lost"


class Observation(Value):
    """One attempt as the executor sees it now.

    ``ended`` and ``lost`` promise that nothing of the attempt is left: no process, no device in use.
    """

    attempt_id: str
    phase: Phase
    tasks: tuple[Task, ...] = Field(default=(), description="the attempt's tasks with what became of them")
    started_at: Ns | None = Field(default=None, description="when the first process ran")
    unfinished: bool = Field(
        default=False,
        description="its launch was cut short, and a part of it is there: it is launched again, or stopped",
    )
    ended_at: Ns | None = None
    seen_at: Ns | None = Field(default=None, description="of a lost one: its last sign of life that the executor knows")
    stopped: bool = Field(default=False, description="it ended because stop() was asked")
    timed_out: bool = Field(default=False, description="it ended because its time was over")
    preempted: bool = Field(default=False, description="it ended after it had heard the notice of a stop")
    saved_at: Ns | None = Field(default=None, description="when its newest proven checkpoint was complete")
    saved_as: Said = Field(default="", description="that checkpoint's name")
    limits: tuple[str, ...] = Field(default=(), description="the limits and isolation that are really in force")
    resumed_from: Said | None = None
    reason: Reason | None = Field(
        default=None, description="why it does not run yet, or how it was lost, where the executor knows better"
    )
    message: Said = ""


class StoredImage(NamedTuple):
    """A container image that is kept for jobs: in which of the executor's stores, and its id."""

    store: str
    image_id: str


class Executor(Protocol):
    """Runs attempts. Every method may be called again with the same arguments at any time."""

    capabilities: Capabilities

    def capacity(self) -> tuple[NodeCapacity, ...]:
        """Returns the machines that it can use now.

        Raises:
            ExecutorUnavailable: it cannot tell at the moment.
        """

    def launch(self, order: LaunchOrder) -> None:
        """Starts an attempt unless it was started before.

        Raises:
            ExecutorUnavailable: try again.
            LaunchRejected: it can never start, or not with a layer of isolation that is required; nothing is left of it.
        """

    def observe(self) -> tuple[Observation, ...]:
        """Returns every attempt that it holds: launched and not forgotten. Never a delta.

        Raises:
            ExecutorUnavailable: it cannot tell at the moment.
        """

    def stop(self, attempt_id: str, *, grace_s: float, notice: Notice | None = None) -> None:
        """Asks an attempt to end: SIGTERM, ``grace_s``, SIGKILL to the whole tree. Returns at once; absent is success.

        With a ``notice`` all tasks hear that first. They are asked to end as soon as a checkpoint is proven that was written
        after it, or its time is over; one whose tasks have all ended by then is over. A stop without one ends them at once.
        The notice once given, all goes on by itself; given again it changes nothing.
        """

    def forget(self, attempt_id: str) -> None:
        """Removes all that is kept of an ended attempt. Absent is success; a live attempt is left alone."""

    def open_session(self, attempt_id: str, task: str, request: SessionRequest) -> socket.socket:
        """Begins a session inside a running task; returns a connected stream of frames, the caller's to close.

        The task's end of it cannot be trusted: the job's user can put anything there.

        Raises:
            NotRunning: nothing of that task runs, or this executor has no sessions (see ``capabilities``).
            ExecutorUnavailable: its runner does not answer now.
        """


Hint = Callable[[], None]
"""Called by an executor when something may have changed; it only shortens a wait."""


class Collected(Value):
    """A piece of an append-only stream that an attempt produced (see blobs/streams.py)."""

    attempt_id: str
    task: str
    stream: str = Field(description="log or metrics")
    offset: int = Field(ge=0)
    data: bytes = Field(repr=False)


class Spools(Protocol):
    """Where an executor keeps what attempts write until it is collected."""

    def pending(self, attempt_id: str, *, max_bytes: int) -> Iterable[Collected]:
        """Yields what was not collected yet, in order per stream, in pieces of at most ``max_bytes``."""

    def collected(self, piece: Collected, *, durably: Callable[[], None]) -> None:
        """Frees what lies before the end of ``piece``, now or later: it is kept elsewhere.

        ``durably`` is called before anything is really freed, to make sure that what is kept outlives a power failure.
        """

    def outputs(self, attempt_id: str) -> Path | None:
        """Returns the folder of an ended attempt's outputs, or None where there is none."""

    def checkpoint_owners(self) -> Iterable[str]:
        """Returns the ids of the jobs that have a folder of checkpoints."""

    def checkpoint_bytes(self, owner: str) -> int:
        """Returns how many bytes a job's checkpoints take: file by file, which takes its time. 0 where it has none."""
