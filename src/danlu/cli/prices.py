"""``danlu price``: what resources cost, from when until when."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Final

from cyclopts import App, Parameter

from danlu.api.bodies import Paging
from danlu.cli import output as out
from danlu.cli import wording
from danlu.cli.get import Kind
from danlu.cli.keys import request
from danlu.cli.nouns import list_all, take_away
from danlu.cli.options import Common, Limit, Output
from danlu.cli.session import connect
from danlu.cli.terminal import Messages
from danlu.cli.usage import moment
from danlu.client.lists import listed
from danlu.domain.prices import CURRENCY, Price, PriceRequest, is_resource, told_at, told_span, told_unit
from danlu.errors import InvalidRequest, NotFound

MAX_NAMED: Final = 4
PRICES: Final = Kind(
    "prices", (), ("RESOURCE", "PER-HOUR", "FROM", "UNTIL", "ID"), ("BY", "AGE"),
    lambda client, wanted: listed(client, "prices.list", Paging(), wanted.limit),
    lambda price, now: [
        price.resource, f"{price.per_hour} {price.currency}", "-" if price.valid_from == 0 else told_at(price.valid_from),
        "-" if price.valid_until is None else told_at(price.valid_until), price.id, price.created_by,
        wording.age(price.created_at, now),
    ],
    lambda price: f"price/{price.id}",
)  # fmt: skip
app = App(name="price", help="What resources cost, from when until when.", help_format="plaintext")


@app.command(name="ls")
def ls(*, limit: Limit = 100, output: Output = "table", common: Common | None = None) -> int:
    """List the prices: for an hour of a core, of a GiB of memory, of a GPU.

    Example: danlu price ls
    """
    return list_all(PRICES, limit, output, common)


@app.command(name="set", usage="Usage: danlu price set RESOURCE=AMOUNT [FLAGS]")
def set_one(
    price: Annotated[str, Parameter(help="RESOURCE=AMOUNT for an hour: cpu, memory (a GiB), gpu or gpu/KIND")],
    /,
    *,
    begin: Annotated[
        str | None,
        Parameter(name="--from", help="from then on, e.g. 2026-12-01 (UTC); from the beginning when left out"),
    ] = None,
    until: Annotated[str | None, Parameter(help="until then; without an end when left out")] = None,
    currency: Annotated[
        str | None, Parameter(help=f"as in ISO 4217; left out: that of the other prices, {CURRENCY} for the first one")
    ] = None,
    output: Output = "table",
    common: Common | None = None,
) -> int:
    """Set a price. One of the same resource that begins at the same time is replaced. For administrators.

    What was used is charged at the price that was valid then: a run within which it changes is charged in two parts.

    Example: danlu price set gpu/h100=2.50 --from 2026-12-01
    """
    resource, equals, amount = price.partition("=")
    if not equals:
        raise InvalidRequest(
            f"{price!r} is not RESOURCE=AMOUNT", next_step="write for example danlu price set gpu/h100=2.50"
        )
    now = time.time_ns()
    fields = {
        "resource": resource, "per_hour": amount, "currency": currency, "valid_until": moment("--until", until, now),
        "valid_from": moment("--from", begin, now),
    }  # fmt: skip
    body = request(PriceRequest, fields, resource="RESOURCE", valid_from="from", valid_until="until", per_hour="AMOUNT")
    messages = Messages(quiet=output in ("json", "yaml", "name"))
    with connect(common, messages) as client:
        made = client.call("prices.set", body=body)
    out.made(made, f"price/{made.id}", output)
    messages.say(f"an hour of {told_unit(made.resource)} costs {made.per_hour} {made.currency} {told_span(made)}")
    return 0


@app.command(name="rm", usage="Usage: danlu price rm RESOURCE|ID [FLAGS]")
def rm(
    price: Annotated[
        str, Parameter(help="cpu, memory, gpu or gpu/KIND with one price; or a price's id: danlu price ls")
    ],
    /,
    *,
    output: Output = "table",
    common: Common | None = None,
) -> int:
    """Remove a price, as if it had never been. For administrators.

    Example: danlu price rm gpu/h100
    """
    name = price.removeprefix("price/")
    if is_resource(name):
        with connect(common, Messages()) as client:
            name = only_price(name, listed(client, "prices.list", Paging(), 0)[0])
    return take_away("prices.remove", {"price": name}, f"price/{name}", output, common)


def only_price(resource: str, prices: Sequence[Price]) -> str:
    """Returns the id of a resource's price.

    Raises:
        NotFound: it has none.
        InvalidRequest: it has several.
    """
    found = [price for price in prices if price.resource == resource]
    if not found:
        raise NotFound(f"{resource} has no price", next_step="all of them: danlu price ls")
    if len(found) > 1:
        several = ", ".join(f"{one.per_hour} {one.currency} {told_span(one)}" for one in found[:MAX_NAMED])
        more = f" and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
        raise InvalidRequest(
            f"{resource} has {len(found)} prices: {several}{more}",
            next_step="   or ".join(f"danlu price rm {one.id}" for one in found[:MAX_NAMED]),
        )
    return found[0].id
