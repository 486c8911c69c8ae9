"""This machine: how many cores, how much memory, which GPUs, which boot."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import psutil

from danlu.domain.nodes import Gpu, NodeCapacity
from danlu.errors import DataDamaged
from danlu.executors.local import gpus
from danlu.runner.formats import boot_id, write_atomically

UNLIMITED = 2**60
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def name(home: Path) -> str:
    """Returns this machine's name as a node's: its host name as it was when the platform first ran with this data folder.

    A host name can change while attempts run, and a node of another name would offer again the GPUs that they hold.

    Raises:
        DataDamaged: the file that keeps it holds something else.
    """
    path = home / "node"
    try:
        kept = path.read_text(errors="replace").strip()
    except FileNotFoundError:
        kept = re.sub(r"[^a-z0-9]+", "-", socket.gethostname().lower())[:63].strip("-") or "localhost"
        write_atomically(str(path), f"{kept}\n".encode(), 0o644)
    if not _NAME.fullmatch(kept):
        raise DataDamaged(
            f"{path} holds {kept[:80]!r}, which is no node's name",
            next_step="write the name that this machine's jobs have in `danlu list` into it, or remove it",
        )
    return kept


def capacity(declared: tuple[Gpu, ...] | None, *, name: str) -> NodeCapacity:
    """Returns what this process may give away: its own cores and memory limit, GPUs as declared or found."""
    return NodeCapacity(
        name=name,
        cpu_milli=len(os.sched_getaffinity(0)) * 1000,
        memory_bytes=memory_bytes(),
        gpus=gpus.found() if declared is None else declared,
        boot_id=boot_id(),
    )


def memory_bytes() -> int:
    """Returns how much memory this process may use or give away."""
    return min(psutil.virtual_memory().total, _memory_limit())


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
