"""What an executor whose nodes build no environments is ordered: where the pod has it, and nothing that is not packed."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

from danlu.controllers.attempts import AttemptsController, Launches
from danlu.controllers.tasks import Tasks
from danlu.database.engine import Database, Transaction
from danlu.database.records import ATTEMPTS, ENVIRONMENTS, JOBS, PROJECTS
from danlu.domain.environments import Archive, Environment, EnvironmentReason, EnvironmentState
from danlu.domain.jobs import JobState, Reason
from danlu.domain.trees import address_of
from danlu.environments.builder import Builder
from danlu.executors.base import Capabilities, LaunchOrder
from danlu.executors.simulated import SimulatedExecutor
from danlu.services.context import Hub
from tests.factories import NOW, Ids, make_attempt, make_capacity, make_environment, make_job, make_project

DIGEST = "d" * 64
ARCHIVE = Archive(address=address_of(b"x"), size_bytes=1, unpacked_bytes=2, files=3)
IMAGE = "registry.example.com/python:1"


class Frozen:
    def now(self) -> int:
        return NOW


class Pods:
    """One job that is being started, in an environment."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database, self.folder, self.ids = database, folder, Ids()
        can = Capabilities(name="pods", archives=True)
        self.executor = SimulatedExecutor((make_capacity(),), Frozen(), Random(1), capabilities=can)

    def launch(
        self, images: dict[str, str] | None = None, **environment: Any
    ) -> tuple[LaunchOrder | None, Environment]:
        """Returns what was ordered, if anything was, and the environment then."""
        made = make_environment(
            self.ids("e"),
            state=EnvironmentState.READY,
            reason=EnvironmentReason.BUILT,
            lock_digest=DIGEST,
            **environment,
        )
        job = make_job(self.ids(), state=JobState.STARTING, reason=Reason.LAUNCHING, attempts=1, environment_id=made.id)
        attempt = make_attempt(job)

        def work(tx: Transaction) -> None:
            PROJECTS.add(tx, make_project())
            ENVIRONMENTS.add(tx, made)
            JOBS.add(tx, job)
            ATTEMPTS.add(tx, attempt)

        self.database.write(work)
        builder = Builder(self.folder / "environments", self.folder / "cache", images=images)
        launches = Launches(builder, lambda _attempt: "token", lambda: "http://danlu")
        controller = AttemptsController(
            self.database, self.executor, Frozen(), Hub(), launches, Tasks(lambda task: task())
        )
        for _ in range(3):
            controller.step()
        known = self.executor.processes.get(attempt.id)
        return None if known is None else known.order, self.database.read(lambda tx: ENVIRONMENTS.require(tx, made.id))


@pytest.fixture
def pods(sqlite: Database, tmp_path: Path) -> Pods:
    return Pods(sqlite, tmp_path)


def test_the_archive_is_ordered_though_nothing_was_built_here(pods: Pods) -> None:
    order, _ = pods.launch(archive=ARCHIVE)
    assert order is not None
    assert order.environment is not None
    assert order.environment.archive == ARCHIVE
    assert order.interpreter == order.environment.interpreter
    assert str(order.interpreter and order.interpreter.bin) == f"/danlu/environments/{DIGEST}/bin"


def test_the_image_is_ordered_where_there_is_one(pods: Pods) -> None:
    order, _ = pods.launch({"python": IMAGE})
    assert order is not None
    assert order.environment is not None
    assert (order.environment.image, order.interpreter, order.image) == (IMAGE, None, None)


def test_what_is_not_packed_is_asked_for_again(pods: Pods) -> None:
    """It was built by a server of which nothing ran in pods."""
    order, environment = pods.launch()
    assert order is None
    assert (environment.state, environment.reason) == (EnvironmentState.WANTED, EnvironmentReason.REBUILD)
