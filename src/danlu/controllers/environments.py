"""Environments: wanted ones are built, a few at a time, with what the build prints kept as it comes."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

from danlu.blobs.streams import StreamKey, Streams
from danlu.controllers.packing import Packing
from danlu.controllers.tasks import Tasks
from danlu.database import queries
from danlu.database.engine import Transaction
from danlu.database.leadership import Fenced
from danlu.database.records import ENVIRONMENTS, PROJECTS
from danlu.domain.environments import Environment, EnvironmentReason, EnvironmentSource, EnvironmentState
from danlu.domain.jobs import JobState
from danlu.errors import DanluError, EnvironmentFailed, LeadershipLost, VersionConflict
from danlu.executors.base import StoredImage
from danlu.services.context import Clock, Hub
from danlu.services.environments import BUILD_STREAM, BUILD_TASK, give_up, lock_key, unused

PERIOD_S: Final = 30.0
KEPT_NS: Final = 90 * 86_400 * 1_000_000_000
"""How long an environment is kept that no job asks for."""
GIVEN_UP_EVERY_NS: Final = 3600 * 1_000_000_000
MAX_PROJECTS: Final = 100_000
AT_ONCE: Final = 3
"""Builds, and as many pulls."""
OF_A_PROJECT: Final = 2
"""Of these: a pull may take an hour, and nobody can have all."""
SWEEPS: Final = ("sweep", "sweep-images")
BUILD_THREADS: Final = 2 * AT_ONCE + len(SWEEPS)
"""What works at the same time at most."""
MAX_OPEN: Final = 10_000
STAGES: Final = {
    "resolve": EnvironmentReason.RESOLUTION_FAILED,
    "pull": EnvironmentReason.PULL_FAILED,
    "pack": EnvironmentReason.PACKING_FAILED,
}
"""Why a build failed, by the stage that it failed in; else it was the installation."""
NOTED: Final = ("lock_digest", "packages", "python_version", "size_bytes", "build_s", "archive")
"""What an environment's record has of what was built."""
MAX_KNOWN: Final = 100_000
LAUNCHED: Final = (JobState.ADMITTED, JobState.STARTING)
"""The states of jobs that may be launched at this moment, with what their environment was just before."""


class Built(Protocol):
    """What a build made."""

    lock_digest: str
    packages: int | None
    python_version: str | None
    size_bytes: int
    build_s: float
    lock: str  # an image has none


class Builder(Protocol):
    """Builds environments; what is there already is used again."""

    def build(self, source: EnvironmentSource, report: Callable[[str], None]) -> Any:
        """Returns what was built (see Built), or raises EnvironmentFailed; ``report`` gets each line that is printed."""

    def folders(self) -> frozenset[str]:
        """Returns the digests of what is there, and this platform's alone."""

    def doom(self, names: Collection[str]) -> Callable[[], None]:
        """Takes folders away at once; the returned function removes what they were."""

    def bound_caches(self) -> None:
        """Keeps what only saves time within its limit."""


class Images(Protocol):
    """Fetches container images for projects, and removes them."""

    def pull(self, reference: str, project_number: int, report: Callable[[str], None]) -> Any:
        """Returns what was fetched (see Built), or raises EnvironmentFailed."""

    def store(self, project_number: int) -> str:
        """Returns the name of the store that a project's images are in."""

    def stored(self) -> frozenset[StoredImage]:
        """Returns the images that are there and may be removed."""

    def doom(self, images: Collection[StoredImage]) -> Callable[[], None]:
        """Takes images, but for those that attempts run in; the returned function removes them, and must be called."""


@dataclass(slots=True)
class EnvironmentsController:
    """Builds and pulls what is wanted, and removes what nobody wants. What a killed server left is begun again."""

    database: Fenced
    builder: Builder
    streams: Streams
    clock: Clock
    hub: Hub
    tasks: Tasks
    images: Images | None = None
    packing: Packing | None = None
    """Where attempts run on machines that have no environments."""
    _begun: dict[str, Environment] = field(default_factory=dict)
    _looked_at: int = 0

    def step(self) -> float:
        """Looks once."""
        states = (EnvironmentState.WANTED, EnvironmentState.BUILDING)
        busy = self.tasks.running()
        self._begun = {key: begun for key, begun in self._begun.items() if key in busy}
        waiting = []
        for environment in self.database.read(lambda tx: ENVIRONMENTS.find(tx, state=states, limit=MAX_OPEN)):
            if environment.id in busy:
                continue
            if environment.state is EnvironmentState.BUILDING:
                self._store(environment, EnvironmentState.WANTED, EnvironmentReason.INTERRUPTED)
                return 0.0
            waiting.append(environment)
        for pulled in (False, True):
            for environment in _next(_of_kind(waiting, pulled), _of_kind(self._begun.values(), pulled)):
                building = self._store(environment, EnvironmentState.BUILDING, EnvironmentReason.BUILDING)
                self._begun[building.id] = building
                self.tasks.start(building.id, partial(self._build, building))
        self._give_up()
        self._sweep()
        return PERIOD_S

    def _give_up(self) -> None:
        """Gives up what nobody has asked for in a long time: then it is swept. It is built again when it is asked for."""
        now = self.clock.now()
        if 0 <= now - self._looked_at < GIVEN_UP_EVERY_NS:
            return
        self._looked_at = now
        for project in self.database.read(lambda tx: PROJECTS.find(tx, limit=MAX_PROJECTS)):
            if self.database.read(partial(unused, project=project.id, before=now - KEPT_NS)):
                self.database.write(partial(give_up, project=project.id, before=now - KEPT_NS, now=now))

    def _sweep(self) -> None:
        """Removes folders and images that no record wants and no live job uses.

        Not beside a build: what it has just finished is wanted by a record that is not stored yet. All is listed before the
        records are read, and taken away here, in the one thread that begins builds.
        """
        if self.tasks.running():
            return
        folders, images = self.builder.folders(), frozenset[StoredImage]()
        if self.images is not None:
            images = self.images.stored()
        if not folders and not images:
            return
        needed = self.database.read(lambda tx: self._needed(tx, with_images=bool(images)))
        if needed is None:
            return
        if unwanted := folders - needed.folders:
            self.tasks.start(SWEEPS[0], self.builder.doom(unwanted))
        doomed = {one for one in images - needed.images if one.store not in needed.stores}
        if doomed and self.images is not None:
            self.tasks.start(SWEEPS[1], self.images.doom(doomed))

    def _needed(self, tx: Transaction, *, with_images: bool) -> Needed | None:
        """Returns what records want or live jobs use; None where that is not certain."""
        known = ENVIRONMENTS.find(tx, limit=MAX_KNOWN)
        if len(known) == MAX_KNOWN or any(one.state is EnvironmentState.BUILDING for one in known):
            return None
        used = queries.environments_in_use(tx)
        wanted = [one for one in known if one.state is not EnvironmentState.REMOVED or one.id in used]
        needed = Needed(frozenset(one.lock_digest or "" for one in wanted), frozenset(), frozenset())
        if self.images is None or not with_images:
            return needed
        pulled = _of_kind(wanted, True)
        stores = {p: self.images.store(PROJECTS.require(tx, p).number) for p in {one.project for one in pulled}}
        launched = queries.environments_in_use(tx, LAUNCHED)
        return needed._replace(
            images=frozenset(StoredImage(stores[one.project], one.lock_digest or "") for one in pulled),
            stores=frozenset(stores[one.project] for one in pulled if one.id in launched),
        )

    def _build(self, environment: Environment) -> None:
        key = StreamKey(environment.project, environment.id, BUILD_TASK, BUILD_STREAM)

        def report(line: str) -> None:
            self.streams.append(key, self.streams.size(key), line.encode(errors="replace") + b"\n")
            self.hub.notify("logs")

        try:
            image = "" if self.packing is None else self.packing.image_of(environment)
            if image:
                words = f"pods have it by the image {image}"
                facts: dict[str, Any] = {**dict.fromkeys(NOTED), "lock_digest": environment.source_digest}
            else:
                words, facts = "", self._facts(environment, report)
            self._store(environment, EnvironmentState.READY, EnvironmentReason.BUILT, message=words, **facts)
        except LeadershipLost:
            raise
        except DanluError as error:
            stage = error.details.get("stage")
            reason = STAGES.get(str(stage), EnvironmentReason.INSTALL_FAILED)
            words = error.message + (f"\n{error.next_step}" if error.next_step else "")
            with contextlib.suppress(DanluError):  # a full disk takes no more words, and must not hide the reason
                report(words)
            self._store(environment, EnvironmentState.FAILED, reason, message=words)
        except Exception as error:
            words = f"the build failed by a fault of the platform: {type(error).__name__}: {error}; server.log has more"
            self._store(environment, EnvironmentState.FAILED, EnvironmentReason.INSTALL_FAILED, message=words)
            raise
        finally:
            for topic in ("environments", "jobs", "logs", "events"):
                self.hub.notify(topic)
        self.builder.bound_caches()  # nobody waits for that

    def _facts(self, environment: Environment, report: Callable[[str], None]) -> dict[str, Any]:
        """Builds or pulls an environment, and packs it where need be; returns what is noted of it."""
        built = self._built(environment, report)
        self._keep_lock(environment, built)
        facts = {name: getattr(built, name) for name in NOTED if name != "archive"}
        if self.packing is not None and environment.source.image is None:
            facts["archive"] = self.packing.pack(self.database, environment, built.lock_digest, report)
        return facts

    def _keep_lock(self, environment: Environment, built: Built) -> None:
        if environment.source.image is None:
            key = lock_key(environment.project, environment.id, built.lock_digest)
            self.streams.append(key, 0, built.lock.encode())

    def _built(self, environment: Environment, report: Callable[[str], None]) -> Any:
        image = environment.source.image
        if image is None:
            return self.builder.build(environment.source, report)
        if self.images is None:
            raise EnvironmentFailed("this platform runs no container images any more", stage="pull")
        project = self.database.read(lambda tx: PROJECTS.require(tx, environment.project))
        return self.images.pull(image, project.number, report)

    def _store(
        self, old: Environment, state: EnvironmentState, reason: EnvironmentReason, *, message: str = "", **facts: Any
    ) -> Environment:
        def work(tx: Transaction) -> Environment:
            newest = ENVIRONMENTS.require(tx, old.id)
            if newest.state is not old.state:
                raise VersionConflict(f"environment {old.id} is {newest.state}, no longer {old.state}")
            new = newest.moved(state, now=self.clock.now(), reason=reason, message=message, **facts)
            ENVIRONMENTS.put(tx, newest, new)
            return new

        return self.database.write(work)


class Needed(NamedTuple):
    """What must stay: folders of environments, images, and all of some stores.

    A job that is being launched may have read which image it gets before a newer one was pulled, and no attempt of it may
    be seen yet: from its store nothing is removed until it runs.
    """

    folders: frozenset[str]
    images: frozenset[StoredImage]
    stores: frozenset[str]


def _of_kind(environments: Iterable[Environment], pulled: bool) -> list[Environment]:
    return [one for one in environments if (one.source.image is not None) is pulled]


def _next(waiting: Collection[Environment], begun: Collection[Environment]) -> list[Environment]:
    """Returns which of the waiting begin now: first those of the projects of which the fewest are at work."""
    chosen: list[Environment] = []
    left, at_work = list(waiting), Counter(one.project for one in begun)
    while left and at_work.total() < AT_ONCE:
        first = min(left, key=lambda one: at_work[one.project])  # of equals, who has waited longest
        if at_work[first.project] >= OF_A_PROJECT:
            break
        left.remove(first)
        chosen.append(first)
        at_work[first.project] += 1
    return chosen
