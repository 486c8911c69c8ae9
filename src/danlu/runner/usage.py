"""What the tasks use, sampled every few seconds into their metrics: processors, memory, GPUs.

Processor and memory come from the control group's counters; where there is none, from ``/proc`` of the task's processes: then
memory counts what they share once for each, and processor time of those that have ended unseen is missing. A sample wakes
nobody: it is collected with the next look that is taken anyway.
"""

from __future__ import annotations

import os
import time
from typing import Any, Dict, Iterable, NamedTuple, Optional, Tuple

from . import formats, procfs
from .nvml import Gpus

FIRST_S, PERIOD_S, LONGEST_S = 2.0, 5.0, 60.0
AGE_PART = 17_280
"""A task that runs for days is looked at less often, so that its samples stay few: once a minute from the twelfth day on."""
COST_PART = 1000
"""Looking takes at most a thousandth of a core: where it takes long, as among very many processes, it is done less often."""
TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
STAT_BYTES = 4096


class Use(NamedTuple):
    """Processor time since some beginning, and memory now; None where it is not known."""

    cpu_ns: Optional[int]
    memory_bytes: Optional[int]


class _Seen(NamedTuple):
    """A task's last look: of which process, when (monotonic), and its processor time then."""

    pid: int
    at: float
    cpu_ns: Optional[int]


class Sampler:
    """Looks at an attempt's tasks when it is time, and hands what they use to their followers.

    Args:
        order: the launch order, which names the GPUs.
    """

    def __init__(self, order: Dict[str, Any]) -> None:
        self._alone = len(order["tasks"]) == 1
        self._gpus = Gpus(sorted({index for task in order["tasks"] for index in gpus_of(task)}))
        self._seen: Dict[str, _Seen] = {}
        self._began: Optional[float] = None
        self._due = 0.0

    def step(self, tasks: Iterable[Any], now: float) -> None:
        """Samples every running task, if it is time; ``now`` is monotonic, s."""
        if now < self._due:
            return
        cost = time.thread_time()
        live = [task for task in tasks if task.pid is not None and not task.done]
        trees: Dict[int, Use] = {}
        if not all(task.spec.get("counters") for task in live):
            trees = in_trees([task.pid for task in live], os.getpid() if self._alone else None)
        for task in live:
            values = self._values(task, trees, now)
            if values:
                task.follower.measured(values)
        if self._began is None:
            self._began, period = now, FIRST_S
        else:
            period = min(LONGEST_S, max(PERIOD_S, (now - self._began) / AGE_PART))
        self._due = now + max(period, COST_PART * (time.thread_time() - cost))

    def _values(self, task: Any, trees: Dict[int, Use], now: float) -> Dict[str, float]:
        """Returns a sample; nothing at the first look, which is only what the second is compared with."""
        grouped, counters = task.spec.get("counters"), task.counters
        use = Use(counters.cpu_ns(), counters.memory_bytes()) if grouped else trees[task.pid]
        before = self._seen.get(task.name)
        self._seen[task.name] = _Seen(task.pid, now, use.cpu_ns)
        if before is None or before.pid != task.pid or now <= before.at:
            return {}
        values: Dict[str, float] = {}
        if use.cpu_ns is not None and before.cpu_ns is not None:
            used = max(0, use.cpu_ns - before.cpu_ns)  # in /proc, what a process had used can go with it
            values[formats.SYSTEM + "cpu_cores"] = round(used / 1e9 / (now - before.at), 4)
        if use.memory_bytes is not None:
            values[formats.SYSTEM + "memory_bytes"] = use.memory_bytes
        for index, gpu in sorted(self._gpus.newest(now).items()):
            if index in gpus_of(task.spec):
                values["%sgpu%d_percent" % (formats.SYSTEM, index)] = gpu.percent
                values["%sgpu%d_memory_bytes" % (formats.SYSTEM, index)] = gpu.memory_bytes
        return values


def gpus_of(task: Dict[str, Any]) -> Tuple[int, ...]:
    """Returns a task's GPUs, by the driver's index. In a pod, where nobody says which they are, it sees no others."""
    devices = task.get("devices", ())
    if devices is None:
        return tuple(range(int(task.get("resources", {}).get("gpus", 0))))
    return tuple(int(index) for index in devices)


def in_trees(roots: Iterable[int], others: Optional[int] = None) -> Dict[int, Use]:
    """Returns what each root process and its descendants use, by one look through ``/proc``.

    A process belongs to the nearest root above it, else to the root that is its session: a daemon has lost its parent.

    Args:
        roots: process ids.
        others: below this process, what belongs to no root belongs to the only one.
    """
    known: Dict[int, Any] = {}
    for pid in procfs.pids():
        try:
            fields = procfs.read(pid, "stat", STAT_BYTES).rpartition(b")")[2].split()
            known[pid] = (int(fields[1]), int(fields[3]), sum(map(int, fields[11:15])), int(fields[21]))
        except (OSError, IndexError, ValueError):
            continue  # it has just ended
    totals = {root: [0, 0] for root in roots}
    only = next(iter(totals)) if others is not None and len(totals) == 1 else None
    for pid, (_, session, ticks, pages) in known.items():
        owner, steps = pid, 0
        while owner in known and owner not in totals and owner != others and steps < len(known):
            owner, steps = known[owner][0], steps + 1
        if owner == others and pid != others:
            owner = only if only is not None else owner
        if owner not in totals:
            owner = session
        if owner in totals:
            totals[owner][0] += ticks
            totals[owner][1] += pages
    return {root: Use(ticks * TICK_NS, pages * PAGE_BYTES) for root, (ticks, pages) in totals.items()}
