"""Events: what happened, in an order that a reader can follow without missing any."""

from __future__ import annotations

from danlu.api import EventsQuery
from danlu.database import queries
from danlu.domain.events import Event
from danlu.domain.views import Page
from danlu.services.context import Call


def list(call: Call, query: EventsQuery) -> Page[Event]:
    """Returns the project's events after ``after``, oldest first."""
    items = call.platform.database.read(
        lambda tx: queries.events_after(
            tx, query.after, project=call.project, object_id=query.object_id, limit=query.limit
        )
    )
    return Page[Event](items=tuple(items), next_cursor=str(items[-1].seq) if len(items) == query.limit else None)
