"""One server leads: its controllers run, those of the others wait. What leads to the lease is database/leadership.py."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from socket import socket
from typing import Final, NamedTuple, Protocol

from danlu.controllers.loop import Loop
from danlu.database import leadership
from danlu.database.leadership import SECOND, Candidate, Lease, Term
from danlu.domain.nodes import NodeCapacity
from danlu.domain.sessions import SessionRequest
from danlu.errors import DanluError
from danlu.executors.base import Collected, Executor, LaunchOrder, Notice, Observation, Spools
from danlu.services.context import Platform

LOG: Final = logging.getLogger("danlu.leader")
LOOK_S: Final = 0.5
SHORTEST_S: Final = 0.02
WHILE_LEADING_S: Final = 60.0
TOPIC: Final = "leader"
"""That somebody may have taken the lead, or given it away."""


class Pace(NamedTuple):
    """How long a lease lasts, how often it is renewed, and how long before its end its holder does nothing more.

    ``look_s``: how often who does not lead looks whether somebody does; who gives the lead away says so besides.
    """

    lease_s: float
    renew_s: float
    margin_s: float
    look_s: float = LOOK_S

    @classmethod
    def of(cls, lease_s: float) -> Pace:
        """Returns the pace of a lease of this length: one renewal can fail, and the next come late."""
        return cls(lease_s, 0.3 * lease_s, 0.2 * lease_s)


class Leader:
    """Takes the lead where nobody has it, holds it, and runs what belongs to it.

    A term is over when the lease was not renewed in time by this machine's own clock, whatever keeps the database from
    answering; then its controllers are forgotten, with all that they had in memory, and others are made in the next one.
    A thread of its own renews it, by a connection of its own: neither what makes the controllers, which asks a whole cluster,
    nor many who write keep it from that.

    Args:
        platform: which is told whether its server leads.
        who: this server.
        begin: makes the controllers of a term, their loops not yet started.
    """

    def __init__(
        self, platform: Platform, who: Candidate, begin: Callable[[Term], Sequence[Loop]], *,
        pace: Pace, clock: Callable[[], int] = leadership.monotonic,
    ) -> None:  # fmt: skip
        self._database, self._hub, self._who = platform.database, platform.hub, who
        self._begin, self._pace, self._clock = begin, pace, clock
        self._term: Term | None = None
        self._loops: Sequence[Loop] = ()
        self._running = self._told = self._holds = False
        self._ending, self._stopping = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._run, name="leader", daemon=True)
        self._holding: threading.Thread | None = None
        platform.term = lambda: self._term

    def take(self, *, starting: bool = False) -> Lease | None:
        """Takes the lead if nobody has it, and makes its controllers. Returns who has it where it is another one.

        Args:
            starting: see leadership.take.
        """
        before = self._clock()
        lease_s = self._pace.lease_s
        lease = self._database.write_first(partial(leadership.take, who=self._who, lease_s=lease_s, starting=starting))
        if lease is None:
            return self._database.write_first(leadership.newest)
        term = Term(lease, self._until(lease, before), self._clock)
        LOG.info("%s leads, with epoch %d", self._who.place, lease.epoch)
        if lease.until != leadership.FOREVER:
            self._holding = threading.Thread(target=self._hold, args=(term,), name="lease", daemon=True)
            self._holding.start()
        try:
            self._loops = self._begin(term)
        except BaseException:
            term.end()
            raise
        self._term, self._told, self._holds = term, False, True
        if self._ending.is_set():  # it was told to end meanwhile, and waits no longer
            term.end()
        elif self._running:
            self._start_loops()
        return None

    def start(self) -> None:
        """Begins: the controllers, if it leads, and the watch."""
        self._running = True
        self._start_loops()
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Ends the controllers after their present steps and gives the lead away; says whether they ended in time.

        Idempotent, also beside itself.
        """
        self._ending.set()
        self._hub.notify(TOPIC)
        with self._stopping:
            until = time.monotonic() + timeout_s
            if self._thread.ident is not None:
                self._thread.join(timeout_s)
            for loop in self._loops:
                loop.stop(0.0)  # all are asked before one is waited for
            ended = [loop.stop(max(0.0, until - time.monotonic())) for loop in self._loops]
            if self._term is not None and self._term.leads:
                self._give_away(self._term, ended=all(ended), timeout_s=timeout_s)
            return all(ended)

    def _give_away(self, term: Term, *, ended: bool, timeout_s: float) -> None:
        """Ends a term; where nothing of it still works others may have the lead at once."""
        term.end()
        if self._holding is not None:
            self._holding.join(timeout_s)  # it would take back what is given away
        if ended and (self._holding is None or not self._holding.is_alive()):
            try:
                self._database.write_first(partial(leadership.release, lease=term.lease))
                self._hub.notify(TOPIC)  # other servers too
            except DanluError as error:
                LOG.warning("the lead is not given away, it ends in %g s: %s", self._pace.lease_s, error.message)

    def _start_loops(self) -> None:
        for loop in self._loops:
            loop.start()

    def _until(self, lease: Lease, before: int) -> int:
        """Returns when a lease that was asked for at a time is given up here."""
        if lease.until == leadership.FOREVER:
            return leadership.FOREVER
        return before + int((self._pace.lease_s - self._pace.margin_s) * SECOND)

    def _hold(self, term: Term) -> None:
        """Renews the lease of a term until it is over."""
        wait_s = self._pace.renew_s
        while not term.over(wait_s):
            before, wait_s = self._clock(), self._pace.renew_s
            try:
                if self._database.write_first(partial(leadership.renew, lease=term.lease, lease_s=self._pace.lease_s)):
                    term.prolong(self._until(term.lease, before))
                else:
                    term.end()
            except Exception as error:
                LOG.error("%s: %s", type(error).__name__, error, exc_info=_unless_known(error))
                wait_s = min(LOOK_S, wait_s)
        self._hub.notify(TOPIC)

    def _run(self) -> None:
        while not self._ending.is_set():
            seen = self._hub.count(TOPIC)
            try:
                wait_s = self._step()
            except Exception as error:
                LOG.error("%s: %s", type(error).__name__, error, exc_info=_unless_known(error))
                wait_s = LOOK_S
            if not self._ending.is_set():
                self._hub.wait(TOPIC, seen, wait_s)

    def _step(self) -> float:
        """Looks once; returns after how many seconds to look again: whether a term is over is seen without the database."""
        term = self._term
        if term is not None and term.leads:
            return WHILE_LEADING_S if term.lease.until == leadership.FOREVER else LOOK_S
        if term is not None and self._holds:
            self._step_down(term)
        return self._look()

    def _look(self) -> float:
        led = self._database.write_first(leadership.newest)
        if led is not None and led.left_ns > 0 and led.holder != self._who.holder:
            self._tell(led)
            return max(SHORTEST_S, min(self._pace.look_s, led.left_ns / SECOND))
        led = self.take()
        return SHORTEST_S if led is None else LOOK_S

    def _tell(self, led: Lease) -> None:
        if not self._told:
            self._told = True
            LOG.info("%s leads, with epoch %d; this server answers, and follows", led.place, led.epoch)

    def _step_down(self, term: Term) -> None:
        term.end()
        self._holds = False
        loops, self._loops = self._loops, ()
        LOG.warning("%s does not lead any more: its term with epoch %d is over", self._who.place, term.lease.epoch)
        for loop in loops:
            loop.stop(0.0)  # what they still write is refused


def _unless_known(error: Exception) -> Exception | None:
    return None if isinstance(error, DanluError) else error


class Machine(Executor, Spools, Protocol):
    """An executor that keeps what attempts write."""


class LedExecutor:
    """An executor as controllers have it: it begins, ends and removes only while its server leads.

    That is judged by the machine's own clock just before. What passes in that moment all the same, because the machine
    stands still after the look, is harmless by the attempt's id: see docs/decisions/0024-leader.md.
    """

    def __init__(self, real: Machine, term: Term) -> None:
        self._real, self._term = real, term
        self.capabilities = real.capabilities

    def capacity(self) -> tuple[NodeCapacity, ...]:
        """See Executor."""
        return self._real.capacity()

    def launch(self, order: LaunchOrder) -> None:
        """See Executor."""
        self._term.require()
        self._real.launch(order)

    def observe(self) -> tuple[Observation, ...]:
        """See Executor."""
        return self._real.observe()

    def stop(self, attempt_id: str, *, grace_s: float, notice: Notice | None = None) -> None:
        """See Executor."""
        self._term.require()
        self._real.stop(attempt_id, grace_s=grace_s, notice=notice)

    def forget(self, attempt_id: str) -> None:
        """See Executor."""
        self._term.require()
        self._real.forget(attempt_id)

    def open_session(self, attempt_id: str, task: str, request: SessionRequest) -> socket:
        """See Executor."""
        return self._real.open_session(attempt_id, task, request)

    def pending(self, attempt_id: str, *, max_bytes: int) -> Iterable[Collected]:
        """See Spools."""
        return self._real.pending(attempt_id, max_bytes=max_bytes)

    def collected(self, piece: Collected, *, durably: Callable[[], None]) -> None:
        """See Spools."""
        self._term.require()
        self._real.collected(piece, durably=durably)

    def outputs(self, attempt_id: str) -> Path | None:
        """See Spools."""
        return self._real.outputs(attempt_id)

    def checkpoint_owners(self) -> Iterable[str]:
        """See Spools."""
        return self._real.checkpoint_owners()

    def checkpoint_bytes(self, owner: str) -> int:
        """See Spools."""
        return self._real.checkpoint_bytes(owner)
