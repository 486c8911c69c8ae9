"""What happened: the platform lists events oldest first, from any position."""

from __future__ import annotations

from collections.abc import Iterator

from danlu.api.bodies import MAX_PAGE, EventsQuery
from danlu.client.transport import Client
from danlu.domain.events import Event


def every_event(client: Client, query: EventsQuery) -> Iterator[Event]:
    """Yields the events that a query is for, oldest first, to the end of what there is."""
    while True:
        page = client.call("events.list", query=query.model_copy(update={"limit": MAX_PAGE})).items
        yield from page
        if len(page) < MAX_PAGE:
            return
        query = query.model_copy(update={"after": page[-1].seq})


def newest_events(client: Client, query: EventsQuery, limit: int) -> tuple[list[Event], bool]:
    """Returns the newest ``limit`` events (0: all) that a query is for, oldest first, and whether there are older ones.

    Looks for the end by halving, so that a long history costs a few small requests instead of being read whole.
    """
    if not limit:
        return list(every_event(client, query)), False
    first, last = query.after, _last(client, query)
    back = limit + 1
    while True:
        begin = max(first, last - back)
        events = list(every_event(client, query.model_copy(update={"after": begin})))
        if len(events) > limit or begin == first:
            return events[-limit:], len(events) > limit
        back *= 4


def _last(client: Client, query: EventsQuery) -> int:
    """Returns the position of the last event; that after which to look when there is none."""

    def first_after(after: int) -> int | None:
        page = client.call("events.list", query=query.model_copy(update={"after": after, "limit": 1})).items
        return page[0].seq if page else None

    low, step = query.after, MAX_PAGE
    while (found := first_after(low + step)) is not None:
        low, step = found, step * 2
    high = low + step  # nothing follows high, and low has an event or is where to begin
    while low < high:
        middle = (low + high) // 2
        found = first_after(middle)
        if found is None:
            high = middle
        else:
            low = found
    return high
