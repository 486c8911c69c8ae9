"""Attempts: launched, watched and ended, as the executor's observations and the users' wishes have it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, NoReturn, Protocol

from danlu.controllers.decisions import Action, Decision, decide, rejected
from danlu.controllers.tasks import Tasks, Trials
from danlu.database import queries, reports
from danlu.database.engine import Transaction
from danlu.database.kept import Kept
from danlu.database.leadership import Fenced
from danlu.database.records import ATTEMPTS, ENVIRONMENTS, JOBS, PROJECTS
from danlu.domain.environments import (
    HOST,
    Environment,
    EnvironmentReason,
    EnvironmentState,
    Interpreter,
    PodEnvironment,
)
from danlu.domain.images import Image
from danlu.domain.jobs import Attempt, AttemptState, Job, JobState, Reason
from danlu.domain.notices import notice_of
from danlu.domain.secrets import HandedSecret
from danlu.errors import (
    DanluError,
    DataDamaged,
    ExecutorUnavailable,
    InvalidRequest,
    LaunchRejected,
    LeadershipLost,
    LeasedPortTaken,
    NotFound,
    SecretUnavailable,
    StorageFull,
    VersionConflict,
)
from danlu.executors.base import Executor, LaunchOrder, Observation, Phase
from danlu.services.context import Clock, Hub

LOG: Final = logging.getLogger("danlu.controllers")
LIVE_PERIOD_S: Final = 1.0
IDLE_PERIOD_S: Final = 30.0
MOST_NS: Final = 1_000_000_000
"""After so long in one step it looks again: what is to be launched by then does not wait until all others are stored."""
MESSAGE_CHARACTERS: Final = 1000
STORAGE_TRIALS: Final = 10
UNKNOWN_GRACE_S: Final = 30.0
REJECTIONS: Final = {LeasedPortTaken: Reason.PORT_TAKEN, SecretUnavailable: Reason.SECRET_UNAVAILABLE}


class Interpreters(Protocol):
    """Where the interpreters of built environments are."""

    def interpreter(self, environment: Environment) -> Interpreter | None:
        """Returns a ready environment's interpreter; None when its folder is no longer there."""

    def for_pods(self, environment: Environment) -> PodEnvironment | None:
        """Returns how a pod has a ready environment; None where it is not packed."""

    def host(self, executable: str) -> Interpreter:
        """Returns the interpreter of ``env: host``, or raises LaunchRejected."""


class Images(Protocol):
    """The container images that are here."""

    def find(self, image: str, project_number: int) -> Image | None:
        """Returns a project's image by its id; None when it is no longer there."""


@dataclass(frozen=True, slots=True)
class Launches:
    """What a launch needs besides the records."""

    interpreters: Interpreters
    token: Callable[[str], str]
    url: Callable[[], str]
    images: Images | None = None
    secrets: Callable[[Job], tuple[HandedSecret, ...]] = lambda _job: ()


@dataclass(frozen=True, slots=True)
class Sighting:
    """That an attempt was seen to run: first at a time (ns UTC), and ever since for so long, whatever the clock is set to."""

    at: int
    tick: int
    lasted: int = 0

    def again(self, tick: int) -> Sighting:
        """Returns it, seen again at a monotonic time (ns)."""
        return Sighting(self.at, self.tick, max(self.lasted, tick - self.tick))


@dataclass(slots=True)
class AttemptsController:
    """Decides for each live attempt by what the executor sees of it. Restarting it is the normal path."""

    database: Fenced
    executor: Executor
    clock: Clock
    hub: Hub
    launches: Launches
    tasks: Tasks
    monotonic: Callable[[], int] = time.monotonic_ns
    known: Kept[Attempt] = field(default_factory=lambda: Kept(ATTEMPTS))
    """shared with the other controllers of a term: thousands are in memory once"""
    _trials: Trials = field(default_factory=Trials)
    _alive: dict[str, Sighting] = field(default_factory=dict)
    _jobs: Kept[Job] = field(default_factory=lambda: Kept(JOBS))
    _last: str = ""

    def step(self) -> float:
        """Looks once."""
        busy = self.tasks.running()  # before the look: what is being launched now may not be seen yet
        before = self.monotonic()
        seen = {one.attempt_id: one for one in self.executor.observe()}
        after = self.monotonic()
        attempts, jobs = self.database.read(
            lambda tx: (queries.holding_attempts(tx, known=self.known), queries.holders(tx, self._jobs))
        )
        now = self.clock.now()
        # what nothing is seen of first: a launch only begins here, while what is stored of others may wait for its turn
        last, more = self._last, False
        for attempt in sorted(attempts, key=lambda attempt: (attempt.id in seen, attempt.id <= last)):
            if attempt.id in busy:
                continue
            if self.monotonic() - after > MOST_NS:
                more = True
                break
            self._last = attempt.id  # the next step goes on behind it
            try:
                one = seen.get(attempt.id)
                if one is not None and _runs(one, attempt):
                    sighting = self._alive.get(attempt.id)
                    self._alive[attempt.id] = Sighting(now, after) if sighting is None else sighting.again(before)
                else:
                    attempt = self._seen(attempt, one)
                self._decide(jobs[attempt.job_id], attempt, one, now)
            except LeadershipLost:
                raise
            except (DanluError, ValueError) as error:  # one attempt's trouble is not the others'
                LOG.error("attempt %s: %s: %s", attempt.id, type(error).__name__, error)
        live = {attempt.id for attempt in attempts}
        self._end_strangers([one for one in seen.values() if one.attempt_id not in live | busy])
        self._trials.keep(live)
        self._alive = {attempt_id: at for attempt_id, at in self._alive.items() if attempt_id in live}
        return 0.0 if more else self._trials.wait_s(now, LIVE_PERIOD_S if attempts else IDLE_PERIOD_S)

    def _seen(self, attempt: Attempt, seen: Observation | None) -> Attempt:
        """Returns an attempt that does not run any more with its last sign of life: what it held is billed until then.

        What is lost has it when it was last seen. Of what has ended its job may tell what it likes, but what was seen of it:
        so long after its start, whatever the clocks say.
        """
        known = self._alive.get(attempt.id)
        if known is None:
            return attempt
        ended = seen is not None and seen.phase is Phase.ENDED
        began = (attempt.started_at or 0) if ended else known.at
        return attempt.model_copy(update={"seen_at": max(began + known.lasted, attempt.seen_at or 0)})

    def _decide(self, job: Job, attempt: Attempt, seen: Observation | None, now: int) -> None:
        decision = decide(job, attempt, seen, now)
        if decision.action in (Action.STOP, Action.GIVE_WAY):
            grace_s = job.spec.grace if job.stop_grace_s is None else job.stop_grace_s
            notice = None
            if decision.action is Action.GIVE_WAY and attempt.preemption is not None:
                notice = notice_of(job, attempt.preemption, now)
            self.executor.stop(attempt.id, grace_s=grace_s, notice=notice)
        if decision.jobs or decision.attempts:
            try:
                self.database.write(lambda tx: self._store(tx, job, attempt, decision))
            except VersionConflict:
                self.hub.notify("attempts")  # somebody was quicker: look again
                return
            for topic in ("jobs", "output", "events"):
                self.hub.notify(topic)
            if any(one.collected for one in decision.attempts):
                self.executor.forget(attempt.id)
        if decision.action is Action.LAUNCH and self._trials.due(attempt.id, now):
            self.tasks.start(attempt.id, lambda: self._launch(job, attempt))

    def _end_strangers(self, seen: Iterable[Observation]) -> None:
        """Ends what runs although its attempt has ended: a launch that came through after the job was stopped."""
        strangers = list(seen)
        if not strangers:
            return
        known = self.database.read(lambda tx: {o.attempt_id: ATTEMPTS.get(tx, o.attempt_id) for o in strangers})
        for one in strangers:
            attempt, running = known[one.attempt_id], one.phase in (Phase.STARTING, Phase.RUNNING)
            if attempt is None and running:  # of a database that was set back: its files may be worth something
                LOG.warning("attempt %s runs but is not in the database: it is stopped", one.attempt_id)
                self.executor.stop(one.attempt_id, grace_s=UNKNOWN_GRACE_S)
            elif attempt is not None and attempt.state is AttemptState.ENDED:
                if running:
                    self.executor.stop(one.attempt_id, grace_s=0.0)
                elif attempt.collected:
                    self.executor.forget(one.attempt_id)

    # launching, beside the loop

    def _launch(self, job: Job, attempt: Attempt) -> None:
        try:
            self.executor.launch(self._order(job, attempt))
            self._trials.over(attempt.id)
        except (LaunchRejected, NotFound, InvalidRequest, DataDamaged) as error:
            reason = next((why for kind, why in REJECTIONS.items() if isinstance(error, kind)), Reason.LAUNCH_REJECTED)
            self._reject(job, attempt, reason, error.message)
        except LeadershipLost:
            raise
        except Exception as error:
            failures, wait_s = self._trials.failed(attempt.id, self.clock.now())
            known = isinstance(error, DanluError)
            LOG.warning("launch of %s: %s; again in %g s", attempt.id, error, wait_s, exc_info=None if known else error)
            if isinstance(error, StorageFull) and failures >= STORAGE_TRIALS:
                self._reject(job, attempt, Reason.LAUNCH_REJECTED, str(error))
            elif failures > 1:
                self._tell(job, f"it cannot be launched yet: {error}")
        finally:
            self.hub.notify("attempts")

    def _tell(self, job: Job, message: str) -> None:
        """Lets the job say what keeps it; nothing else of it changes."""

        def work(tx: Transaction) -> None:
            newest = JOBS.require(tx, job.id)
            if newest.state is JobState.STARTING and newest.message != message:
                JOBS.put(tx, newest, newest.evolved(now=self.clock.now(), message=message[:MESSAGE_CHARACTERS]))

        self.database.write(work)

    def _order(self, job: Job, attempt: Attempt) -> LaunchOrder:
        project, environment = self.database.read(
            lambda tx: (
                PROJECTS.require(tx, job.project),
                None if job.environment_id is None else ENVIRONMENTS.require(tx, job.environment_id),
            )
        )
        interpreter: Interpreter | None = None
        image: Image | None = None
        pods: PodEnvironment | None = None
        if environment is not None and environment.source.image is None and self.executor.capabilities.archives:
            pods = self.launches.interpreters.for_pods(environment)
            if pods is None:
                self._rebuild(environment)
            interpreter = pods.interpreter
        elif environment is not None and environment.source.image is not None:
            if self.launches.images is None:
                raise LaunchRejected("this platform runs no container images any more")
            image = self.launches.images.find(environment.lock_digest or environment.source.image, project.number)
            if image is None:
                self._rebuild(environment)
        elif environment is not None:
            interpreter = self.launches.interpreters.interpreter(environment)
            if interpreter is None:
                self._rebuild(environment)
        elif job.spec.env == HOST and job.spec.interpreter is not None:
            interpreter = self.launches.interpreters.host(job.spec.interpreter)
        return LaunchOrder(
            job=job, attempt=attempt, interpreter=interpreter, image=image, project_number=project.number,
            url=self.launches.url(), token=self.launches.token(attempt.id), secrets=self.launches.secrets(job),
            require=project.require, environment=pods,
        )  # fmt: skip

    def _rebuild(self, environment: Environment) -> NoReturn:
        if environment.state is EnvironmentState.FAILED:
            raise LaunchRejected(f"environment {environment.name}: {environment.message}")
        if environment.state in (EnvironmentState.READY, EnvironmentState.REMOVED):
            wanted = environment.moved(
                EnvironmentState.WANTED, now=self.clock.now(), reason=EnvironmentReason.REBUILD,
                message="what was built is no longer there",
            )  # fmt: skip
            self.database.write(lambda tx: ENVIRONMENTS.put(tx, environment, wanted))
            self.hub.notify("environments")
        raise ExecutorUnavailable(f"environment {environment.name} is being built again")

    def _store(self, tx: Transaction, job: Job, attempt: Attempt, decision: Decision) -> None:
        for new_attempt in decision.attempts:
            ATTEMPTS.put(tx, attempt, new_attempt)
            attempt = new_attempt
            if attempt.collected:  # nothing of it is kept, what its pods have said neither
                reports.remove(tx, attempt.id)
        for new_job in decision.jobs:
            JOBS.put(tx, job, new_job)
            job = new_job

    def _reject(self, job: Job, attempt: Attempt, reason: Reason, message: str) -> None:
        def work(tx: Transaction) -> None:
            newest_job, newest = JOBS.require(tx, job.id), ATTEMPTS.require(tx, attempt.id)
            if newest.state is not AttemptState.ENDED:
                self._store(tx, newest_job, newest, rejected(newest_job, newest, reason, message, self.clock.now()))

        self.database.write(work)
        self.executor.forget(attempt.id)
        self.hub.notify("jobs")


def _runs(seen: Observation, attempt: Attempt) -> bool:
    """Says whether an attempt runs, and not only what is left of it; that it has begun may be no longer told."""
    if seen.phase is Phase.STARTING:
        return attempt.started_at is not None
    return seen.phase is Phase.RUNNING and seen.started_at is not None
