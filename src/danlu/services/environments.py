"""Environments: listed, asked for, watched while they are built."""

from __future__ import annotations

from typing import NamedTuple

from danlu.api import EnvironmentRequest, OffsetQuery
from danlu.blobs.streams import StreamKey
from danlu.database.engine import Transaction
from danlu.database.records import ENVIRONMENTS
from danlu.domain.environments import Environment, EnvironmentReason, EnvironmentSource, EnvironmentState
from danlu.domain.views import EnvironmentEntry, Page, TextPage
from danlu.environments.catalogue import CATALOGUE
from danlu.environments.sources import image_source, source_digest, source_for
from danlu.errors import InvalidSpec, NotFound
from danlu.services.context import Call

BUILD_TASK = "build"
BUILD_STREAM = "log"
MAX_LISTED = 500


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
        ENVIRONMENTS.add(tx, made, actor=call.actor.id)
        return made
    if known[0].state is not EnvironmentState.FAILED and not (newest and known[0].state is EnvironmentState.READY):
        return known[0]
    again = known[0].moved(EnvironmentState.WANTED, now=now, reason=EnvironmentReason.REQUESTED)
    ENVIRONMENTS.put(tx, known[0], again, actor=call.actor.id)
    return again


def build(call: Call, body: EnvironmentRequest) -> Environment:
    """Asks for an environment; it is built unless it is there. Idempotent. An image is pulled again: tags move."""
    platform = call.platform
    if body.image is not None:
        need_images(call)
    what, newest = wanted(body.env, body.requirements, body.python, body.image), body.image is not None
    made = platform.database.write(lambda tx: ensure(tx, call, what, now=platform.clock.now(), newest=newest))
    platform.hub.notify("environments")
    return made


def get(call: Call, environment: str) -> Environment:
    """Returns one environment of the project, or raises NotFound."""
    found = call.platform.database.read(lambda tx: ENVIRONMENTS.get(tx, environment))
    if found is None or found.project != call.project:
        raise NotFound(f"there is no environment {environment!r} in project {call.project}", next_step="danlu env ls")
    return found


def list(call: Call) -> Page[EnvironmentEntry]:
    """Returns the catalogue, each entry with the project's newest build of it, then what was made from requirements."""
    made = call.platform.database.read(
        lambda tx: ENVIRONMENTS.find(tx, project=call.project, descending=True, limit=MAX_LISTED)
    )
    entries = [
        EnvironmentEntry(
            name=entry.name,
            description=entry.description,
            python=entry.python or "",
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
    over = found.state in (EnvironmentState.READY, EnvironmentState.FAILED)
    return TextPage(text=data.decode(errors="replace"), offset=query.offset + len(data), done=over and not data)
