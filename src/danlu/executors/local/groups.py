"""The control groups of one attempt: one for the runner, and one with limits and counters for each task.

So a task that uses up its memory is killed alone and named, and the runner that tells it is not limited by any. All of their
files stay the server's. Where that is root, a job can move none of its processes, neither out of its limits nor to where the
end of its attempt would not find them: for version 1 asks no more than that, that who writes may write the file and moves a
process of his own user, and a project's jobs have one user. The launcher opens the files through which the tasks' groups are
joined, before it gives up its privilege; the runner has the descriptors, and each process that it starts joins by them and
closes them before it executes what is the job's. Where the server is not root, a job is the same user as the server, and
nothing is kept from it.
"""

from __future__ import annotations

from typing import Any, Final

from danlu.domain.isolation import limit
from danlu.domain.specs import JobSpec
from danlu.executors.local.cgroups import MAX_PROCESSES, Group, Tree

RUNNER: Final = "runner"
TASK: Final = "task-"


class AttemptGroups:
    """Makes, reads and ends the groups of an attempt; ``name`` is its path below our part of the tree."""

    def __init__(self, tree: Tree, name: str) -> None:
        self.whole: Final = tree.group(name)

    def task(self, name: str) -> Group:
        """Returns the group of the task ``ROLE-INDEX``."""
        return self.whole.child(TASK + name)

    def create(self, spec: JobSpec) -> tuple[str, ...]:
        """Makes them, sets the limits, and returns the names of those that are in force for every task that asked."""
        # each task has as many processes as one alone has, and none can take those of the others or of the runner
        force = set(self.whole.create(processes=MAX_PROCESSES * (len(spec.tasks) + 1)))
        self.whole.child(RUNNER).create()
        missing: set[str] = set()
        for task in spec.tasks:
            group = self.task(task.name)
            cpu_milli = None if task.cpu is None else task.resources.cpu_milli
            got = group.create(memory_bytes=task.memory_bytes, cpu_milli=cpu_milli)
            asked = {name for name, limit in (("memory", task.memory_bytes), ("cpu", task.cpu)) if limit is not None}
            force |= asked & {*got}
            missing |= asked - {*got}
        return tuple(limit(name) for name in ("memory", "cpu", "pids") if name in force - missing)

    def exists(self) -> bool:
        """Whether they are there."""
        return bool(self.whole.places) and self.whole.places[0].is_dir()

    def runner_procs(self) -> list[str]:
        """Returns the files through which the runner joins its group."""
        return [str(path) for path in self.whole.child(RUNNER).procs()]

    def task_procs(self) -> dict[str, list[str]]:
        """Returns the files through which each task that has groups joins them, by its name."""
        folders = (folder.name for place in self.whole.places for folder in place.glob(f"{TASK}*"))
        names = sorted({name.removeprefix(TASK) for name in folders})
        return {name: [str(path) for path in self.task(name).procs()] for name in names}

    def order(self, task: str) -> dict[str, Any]:
        """Returns what the runner is told of a task's group."""
        return {"counters": self.task(task).counters()}

    def kill(self) -> bool:
        """Kills every process in them until none is left; returns whether none is."""
        return self.whole.kill()

    def remove(self) -> None:
        """Removes them, which must be empty."""
        self.whole.remove()
