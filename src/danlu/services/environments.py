"""Environments: listed, asked for, watched while they are built."""

from __future__ import annotations

import builtins
from typing import NamedTuple

from danlu.api.bodies import EnvironmentRequest, OffsetQuery, PruneRequest
from danlu.blobs.streams import StreamKey
from danlu.database import queries
from danlu.database.engine import Transaction
from danlu.database.records import ENVIRONMENTS, JOBS
from danlu.domain.environments import Environment, EnvironmentReason, EnvironmentSource, EnvironmentState
from danlu.domain.images import full_reference
from danlu.domain.jobs import LIVE_JOB_STATES
from danlu.domain.validation import suggestion
from danlu.domain.views import (
    EnvironmentDetails,
    EnvironmentEntry,
    EnvironmentText,
    FrameworkOf2018,
    Page,
    Pruned,
    TextPage,
)
from danlu.environments.catalogue import CATALOGUE, CatalogueEntry
from danlu.environments.dockerfile import dockerfile as recipe_for_image
from danlu.environments.legacy import FRAMEWORKS_OF_2018
from danlu.environments.sources import (
    image_source,
    lock_text,
    locked_packages,
    smoke_text,
    source_digest,
    source_for,
)
from danlu.errors import Conflict, InvalidSpec, NotFound, VersionConflict
from danlu.services.context import Call

BUILD_TASK = "build"
BUILD_STREAM = "log"
MAX_LISTED = 500
MAX_USERS = 20
MAX_LOCK_BYTES = 16 * 2**20
UNUSED_STATES = (EnvironmentState.READY, EnvironmentState.FAILED)
"""What nobody waits for."""


class Wanted(NamedTuple):
    """What an environment is made from, and its digest (made outside of transactions: it reads the catalogue's files)."""

    source: EnvironmentSource
    digest: str


def wanted(env: str, requirements: str | None, python: str | None, image: str | None = None) -> Wanted:
    """Returns what is meant, or raises UnknownEnvironment or InvalidSpec."""
    source = source_for(env, requirements, python) if image is None else image_source(image)
    return Wanted(source, source_digest(source))


def need_images(call: Call) -> None:
    """Raises InvalidSpec where this platform runs no container images."""
    facts = call.platform.facts
    if not facts.images:
        raise InvalidSpec(
            f"image: this platform runs no container images: {facts.no_images or 'it has no container engine'}",
            next_step="on the server: apt-get install podman crun catatonit, then danlu down and danlu up; "
            "or name an environment: danlu env ls",
            field="image",
        )


def ensure(tx: Transaction, call: Call, what: Wanted, *, now: int, newest: bool = False) -> Environment:
    """Returns the project's environment for a source; makes the record, or asks again for one whose build failed.

    With ``newest``, one that is ready is asked for again too: an image's tag may have moved.
    """
    source, digest = what
    known = ENVIRONMENTS.find(tx, project=call.project, source_digest=digest, limit=1)
    if not known:
        made = Environment(
            id=call.platform.new_id("e"),
            project=call.project,
            name=source.catalogue or source.image or f"requirements-{digest[:8]}",
            source=source,
            source_digest=digest,
            created_at=now,
            updated_at=now,
        )
        try:
            ENVIRONMENTS.add(tx, made, actor=call.actor.name)
        except Conflict as error:  # somebody else has asked for it at the same time: theirs is taken
            raise VersionConflict(f"environment {made.name} of project {call.project} was made meanwhile") from error
        return made
    over = (EnvironmentState.FAILED, EnvironmentState.REMOVED)
    if known[0].state not in over and not (newest and known[0].state is EnvironmentState.READY):
        return known[0]
    again = known[0].moved(EnvironmentState.WANTED, now=now, reason=EnvironmentReason.REQUESTED)
    ENVIRONMENTS.put(tx, known[0], again, actor=call.actor.name)
    return again


def build(call: Call, body: EnvironmentRequest) -> Environment:
    """Asks for an environment; it is built unless it is there. Idempotent. An image is pulled again: tags move."""
    platform = call.platform
    if body.image is not None:
        need_images(call)
    what, newest = wanted(body.env, body.requirements, body.python, body.image), body.image is not None
    made = call.write(lambda tx: ensure(tx, call, what, now=platform.clock.now(), newest=newest))
    platform.hub.notify("environments")
    return made


def get(call: Call, environment: str) -> Environment:
    """Returns one environment of the project, or raises NotFound."""
    found = call.platform.database.read(lambda tx: ENVIRONMENTS.get(tx, environment))
    if found is None or found.project != call.project:
        raise NotFound(f"there is no environment {environment!r} in project {call.project}", next_step="danlu env ls")
    return found


class Named(NamedTuple):
    """What a name or an id means: a catalogue's entry, a record, or both."""

    name: str
    entry: CatalogueEntry | None
    environment: Environment | None

    @property
    def python(self) -> str:
        """The interpreter's version, as far as it is known."""
        if self.environment is not None:
            return self.environment.python_version or self.environment.source.python
        return source_for(self.name, None, None).python


def named(call: Call, name: str) -> Named:
    """Returns what an id, a name of the catalogue, ``requirements-xxxxxxxx`` or an image means in the project.

    Raises:
        NotFound: it means nothing there.
    """
    made = call.platform.database.read(
        lambda tx: ENVIRONMENTS.find(tx, project=call.project, descending=True, limit=MAX_LISTED)
    )
    entry = CATALOGUE.get(name)
    if entry is not None and not entry.buildable:
        raise NotFound(f"{name} is {entry.description}", next_step="all that can be built: danlu env ls")
    names = {name} if entry is not None else {name, _as_image(name)}
    found = next((one for one in made if one.id == name or one.name in names), None)
    if found is not None:
        return Named(found.name, CATALOGUE.get(found.source.catalogue or ""), found)
    if entry is None:
        near = suggestion(name, {*CATALOGUE, *(one.name for one in made)})
        raise NotFound(
            f"there is no environment {name[:80]!r} in project {call.project}",
            next_step=f"{near} all of them: danlu env ls".strip(),
        )
    return Named(name, entry, None)


def _as_image(name: str) -> str:
    """Returns the whole name of the image that a user may mean by ``name``."""
    try:
        return full_reference(name)
    except ValueError:
        return name


def lock_key(project: str, environment_id: str, lock_digest: str) -> StreamKey:
    """Returns where the lock of a built environment is kept."""
    return StreamKey(project, environment_id, BUILD_TASK, f"lock-{lock_digest[:32]}")


def _lock_of(call: Call, what: Named) -> str | None:
    """Returns the lock that it was built from, else the catalogue's; None for requirements that are not resolved yet."""
    env = what.environment
    if env is not None and env.lock_digest is not None:
        kept = call.platform.streams.read(lock_key(env.project, env.id, env.lock_digest), 0, MAX_LOCK_BYTES)
        if kept:
            return kept.decode()
    return None if what.entry is None else lock_text(what.entry)


def lock(call: Call, environment: str) -> EnvironmentText:
    """Returns every package of an environment with version and hashes.

    Raises:
        Conflict: its requirements are not resolved yet.
    """
    what = named(call, environment)
    text = _lock_of(call, what)
    if text is None:
        state = "asked for" if what.environment is None else what.environment.state
        if what.environment is not None and what.environment.source.image is not None:
            raise Conflict(f"{what.name} is a container image already: it has no lock")
        raise Conflict(
            f"{what.name} is {state}: its requirements are resolved when it is built", next_step="danlu env build"
        )
    return EnvironmentText(name=what.name, python=what.python, text=text)


def dockerfile(call: Call, environment: str) -> EnvironmentText:
    """Returns a Dockerfile that makes the same environment, or raises Conflict as ``lock`` does."""
    locked = lock(call, environment)
    minor = ".".join(locked.python.split(".")[:2])
    text = recipe_for_image(locked.name, minor, locked.text, named(call, environment).entry)
    return EnvironmentText(name=locked.name, python=locked.python, text=text)


def show(call: Call, environment: str) -> EnvironmentDetails:
    """Returns all about an environment."""
    what = named(call, environment)
    env, entry = what.environment, what.entry
    locked = _lock_of(call, what)
    built = env is not None and env.source.image is None and env.packages is not None  # else pods have it by an image
    in_folder = built and env is not None and env.state is EnvironmentState.READY

    def read(tx: Transaction) -> tuple[tuple[str, ...], int | None]:
        if env is None:
            return (), None
        jobs = JOBS.find(tx, environment_id=env.id, state=LIVE_JOB_STATES, limit=MAX_USERS)
        use = queries.environment_uses(tx, call.project).get(env.id)
        return tuple(job.name for job in jobs), None if use is None else use.last_asked_at

    used_by, last_asked_at = call.platform.database.read(read)
    return EnvironmentDetails(
        name=what.name,
        description=_described(env) if entry is None else entry.description,
        python=what.python,
        environment=env,
        packages=() if locked is None else locked_packages(locked, what.python),
        variables={} if entry is None else dict(entry.variables),
        read_at_import=() if entry is None else entry.read_at_import,
        preload=() if entry is None else entry.preload,
        frameworks=() if entry is None else entry.frameworks,
        program="" if entry is None else smoke_text(entry),
        folder=f"{call.platform.facts.home}/environments/{env.lock_digest}" if env is not None and in_folder else "",
        used_by=used_by,
        last_asked_at=last_asked_at,
    )


def _described(environment: Environment | None) -> str:
    return (
        "a container image" if environment is not None and environment.source.image is not None else "from requirements"
    )


def remove(call: Call, environment: str) -> Environment:
    """Gives an environment up; its folder or its image is removed soon after. Idempotent.

    Raises:
        NotFound: it was never built.
        Conflict: a live job uses it, or it is being built.
    """
    found = named(call, environment).environment
    if found is None:
        raise NotFound(f"{environment} was never built: there is nothing to remove", next_step="danlu env ls")

    def work(tx: Transaction) -> Environment:
        newest = ENVIRONMENTS.require(tx, found.id)
        if newest.state is EnvironmentState.REMOVED:
            return newest
        jobs = JOBS.find(tx, environment_id=newest.id, state=LIVE_JOB_STATES, limit=MAX_USERS)
        if jobs:
            names = ", ".join(job.name for job in jobs[:5]) + (" and more" if len(jobs) > 5 else "")
            raise Conflict(
                f"{newest.name} is in use by {names}", next_step=f"stop them first: danlu stop {jobs[0].name}"
            )
        if newest.state is EnvironmentState.BUILDING:
            raise Conflict(f"{newest.name} is {newest.state}", next_step="wait until that has ended: danlu env ls")
        now = call.platform.clock.now()
        gone = newest.moved(EnvironmentState.REMOVED, now=now, reason=EnvironmentReason.REMOVED, archive=None)
        ENVIRONMENTS.put(tx, newest, gone, actor=call.actor.name)
        return gone

    gone = call.write(work)
    call.platform.hub.notify("environments")
    return gone


def lost(call: Call, environment: Environment, why: str) -> None:
    """Asks again for an environment whose archive is not there any more; its folder may be, and then it is only packed."""

    def work(tx: Transaction) -> None:
        newest = ENVIRONMENTS.require(tx, environment.id)
        if newest.state is EnvironmentState.READY and newest.archive == environment.archive:
            now = call.platform.clock.now()
            wanted = newest.moved(EnvironmentState.WANTED, now=now, reason=EnvironmentReason.REBUILD, message=why)
            ENVIRONMENTS.put(tx, newest, wanted)

    call.platform.database.write(work)
    call.platform.hub.notify("environments")


def prune(call: Call, body: PruneRequest) -> Pruned:
    """Gives up the project's environments that no live job uses and none has asked for lately; dry runs only tell."""
    now = call.platform.clock.now()
    before = now - int(body.unused_for * 1e9)

    def work(tx: Transaction) -> tuple[Environment, ...]:
        if body.dry_run:
            return tuple(unused(tx, call.project, before))
        return give_up(tx, call.project, before, now=now, actor=call.actor.name)

    found = call.platform.database.read(work) if body.dry_run else call.write(work)
    call.platform.hub.notify("environments")
    return Pruned(environments=found, size_bytes=sum(env.size_bytes or 0 for env in found), dry_run=body.dry_run)


def unused(tx: Transaction, project: str, before: int) -> builtins.list[Environment]:
    """Returns a project's environments that no live job uses, and that none has asked for since ``before``, ns UTC."""
    uses = queries.environment_uses(tx, project)

    def asked_at(env: Environment) -> int:
        return max(env.updated_at, uses[env.id].last_asked_at if env.id in uses else 0)

    every = ENVIRONMENTS.find(tx, project=project, state=UNUSED_STATES, limit=MAX_LISTED)
    return [env for env in every if not (env.id in uses and uses[env.id].live) and asked_at(env) <= before]


def give_up(tx: Transaction, project: str, before: int, *, now: int, actor: str = "") -> tuple[Environment, ...]:
    """Gives up what ``unused`` finds: it is removed, and built again should a job ask for it."""
    gone = []
    for env in unused(tx, project, before):
        gone.append(env.moved(EnvironmentState.REMOVED, now=now, reason=EnvironmentReason.UNUSED, archive=None))
        ENVIRONMENTS.put(tx, env, gone[-1], actor=actor)
    return tuple(gone)


def legacy(_call: Call) -> Page[FrameworkOf2018]:
    """Returns how each of 2018's frameworks runs today."""
    return Page[FrameworkOf2018](items=FRAMEWORKS_OF_2018)


def list(call: Call) -> Page[EnvironmentEntry]:
    """Returns the catalogue, each entry with the project's newest build of it, then what was made from requirements."""
    found = call.platform.database.read(
        lambda tx: ENVIRONMENTS.find(tx, project=call.project, descending=True, limit=MAX_LISTED)
    )
    made = [one for one in found if one.state is not EnvironmentState.REMOVED]
    entries = [
        EnvironmentEntry(
            name=entry.name,
            description=entry.description,
            python=source_for(entry.name, None, None).python if entry.buildable else "",
            environment=next((e for e in made if e.source.catalogue == entry.name), None),
        )
        for entry in CATALOGUE.values()
    ]
    entries += [
        EnvironmentEntry(name=e.name, description="from requirements", python=e.source.python, environment=e)
        for e in made
        if e.source.requirements is not None
    ]
    entries += [
        EnvironmentEntry(name=e.name, description="container image", python="", environment=e)
        for e in made
        if e.source.image is not None
    ]
    return Page[EnvironmentEntry](items=tuple(entries))


def log(call: Call, environment: str, query: OffsetQuery) -> TextPage:
    """Returns what an environment's build has printed from ``offset`` on; ``done`` once it is neither wanted nor building."""
    found = get(call, environment)
    key = StreamKey(found.project, found.id, BUILD_TASK, BUILD_STREAM)
    data = call.platform.streams.read(key, query.offset, 256 * 1024)
    data = data[: data.rfind(b"\n") + 1]
    over = found.state not in (EnvironmentState.WANTED, EnvironmentState.BUILDING)
    return TextPage(text=data.decode(errors="replace"), offset=query.offset + len(data), done=over and not data)
