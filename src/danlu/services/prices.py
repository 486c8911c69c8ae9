"""Prices: set and removed by administrators; everybody may see them. Costs are computed from them when they are read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from danlu.api.bodies import Accepted, Paging
from danlu.database import queries
from danlu.database.engine import Transaction
from danlu.database.records import PRICES
from danlu.domain.prices import CURRENCY, MAX_PRICES, Price, PriceRequest, beside, told_at, told_span
from danlu.domain.users import PLATFORM
from danlu.domain.views import Page
from danlu.errors import Conflict, InvalidRequest, NotFound
from danlu.services.context import Call


def list(call: Call, query: Paging) -> Page[Price]:
    """Returns all prices, the newest first."""
    return call.platform.database.read(lambda tx: PRICES.page(tx, limit=query.limit, cursor=query.cursor))


def set(call: Call, body: PriceRequest) -> Price:
    """Sets a price; one of the same resource that begins at the same time is replaced, so that asking twice is harmless.

    All prices that are valid at one time are in one currency: what they make together is one sum.

    Raises:
        InvalidRequest: it ends before it begins.
        Conflict: another price of the resource is valid at a part of that time, or one in another currency; or there are too
            many.
    """
    if body.end <= body.valid_from:
        raise InvalidRequest(
            f"the price of {body.resource} would end ({told_at(body.end)}) before it begins ({told_at(body.valid_from)})",
            next_step="give a later --until, or an earlier --from",
        )
    now, price_id = call.platform.clock.now(), call.platform.new_id("p")

    def work(tx: Transaction) -> Price:
        queries.next_number(tx, PLATFORM, "prices")  # one after the other: none may overlap
        known = PRICES.find(tx, limit=MAX_PRICES)
        same = next((one for one in known if (one.resource, one.valid_from) == (body.resource, body.valid_from)), None)
        others = beside((price for price in known if price is not same), body)
        asked = body if body.currency else body.model_copy(update={"currency": _currency(same, others, known)})
        _require_one_price(asked, others)
        _require_one_currency(asked, others)
        fields = asked.model_dump()
        if same is not None:
            new = same.evolved(now=now, **fields, created_by=call.actor.name)
            PRICES.put(tx, same, new, actor=call.actor.name)
            return new
        if len(known) >= MAX_PRICES:
            raise Conflict(f"there are {MAX_PRICES} prices already", next_step="remove old ones: danlu price ls")
        made = Price(
            id=price_id, project=PLATFORM, created_by=call.actor.name, created_at=now, updated_at=now, **fields
        )
        PRICES.add(tx, made, actor=call.actor.name)
        return made

    return call.write(work)


def _currency(same: Price | None, others: Sequence[Price], known: Sequence[Price]) -> str:
    """Returns the currency of a price that names none: of the one it replaces, of those beside it, else of the newest."""
    newest = max(known, key=lambda price: price.valid_from, default=None)
    found = same or next(iter(others), None) or newest
    return found.currency if found is not None else CURRENCY


def _require_one_price(asked: PriceRequest, others: Iterable[Price]) -> None:
    other = next((price for price in others if price.resource == asked.resource), None)
    if other is None:
        return
    remove = f"remove it: danlu price rm {other.id}"
    step = f"let this one end then, --until {told_at(other.valid_from)}   or {remove}"
    if other.valid_from < asked.valid_from:
        begins = f" --from {told_at(other.valid_from)}" if other.valid_from else ""
        step = (
            f"let the other one end first: danlu price set {other.resource}={other.per_hour} --currency {other.currency}"
            f"{begins} --until {told_at(asked.valid_from)}   or {remove}"
        )
    raise Conflict(
        f"{asked.resource} would have two prices at once: {asked.per_hour} {asked.currency} {told_span(asked)}, and "
        f"{other.per_hour} {other.currency} {told_span(other)}",
        next_step=step,
    )


def _require_one_currency(asked: PriceRequest, others: Iterable[Price]) -> None:
    other = next((price for price in others if price.currency != asked.currency), None)
    if other is not None:
        raise Conflict(
            f"{asked.resource} would have a price in {asked.currency} ({told_span(asked)}) beside that of "
            f"{other.resource} in {other.currency} ({told_span(other)}): prices of one time have one currency",
            next_step=f"give it in {other.currency}, or let those in {other.currency} end first: danlu price ls",
        )


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
        return Accepted(
            message=f"the price of {found.resource}, {found.per_hour} {found.currency} {told_span(found)}, is removed"
        )

    return call.write(work)
