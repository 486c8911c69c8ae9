"""Does the system keep its promises under faults, restarts and races? Each seed is a life; a planted bug must be found."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import pytest

from danlu.controllers.attempts import AttemptsController
from danlu.controllers.collection import CollectionController
from danlu.controllers.decisions import Action, Decision, decide, service
from danlu.controllers.environments import EnvironmentsController
from danlu.database.engine import Transaction
from danlu.database.leadership import Fenced
from danlu.database.records import ATTEMPTS, JOBS, Records
from danlu.domain.jobs import Attempt, Job, JobState, Reason
from danlu.domain.ledger import HELD, Account
from danlu.domain.specs import JobSpec
from danlu.executors.base import LaunchOrder, Observation, Phase
from danlu.executors.simulated import SimulatedExecutor
from danlu.services import jobs
from tests.books import rows
from tests.simulation.ground import NODES, Broken
from tests.simulation.world import SECOND, Parts, World

T = TypeVar("T")
SEEDS = int(os.environ.get("DANLU_SEEDS", "100"))
ACTIONS = 250
PLANTED_SEEDS = 40


def live(world: World, actions: int = ACTIONS) -> None:
    try:
        world.shake()
        for _ in range(actions):
            world.act()
        world.finish()
    finally:
        world.close()


@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_promise_holds(seed: int, tmp_path: Path, template: Path) -> None:
    live(World(seed, tmp_path, template))


def test_half_of_a_gangs_machines_go_and_come_back(tmp_path: Path, template: Path) -> None:
    world = World(0, tmp_path, template)
    try:
        roles = {"worker": {"replicas": 3, "cpu": 4}}
        spec = JobSpec.model_validate({"command": ["simulated", "sleep:60"], "roles": roles, "framework": "none"})
        job_id = world.platform.new_id("j")
        jobs.submit(world.call, job_id, spec)

        def settle() -> Job:
            for _ in range(20):
                for name in world.controllers:
                    world.controller(name)
                    world.check()
                while world.tasks:
                    world.task()
                world.time_passes(0.5)
            return jobs.get(world.call, job_id)

        running = settle()
        assert running.state is JobState.RUNNING
        assert {task.node for process in world.executor.alive() for task in process.order.attempt.tasks} == {
            "node-a", "node-b",
        }  # fmt: skip
        world.executor.lose("node-b")
        waiting = settle()
        assert (waiting.state, waiting.losses, waiting.failures) == (JobState.QUEUED, 1, 0)
        assert waiting.reason is Reason.WAITING_FOR_RESOURCES
        assert "3 tasks of 4 cpu each; 1 of them fit" in jobs.why(world.call, job_id).explanation[0]
        assert world.executor.alive() == []  # the half that was left was ended too
        world.executor.nodes = NODES
        again = settle()
        assert (again.state, again.attempts) == (JobState.RUNNING, 2)
        world.finish()
        assert jobs.get(world.call, job_id).state is JobState.SUCCEEDED
    finally:
        world.close()


@pytest.mark.parametrize("heeds", [True, False])
def test_who_makes_way_is_charged_with_nothing(heeds: bool, tmp_path: Path, template: Path) -> None:
    world = World(0, tmp_path, template)
    try:
        words = ["simulated", "save:step-1", "hold", *(["heeds"] if heeds else [])]
        job_id = world.platform.new_id("j")
        submitted = jobs.submit(world.call, job_id, JobSpec.model_validate({"command": words, "notice": "20s"}))
        world.submitted.append(job_id)

        def settle(seconds: float) -> tuple[Job, list[Attempt]]:
            for _ in range(20):
                for name in world.controllers:
                    world.controller(name)
                    world.check()
                while world.tasks:
                    world.task()
                world.time_passes(seconds / 20)
            attempts = world.real.read(lambda tx: ATTEMPTS.find(tx, job_id=job_id, order="number", limit=10))
            return jobs.get(world.call, job_id), attempts

        job, attempts = settle(20)
        assert (job.state, attempts[0].saved_as) == (JobState.RUNNING, "step-1")
        world.preempt(attempts[0].id)
        world.preempt(attempts[0].id)  # a second time changes nothing
        job, (first, *others) = settle(60)
        lost = "nothing: it wrote a checkpoint at the notice" if heeds else "of work since the checkpoint step-1"
        assert (first.reason, len(others)) == (Reason.PREEMPTED, 1)
        assert lost in first.message
        assert (job.state, job.attempts, job.preemptions, job.losses, job.failures) == (JobState.RUNNING, 2, 1, 0, 0)
        assert job.queued_at == submitted.queued_at
        assert job.saves is heeds
        assert job.attained == service(first) > 0
        world.finish()
    finally:
        world.close()


def runs(world: World, script: str) -> str:
    """Submits a job that fits on node-b alone, and waits until it runs."""
    job_id = world.platform.new_id("j")
    jobs.submit(world.call, job_id, JobSpec.model_validate({"command": ["simulated", script], "cpu": 8}))
    while jobs.get(world.call, job_id).state is not JobState.RUNNING:
        for name in world.controllers:
            world.controller(name)
        while world.tasks:
            world.task()
        world.time_passes(0.1)
    return job_id


def test_a_look_that_takes_long_goes_on_where_it_was(tmp_path: Path, template: Path) -> None:
    world = World(0, tmp_path, template)
    try:
        submitted = [world.platform.new_id("j") for _ in range(4)]
        for job_id in submitted:
            jobs.submit(world.call, job_id, JobSpec.model_validate({"command": ["simulated", "sleep:1000"], "cpu": 1}))
        ticks = count(0, 600_000_000)  # ns: each step has time for one attempt
        attempts: Any = world.controllers["attempts"]
        attempts.monotonic = lambda: next(ticks)
        for _ in range(40):
            for name in world.controllers:
                world.controller(name)
            while world.tasks:
                world.task()
            world.time_passes(0.1)
        assert {jobs.get(world.call, job_id).state for job_id in submitted} == {JobState.RUNNING}
    finally:
        world.close()


class Lies(SimulatedExecutor):
    """Jobs that write into their status, at the end, what would make them cheaper."""

    lie = ""

    def _observation(self, attempt_id: str, process: Any, now: int) -> Observation:
        told = super()._observation(attempt_id, process, now)
        if told.phase is not Phase.ENDED:
            return told
        if self.lie == "it began late":
            tasks = tuple(task.model_copy(update={"started_at": told.ended_at}) for task in told.tasks)
            return told.model_copy(update={"started_at": told.ended_at, "tasks": tasks})
        if self.lie == "it ended early":
            return told.model_copy(update={"ended_at": told.started_at})
        return told.model_copy(update={"preempted": True})


@pytest.mark.parametrize("lie", ["it began late", "it ended early", "it made way"])
def test_what_was_seen_is_billed_whatever_a_job_says_of_itself(lie: str, tmp_path: Path, template: Path) -> None:
    world = World(0, tmp_path, template, Parts(executor=type("Liar", (Lies,), {"lie": lie})))
    try:
        job_id = runs(world, "sleep:1000")
        for _ in range(12):
            world.time_passes(100)
            world.controller("attempts")
        (ended,) = world.real.read(lambda tx: ATTEMPTS.find(tx, job_id=job_id, limit=10))
        assert ended.reason is Reason.COMPLETED
        held = 0
        for entry in world.real.read(rows):
            if entry.meter.object_id == ended.id:
                held += (entry.until - entry.since) * ((entry.credit in HELD) - (entry.debit in HELD))
        assert 899 * SECOND < held < 1001 * SECOND
    finally:
        world.close()


@pytest.mark.parametrize("how", ["its machine goes", "the executor forgets it"])
def test_what_is_lost_is_billed_until_its_last_sign_of_life(how: str, tmp_path: Path, template: Path) -> None:
    world = World(0, tmp_path, template)
    try:
        job_id = runs(world, "sleep:9000")
        world.time_passes(1000)
        world.controller("attempts")
        seen_at = world.clock.now()
        world.time_passes(50)
        if how == "its machine goes":
            world.executor.lose("node-b")
        else:
            world.executor.processes.clear()
        gone_at = world.clock.now()
        world.time_passes(3000)  # nobody looks
        world.controller("attempts")
        (lost,) = world.real.read(lambda tx: ATTEMPTS.find(tx, job_id=job_id, limit=10))
        assert lost.reason is Reason.RUNNER_LOST
        used = [e for e in world.real.read(rows) if e.meter.object_id == lost.id and e.credit is Account.USED]
        assert used[0].since == lost.started_at
        assert abs(used[-1].until - (gone_at if how == "its machine goes" else seen_at)) < SECOND // 10
    finally:
        world.close()


class ChargesPreemptions(AttemptsController):
    """Counts a preemption as a failure."""

    def _store(self, tx: Transaction, job: Job, attempt: Attempt, decision: Decision) -> None:
        charged = tuple(
            new.model_copy(update={"failures": new.failures + 1}) if new.reason is Reason.PREEMPTED else new
            for new in decision.jobs
        )
        super()._store(tx, job, attempt, replace(decision, jobs=charged))


class GivesNoNotice(AttemptsController):
    """Repeats what has to make way while it is still there."""

    def _decide(self, job: Job, attempt: Attempt, seen: Observation | None, now: int) -> None:
        super()._decide(job, attempt, None if attempt.preemption is not None else seen, now)


class FreesEarly(SimulatedExecutor):
    """Says that an attempt has ended while its process is still there."""

    def observe(self) -> tuple[Observation, ...]:
        return tuple(
            one.model_copy(update={"phase": Phase.ENDED, "stopped": True})
            if self.processes[one.attempt_id].stopped_at
            else one
            for one in super().observe()
        )


class LaunchesTwice(SimulatedExecutor):
    """Starts an attempt again when it is asked again."""

    def launch(self, order: LaunchOrder) -> None:
        self.processes.pop(order.attempt.id, None)
        super().launch(order)


class IgnoresVersions(AttemptsController):
    """Writes over what somebody else has changed meanwhile."""

    def _store(self, tx: Transaction, job: Job, attempt: Attempt, decision: Decision) -> None:
        for records, news in ((ATTEMPTS, decision.attempts), (JOBS, decision.jobs)):
            for new in news:
                newest: Any = records.require(tx, new.id)  # type: ignore[attr-defined]
                records.put(tx, newest, new.model_copy(update={"version": newest.version + 1}))  # type: ignore[attr-defined]


class PostsNothing(AttemptsController):
    """Stores attempts past the door at which what they held is posted."""

    def _store(self, tx: Transaction, job: Job, attempt: Attempt, decision: Decision) -> None:
        for new in decision.attempts:
            Records.put(ATTEMPTS, tx, attempt, new)
            attempt = new
        super()._store(tx, job, attempt, dataclasses.replace(decision, attempts=()))


class BelievesTheFirst(AttemptsController):
    """Takes what became of a gang's first task for what became of all."""

    def _decide(self, job: Job, attempt: Attempt, seen: Observation | None, now: int) -> None:
        if seen is not None and seen.tasks:
            told = seen.tasks[0].model_dump(include={"exit_code", "signal", "stopped", "ended_at"})
            seen = seen.model_copy(update={"tasks": tuple(task.model_copy(update=told) for task in seen.tasks)})
        super()._decide(job, attempt, seen, now)


class ForgetsStops(AttemptsController):
    """Never passes a stop on."""

    def _decide(self, job: Job, attempt: Attempt, seen: Observation | None, now: int) -> None:
        decision = decide(job, attempt, seen, now)
        if decision.action is not Action.STOP:
            super()._decide(job, attempt, seen, now)


class ForgetsTooSoon(CollectionController):
    """Lets the executor forget an attempt before its log was copied."""

    def _copy(self, attempt: Attempt) -> bool:
        return False


class SweepsBlindly(EnvironmentsController):
    """Removes every folder that is there, whoever uses it."""

    def _sweep(self) -> None:
        self.builder.doom(self.builder.folders())


class IgnoresEpoch(Fenced):
    """Writes whatever was decided, however long ago, whoever leads now."""

    def write(self, work: Callable[[Transaction], T]) -> T:
        return self._database.write(work)


PLANTED: list[Parts] = [
    Parts(fenced=IgnoresEpoch),
    Parts(executor=FreesEarly),
    Parts(executor=LaunchesTwice),
    Parts(attempts=IgnoresVersions),
    Parts(attempts=PostsNothing),
    Parts(attempts=BelievesTheFirst),
    Parts(attempts=ForgetsStops),
    Parts(attempts=ChargesPreemptions),
    Parts(attempts=GivesNoNotice),
    Parts(collection=ForgetsTooSoon),
    Parts(environments=SweepsBlindly),
]


def named(parts: Parts) -> str:
    default = Parts()
    return next(
        getattr(parts, name).__name__ for name in vars(parts) if getattr(parts, name) is not getattr(default, name)
    )


@pytest.mark.parametrize("parts", PLANTED, ids=named)
def test_a_planted_bug_is_found(parts: Parts, tmp_path: Path, template: Path) -> None:
    for seed in range(PLANTED_SEEDS):
        try:
            live(World(seed, tmp_path, template, parts))
        except (Broken, ValueError):
            return
    pytest.fail(f"{named(parts)} was not found in {PLANTED_SEEDS} seeds")


def test_a_seed_repeats_itself(tmp_path: Path, template: Path) -> None:
    logs = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        world = World(3, tmp_path / folder, template)
        live(world)
        logs.append((world.log, world.executor.begun))
    assert logs[0] == logs[1]
