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
    """Returns when the result became known: at the first failure, else when all that decide had ended; None before."""
    gang: List[Member] = list(members)
    failures = [member.ended_at for member in gang if member.failed and member.ended_at is not None]
    ends = [member.ended_at for member in gang if member.decides]
    if not failures and (not ends or None in ends):
        return None
    return min(failures) if failures else max(at for at in ends if at is not None)


def end_at(members: Iterable[Member]) -> Optional[float]:
    """Returns from when on the whole gang is to be ended; None while it is to go on, or when nothing of it is left."""
    gang: List[Member] = list(members)
    known = known_at(gang)
    left = [member for member in gang if member.ended_at is None]
    if known is None or not left:
        return None
    if any(member.failed for member in gang):
        return known
    return max([known + member.linger_s for member in left if member.linger_s > 0], default=known)
