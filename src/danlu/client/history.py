"""The newest events: the platform lists them oldest first, from any position."""

from __future__ import annotations

from danlu.api import MAX_PAGE, EventsQuery
from danlu.client.transport import Client
from danlu.domain.events import Event


def newest_events(client: Client, object_id: str | None, limit: int) -> tuple[list[Event], bool]:
    """Returns the newest ``limit`` events (0: all), oldest first, and whether there are older ones.

    Looks for the end by halving, so that a long history costs a few small requests instead of being read whole.
    """
    if not limit:
        return _after(client, object_id, 0), False
    last = _last(client, object_id)
    back = limit + 1
    while True:
        begin = max(0, last - back)
        events = _after(client, object_id, begin)
        if len(events) > limit or begin == 0:
            return events[-limit:], len(events) > limit
        back *= 4


def _after(client: Client, object_id: str | None, after: int) -> list[Event]:
    events: list[Event] = []
    while True:
        page = client.call("events.list", query=EventsQuery(after=after, object_id=object_id, limit=MAX_PAGE)).items
        events += page
        if len(page) < MAX_PAGE:
            return events
        after = page[-1].seq


def _last(client: Client, object_id: str | None) -> int:
    """Returns the position of the last event; 0 when there is none."""

    def first_after(after: int) -> int | None:
        page = client.call("events.list", query=EventsQuery(after=after, object_id=object_id, limit=1)).items
        return page[0].seq if page else None

    low, step = 0, MAX_PAGE
    while (found := first_after(low + step)) is not None:
        low, step = found, step * 2
    high = low + step  # nothing follows high, and low has an event or is 0
    while low < high:
        middle = (low + high) // 2
        found = first_after(middle)
        if found is None:
            high = middle
        else:
            low = found
    return high
