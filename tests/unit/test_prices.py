"""Prices in words: what is refused, when one is valid, which one is meant."""

from __future__ import annotations

import re

import pytest
from pydantic import ValidationError

from danlu.cli.keys import request
from danlu.cli.prices import only_price
from danlu.domain.prices import PriceRequest, told_span, told_unit
from danlu.errors import InvalidRequest, InvalidSpec, NotFound
from tests.factories import make_price

DAY_NS = 86_400 * 10**9
DECEMBER = 1_796_083_200 * 10**9


@pytest.mark.parametrize(
    ("since", "until", "said"),
    [
        (0, None, "at any time"), (DECEMBER, None, "from 2026-12-01 on"), (0, DECEMBER, "until 2026-12-01"),
        (DECEMBER, DECEMBER + DAY_NS // 2, "from 2026-12-01 until 2026-12-01T12:00:00"),
    ],
)  # fmt: skip
def test_when_a_price_is_valid(since: int, until: int | None, said: str) -> None:
    assert told_span(make_price(valid_from=since, valid_until=until)) == said


def test_what_a_price_is_for() -> None:
    assert [told_unit(one) for one in ("cpu", "memory", "gpu", "gpu/h100")] == [
        "a core", "a GiB of memory", "a GPU", "a GPU of kind h100"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "said", "step"),
    [
        ({"currency": "usd"}, "--currency: 'usd' is no currency", "did you mean USD?"),
        ({"currency": "dollar"}, "--currency: 'dollar' is no currency, which has three capital letters", ""),
        ({"resource": "gpu/H100"}, "RESOURCE: 'gpu/H100' has no price", "did you mean gpu/h100?"),
        ({"resource": "gpus"}, "RESOURCE: 'gpus' has no price", "did you mean gpu?"),
        ({"per_hour": "2,5"}, "AMOUNT: '2,5' is not a price", ""),
    ],
)  # fmt: skip
def test_what_is_no_price_is_told_by_the_words_that_were_typed(fields: dict[str, str], said: str, step: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        request(PriceRequest, {"resource": "gpu", "per_hour": "1", **fields}, resource="RESOURCE", per_hour="AMOUNT")
    assert said in refused.value.message
    assert refused.value.next_step == step
    with pytest.raises(ValidationError):
        PriceRequest.model_validate({"resource": "gpu", "per_hour": "1", **fields})


def test_a_resource_names_its_only_price() -> None:
    now, then = make_price(valid_until=DECEMBER), make_price(valid_from=DECEMBER, per_hour="3")
    gpu = make_price(resource="gpu")
    assert only_price("gpu", [now, then, gpu]) == gpu.id
    with pytest.raises(NotFound, match="cpu has no price"):
        only_price("cpu", [now, gpu])
    said = "gpu/h100 has 2 prices: 2.50 USD until 2026-12-01, 3 USD from 2026-12-01 on"
    with pytest.raises(InvalidRequest, match=re.escape(said)) as refused:
        only_price("gpu/h100", [now, then])
    assert refused.value.next_step == f"danlu price rm {now.id}   or danlu price rm {then.id}"
