"""A small platform in which jobs wait: real services and controllers, simulated nodes. Scenes of tests of ``why``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from danlu.api.bodies import QuotaChange, StopRequest
from danlu.cli import why as cli
from danlu.database import queries
from danlu.database.engine import Transaction
from danlu.database.records import JOBS, NODES, PROJECTS
from danlu.domain.jobs import Job, JobState
from danlu.domain.nodes import NodeCapacity
from danlu.domain.projects import Project
from danlu.domain.specs import JobSpec
from danlu.domain.views import Why
from danlu.services import jobs, quotas
from danlu.services.context import Call
from tests.factories import GIB, make_capacity
from tests.simulation.world import SECOND, World

HOST = {"env": "host", "interpreter": "/usr/bin/python3"}


def node(name: str, *, cpu: float = 64, memory: int = 256 * GIB, **gpus: int) -> NodeCapacity:
    return make_capacity(name, cpu=cpu, memory=memory, **gpus)


@dataclass
class Scene:
    """Jobs by name, in projects that are made when they are first named."""

    world: World
    ids: dict[str, str] = field(default_factory=dict)

    def call(self, project: str = "default") -> Call:
        return Call(self.world.platform, self.world.call.actor, project)

    def project(self, name: str) -> None:
        def work(tx: Transaction) -> None:
            now = self.world.clock.now()
            if PROJECTS.get(tx, name) is None:
                number = len(PROJECTS.find(tx, limit=100))
                PROJECTS.add(tx, Project(id=name, project=name, number=number, created_at=now, updated_at=now))

        self.world.real.write(work)

    def submit(self, name: str, *, project: str = "default", does: str = "hold", **spec: Any) -> None:
        self.project(project)
        asked = {
            "command": ["simulated", *does.split()],
            "name": name,
            **({} if "requirements" in spec else HOST),
            **spec,
        }
        self.ids[name] = self.world.platform.new_id("j")
        jobs.submit(self.call(project), self.ids[name], JobSpec.model_validate(asked))

    def quota(self, name: str, **change: Any) -> None:
        if not change.get("group"):
            self.project(name)
        quotas.set(self.call(), name, QuotaChange.model_validate(change))

    def step(self, *names: str) -> None:
        for name in names or ("nodes", "environments", "scheduling", "attempts", "scheduling"):
            self.world.controllers[name].step()
            while self.world.tasks:
                self.world.tasks.pop(0)()

    def passes(self, seconds: float) -> None:
        self.world.time_passes(seconds)

    def remove_node(self, name: str) -> None:
        """A machine is taken away, on which nothing runs."""
        self.world.executor.nodes = tuple(one for one in self.world.executor.nodes if one.name != name)
        self.world.real.write(lambda tx: NODES.remove(tx, NODES.require(tx, name)))

    def stop(self, name: str) -> None:
        jobs.stop(self.call(self.project_of(name)), self.ids[name], StopRequest())

    def call_it(self, name: str, real: str) -> None:
        """Calls the job of this name, an element of an array, otherwise here."""
        self.ids[name] = jobs.get(self.call(), real).id

    def events(self, name: str) -> list[tuple[str | None, str]]:
        """Returns reason and message of each event of a job."""
        found = self.world.real.read(lambda tx: queries.events_after(tx, 0, limit=10_000))
        return [(one.reason, one.message) for one in found if one.object_id == self.ids[name]]

    def job(self, name: str) -> Job:
        return jobs.get(self.call(self.project_of(name)), self.ids[name])

    def project_of(self, name: str) -> str:
        return self.world.real.read(lambda tx: JOBS.require(tx, self.ids[name])).project

    def why(self, name: str) -> Why:
        return jobs.why(self.call(self.project_of(name)), self.ids[name])

    def told(self, name: str) -> dict[str, list[str]]:
        """Returns what ``danlu why`` shows, by label; the headline as the job's name."""
        found, now = self.why(name), self.world.clock.now()
        return {found.job.name: [cli.headline(found, now)], **dict(cli.parts(found, now))}

    def runs(self, *names: str) -> None:
        for name in names:
            assert self.job(name).state in (JobState.STARTING, JobState.RUNNING), (name, self.job(name))


@contextmanager
def scene(folder: Path, template: Path, *nodes: NodeCapacity) -> Iterator[Scene]:
    world = World(1, folder, template)
    try:
        world.executor.nodes = nodes
        world.real.write(lambda tx: [NODES.remove(tx, one) for one in NODES.find(tx, limit=10)])
        world.controllers["nodes"].step()
        yield Scene(world)
    finally:
        world.close()


__all__ = ["SECOND", "Scene", "node", "scene"]
