"""This machine: how many cores, how much memory, which GPUs, which boot."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import psutil

from danlu.domain.nodes import Gpu, NodeCapacity
from danlu.executors.local import gpus
from danlu.runner.formats import boot_id

UNLIMITED = 2**60


def name() -> str:
    """Returns the machine's name as a node's."""
    return re.sub(r"[^a-z0-9]+", "-", socket.gethostname().lower()).strip("-")[:63] or "localhost"


def capacity(declared: tuple[Gpu, ...] | None) -> NodeCapacity:
    """Returns what this process may give away: its own cores and memory limit, GPUs as declared or found."""
    return NodeCapacity(
        name=name(),
        cpu_milli=len(os.sched_getaffinity(0)) * 1000,
        memory_bytes=min(psutil.virtual_memory().total, _memory_limit()),
        gpus=gpus.found() if declared is None else declared,
        boot_id=boot_id(),
    )


def _memory_limit() -> int:
    """Returns the memory limit of this process's own control group, as a container has it."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < UNLIMITED:
            return int(text)
    return UNLIMITED
