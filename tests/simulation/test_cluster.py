"""The same lives on a cluster: the real Kubernetes executor, a played API, and all that happens to clusters and pods."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from danlu.database import reports
from danlu.database.records import ATTEMPTS
from danlu.domain.jobs import Reason
from danlu.domain.notices import Wishes
from danlu.domain.reports import TaskReport
from danlu.domain.specs import JobSpec
from danlu.errors import ExecutorUnavailable
from danlu.executors.base import Observation, Phase
from danlu.executors.kubernetes.executor import KubernetesExecutor
from danlu.services import jobs
from danlu.services.context import Call
from tests.simulation.ground import Broken
from tests.simulation.pods import Pods
from tests.simulation.test_simulation import live
from tests.simulation.world import Parts, World

SEEDS = int(os.environ.get("DANLU_SEEDS", "25"))
ACTIONS = 150
PLANTED_SEEDS = 40


def in_pods(executor: type[KubernetesExecutor] = KubernetesExecutor, **parts: Any) -> Parts:
    return Parts(executor=executor, ground=Pods, **parts)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_promise_holds_on_a_cluster(seed: int, tmp_path: Path, template: Path) -> None:
    live(World(seed, tmp_path, template, in_pods()), ACTIONS)


def test_what_pods_have_said_goes_with_an_attempt_that_is_refused_at_last(tmp_path: Path, template: Path) -> None:
    world = World(0, tmp_path, template, in_pods())
    try:
        job_id = world.platform.new_id("j")
        jobs.submit(world.call, job_id, JobSpec.model_validate({"command": ["simulated", "hold"]}))
        for name in ("environments", "scheduling", "attempts"):
            world.controller(name)
            while world.tasks:
                world.task()
        for _ in range(5):
            world.time_passes(1)
            world.ground.goes_on()
        assert world.real.read(reports.Heard().look)
        (attempt,) = world.real.read(lambda tx: ATTEMPTS.find(tx, job_id=job_id, limit=2))
        job = jobs.get(world.call, job_id)
        world.controllers["attempts"]._reject(job, attempt, Reason.LAUNCH_REJECTED, "its environment has failed")
        assert world.real.read(reports.Heard().look) == {}
    finally:
        world.close()


class FreesWhatTerminates(KubernetesExecutor):
    """Says that an attempt has ended as soon as its pods were told to end."""

    def observe(self) -> tuple[Observation, ...]:
        return tuple(
            one.model_copy(update={"phase": Phase.ENDED, "stopped": True}) if one.attempt_id in self._asked else one
            for one in super().observe()
        )


class MakesASecondJob(KubernetesExecutor):
    """Makes a Job of another name where there is one already, as after an error that came after the effect."""

    def _create(self, kind: str, content: dict[str, Any]) -> dict[str, Any] | None:
        made = super()._create(kind, content)
        if made is None and kind == "jobs":
            again = {**content, "metadata": {**content["metadata"], "name": content["metadata"]["name"] + "-2"}}
            return super()._create(kind, again)
        return made


class TakesSilenceForNothing(KubernetesExecutor):
    """Takes an API that does not answer for one that has no pods."""

    def observe(self) -> tuple[Observation, ...]:
        try:
            return super().observe()
        except ExecutorUnavailable:
            return ()


class BelievesReportsAlone(KubernetesExecutor):
    """Says that an attempt has ended when its runners say so, and its pods are still there."""

    def observe(self) -> tuple[Observation, ...]:
        told = self._reports()
        return tuple(
            one.model_copy(update={"phase": Phase.ENDED})
            if one.tasks and all(task.ended_at is not None for task in one.tasks) and one.attempt_id in told
            else one
            for one in super().observe()
        )


def takes_late_reports(call: Call, attempt: str, task: str, body: TaskReport) -> Wishes:
    """Keeps what a runner says, whether its attempt is over or not."""
    call.write(lambda tx: reports.put(tx, attempt, task, body, call.platform.clock.now()))
    return Wishes(tag="")


PLANTED = {
    "frees what terminates": in_pods(FreesWhatTerminates),
    "makes a second Job": in_pods(MakesASecondJob),
    "takes silence for nothing": in_pods(TakesSilenceForNothing),
    "believes reports alone": in_pods(BelievesReportsAlone),
    "takes late reports": in_pods(report=takes_late_reports),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_a_bug_planted_in_the_cluster_is_found(bug: str, tmp_path: Path, template: Path) -> None:
    for seed in range(PLANTED_SEEDS):
        world = World(seed, tmp_path, template, PLANTED[bug])
        try:
            world.shake()
            for _ in range(ACTIONS):
                world.act()
        except (Broken, ValueError):
            return
        finally:
            world.close()
    pytest.fail(f"{bug} was not found in {PLANTED_SEEDS} seeds")


def test_a_seed_of_a_cluster_repeats_itself(tmp_path: Path, template: Path) -> None:
    logs = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        world = World(4, tmp_path / folder, template, in_pods())
        live(world, ACTIONS)
        logs.append((world.log, world.ground.cluster.requests))
    assert logs[0] == logs[1]
