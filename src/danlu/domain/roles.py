"""A replica role: how many equal tasks of a job, what each of them runs and needs, and when it has to end."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field, StringConstraints

from danlu.domain.commands import Command, Variables
from danlu.domain.records import Value
from danlu.domain.resources import Cores, GpuCount, MemoryBytes, Resources, Seconds

MAX_TASKS: Final = 1024
"""No job has more tasks."""
MAX_RESTARTS: Final = 4096
"""No job's tasks are started again by themselves more often, in all: each time is an event that the runner writes down."""
MAX_STARTED_BYTES: Final = 16 << 20
"""No gang's commands and variables are larger, of all tasks together; what the job's variables say counts once."""
DEFAULT_CPU_MILLI: Final = 1000
ALONE: Final = "main"
"""The role of the one task of a job that has no roles."""

ROLE_PATTERN: Final = r"^[a-z][a-z0-9]{0,30}$"
RoleName = Annotated[str, StringConstraints(pattern=ROLE_PATTERN)]


class RoleSpec(Value):
    """One replica role. What is left out is the job's own."""

    replicas: int = Field(default=1, ge=1, le=MAX_TASKS, description="how many equal tasks")
    command: Command | None = Field(
        default=None, description="instead of the job's command", examples=["python worker.py"]
    )
    cpu: Cores | None = Field(default=None, description="cores of each task, instead of the job's")
    memory: MemoryBytes | None = Field(default=None, description="of each task, instead of the job's")
    gpu: GpuCount | None = Field(
        default=None,
        description="whole GPUs of each task, instead of the job's; what serves the others (ps) has none unless told",
    )
    variables: Variables = Field(
        default_factory=dict,
        max_length=500,
        description="environment variables, beside the job's",
        examples=[{"LR": "0.1"}],
    )
    restarts: int = Field(
        default=0, ge=0, le=100,
        description="how often a failed task of this role is started again by itself, before the attempt fails",
    )  # fmt: skip
    linger: Seconds | None = Field(
        default=None, le=86_400,
        description="how long its tasks may go on once the job's result is known; the framework's rule when left out",
    )  # fmt: skip


def task_resources(cpu: float | None, memory_bytes: int | None, gpus: int) -> Resources:
    """Returns what a task counts as; ``cpu`` in cores."""
    cpu_milli = DEFAULT_CPU_MILLI if cpu is None else round(cpu * 1000)
    return Resources(cpu_milli=cpu_milli, memory_bytes=memory_bytes or 0, gpus=gpus)
