"""What runs in a pod: its task by its script, and beside it what tells the server of it and hears what is wished."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

from danlu.api.bodies import AppendQuery
from danlu.database.records import ATTEMPTS, JOBS
from danlu.domain.jobs import Task
from danlu.domain.notices import Wishes
from danlu.domain.reports import TaskReport
from danlu.errors import DanluError, StaleAttempt
from danlu.executors.base import LaunchOrder, Observation, Phase
from danlu.executors.simulated import Process, Script
from danlu.runner.pod import EVICTED_DELIVER_S
from danlu.services import access, attempts, wishes
from danlu.services.context import Call
from tests.cluster import Container
from tests.runners import report
from tests.simulation.faults import SECOND

if TYPE_CHECKING:
    from tests.simulation.world import World

FETCHES_S = 2.0
"""How long what its task needs takes to come, at most."""
DIES_WITHIN_S = 20.0


@dataclass
class Way:
    """How often (0..1) a call does not arrive, or its answer; how often a runner is killed at some moment."""

    lossy: float = 0.0
    killed: float = 0.0


@dataclass
class Runner:
    """Of one pod."""

    world: World
    attempt_id: str
    name: str
    process: Process
    salvages: bool
    """of a runner that is killed, another process tells"""
    tag: str = ""
    asked: str = ""
    """for what it was asked to end first: stop, outcome, evicted"""
    delivered: int = 0
    told: TaskReport | None = None
    over: bool = False
    """it has heard that its attempt is over"""
    all_told: bool = False
    gives_up_at: int | None = None
    unreached: bool = False
    """its node is cut off, or gone"""
    dead: bool = False
    earlier: list[tuple[Call, TaskReport]] = field(default_factory=list)

    @classmethod
    def begin(cls, world: World, attempt_id: str, name: str, way: Way) -> Runner:
        attempt = world.real.read(lambda tx: ATTEMPTS.require(tx, attempt_id))
        job = world.real.read(lambda tx: JOBS.require(tx, attempt.job_id))
        order = LaunchOrder(job=job, attempt=attempt, interpreter=None, project_number=0, url="", token="")
        now, random = world.true_time.now(), world.random
        begins_at = now + int(random.uniform(0.001, FETCHES_S) * SECOND)
        asked = next(task for task in job.spec.tasks if task.name == name)
        dies = now + int(random.uniform(0, DIES_WITHIN_S) * SECOND) if random.random() < way.killed else None
        process = Process(order, begins_at, {name: Script.of(asked, begins_at)}, dies)
        return cls(world, attempt_id, name, process, salvages=random.random() < 0.5)

    @property
    def now(self) -> int:
        return self.world.true_time.at

    def seen(self) -> Observation:
        return self.process.observation(self.now)

    def task(self) -> Task:
        """Returns what became of its task."""
        seen = self.seen()
        (own,) = seen.tasks or [one for one in self.process.order.attempt.tasks if one.name == self.name]
        return own.model_copy(update={"error": "its runner was killed"}) if seen.phase is Phase.LOST else own

    def ended(self) -> bool:
        over = self.process.over_at()
        return over is not None and over <= self.now

    # what its node does

    def container(self, pod: dict[str, Any]) -> Container:
        """Returns what its container does now."""
        if pod["metadata"].get("deletionTimestamp") and self.gives_up_at is None:
            grace_s = self.process.order.job.spec.grace
            self.gives_up_at = self.now + int((grace_s + EVICTED_DELIVER_S) * SECOND)
            self._end("evicted", grace_s)
        if self.dead or (self.ended() and self.seen().phase is Phase.LOST and not self.salvages):
            return Container(137, "Error")
        if self.over:
            return Container(3, "Error")
        if self.all_told:
            return Container(0, "Completed") if self.task().exit_code == 0 else Container(1, "Error")
        if self.gives_up_at is not None and self.now >= self.gives_up_at:
            return self.die() or Container(1, "Error")
        return Container()

    def die(self) -> None:
        """Nothing of it goes on."""
        self.dead = True
        if not self.ended():
            self.process.lost_at = self.now

    def _end(self, why: str, grace_s: float) -> None:
        if not self.ended():
            self.asked = self.asked or why
            self.process.stop(grace_s, self.now)

    # what it tells

    def step(self, random: Random, way: Way) -> None:
        """Makes one call, which may not arrive, or whose answer may not."""
        lost = random.random()
        if lost >= way.lossy / 2:
            self._do(random.choice([self._listen, self._tell, self._deliver]), unheard=lost < way.lossy)

    def _do(self, call: Callable[[bool], Wishes | None], *, unheard: bool) -> None:
        if self.silent or (self.ended() and self.seen().phase is Phase.LOST and not self.salvages):
            return
        try:
            answer = call(unheard)
            if answer is not None:
                self._heard(answer)
        except StaleAttempt:
            if not unheard:
                self.over = True
                if not self.ended():
                    self.process.lost_at = self.now
        except DanluError:
            return  # it is asked again

    @property
    def silent(self) -> bool:
        """Whether nothing comes of it any more."""
        return self.dead or self.over or self.all_told or self.unreached

    def finish(self) -> None:
        """Makes all calls that there are to make now."""
        for call in (self._listen, self._deliver, self._deliver, self._tell):
            self._do(call, unheard=False)

    def call(self) -> Call:
        platform = self.world.platform
        actor = access.bearer(platform, self.world.token(self.attempt_id))
        return Call(platform, actor, "default")

    def _listen(self, unheard: bool) -> Wishes | None:
        self.call()
        wished = wishes.require(self.world.platform, self.attempt_id)
        return None if unheard else wished

    def _deliver(self, unheard: bool) -> None:
        data = self.process.log(self.name, self.now)
        piece = data[self.delivered : self.delivered + self.world.random.choice([3, 10_000])]
        if piece:
            query = AppendQuery(offset=self.delivered)
            page = attempts.append(self.call(), self.attempt_id, self.name, "log", query, piece)
            self.delivered = self.delivered if unheard else page.offset

    def _tell(self, unheard: bool) -> Wishes | None:
        whole = self.ended() and self.delivered >= len(self.process.log(self.name, self.now))
        said = report(self.seen(), self.task(), self._flags() if whole else None)
        call = self.call()
        self.earlier.append((call, said))
        wished = self.world.parts.report(call, self.attempt_id, self.name, said)
        if unheard:
            return None
        self.all_told = whole
        return wished

    def repeat(self, random: Random) -> None:
        """What it had told once comes again: a server that stood still had let it in."""
        if self.earlier:
            call, said = random.choice(self.earlier)
            with contextlib.suppress(DanluError):
                self.world.parts.report(call, self.attempt_id, self.name, said)

    def _flags(self) -> dict[str, Any]:
        seen = self.seen()
        if seen.phase is Phase.LOST:
            return {"lost": True, "message": "the runner was lost"}
        return {
            "stopped": seen.stopped and self.asked == "stop", "timed_out": seen.timed_out, "lost": False,
            "preempted": self.process.noticed_at is not None, "evicted": self.asked == "evicted",
        }  # fmt: skip

    def _heard(self, wished: Wishes) -> None:
        stop = wished.stop
        if stop is None or wished.tag == self.tag:
            return
        self.tag = wished.tag
        if stop.notice is not None:
            self.process.notice(stop.notice, self.now)
        else:
            self._end("outcome" if stop.outcome else "stop", stop.grace_s)
