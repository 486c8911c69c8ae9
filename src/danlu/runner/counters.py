"""What the kernel counted for the attempt's control groups: memory's peak, kills for lack of it, CPU time."""

from __future__ import annotations

import os
from typing import Any, Dict, List, Optional


def _number(path: str, key: str = "") -> Optional[int]:
    try:
        with open(path) as file:
            text = file.read()
        if not key:
            return int(text)
        return next((int(line.split()[1]) for line in text.splitlines() if line.split()[:1] == [key]), None)
    except (OSError, ValueError, IndexError):
        return None


class Counters:
    """Reads the counters in the folders that the launch order names; without any, everything is None."""

    def __init__(self, where: Optional[Dict[str, Any]]) -> None:
        where = where or {}
        self.version = int(where.get("version", 0))
        self.memory, self.cpu = where.get("memory"), where.get("cpu")
        self.shared = bool(where.get("shared"))

    def oom_kills(self) -> int:
        """Returns how many processes were killed for lack of memory."""
        if not self.memory:
            return 0
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        return _number(os.path.join(self.memory, name), "oom_kill") or 0

    def peak_memory_bytes(self) -> Optional[int]:
        """Returns the most memory that the group has used."""
        if not self.memory:
            return None
        return _number(os.path.join(self.memory, "memory.max_usage_in_bytes" if self.version == 1 else "memory.peak"))

    def memory_bytes(self) -> Optional[int]:
        """Returns the memory that the group uses now, without what of files the kernel would give back at once."""
        if not self.memory:
            return None
        used = _number(os.path.join(self.memory, "memory.usage_in_bytes" if self.version == 1 else "memory.current"))
        name = "total_inactive_file" if self.version == 1 else "inactive_file"
        idle = _number(os.path.join(self.memory, "memory.stat"), name)
        return None if used is None else max(0, used - (idle or 0))

    def memory_limit_bytes(self) -> Optional[int]:
        """Returns the group's limit; None without one."""
        if not self.memory:
            return None
        limit = _number(os.path.join(self.memory, "memory.limit_in_bytes" if self.version == 1 else "memory.max"))
        return limit if limit is not None and limit < 2**60 else None

    def processes(self) -> Optional[List[int]]:
        """Returns the processes in the group; None where there is none, or they are not the task's alone."""
        if not self.memory or self.shared:
            return None
        try:
            with open(os.path.join(self.memory, "cgroup.procs")) as file:
                return [int(line) for line in file.read().split() if line != "0"]
        except (OSError, ValueError):
            return None

    def cpu_ns(self) -> Optional[int]:
        """Returns the CPU time that the group has used."""
        if not self.cpu:
            return None
        if self.version == 1:
            return _number(os.path.join(self.cpu, "cpuacct.usage"))
        used = _number(os.path.join(self.cpu, "cpu.stat"), "usage_usec")
        return None if used is None else used * 1000
