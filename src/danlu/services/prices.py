"""Prices: set and removed by administrators; everybody may see them. Costs are computed from them when they are read."""

from __future__ import annotations

import datetime

from danlu.api.bodies import Accepted, Paging
from danlu.database import queries
from danlu.database.engine import Transaction
from danlu.database.records import PRICES
from danlu.domain.prices import MAX_PRICES, Price, PriceRequest, overlapping
from danlu.domain.users import PLATFORM
from danlu.domain.views import Page
from danlu.errors import Conflict, InvalidRequest, NotFound
from danlu.services.context import Call


def list(call: Call, query: Paging) -> Page[Price]:
    """Returns all prices, the newest first."""
    return call.platform.database.read(lambda tx: PRICES.page(tx, limit=query.limit, cursor=query.cursor))


def set(call: Call, body: PriceRequest) -> Price:
    """Sets a price; one of the same resource that begins at the same time is replaced, so that asking twice is harmless.

    Raises:
        InvalidRequest: it ends before it begins.
        Conflict: another price of the resource is valid at a part of that time; or there are too many.
    """
    if body.valid_until is not None and body.valid_until <= body.valid_from:
        raise InvalidRequest(
            f"the price of {body.resource} would end ({told(body.valid_until)}) before it begins ({told(body.valid_from)})"
        )
    now, price_id = call.platform.clock.now(), call.platform.new_id("p")

    def work(tx: Transaction) -> Price:
        queries.next_number(tx, PLATFORM, "prices")  # one after the other: none may overlap
        known = PRICES.find(tx, resource=body.resource, limit=MAX_PRICES)
        same = next((price for price in known if price.valid_from == body.valid_from), None)
        other = overlapping((price for price in known if price is not same), body)
        if other is not None:
            raise Conflict(
                f"{body.resource} would have two prices at once: {body.per_hour} {body.currency} {_span(body)} and "
                f"{other.per_hour} {other.currency} {_span(other)}",
                next_step=f"let the other one end first: danlu price set {other.resource}={other.per_hour} "
                f"--currency {other.currency} --from {told(other.valid_from)} --until {told(body.valid_from)}   "
                f"or remove it: danlu price rm {other.id}",
            )
        fields = body.model_dump()
        if same is not None:
            new = same.evolved(now=now, **fields, created_by=call.actor.name)
            PRICES.put(tx, same, new, actor=call.actor.name)
            return new
        if PRICES.count(tx) >= MAX_PRICES:
            raise Conflict(f"there are {MAX_PRICES} prices already", next_step="remove old ones: danlu price ls")
        made = Price(
            id=price_id, project=PLATFORM, created_by=call.actor.name, created_at=now, updated_at=now, **fields
        )
        PRICES.add(tx, made, actor=call.actor.name)
        return made

    return call.write(work)


def remove(call: Call, price: str) -> Accepted:
    """Removes a price, as if it had never been.

    Raises:
        NotFound: there is none of that id.
    """

    def work(tx: Transaction) -> Accepted:
        found = PRICES.get(tx, price)
        if found is None:
            raise NotFound(f"there is no price {price[:80]!r}", next_step="all of them: danlu price ls")
        PRICES.remove(tx, found)
        return Accepted(message=f"{found.resource} has no price {_span(found)} any more")

    return call.write(work)


def told(at: int) -> str:
    """Returns a time as ``danlu price set --from`` takes it."""
    if at == 0:
        return "always"
    text = datetime.datetime.fromtimestamp(at // 10**9, datetime.UTC).isoformat().removesuffix("+00:00")
    return text.removesuffix("T00:00:00")


def _span(price: Price | PriceRequest) -> str:
    end = "for ever" if price.valid_until is None else f"until {told(price.valid_until)}"
    return f"from {told(price.valid_from)} {end}" if price.valid_from else f"always, {end}"
