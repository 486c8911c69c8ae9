"""The control groups of one attempt: one for the runner, and one with limits and counters for each task.

So a task that uses up its memory is killed alone and named, and the runner that tells it is not limited by any. The runner,
which has no privilege, moves each process that it starts into its task's group: the file through which one joins belongs to
the job's user, the limits do not. A job can so move its processes between its own tasks' groups, and nowhere else.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any, Final

from danlu.domain.jobs import JobSpec
from danlu.executors.local.cgroups import Group, Tree

RUNNER: Final = "runner"
TASK: Final = "task-"


class AttemptGroups:
    """Makes, reads and ends the groups of an attempt; ``name`` is its path below our part of the tree."""

    def __init__(self, tree: Tree, name: str) -> None:
        self.whole: Final = tree.group(name)

    def task(self, name: str) -> Group:
        """Returns the group of the task ``ROLE-INDEX``."""
        return self.whole.child(TASK + name)

    def create(self, spec: JobSpec, uid: int | None) -> tuple[str, ...]:
        """Makes them, sets the limits, and returns the names of those that are in force for every task that asked."""
        force = set(self.whole.create())
        self.whole.child(RUNNER).create()
        missing: set[str] = set()
        for task in spec.tasks:
            group = self.task(task.name)
            cpu_milli = None if task.cpu is None else task.resources.cpu_milli
            got = group.create(memory_bytes=task.memory_bytes, cpu_milli=cpu_milli)
            asked = {name for name, limit in (("memory", task.memory_bytes), ("cpu", task.cpu)) if limit is not None}
            force |= asked & {*got}
            missing |= asked - {*got}
            _hand_over(group.procs(), uid)
        if self.whole.version == 2:  # there, whoever moves a process must own the way between the two groups
            _hand_over(self.whole.procs(), uid)
        return tuple(name for name in ("memory", "cpu", "pids") if name in force - missing)

    def exists(self) -> bool:
        """Whether they are there."""
        return bool(self.whole.places) and self.whole.places[0].is_dir()

    def runner_procs(self) -> list[str]:
        """Returns the files through which the runner joins its group."""
        return [str(path) for path in self.whole.child(RUNNER).procs()]

    def order(self, task: str) -> dict[str, Any]:
        """Returns what the runner is told of a task's group."""
        group = self.task(task)
        return {"counters": group.counters(), "cgroup_procs": [str(place / "cgroup.procs") for place in group.places]}

    def kill(self) -> bool:
        """Kills every process in them until none is left; returns whether none is."""
        return self.whole.kill()

    def remove(self) -> None:
        """Removes them, which must be empty."""
        self.whole.remove()


def _hand_over(files: list[Path], uid: int | None) -> None:
    if uid is not None:
        for file in files:
            with contextlib.suppress(OSError):  # then a process cannot join, and the runner says so
                os.chown(file, uid, uid)
