"""Lists of any length: the platform answers them page by page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from danlu.api.bodies import MAX_PAGE, Paging
from danlu.client.transport import Client


def listed(
    client: Client, operation_id: str, query: Paging, limit: int, path: Mapping[str, str] | None = None
) -> tuple[list[Any], bool]:
    """Returns at most ``limit`` items (0: all) of a list, in its order, and whether there are more."""
    items: list[Any] = []
    while True:
        size = min(MAX_PAGE, limit - len(items)) if limit else MAX_PAGE
        page = client.call(operation_id, path, query=query.model_copy(update={"limit": size}))
        items += page.items
        if page.next_cursor is None or (limit and len(items) >= limit):
            return items, page.next_cursor is not None
        query = query.model_copy(update={"cursor": page.next_cursor})
