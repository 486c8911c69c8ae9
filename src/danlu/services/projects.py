"""Projects: which there are, and new ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from danlu.api.bodies import Paging, ProjectChange, ProjectRequest
from danlu.database import queries
from danlu.database.engine import Transaction
from danlu.database.records import PROJECTS, QUOTAS
from danlu.domain.actors import Actor
from danlu.domain.isolation import Layer, unasked
from danlu.domain.projects import Project
from danlu.domain.specs import JobSpec
from danlu.domain.views import Page
from danlu.errors import Conflict, InvalidSpec, NeverFits
from danlu.services.context import Call, Platform
from danlu.services.users import require_name


def exists(platform: Platform, name: str) -> bool:
    """Says whether there is a project of that name."""
    return platform.database.read(lambda tx: PROJECTS.get(tx, name)) is not None


def list(call: Call, query: Paging) -> Page[Project]:
    """Returns the projects in which the caller may act, by name backwards."""
    names = of(call.actor)
    seen: dict[str, Any] = {} if names is None else {"id": names}
    return call.platform.database.read(lambda tx: PROJECTS.page(tx, limit=query.limit, cursor=query.cursor, **seen))


def of(actor: Actor) -> Sequence[str] | None:
    """Returns the names of the projects in which somebody may act; None: all."""
    if actor.sees_all:
        return None
    names = sorted(actor.roles) if actor.project is None else [actor.project]
    return [name for name in names if actor.standing(name) is not None]


def make(call: Call, name: str, body: ProjectRequest) -> Project:
    """Makes a project, unless it is there: its first members are added by administrators.

    Raises:
        Conflict: a group of quotas has that name.
    """
    del body
    require_name(name, "a project")
    now = call.platform.clock.now()

    def work(tx: Transaction) -> Project:
        known = PROJECTS.get(tx, name)
        if known is not None:
            return known
        queries.lock(tx, "quotas")
        if QUOTAS.get(tx, name) is not None:  # without a project it is a group's
            raise Conflict(
                f"{name} is a group of quotas, and no project has a group's name",
                next_step=f"choose another name, or remove the group first: danlu quota rm {name}",
            )
        number = queries.next_number(tx, "", "projects")
        made = Project(id=name, project=name, number=number, created_at=now, updated_at=now)
        PROJECTS.add(tx, made, actor=call.actor.name)
        return made

    return call.write(work)


def get(call: Call) -> Project:
    """Returns the project."""
    return call.platform.database.read(lambda tx: PROJECTS.require(tx, call.project))


def change(call: Call, body: ProjectChange) -> Project:
    """Changes what holds for the project's jobs from their next attempt on.

    Raises:
        NeverFits: this machine cannot have one of the layers, so that no job could ever start.
    """
    wanted = tuple(dict.fromkeys(body.require))
    require_offered(call.platform, wanted)

    def work(tx: Transaction) -> Project:
        found = PROJECTS.require(tx, call.project)
        if found.require == wanted:
            return found
        new = found.evolved(now=call.platform.clock.now(), require=wanted)
        PROJECTS.put(tx, found, new, actor=call.actor.name)
        return new

    return call.write(work)


def require_asked(layers: Iterable[Layer], spec: JobSpec) -> None:
    """Raises InvalidSpec unless a job asks for the limits among these layers, without which it could not start."""
    why = unasked(spec)
    missing = [layer for layer in layers if layer in why]
    if missing:
        asks = {Layer.MEMORY_LIMIT: "--memory 8GiB", Layer.CPU_LIMIT: "--cpu 2"}
        raise InvalidSpec(
            f"the project requires {'; '.join(f'{layer}: {why[layer]}' for layer in missing)}",
            next_step=f"danlu run {' '.join(asks[layer] for layer in missing)}, or memory and cpu in the job's file",
        )


def require_offered(platform: Platform, layers: Iterable[Layer]) -> None:
    """Raises NeverFits unless attempts can have these layers of isolation here."""
    facts = platform.facts
    missing = [layer for layer in layers if layer not in facts.layers]
    if missing:
        why = "; ".join(f"{layer}: {facts.no_layers.get(layer, 'this machine has it not')}" for layer in missing)
        raise NeverFits(
            f"the project requires isolation that jobs cannot have on this machine: {why}",
            next_step="what there is: danlu doctor     what the project requires: danlu project set --help",
        )
