"""Checkpoints that have left the machine where they were written, and which of them the next attempt goes on from."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import ClassVar, Final

from pydantic import Field

from danlu.domain.records import Ns, Record, Value
from danlu.domain.trees import ADDRESS_PATTERN

KEPT: Final = 3
"""Of the names of one task that differ in numbers alone, so many are kept."""
MAX_KEPT: Final = 100
"""Of one task; of more names those written first are given up."""
MAX_NAME: Final = 255


class CheckpointReport(Value):
    """A checkpoint that a runner has sent, with all that it consists of."""

    task: str = Field(max_length=100)
    tree: str = Field(pattern=ADDRESS_PATTERN, description="a folder with its files")
    at: Ns = Field(description="when the last of its files was written")
    sent_at: Ns = Field(
        default=0,
        description="when its task began to send it: later than what it had sent before, whatever files' times say",
    )


class Checkpoint(Record):
    """What one task of an attempt has saved under a name."""

    KIND: ClassVar[str] = "checkpoint"

    owner: str = Field(description="the job whose checkpoints these are: the one that it retries, if it retries one")
    attempt_id: str
    task: str
    rank: int = Field(ge=0)
    name: str = Field(max_length=MAX_NAME)
    tree: str
    at: Ns = Field(description="when the last of its files was written")
    sent_at: Ns = Field(default=0, description="when its task began to send it, by the clock of its pod")
    size_bytes: int = Field(ge=0, lt=2**63)

    @property
    def series(self) -> str:
        """What its name has in common with those that differ from it in numbers alone."""
        return re.sub(r"\d+", "#", self.name)


Age = tuple[int, int, int]


def age(checkpoint: Checkpoint) -> Age:
    """Returns what is larger for the newer one of a series: the number in its name if there is one only, else the time.

    As the runner tells which is the newest (``runner/checkpoints.py``).
    """
    stem, dot, ending = checkpoint.name.rpartition(".")
    numbers = re.findall(r"\d+", stem if dot and re.match(r"^[A-Za-z]\w{0,11}$", ending) else checkpoint.name)
    return int(numbers[0][:18]) if len(numbers) == 1 else -1, checkpoint.at, checkpoint.created_at


def given_up(found: Iterable[Checkpoint], *, across: bool = False) -> list[Checkpoint]:
    """Returns which of some checkpoints are not kept.

    Args:
        found: those of an attempt; of one task, or of all.
        across: they are of several attempts: of a name only the newest is kept.
    """
    over: list[Checkpoint] = []
    by_task = defaultdict[str, list[Checkpoint]](list)
    for checkpoint in sorted(found, key=age, reverse=True):
        kept = by_task[checkpoint.task]
        same = [one for one in kept if one.series == checkpoint.series]
        twice = across and any(one.name == checkpoint.name for one in same)
        (over if twice or len(same) >= KEPT else kept).append(checkpoint)
    for kept in by_task.values():
        kept.sort(key=lambda one: one.at, reverse=True)
        over += kept[MAX_KEPT:]
    return over


def to_restore(found: Iterable[Checkpoint], tasks: Mapping[str, Collection[str]]) -> tuple[Checkpoint, ...]:
    """Returns what a new attempt's tasks find in their folders, each of them: the newest whole one of each series.

    In a gang several tasks may write parts of one checkpoint, each on its own machine: under the same name, and some are
    further than others. So a name is whole if all have sent it who have sent the two before it. Where tasks write under
    names of their own there is no telling which belong together, and all that are kept are restored.

    Args:
        found: the job's checkpoints, of attempts that are over.
        tasks: of each of these attempts, its tasks' names.
    """
    chosen: list[Checkpoint] = []
    every = defaultdict[str, list[Checkpoint]](list)
    for checkpoint in found:
        every[checkpoint.series].append(checkpoint)
    for series in every.values():
        groups = _groups(series)
        if all(len(group) == 1 for group in groups) and len({one.task for one in series}) > 1:
            names = {(one.task, one.name): one for one in sorted(series, key=lambda one: one.created_at)}
            chosen += names.values()
        else:
            chosen += _newest_whole(groups, tasks)
    return tuple(sorted(chosen, key=lambda one: (one.rank, one.task, one.name)))


def _groups(series: Iterable[Checkpoint]) -> list[list[Checkpoint]]:
    """Returns what belongs together, the oldest first: of one attempt and name."""
    groups = defaultdict[tuple[str, str], list[Checkpoint]](list)
    for checkpoint in series:
        groups[checkpoint.attempt_id, checkpoint.name].append(checkpoint)
    return sorted(groups.values(), key=lambda group: max(map(age, group)))


def _newest_whole(groups: Sequence[list[Checkpoint]], tasks: Mapping[str, Collection[str]]) -> list[Checkpoint]:
    """Returns the newest of the groups that is whole; the oldest has none before it, and so is."""
    for at in range(len(groups) - 1, 0, -1):
        group = groups[at]
        before = {one.task for earlier in groups[max(0, at - 2) : at] for one in earlier}
        if before.intersection(tasks.get(group[0].attempt_id, ())) <= {one.task for one in group}:
            return group
    return groups[0]
