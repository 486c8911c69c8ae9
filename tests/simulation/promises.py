"""What a world promises, at each moment and once all has come to its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from danlu.blobs.streams import StreamKey
from danlu.controllers.decisions import service
from danlu.database import queries
from danlu.database.records import ATTEMPTS, JOBS
from danlu.domain.environments import Environment
from danlu.domain.jobs import LOST, Attempt, AttemptState, Desired, Job, JobState, Reason
from danlu.scheduler.cycle import Scheduler
from danlu.scheduler.recording import replay
from tests.books import check_books
from tests.simulation.ground import NODES, Broken
from tests.traces import recorded

if TYPE_CHECKING:
    from tests.simulation.world import World


class Promises:
    """Of one world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.held: list[Attempt] = []
        self.checked = -1
        """so much was written when the database was looked at last"""

    def check(self) -> None:
        """Raises Broken unless every promise holds now."""
        if self.world.late:
            raise Broken(self.world.late[0])
        if self.world.real.writes != self.checked:
            self.checked = self.world.real.writes
            self._check_stored()
        self._fits("the machines", self.world.ground.shares())
        self.world.ground.check(self.held)

    def _check_stored(self) -> None:
        held = self.held = self.world.real.read(queries.holding_attempts)
        self._fits("the database", [(t.node, t.resources, t.devices) for a in held for t in a.tasks])
        ports = [port for a in held for t in a.tasks for port in t.ports]
        if len(set(ports)) != len(ports):
            raise Broken("a port is leased twice")
        self.world.wishes.check(held)
        for attempt in held:
            if len(attempt.tasks) != len(self.world.gangs.get(attempt.job_id, attempt.tasks)):
                raise Broken(f"{attempt.id} has a part of its gang")
        self.world.ground.check_stored()
        for job in self.world.real.read(lambda tx: JOBS.find(tx, id=self.world.stopped or {"-"}, limit=10_000)):
            if job.desired is not Desired.STOP:
                raise Broken(f"an accepted stop of {job.id} was forgotten")

    def _fits(self, where: str, shares: list[tuple[str, Any, tuple[int, ...]]]) -> None:
        for node in NODES:
            mine = [(need, devices) for name, need, devices in shares if name == node.name]
            devices = [device for _, some in mine for device in some]
            if len(set(devices)) != len(devices):
                raise Broken(f"a GPU of {node.name} is sold twice, says {where}")
            if (
                sum(n.cpu_milli for n, _ in mine) > node.cpu_milli
                or sum(n.memory_bytes for n, _ in mine) > node.memory_bytes
            ):
                raise Broken(f"{node.name} is oversold, says {where}")

    def check_end(self, found: list[Job]) -> None:
        """Raises Broken unless what must hold once all has come to its end holds."""
        attempts = self.world.real.read(lambda tx: ATTEMPTS.find(tx, limit=100_000))
        self._moves_are_legal()
        self.world.wishes.check_whole()
        try:
            check_books(self.world.real, self.world.clock.now(), NODES, exact=not self.world.set_back)
        except AssertionError as error:
            raise Broken(f"the ledger: {error}") from error
        if (difference := replay(recorded(self.world.streams), Scheduler).difference) is not None:
            raise Broken(f"what was decided is decided otherwise now: {difference}")
        for job in found:
            self._job_is_right(job, [a for a in attempts if a.job_id == job.id])

    def _job_is_right(self, job: Job, attempts: list[Attempt]) -> None:
        if sorted(a.number for a in attempts) != list(range(1, job.attempts + 1)):
            raise Broken(f"{job.id} has attempts {[a.number for a in attempts]}, and says {job.attempts}")
        if any(a.state is not AttemptState.ENDED for a in attempts):
            raise Broken(f"an attempt of {job.id} has not ended")
        if job.failures > job.spec.retry.attempts or job.attempts > job.failures + job.losses + job.preemptions + 1:
            raise Broken(
                f"{job.id} was tried too often: {job.failures} failures, {job.losses} losses, {job.preemptions} preemptions, "
                f"{job.attempts} attempts"
            )
        lost = [a for a in attempts if a.reason in LOST and a.reason is not Reason.PREEMPTED]
        made_way = [a for a in attempts if a.reason is Reason.PREEMPTED]
        if job.losses > len(lost) or job.failures > len(attempts) - len(lost) - len(made_way):
            raise Broken(f"{job.id} is charged with what it has not done: {[str(a.reason) for a in attempts]}")
        if any(a.preemption is None for a in made_way) or job.preemptions > len(made_way):
            raise Broken(f"{job.id} has made way for nobody")
        if job.attained != sum(service(a) for a in attempts):
            raise Broken(f"{job.id} has attained {job.attained}, its attempts {[service(a) for a in attempts]}")
        asked = job.desired is Desired.STOP and job.array is not None  # or made when its array was stopped already
        if (
            job.state is JobState.CANCELLED
            and not asked
            and job.id not in self.world.stopped
            and job.reason is not Reason.DEPENDENCY_FAILED
        ):
            raise Broken(f"{job.id} was cancelled by nobody")
        for attempt in attempts:
            self.world.ground.check_attempt(job, attempt)
            for task in attempt.tasks:
                key = StreamKey(attempt.project, attempt.id, task.name, "log")
                kept = self.world.streams.read(key, 0, 10**6)
                if not self.world.ground.log_is_whole(attempt, task.name, kept):
                    raise Broken(f"the log of {task.name} of {attempt.id} is {kept!r}, and it wrote something else")
            if attempt.id not in self.world.ground.begun and attempt.reason not in self.world.ground.never_ran:
                raise Broken(f"{attempt.id} never ran but ended by {attempt.reason}")

    def _moves_are_legal(self) -> None:
        tables = {"job": Job.MOVES, "attempt": Attempt.MOVES, "environment": Environment.MOVES}
        last: dict[str, str] = {}
        for event in self.world.real.read(lambda tx: queries.events_after(tx, 0, limit=1_000_000)):
            if event.kind not in tables:
                continue
            before = last.get(event.object_id)
            same = before == event.state
            if before is not None and not same and event.state not in tables[event.kind][before]:  # type: ignore[index]
                raise Broken(f"{event.object_id} went from {before} to {event.state}")
            last[event.object_id] = event.state
