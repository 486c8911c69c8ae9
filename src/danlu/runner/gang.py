"""When a gang has to end: the rule alone, for the runner that lives by it and for the simulation that plays it.

A gang ends as one. The first task that fails ends it at once. Else it ends when all tasks that decide have ended well: those
that may linger get their time, and what serves the others (a parameter server, which never ends by itself) goes last.
"""

from __future__ import annotations

from typing import Iterable, List, NamedTuple, Optional


class Member(NamedTuple):
    """One task: what was agreed of it, and what became of it. Times are seconds of one clock."""

    decides: bool
    linger_s: float
    ended_at: Optional[float] = None
    failed: bool = False


def known_at(members: Iterable[Member]) -> Optional[float]:
    """Returns when the result became known: at the first failure, else when all that decide had ended; None before.

    What fails only after all that decide have ended well changes nothing: a worker whose chief is gone often does.
    """
    gang: List[Member] = list(members)
    failed = _failed_at(gang)
    decided = _decided_at(gang)
    return decided if failed is None or (decided is not None and decided < failed) else failed


def _failed_at(gang: List[Member]) -> Optional[float]:
    return min((m.ended_at for m in gang if m.failed and m.ended_at is not None), default=None)


def _decided_at(gang: List[Member]) -> Optional[float]:
    ends = [member.ended_at for member in gang if member.decides]
    known = [at for at in ends if at is not None]
    return max(known) if known and len(known) == len(ends) else None


def end_at(members: Iterable[Member]) -> Optional[float]:
    """Returns from when on the whole gang is to be ended; None while it is to go on, or when nothing of it is left."""
    gang: List[Member] = list(members)
    known = known_at(gang)
    left = [member for member in gang if member.ended_at is None]
    if known is None or not left:
        return None
    if known == _failed_at(gang):
        return known
    return max([known + member.linger_s for member in left if member.linger_s > 0], default=known)
