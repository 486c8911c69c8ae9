"""A whole platform in one thread: real database, services and controllers; simulated executor, clock, builder and faults."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from danlu.api.bodies import RetryRequest, StopRequest
from danlu.blobs.local import LocalBlobs
from danlu.blobs.local_streams import LocalStreams
from danlu.controllers.attempts import AttemptsController, Launches
from danlu.controllers.collection import CollectionController
from danlu.controllers.environments import EnvironmentsController
from danlu.controllers.leader import LedExecutor
from danlu.controllers.nodes import NodesController
from danlu.controllers.preempting import preempt
from danlu.controllers.recordings import Recording
from danlu.controllers.scheduling import SchedulingController
from danlu.controllers.tasks import Tasks
from danlu.database import leadership, queries
from danlu.database.engine import Transaction
from danlu.database.leadership import Candidate, Fenced, Term
from danlu.database.records import ENVIRONMENTS, JOBS, PROJECTS
from danlu.domain.actors import Actor
from danlu.domain.jobs import Preemption
from danlu.domain.projects import Project
from danlu.domain.specs import JobSpec, TaskSpec
from danlu.errors import Conflict, DanluError, NeverFits
from danlu.executors.simulated import SimulatedExecutor
from danlu.services import environments, jobs, reports
from danlu.services.access import attempt_token
from danlu.services.context import Call, Platform, PlatformFacts
from danlu.services.vault import Vault
from tests.simulation.builder import SimulatedBuilder
from tests.simulation.faults import START, Counted, Killed, OfTerm, ShakyDatabase, SimulatedClock, Time
from tests.simulation.ground import Broken, Machines
from tests.simulation.promises import Promises
from tests.simulation.wishes import Wishes

SECOND = 1_000_000_000
GIB = 2**30
LEASE_S = 5.0


@dataclass
class Parts:
    """Which classes the world is made of; a planted bug replaces one."""

    scheduling: type[SchedulingController] = SchedulingController
    attempts: type[AttemptsController] = AttemptsController
    collection: type[CollectionController] = CollectionController
    executor: type[Any] = SimulatedExecutor
    ground: Callable[[World], Any] = Machines
    """what attempts run on: see ground.py"""
    report: Callable[..., Any] = reports.put
    """takes what a pod's runner says"""
    environments: type[EnvironmentsController] = EnvironmentsController
    fenced: type[Fenced] = Fenced


@dataclass
class World:
    seed: int
    folder: Path
    template: Path
    parts: Parts = field(default_factory=Parts)

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        self.true_time = Time()
        self.clock = SimulatedClock(self.true_time)
        path = self.folder / f"{self.seed}.db"
        shutil.copyfile(self.template, path)
        real = Counted.open(f"sqlite:///{path}")
        self.real: Any = real
        self.database: Any = ShakyDatabase(real, self.random, stands_still=self.stands_still)
        self.servers = itertools.count(1)
        self.may_stand_still = self.standing = False
        self.late: list[str] = []
        self.broken: Broken | None = None
        store = self.folder / f"{self.seed}"
        self.streams = LocalStreams(store)
        self.blobs = LocalBlobs(store)
        self.builder = SimulatedBuilder(self.random)
        ground = self.parts.ground
        facts = PlatformFacts(home="", started_at=START, isolation="", host_environment=ground is Machines)
        self.platform = Platform(
            database=real, blobs=self.blobs, streams=self.streams, clock=self.clock,
            random_bits=self.random.getrandbits, facts=facts, attempt_key=b"key",
            vault=Vault(b"m" * 32, self.random.randbytes),
        )  # fmt: skip
        self.call = Call(self.platform, Actor(id="k", name="user", administrator=True), "default")
        self.wishes = Wishes(self.call, self.random)
        self.ground = ground(self)
        self.promises = Promises(self)
        self.submitted: list[str] = []
        self.stopped: set[str] = set()
        self.set_back = False
        self.gangs: dict[str, tuple[TaskSpec, ...]] = {}
        real.write(self._project)
        self.tasks: list[Callable[[], None]] = []
        self.log: list[str] = []
        self.restart()
        self.controllers["nodes"].step()  # as a server does: the first submit must know what could ever fit

    def _project(self, tx: Transaction) -> None:
        now = self.clock.now()
        PROJECTS.add(tx, Project(id="default", project="default", number=0, created_at=now, updated_at=now))

    def restart(self) -> None:
        """The server begins anew: nothing but the database, the blobs and the executor's world goes on.

        Somebody may have set the machine's clock meanwhile.
        """
        jump = self.random.choices([0, 1, -1], weights=[8, 1, 1])[0] * self.ground.wrong_s
        self.set_back = self.set_back or jump < 0
        self.clock.wrong_by += int(jump * SECOND)
        self.tasks.clear()
        self.lead()

    def lead(self) -> None:
        """A server takes the lead: with controllers that know nothing of what was before."""
        number = next(self.servers)
        lease = self.real.write(partial(leadership.take, who=Candidate(f"server {number}", ""), lease_s=0))
        assert lease is not None
        term = self.term = Term(lease, leadership.FOREVER, lambda: self.true_time.at)
        database = self.parts.fenced(OfTerm(self.database, lease.epoch, self.late), term)
        self.executor = self.ground.server()
        executor = LedExecutor(self.executor, term)
        spawn = self.tasks.append
        together = [Tasks(spawn) for _ in range(3)]
        hub = self.platform.hub
        launches = Launches(self.builder, token=self.token, url=lambda: "http://localhost")
        self.controllers: dict[str, Any] = {
            "nodes": NodesController(database, executor, self.clock, hub),
            "scheduling": self.parts.scheduling(
                database, self.clock, hub, "simulated", recording=Recording(self.streams)
            ),
            "attempts": self.parts.attempts(
                database, executor, self.clock, hub, launches, together[0], self.true_time.now
            ),
            "collection": self.parts.collection(
                database, executor, executor, self.blobs, self.streams, self.clock, hub, together[1]
            ),
            "environments": self.parts.environments(
                database, self.builder, self.streams, self.clock, hub, together[2]
            ),
        }  # fmt: skip

    def token(self, attempt_id: str) -> str:
        return attempt_token(self.platform.attempt_key, attempt_id)

    def stands_still(self) -> None:
        """The leader's machine stands still in the middle of what it does. Another server leads and works; then it wakes.

        What its threads were about to do they still try, at some later time.
        """
        if not self.may_stand_still:
            return
        self.log.append("stands still")
        self.may_stand_still = False
        old = self.term
        self.time_passes(LEASE_S)
        self.lead()
        try:
            for _ in range(self.random.choice([1, 5, 20])):
                self.act()
        finally:
            old.end()  # its own clock went on
        self.log.append("wakes")

    # what can happen

    def shake(self) -> None:
        """Turns faults on."""
        self.ground.shake()
        self.builder.vanish = 0.05
        self.database.kill = 0.02
        self.database.pause = 0.03
        self.database.between = lambda: self.user() if self.random.random() < 0.2 else None

    def calm(self) -> None:
        """Turns faults off."""
        self.ground.calm()
        self.builder.vanish = 0.0
        self.database.kill = 0.0
        self.database.pause = 0.0
        self.database.between = None

    def act(self) -> None:
        """Lets one thing happen, then checks every promise. What is broken is told, whoever swallows it on the way."""
        try:
            self._act()
        except Broken as error:
            self.broken = self.broken or error
        if self.broken is not None:
            raise self.broken

    def _act(self) -> None:
        acts: dict[str, tuple[float, Callable[[], None]]] = {
            "user": (2, self.user), "controller": (10, self.controller), "task": (5, self.task), "time": (4, self.time),
            "restart": (0.3, self.restart), "node": (0.2, self.ground.node), "preempt": (0.6, self.preempt),
            **self.ground.acts,
        }  # fmt: skip
        (what,) = self.random.choices([*acts], weights=[weight for weight, _ in acts.values()])
        try:
            acts[what][1]()
        except Killed:
            self.log.append("killed")
            self.restart()
        self.check()

    def time(self) -> None:
        self.time_passes(self.random.choice(self.ground.pauses_s))

    def time_passes(self, seconds: float) -> None:
        self.true_time.at += int(seconds * SECOND)

    def preempt(self, attempt_id: str | None = None) -> None:
        """Something that holds resources has to make way for another job, or for one that is not there any more."""
        held = [a for a in self.real.read(queries.holding_attempts) if attempt_id in (None, a.id)]
        if not held:
            return
        attempt, now = self.random.choice(held), self.clock.now()
        job = self.real.read(lambda tx: JOBS.require(tx, attempt.job_id))
        preemption = Preemption(
            at=now, deadline=now + int(job.spec.notice * SECOND), for_job=self.random.choice([*self.submitted, "gone"]),
            for_project="default", why="it is older",
        )  # fmt: skip
        self.log.append(f"preempt {attempt.id}")
        self.database.write(lambda tx: preempt(tx, attempt, preemption, now))

    def controller(self, name: str | None = None) -> None:
        name = name or self.random.choice(list(self.controllers))
        self.log.append(name)
        with contextlib.suppress(DanluError), self.perhaps_standing_still():  # as Loop does: try again later
            self.controllers[name].step()

    def task(self) -> None:
        if self.tasks:
            task = self.tasks.pop(self.random.randrange(len(self.tasks)))
            self.log.append("task")
            with contextlib.suppress(DanluError), self.perhaps_standing_still():
                task()

    @contextlib.contextmanager
    def perhaps_standing_still(self) -> Iterator[None]:
        """Of what the leader does here it may stand still in the middle: of two that do so one is enough."""
        outermost = not self.standing
        self.standing = True
        self.may_stand_still = outermost
        try:
            yield
        finally:
            self.may_stand_still = False
            self.standing = not outermost

    def user(self) -> None:
        what = self.random.random()
        if what < 0.6 or not self.submitted:
            job_id = self.platform.new_id("j")
            spec = self.spec()
            try:
                for _ in range(self.random.choice([1, 1, 2])):  # submitting twice is harmless
                    ids = self.wishes.submit(job_id, spec)
            except NeverFits:  # a machine is away
                return
            self.submitted += ids
            self.gangs |= dict.fromkeys(ids, spec.tasks)
            self.log.append(f"submit {job_id}")
        elif what < 0.65:
            self.stopped.update(self.wishes.act(self.submitted))
            self.submitted = list(dict.fromkeys([*self.submitted, *self.wishes.complete()]))
        elif what < 0.9:
            job_id = self.random.choice(self.submitted)
            job = jobs.stop(self.call, job_id, StopRequest(grace=self.random.choice([None, 0.5])))
            if job.live:
                self.stopped.add(job_id)
            self.log.append(f"stop {job_id}")
        elif what < 0.95:
            every = self.platform.database.read(lambda tx: ENVIRONMENTS.find(tx, limit=100))
            with contextlib.suppress(Conflict):  # it is in use
                for environment in self.random.sample(every, min(1, len(every))):
                    environments.remove(self.call, environment.id)
        else:
            with contextlib.suppress(Conflict, NeverFits):
                again = jobs.retry(
                    self.call, self.random.choice(self.submitted), RetryRequest(id=self.platform.new_id("j"))
                )
                self.submitted.append(again.id)

    def spec(self) -> JobSpec:
        r = self.random
        words = ["simulated"] + [f"print:line {n}" for n in range(r.randrange(3))]
        words += r.choice(
            [
                ["sleep:1"], ["sleep:20"], ["hold"], ["exit:3"], ["sleep:1", "exit:1"], ["hold", "deaf"], ["hold", "deaf"],
                ["crash:1", "sleep:2"], ["sleep:1", "robbed"], [], ["save:a", "sleep:20", "heeds"],
                ["save:a", "hold", "heeds"],
            ]
        )  # fmt: skip
        words += r.choice([[], ["print:late"]])
        gpu = r.choice([0, 0, 1, 2])
        environment: dict[str, Any] = r.choice(
            [self.ground.own_environment, {"requirements": "a"}, {"requirements": "impossible"}]
            + [{"env": "python"}] * 4
        )
        if "hold" in words:  # it ends by itself only when somebody stops it: give it a limit for the end of the test
            environment = {"env": "python"}
        return JobSpec.model_validate(
            {
                "command": words, "cpu": r.choice([1, 2, 4]), "memory": r.choice([None, "1GiB", "6GiB"]), "gpu": gpu,
                "gpu_kind": r.choice([None, "h100", "gpu"]) if gpu else None, "priority": r.choice([0, 0, 5]),
                "retry": {"attempts": r.choice([1, 2, 3]), "backoff": r.choice([None, 2])},
                "grace": r.choice([1, 5, 20]), "notice": r.choice([1, 10]), "notice_signal": r.choice(["TERM", "USR1"]),
                "max_time": r.choice([None, None, None, 3]), **environment,
                **(self.roles() if r.random() < 0.3 else {}), **self.wishes.fields(self.submitted),
            }
        )  # fmt: skip

    def roles(self) -> dict[str, Any]:
        """Returns the roles of a gang: equal tasks, or those of TensorFlow."""
        r = self.random
        if r.random() < 0.5:
            return {
                "roles": {"worker": {"replicas": r.choice([2, 3]), "cpu": 1, "memory": "1GiB"}},
                "framework": "none",
            }
        worker = {"replicas": r.choice([1, 2]), "cpu": 1, "restarts": r.choice([0, 1])}
        roles = {"worker": worker, "ps": {"cpu": 1, "command": ["simulated", "hold"]}}
        if r.random() < 0.3:
            roles["evaluator"] = {"cpu": 0.5, "linger": 2, "command": ["simulated", "sleep:30"]}
        return {"roles": roles, "framework": "tensorflow"}

    # promises

    def check(self) -> None:
        """Raises Broken unless every promise holds now."""
        self.promises.check()

    def finish(self) -> None:
        """Ends all faults, lets everything come to its end, and checks what must hold then."""
        self.calm()
        self.submitted = list(dict.fromkeys([*self.submitted, *self.wishes.complete()]))
        self.wishes.release_all()
        for job_id in self.submitted:
            job = jobs.get(self.call, job_id)
            if job.live and any("hold" in task.argv for task in job.spec.tasks):
                jobs.stop(self.call, job_id, StopRequest())
                self.stopped.add(job_id)
        for _ in range(400):
            for name in self.controllers:
                self.controller(name)
                self.check()
            while self.tasks:
                self.task()
                self.check()
            self.true_time.at += 10 * SECOND
            self.ground.goes_on()
            found = self.real.read(lambda tx: JOBS.find(tx, limit=10_000))
            uncollected = self.real.read(lambda tx: queries.uncollected_attempts(tx, 10_000))
            if not any(job.live for job in found) and not uncollected and not self.ground.left():
                break
        else:
            raise Broken(
                f"it does not come to an end: {[(j.id, j.state, j.reason) for j in found if j.live]}, {uncollected}, "
                f"{self.ground.left()}"
            )
        self.promises.check_end(found)

    def close(self) -> None:
        self.real.close()
