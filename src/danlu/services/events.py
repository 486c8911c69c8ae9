"""Events: what happened, and who did it, in an order that a reader can follow without missing any."""

from __future__ import annotations

from danlu.api import GRANTS, Permission
from danlu.api.bodies import EventsQuery
from danlu.database import queries
from danlu.domain.events import CALL, Event
from danlu.domain.users import PLATFORM
from danlu.domain.views import Page
from danlu.errors import NotAllowed
from danlu.services.context import Call


def list(call: Call, query: EventsQuery) -> Page[Event]:
    """Returns the project's events after ``after``, oldest first.

    Raises:
        NotAllowed: calls are for those who manage the project, the platform's own events for its administrators.
    """
    require_readable(call, query)
    project = PLATFORM if query.platform else call.project
    chosen = queries.Chosen(project, query.object_id, query.kind, query.actor, query.since)
    items = call.platform.database.read(lambda tx: queries.events_after(tx, query.after, chosen, limit=query.limit))
    return Page[Event](items=tuple(items), next_cursor=str(items[-1].seq) if len(items) == query.limit else None)


def require_readable(call: Call, query: EventsQuery) -> None:
    """Raises NotAllowed unless the caller may see what it asks for."""
    if query.platform and not call.actor.sees_all:
        raise NotAllowed("the platform's own events are for administrators")
    if query.kind == CALL and call.actor.standing(call.project) not in GRANTS[Permission.MANAGE]:
        raise NotAllowed("who did what is for those who manage the project")
