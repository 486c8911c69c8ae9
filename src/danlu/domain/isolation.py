"""Layers of isolation: what keeps a job from the machine, from the platform and from other jobs, each by a short name."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Final

from danlu.domain.specs import JobSpec


class Layer(StrEnum):
    """One layer. A record names those that were really in force; an order, those without which nothing may start."""

    SEPARATE_USER = "separate-user"
    NO_NEW_PRIVILEGES = "no-new-privileges"
    RLIMITS = "rlimits"
    MOUNT_NAMESPACE = "mount-namespace"
    CLOSED_DATA_FOLDER = "closed-data-folder"
    IPC_NAMESPACE = "ipc-namespace"
    PRIVATE_TMP = "private-tmp"
    HIDDEN_PROCESSES = "hidden-processes"
    LANDLOCK = "landlock"
    SCOPED_SIGNALS = "scoped-signals"
    SECCOMP = "seccomp"
    MEMORY_LIMIT = "memory-limit"
    CPU_LIMIT = "cpu-limit"
    PIDS_LIMIT = "pids-limit"


MEANING: Final = {
    Layer.SEPARATE_USER: "a user of the project's own, not the server's",
    Layer.NO_NEW_PRIVILEGES: "programs that make others root make nobody root",
    Layer.RLIMITS: "no core dumps, and a bounded number of open files",
    Layer.MOUNT_NAMESPACE: "mounts of the attempt's own",
    Layer.CLOSED_DATA_FOLDER: "of the platform's data folder nothing is there but the attempt's own part",
    Layer.IPC_NAMESPACE: "System V shared memory, semaphores and queues of the attempt's own",
    Layer.PRIVATE_TMP: "/tmp, /var/tmp and /dev/shm of the attempt's own, gone when it ends",  # noqa: S108
    Layer.HIDDEN_PROCESSES: "/proc shows no processes of others",
    Layer.LANDLOCK: "nothing is written outside of the attempt's own folders",
    Layer.SCOPED_SIGNALS: "no signals, and no abstract sockets, to what is outside of the attempt",
    Layer.SECCOMP: "system calls that a job has no use for are refused",
    Layer.MEMORY_LIMIT: "what was asked for, by the kernel's control groups",
    Layer.CPU_LIMIT: "what was asked for, by the kernel's control groups",
    Layer.PIDS_LIMIT: "a bounded number of processes, by the kernel's control groups",
}
"""What each says of a job in which it is in force."""


def limit(controller: str) -> Layer:
    """Returns the layer that a controller of the kernel's control groups makes: ``memory``, ``cpu`` or ``pids``."""
    return Layer(f"{controller}-limit")


def unasked(spec: JobSpec) -> dict[Layer, str]:
    """Returns the limits that a job cannot have because it asks for none, and how it asks."""
    why = {}
    for layer, what, limits in (
        (Layer.MEMORY_LIMIT, "memory", {task.name: task.memory_bytes for task in spec.tasks}),
        (Layer.CPU_LIMIT, "cpu", {task.name: task.cpu for task in spec.tasks}),
    ):
        without = [name for name, limit in limits.items() if limit is None]
        if without:
            who = f"task {without[0]} asks" if spec.roles else "this one asks"
            why[layer] = f"it is in force only for a job that asks for {what}, and {who} for none: --{what}"
    return why


def known(names: Iterable[str]) -> tuple[Layer, ...]:
    """Returns the layers among names, in the order above; a record of another version may have others."""
    found = frozenset(names)
    return tuple(layer for layer in Layer if layer in found)
