"""What the environments' controller takes away: what no record wants and no live job uses, never what one may be given."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest

from danlu.blobs.local_streams import LocalStreams
from danlu.controllers.environments import KEPT_NS, EnvironmentsController
from danlu.controllers.tasks import Tasks
from danlu.database.engine import Database
from danlu.database.records import ENVIRONMENTS, JOBS, PROJECTS
from danlu.domain.environments import EnvironmentReason, EnvironmentSource, EnvironmentState
from danlu.domain.jobs import JobState
from danlu.executors.base import StoredImage
from danlu.services.context import Hub
from tests.factories import NOW, Ids, make_environment, make_job, make_project
from tests.unit.test_environment_turns import Endless, Frozen

S = EnvironmentState


class Images:
    """Images by store, one store for each project; what is doomed is gone."""

    def __init__(self) -> None:
        self.there: set[StoredImage] = set()

    def pull(self, reference: str, project_number: int, report: Callable[[str], None]) -> Any:
        raise NotImplementedError

    def store(self, project_number: int) -> str:
        return f"store-{project_number}"

    def stored(self) -> frozenset[StoredImage]:
        return frozenset(self.there)

    def doom(self, images: Collection[StoredImage]) -> Callable[[], None]:
        return lambda: self.there.difference_update(images)


class Sweep:
    def __init__(self, database: Database, folder: Path) -> None:
        self.database, self.ids, self.images = database, Ids(), Images()
        self.later: list[Callable[[], None]] = []
        self.controller = EnvironmentsController(
            database, Endless(), LocalStreams(folder), Frozen(), Hub(), Tasks(lambda task: task()), self.images
        )
        database.write(lambda tx: [PROJECTS.add(tx, make_project(f"p{number}", number)) for number in (0, 1)])

    def image(self, digest: str, state: EnvironmentState, *, project: int = 0) -> str:
        """Stores an image's environment of a project; returns its id."""
        made = make_environment(
            self.ids("e"), project=f"p{project}", name=digest, source=EnvironmentSource(image=f"test/{digest}:1"),
            source_digest=self.ids("e"), lock_digest=digest, state=state, reason=EnvironmentReason.BUILT,
        )  # fmt: skip
        self.database.write(lambda tx: ENVIRONMENTS.add(tx, made))
        return made.id

    def job(self, environment: str, state: JobState) -> None:
        made = make_job(self.ids(), project="p0", state=state, environment_id=environment)
        self.database.write(lambda tx: JOBS.add(tx, made))

    def left(self, *there: tuple[int, str]) -> set[tuple[int, str]]:
        """Returns what of these images, each by its project's number, is left after a look."""
        self.images.there = {StoredImage(f"store-{number}", digest) for number, digest in there}
        self.controller.step()
        return {(int(one.store[-1]), one.image_id) for one in self.images.there}


@pytest.fixture
def sweep(sqlite: Database, tmp_path: Path) -> Sweep:
    return Sweep(sqlite, tmp_path)


def test_what_no_record_wants_goes(sweep: Sweep) -> None:
    for digest, state in (("ready", S.READY), ("failed", S.FAILED), ("removed", S.REMOVED)):
        sweep.image(digest, state)
    assert sweep.left((0, "ready"), (0, "failed"), (0, "removed"), (0, "stray")) == {(0, "ready"), (0, "failed")}


def test_a_project_keeps_nothing_for_another(sweep: Sweep) -> None:
    sweep.image("same", S.REMOVED, project=0)
    sweep.image("same", S.READY, project=1)
    assert sweep.left((0, "same"), (1, "same")) == {(1, "same")}


def test_what_a_live_job_uses_stays(sweep: Sweep) -> None:
    sweep.job(sweep.image("used", S.REMOVED), JobState.RUNNING)
    sweep.job(sweep.image("over", S.REMOVED), JobState.SUCCEEDED)
    assert sweep.left((0, "used"), (0, "over")) == {(0, "used")}


@pytest.mark.parametrize("state", [JobState.ADMITTED, JobState.STARTING])
def test_beside_a_launch_nothing_of_its_store_goes(sweep: Sweep, state: JobState) -> None:
    """It may have read its environment while that still meant the older image."""
    sweep.job(sweep.image("newer", S.READY), state)
    assert sweep.left((0, "older"), (1, "older")) == {(0, "older")}


def test_beside_a_pull_nothing_goes(sweep: Sweep) -> None:
    sweep.controller.tasks = Tasks(sweep.later.append)
    sweep.image("wanted", S.WANTED)
    assert sweep.left((0, "stray")) == {(0, "stray")}
    assert len(sweep.later) == 1


def test_what_nobody_asks_for_in_a_long_time_is_given_up_and_goes(sweep: Sweep) -> None:
    long_ago = NOW - KEPT_NS
    ids = {}
    for digest, at in (("old", long_ago), ("recent", long_ago + 1), ("asked", long_ago), ("live", long_ago)):
        ids[digest] = sweep.image(digest, S.READY)
        record = sweep.database.read(lambda tx, digest=digest: ENVIRONMENTS.require(tx, ids[digest]))
        aged = record.model_copy(update={"updated_at": at, "version": 2})
        sweep.database.write(lambda tx, old=record, new=aged: ENVIRONMENTS.put(tx, old, new))
    for digest, state, at in (("asked", JobState.SUCCEEDED, NOW), ("live", JobState.QUEUED, long_ago)):
        job = make_job(sweep.ids(), project="p0", state=state, environment_id=ids[digest], queued_at=at)
        sweep.database.write(lambda tx, job=job: JOBS.add(tx, job))
    every = [(0, digest) for digest in ids]
    assert sweep.left(*every) == {(0, "recent"), (0, "asked"), (0, "live")}
    gone = sweep.database.read(lambda tx: ENVIRONMENTS.require(tx, ids["old"]))
    assert (gone.state, gone.reason) == (S.REMOVED, EnvironmentReason.UNUSED)
