"""Whose environments are built first: no project keeps the others from building, and no pull keeps a build waiting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest

from danlu.blobs.local_streams import LocalStreams
from danlu.controllers.environments import AT_ONCE, BUILD_THREADS, OF_A_PROJECT, EnvironmentsController
from danlu.controllers.tasks import Tasks
from danlu.database.engine import Database
from danlu.database.records import ENVIRONMENTS
from danlu.domain.environments import EnvironmentSource, EnvironmentState
from danlu.services.context import Hub
from tests.factories import NOW, Ids, make_environment

IMAGE = EnvironmentSource(image="docker.io/library/python:3.11")


class Frozen:
    def now(self) -> int:
        return NOW


class Endless:
    """Builds that were begun and never end: nothing of it is called."""

    def build(self, source: EnvironmentSource, report: Callable[[str], None]) -> Any:
        raise NotImplementedError

    def folders(self) -> frozenset[str]:
        return frozenset()

    def doom(self, names: Collection[str]) -> Callable[[], None]:
        raise NotImplementedError

    def bound_caches(self) -> None:
        raise NotImplementedError


class Turns:
    def __init__(self, database: Database, folder: Path) -> None:
        self.database, self.ids, self.begun = database, Ids(), list[Callable[[], None]]()
        self.controller = EnvironmentsController(
            database, Endless(), LocalStreams(folder), Frozen(), Hub(), Tasks(self.begun.append)
        )

    def want(self, project: str, count: int, **fields: Any) -> None:
        for _ in range(count):
            made = make_environment(self.ids("e"), project=project, source_digest=f"{self.ids('e')}", **fields)
            self.database.write(lambda tx, made=made: ENVIRONMENTS.add(tx, made))

    def step(self) -> Counter[tuple[str, bool]]:
        """Returns what is at work after a look, by (project, whether it is pulled)."""
        self.controller.step()
        building = self.database.read(lambda tx: ENVIRONMENTS.find(tx, state=EnvironmentState.BUILDING, limit=100))
        assert len(building) == len(self.begun) <= BUILD_THREADS
        return Counter((one.project, one.source.image is not None) for one in building)


@pytest.fixture
def turns(sqlite: Database, tmp_path: Path) -> Turns:
    return Turns(sqlite, tmp_path)


def test_one_project_does_not_have_all(turns: Turns) -> None:
    turns.want("greedy", 10)
    assert turns.step() == {("greedy", False): OF_A_PROJECT}
    turns.want("other", 1)  # although it came last
    assert turns.step() == {("greedy", False): OF_A_PROJECT, ("other", False): 1}
    turns.want("third", 1)
    assert turns.step().total() == AT_ONCE


def test_those_with_the_fewest_go_first(turns: Turns) -> None:
    turns.want("greedy", 10)
    turns.want("other", 1)
    turns.want("third", 1)
    assert turns.step() == {("greedy", False): 1, ("other", False): 1, ("third", False): 1}


def test_pulls_do_not_keep_builds_waiting(turns: Turns) -> None:
    turns.want("greedy", 10, source=IMAGE)
    turns.want("other", 10, source=IMAGE)
    assert turns.step().total() == AT_ONCE
    turns.want("greedy", 1)
    turns.want("other", 1)
    found = turns.step()
    assert (found["greedy", False], found["other", False]) == (1, 1)
