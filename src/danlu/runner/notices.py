"""A notice: an attempt has to make way, and its program is told so while there is time to save what it has done.

It is told by a file that appears (its path is in ``DANLU_PREEMPTION_FILE``) and by a signal. The signal goes to programs that
handle it, from each task's own process down, and not to what they have started: a launcher passes it on as it sees fit, and
a data loader's processes, which would die of it, are left to the training. Where nothing handles it nobody is killed by it.

What has heard it has until the notice's end. It is over sooner once a checkpoint is proven that was written after it, or
when the program has ended by itself.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any, Dict, FrozenSet, Iterable, List, Optional

from . import processes
from .checkpoints import Seals
from .formats import NOTICES, PREEMPTION, write_atomically
from .tasks import Task

WATCH_S = 0.25
"""How often checkpoints are looked at meanwhile: each second until they are proven is one in which a GPU may stand idle."""


class Notice:
    """One attempt's notice, from when it was given on.

    Args:
        told: what the stop file says of it.
        now: monotonic, s.
    """

    def __init__(self, told: Dict[str, Any], now: float) -> None:
        self.number = int(getattr(signal, "SIG%s" % told["signal"], signal.SIGTERM))
        self.at_ns = time.time_ns()
        self.until = now + max(0.0, float(told["within_s"]))
        self.began = self.watched = now
        self.told: Dict[int, List[int]] = {}

    def give(self, told: Dict[str, Any], folder: str, tasks: Iterable[Task]) -> None:
        """Tells the tasks: first by the file, then by the signal."""
        said = {"deadline": int(told.get("deadline", 0)) / 1e9, "reason": str(told.get("why", ""))}
        said["for"] = str(told.get("whom", ""))
        try:
            os.makedirs(os.path.join(folder, NOTICES), mode=0o700, exist_ok=True)
            write_atomically(os.path.join(folder, NOTICES, PREEMPTION), json.dumps(said).encode())
        except OSError as error:  # a full disk: the signal tells it all the same
            print("the file of the notice cannot be written: %s" % error, file=sys.stderr)
        for task in tasks:
            if task.pid is not None and not task.done:
                self.told[task.pid] = processes.handling(self.number, task.running())
                processes.tell(self.number, self.told[task.pid])

    def words(self) -> str:
        """Returns what stands in the job's output from now on."""
        heard = sum(map(len, self.told.values()))
        by = (
            "%s to %d of its processes" % (processes.signal_name(self.number), heard)
            if heard
            else ("by the file alone, as nothing of it handles %s" % processes.signal_name(self.number))
        )
        return "it has to make way and was told so (%s): %.0f s to save" % (by, self.until - self.began)

    def busy(self) -> bool:
        """Says whether any process that was told has not ended: a shell may have left it behind."""
        return not {pid for told in self.told.values() for pid in told}.isdisjoint(processes.descendants(os.getpid()))

    def over(self, seals: Seals, now: float) -> bool:
        """Says whether there is nothing more to wait for but the programs' own end."""
        if now >= self.until:
            return True
        if now - self.watched < WATCH_S:
            return False
        self.watched = now
        seals.watch(time.monotonic_ns())
        return seals.saved_since(self.at_ns)

    def grace_s(self, grace_s: float, now: float) -> float:
        """Returns how long it has to end once the notice is over: who heard SIGTERM had its grace with the notice."""
        return min(grace_s, max(0.0, self.until - now)) if self.number == signal.SIGTERM else grace_s

    def spared(self) -> FrozenSet[int]:
        """Returns who is not to hear SIGTERM when it is over: who has heard it, or would pass it on to one that has."""
        if self.number != signal.SIGTERM:
            return frozenset()
        return frozenset(pid for task, told in self.told.items() if told for pid in (task, *told))


def parse(said: Any) -> Optional[Dict[str, Any]]:
    """Returns the notice that a stop file gives, or None where it gives none.

    Raises:
        ValueError, TypeError, KeyError: it gives one that cannot be read.
    """
    notice = said.get("notice")
    if notice is None:
        return None
    float(notice["within_s"])
    str(notice["signal"])
    return dict(notice)
