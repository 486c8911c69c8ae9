"""On PostgreSQL others write at the same time: who asks for something once gets it, whatever they change meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from danlu.api.bodies import StopRequest
from danlu.database.engine import Database, Transaction
from danlu.database.records import ARRAYS, JOBS
from danlu.domain.actors import Actor
from danlu.domain.arrays import array_id
from danlu.domain.jobs import Desired
from danlu.domain.specs import JobSpec
from danlu.services import arrays, jobs
from danlu.services.context import Call, Clock
from tests.api.edge import Api
from tests.databases import together

ADMIN = Actor(id="k", name="admin", administrator=True)
SIZE = 120
"""More than are made in two transactions."""


@dataclass
class Meddler:
    """A clock in whose first look somebody else changes something: that is between what a service reads and writes."""

    clock: Clock
    meddle: Callable[[], Any]
    done: bool = False

    def now(self) -> int:
        if not self.done:
            self.done = True
            self.meddle()
        return self.clock.now()

    def wall(self) -> int:
        return self.clock.wall()


@pytest.fixture
def api(postgresql: Database, tmp_path: Path) -> Api:
    return Api(postgresql, tmp_path)


def call(api: Api, meddle: Callable[[], Any] = lambda: None) -> Call:
    return Call(replace(api.platform, clock=Meddler(api.platform.clock, meddle)), ADMIN, "default")


def spec(**fields: Any) -> JobSpec:
    return JobSpec.model_validate({"command": "x", **fields})


def changed(api: Api, job_id: str) -> None:
    """As a scheduler does that says why it waits."""

    def work(tx: Transaction) -> None:
        job = JOBS.require(tx, job_id)
        JOBS.put(tx, job, job.evolved(now=job.updated_at, message="it waits"))

    api.database.write(work)


@pytest.mark.parametrize("asked", [{}, {"name": "twice"}, {"name": "many", "array": f"0-{SIZE - 1}"}])
def test_the_same_job_that_is_submitted_twice_at_once_is_one(api: Api, asked: dict[str, Any]) -> None:
    job_id = api.new_id("j")
    found = together(4, lambda _: jobs.submit(Call(api.platform, ADMIN, "default"), job_id, spec(**asked)))
    assert [getattr(one, "id", one) for one in found] == [job_id] * 4
    elements = api.database.read(lambda tx: JOBS.find(tx, array_id=array_id(job_id), limit=1000))
    assert len(elements) == (SIZE if "array" in asked else 0)


def test_a_job_that_changes_meanwhile_is_stopped_all_the_same(api: Api) -> None:
    job = jobs.submit(call(api), api.new_id("j"), spec(name="one"))
    asked = call(api, lambda: changed(api, job.id))
    assert jobs.stop(asked, "one", StopRequest()).desired is Desired.STOP


def test_an_array_that_is_being_made_is_stopped_all_the_same(api: Api) -> None:
    first = jobs.submit(call(api), api.new_id("j"), spec(name="many", array="0-2"))

    def goes_on() -> None:
        def work(tx: Transaction) -> None:
            array = ARRAYS.require(tx, array_id(first.id))
            ARRAYS.put(tx, array, array.evolved(now=array.updated_at))

        api.database.write(work)
        changed(api, first.id)

    assert arrays.stop(call(api, goes_on), "many", StopRequest()).array.stopped
    found = api.database.read(lambda tx: JOBS.find(tx, array_id=array_id(first.id), limit=10))
    assert {job.desired for job in found} == {Desired.STOP}
