"""Prices: what a unit of a resource costs for an hour, from when until when. Exact: decimal, never binary fractions."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Final

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from danlu.domain.ledger import SECOND_NS, Amounts
from danlu.domain.records import Ns, Record, Value
from danlu.domain.resources import GPU_KIND_PATTERN
from danlu.domain.validation import suggestion

HOUR_NS: Final = 3600 * SECOND_NS
GIB: Final = 2**30
FOREVER: Final = 2**63 - 1
CURRENCY: Final = "USD"
"""Of the first price that names none; later ones are in the currency of those that there are."""
MAX_PRICES: Final = 10_000
RESOURCE_PATTERN: Final = rf"^(cpu|memory|gpu|gpu/{GPU_KIND_PATTERN.strip('^$')})$"
CURRENCY_PATTERN: Final = r"^[A-Z]{3}$"
UNITS: Final = {"cpu": "a core", "memory": "a GiB of memory", "gpu": "a GPU"}
AMOUNT_PATTERN: Final = r"^[0-9]{1,12}(\.[0-9]{1,9})?$"


def _resource(text: str) -> str:
    if not is_resource(text):
        small = text.lower()
        meant = f"did you mean {small}?" if is_resource(small) else suggestion(text[:64], UNITS)
        raise ValueError(
            f"{text!r:.80} has no price: {meant + '; ' if meant else ''}"
            "there are cpu, memory, gpu, and gpu/KIND, for example gpu/h100"
        )
    return text


def is_resource(text: str) -> bool:
    """Says whether that is what has a price: cpu, memory, gpu or gpu/KIND."""
    return re.fullmatch(RESOURCE_PATTERN, text) is not None


def _currency(text: str) -> str:
    if not re.fullmatch(CURRENCY_PATTERN, text):
        big = text.upper()
        meant = f"did you mean {big}?" if re.fullmatch(CURRENCY_PATTERN, big) else "write for example USD, EUR or CNY"
        raise ValueError(f"{text!r:.80} is no currency, which has three capital letters, as in ISO 4217: {meant}")
    return text


def _amount(text: Any) -> Any:
    if not isinstance(text, str) or not re.fullmatch(AMOUNT_PATTERN, text):
        raise ValueError(
            f"{text!r:.80} is not a price: write for example 2.50; at most 12 digits, a point, 9 more, in quotes in JSON"
        )
    return text


PriceText = Annotated[
    str, BeforeValidator(_amount), WithJsonSchema({"type": "string", "pattern": AMOUNT_PATTERN, "maxLength": 22})
]
"""A decimal number as a text: what is sent as a JSON number may have been a binary fraction on its way."""
ResourceName = Annotated[
    str, AfterValidator(_resource), WithJsonSchema({"type": "string", "pattern": RESOURCE_PATTERN, "maxLength": 67})
]
CurrencyCode = Annotated[
    str, AfterValidator(_currency), WithJsonSchema({"type": "string", "pattern": CURRENCY_PATTERN, "maxLength": 3})
]


class Price(Record):
    """What one unit costs for an hour: a core, a GiB of memory, a GPU. ``gpu/KIND`` comes before ``gpu``."""

    KIND: ClassVar[str] = "price"

    resource: ResourceName = Field(description="cpu, memory, gpu or gpu/KIND")
    per_hour: PriceText = Field(description="for a core, a GiB or a GPU, a decimal number as a text")
    currency: CurrencyCode = Field(description="ISO 4217")
    valid_from: Ns = Field(description="ns UTC; 0: from the beginning")
    valid_until: Ns | None = Field(default=None, description="ns UTC; not at that time any more; None: without an end")
    created_by: str = ""

    @property
    def end(self) -> int:
        """When it ends."""
        return FOREVER if self.valid_until is None else self.valid_until


class PriceRequest(Value):
    """A price to set; one of the same resource that begins at the same time is replaced."""

    resource: ResourceName
    per_hour: PriceText
    currency: CurrencyCode | None = Field(
        default=None, description=f"ISO 4217; left out: that of the other prices, {CURRENCY} for the first one"
    )
    valid_from: Ns = Field(default=0, description="ns UTC; 0: from the beginning")
    valid_until: Ns | None = Field(default=None, description="ns UTC; not at that time any more; None: without an end")

    @property
    def end(self) -> int:
        """When it ends."""
        return FOREVER if self.valid_until is None else self.valid_until


def beside(prices: Iterable[Price], asked: PriceRequest) -> list[Price]:
    """Returns the prices that are valid at a time at which another one is to be, the first one first."""
    found = [price for price in prices if price.valid_from < asked.end and asked.valid_from < price.end]
    return sorted(found, key=lambda price: (price.valid_from, price.resource))


def told_at(at: int) -> str:
    """Returns a time as ``danlu price set --from`` takes it: ``2026-12-01`` or ``2026-12-01T08:00:00``, of UTC."""
    text = datetime.datetime.fromtimestamp(at // SECOND_NS, datetime.UTC).isoformat().removesuffix("+00:00")
    return text.removesuffix("T00:00:00")


def told_span(price: Price | PriceRequest) -> str:
    """Returns when a price is valid, in words: ``from 2026-12-01 on``; one that has no bounds ``at any time``."""
    if price.valid_until is None:
        return f"from {told_at(price.valid_from)} on" if price.valid_from else "at any time"
    until = f"until {told_at(price.valid_until)}"
    return f"from {told_at(price.valid_from)} {until}" if price.valid_from else until


def told_unit(resource: str) -> str:
    """Returns what a price is for, beside an hour: ``a core``, ``a GiB of memory``, ``a GPU``, ``a GPU of kind h100``."""
    return UNITS.get(resource) or f"a GPU of kind {resource.removeprefix('gpu/')}"


def boundaries(prices: Iterable[Price], since: int, until: int) -> list[int]:
    """Returns the times at which an interval is cut so that no price changes within a piece: both ends among them."""
    times = {at for price in prices for at in (price.valid_from, price.end)}
    return sorted({since, until, *(at for at in times if since < at < until)})


def valid_at(prices: Iterable[Price], at: int) -> dict[str, Price]:
    """Returns the prices that are valid at a time, by resource."""
    return {price.resource: price for price in prices if price.valid_from <= at < price.end}


def cost(valid: Mapping[str, Price], amounts: Amounts, length_ns: int) -> dict[str, Fraction]:
    """Returns what it costs to hold something for so long, by currency, exactly."""
    gpu = valid.get(f"gpu/{amounts.gpu_kind}", valid.get("gpu"))
    found: dict[str, Fraction] = {}
    for price, units in (
        (valid.get("cpu"), Fraction(amounts.cpu_milli, 1000)),
        (valid.get("memory"), Fraction(amounts.memory_bytes, GIB)),
        (gpu, Fraction(amounts.gpus)),
    ):
        if price is not None and units:
            add = Fraction(price.per_hour) * units * length_ns / HOUR_NS
            found[price.currency] = found.get(price.currency, Fraction()) + add
    return found


def rounded(amount: Fraction) -> Decimal:
    """Returns an amount of money to a millionth, half to even, however large: arithmetic of decimals would cut it."""
    return Decimal(f"{round(amount * 10**6)}e-6")
