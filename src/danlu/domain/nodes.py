"""A node: a machine with CPU, memory and devices. Executors tell what it has; the scheduler gives it away."""

from __future__ import annotations

from typing import ClassVar, Final

from pydantic import Field

from danlu.domain.records import Record, Value
from danlu.domain.resources import Resources

NODE_PROJECT: Final = ""  # a node belongs to the platform, to no project


class Gpu(Value):
    """One GPU. ``index`` is what ``CUDA_VISIBLE_DEVICES`` counts; ``uuid`` is empty for a declared one."""

    index: int = Field(ge=0)
    kind: str = Field(default="gpu", description="as in --gpu-kind: lower case, for example h100")
    uuid: str = ""
    memory_bytes: int = Field(default=0, ge=0)
    declared: bool = Field(default=False, description="stated by the operator, not found by the driver")


class NodeCapacity(Value):
    """What an executor says that a machine has."""

    name: str
    cpu_milli: int = Field(ge=0)
    memory_bytes: int = Field(ge=0)
    gpus: tuple[Gpu, ...] = ()
    boot_id: str = ""
    pool: str = Field(default="", description="what it is near to: the tasks of a gang go into one pool if they can")


class Node(Record):
    """A machine that can hold tasks. Its id is its name."""

    KIND: ClassVar[str] = "node"

    executor: str = Field(description="which executor it belongs to")
    capacity: NodeCapacity

    @property
    def total(self) -> Resources:
        """All that it has, whoever holds it."""
        return Resources(
            cpu_milli=self.capacity.cpu_milli,
            memory_bytes=self.capacity.memory_bytes,
            gpus=len(self.capacity.gpus),
        )
