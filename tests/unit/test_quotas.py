"""Quotas: amounts as people write them, and what a tree of quotas cannot promise."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from danlu.api.bodies import QuotaChange
from danlu.cli.quotas import rows, told, tree
from danlu.domain.quotas import (
    MAX_COUNT,
    MAX_DEPTH,
    MAX_RESOURCES,
    RESOURCES,
    UNLIMITED,
    Quota,
    asks_of,
    changed,
    contradictions,
    describe,
    describe_all,
    effective,
    exceeded,
    format_amount,
    guarantees,
    over,
    parse_amount,
    path,
    unavailable,
    unreachable,
)
from danlu.domain.resources import Resources
from danlu.domain.views import QuotaUse
from tests.factories import GIB, make_quota

TIB = 2**40


def forest(**quotas: dict[str, Any]) -> dict[str, Quota]:
    return {name: make_quota(name, **fields) for name, fields in quotas.items()}


def group(parent: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"parent": parent, "group": True, **fields}


# amounts


@pytest.mark.parametrize(
    ("resource", "text", "amount", "printed"),
    [
        ("gpu", "8", 8, "8"),
        ("gpu", 8, 8, "8"),
        ("gpu/h100", "4", 4, "4"),
        ("gpu/a100-80gb", "0", 0, "0"),
        ("cpu", "64", 64_000, "64"),
        ("cpu", "500m", 500, "0.5"),
        ("cpu", 500, 500, "0.5"),  # a number is in the smallest unit, as answers have it
        ("cpu", "0", 0, "0"),
        ("memory", "1TiB", TIB, "1TiB"),
        ("memory", "1.5GiB", 3 * GIB // 2, "1536MiB"),
        ("memory", "1000B", 1000, "1KB"),
        ("memory", "4GB", 4 * 10**9, "4GB"),
        ("memory", "1000KiB", 1_024_000, "1000KiB"),
        ("memory", 4, 4, "4B"),
        ("memory", str(GIB), GIB, "1GiB"),
        ("memory", 0, 0, "0"),
        ("jobs", "20", 20, "20"),
        ("jobs", " 20 ", 20, "20"),
        ("storage", "1TiB", TIB, "1TiB"),
        ("gpu", "unlimited", UNLIMITED, "unlimited"),
        ("memory", "-1", UNLIMITED, "unlimited"),
        ("cpu", -1, UNLIMITED, "unlimited"),
        ("gpu", MAX_COUNT, MAX_COUNT, "1000000"),
    ],
)
def test_an_amount(resource: str, text: object, amount: int, printed: str) -> None:
    assert parse_amount(resource, text) == amount
    assert format_amount(resource, amount) == printed


@given(st.sampled_from([*RESOURCES, "gpu/h100"]), st.data())
def test_what_is_printed_is_read_again(resource: str, data: st.DataObject) -> None:
    amount = data.draw(st.integers(UNLIMITED, RESOURCES[resource.partition("/")[0]].most))
    assert parse_amount(resource, format_amount(resource, amount)) == amount
    assert parse_amount(resource, amount) == amount


@pytest.mark.parametrize(
    ("resource", "given_", "said"),
    [
        ("gpus", "1", "did you mean gpu?"),
        ("mem", "1GiB", "did you mean memory?"),
        ("gpu/", "1", "'gpu/' is nothing that a quota can limit"),
        ("gpu/H 100", "1", "nothing that a quota can limit"),
        ("notebooks", "1", "there are gpu, cpu, memory, jobs, storage and gpu/KIND"),
        ("storage", "much", "not an amount of storage"),
        ("endpoints", "1", "nothing that a quota can limit"),
        ("x" * 500, "1", "nothing that a quota can limit"),
        ("gpu", "0.5", "GPUs are given whole, write for example gpu=8, or gpu=unlimited"),
        ("gpu/h100", "1.0", "gpu/h100=1.0 is no amount: GPUs are given whole"),
        ("jobs", "1k", "jobs are counted whole"),
        ("gpu", "-2", "gpu=-2 is no amount"),
        ("cpu", -2, "cpu=-2 is no amount"),
        ("memory", "-1GiB", "memory=-1GiB is no amount: write for example memory=512GiB"),
        ("memory", "much", "not an amount of memory"),
        ("memory", "4", "'4' has no unit and would be 4 B: did you mean 4GiB?"),
        ("memory", "4096", "did you mean 4096MiB?"),
        ("gpu/H100", "4", "did you mean gpu/h100?"),
        ("cpu", "0.0001", "cores are out of range"),
        ("gpu", "", "gpu= is no amount"),
        ("gpu", True, "gpu=True is no amount"),
        ("gpu", None, "gpu=None is no amount"),
        ("gpu", 1.0, "gpu=1.0 is no amount"),
        ("gpu", "9" * 1000, "GPUs are given whole"),
        ("gpu", str(MAX_COUNT + 1), "is more than 1000000, the most"),
        ("memory", 2**61, "is more than 1024PiB, the most"),
    ],
)
def test_what_is_no_amount(resource: str, given_: object, said: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - its words are looked at
        parse_amount(resource, given_)
    assert said.lower() in str(error.value).lower()
    assert len(str(error.value)) < 300


def test_what_is_out_of_range_is_told_as_it_was_written() -> None:
    with pytest.raises(ValueError, match="'9999999TiB' is out of range"):
        parse_amount("memory", " 9999999TiB")


def test_amounts_of_a_request_are_bounded_and_stay_what_they_were() -> None:
    change = QuotaChange.model_validate({"limit": {"cpu": "64", "memory": "1TiB"}})
    assert change.limit == {"cpu": 64_000, "memory": TIB}
    assert QuotaChange.model_validate(change.model_dump(mode="json")) == change  # as a client sends it
    with pytest.raises(ValidationError, match="too many"):
        QuotaChange.model_validate({"limit": {f"gpu/k{n}": 1 for n in range(MAX_RESOURCES + 1)}})


def test_amounts_in_words() -> None:
    assert [describe("gpu", 1), describe("gpu/h100", 3), describe("cpu", 500), describe("jobs", 1)] == [
        "1 GPU", "3 h100 GPUs", "0.5 cores", "1 job"
    ]  # fmt: skip
    assert describe_all({"memory": TIB, "gpu": 2, "jobs": 3}) == "2 GPUs, 1TiB of memory and 3 jobs"
    assert describe_all({}) == "nothing"


def test_only_what_is_named_is_replaced() -> None:
    limit = {"gpu": 8, "memory": TIB}
    assert changed(limit, {"gpu": UNLIMITED, "cpu": 0}, nothing=UNLIMITED) == {"memory": TIB, "cpu": 0}
    assert changed(limit, {"gpu": 0}, nothing=0) == {"memory": TIB}


# the tree


@pytest.mark.parametrize(
    ("quotas", "said"),
    [
        (forest(a={"parent": "nobody"}), ["the group nobody above a does not exist: make it first"]),
        (forest(a={}, b={"parent": "a"}), ["a above b is a project, no group"]),
        (forest(a=group("a")), ["a below a: nothing can be below itself"]),
        (forest(a=group("b"), b=group("a"), c={"parent": "a"}), ["a below b below a: nothing can be below itself"]),
        (forest(vision=group()), ["vision is a project: call the group otherwise"]),
        (forest(a={"limit": {"gpu": 4}, "guarantee": {"gpu": 8}}),
         ["a is guaranteed 8 GPUs, above its limit of 4 GPUs: raise the limit, or lower the guarantee"]),
        (forest(a={"limit": {"gpu": 4}, "guarantee": {"gpu/h100": 3, "gpu/l4": 2}}),
         ["a is guaranteed 5 GPUs of all kinds together, above its limit of 4 GPUs"]),
        (forest(a={"guarantee": {"gpu": 4, "gpu/h100": 5}}),
         ["a is guaranteed 5 GPUs of all kinds together, above its guarantee of 4 GPUs"]),
        (forest(a={"limit": {"gpu": 0}, "guarantee": {}}), []),
        (forest(a={"limit": {"gpu": 0}, "guarantee": {"gpu": 1}}), ["above its limit of 0 GPUs"]),
        (forest(a={"limit": {"gpu": UNLIMITED}, "guarantee": {"gpu": 1}}), []),
        (forest(g=group(guarantee={"gpu": 5}), a={"parent": "g", "guarantee": {"gpu": 4}},
                b={"parent": "g", "guarantee": {"gpu": 2}}),
         ["above its guarantee of 5 GPUs: raise that one, or lower the guarantee of a (4) or b (2)"]),
        (forest(g=group(limit={"gpu": 5}), a={"parent": "g", "guarantee": {"gpu": 4}},
                b={"parent": "g", "guarantee": {"gpu": 2}}),
         ["those below g are guaranteed 6 GPUs together, above its limit of 5 GPUs: raise the limit, or lower"]),
        (forest(g=group(limit={"gpu": 5}), m=group("g"), a={"parent": "m", "guarantee": {"gpu": 6}}),
         ["those below g are guaranteed 6 GPUs together, above its limit of 5 GPUs"]),  # two levels above
        (forest(g=group(guarantee={"gpu": 1}), a={"parent": "g", "guarantee": {"gpu/h100": 2}}),
         ["those below g are guaranteed 2 GPUs together, above its guarantee of 1 GPU"]),
        (forest(g=group(guarantee={"memory": GIB}), a={"parent": "g", "guarantee": {"gpu": 6}}), []),
        (forest(g=group(limit={"gpu": 2}), a={"parent": "g", "limit": {"gpu": 6}}), []),  # the lower one holds
    ],
)  # fmt: skip
def test_what_contradicts(quotas: dict[str, Quota], said: list[str]) -> None:
    found = contradictions(quotas, {"vision"})
    assert len(found) == len(said), found
    assert all(words in one for words, one in zip(said, found, strict=True)), found


def test_how_deep_a_tree_may_be() -> None:
    quotas = forest(**{f"g{n}": group(f"g{n - 1}" if n else None) for n in range(MAX_DEPTH)})
    assert contradictions(quotas) == []
    quotas |= forest(a={"parent": f"g{MAX_DEPTH - 1}"})
    assert [one.partition(" (")[0] for one in contradictions(quotas)] == [f"a would be {MAX_DEPTH + 1} levels deep"]


NAMES = [f"n{n}" for n in range(7)]


@st.composite
def forests(draw: st.DrawFn) -> dict[str, Quota]:
    """Any quotas: also such as contradict one another."""
    found = {}
    for name in NAMES:
        amounts = st.dictionaries(st.sampled_from(["gpu", "gpu/h100", "cpu"]), st.integers(0, 4), max_size=3)
        parent = draw(st.none() | st.sampled_from(NAMES))
        found[name] = make_quota(
            name, parent=parent, group=draw(st.booleans()), guarantee=draw(amounts), limit=draw(amounts)
        )
    return found


@given(forests())
def test_what_a_sound_tree_promises_can_be_given_at_once(quotas: dict[str, Quota]) -> None:
    """Everybody holds what it is guaranteed: then no limit is passed, and every group holds its guarantee at most."""
    if contradictions(quotas):
        return
    held: dict[str, dict[str, int]] = {name: {} for name in quotas}
    for name, quota in quotas.items():
        own = {} if quota.group else {"gpu": 0, **quota.guarantee}
        if own:
            own["gpu"] = max(own["gpu"], own.get("gpu/h100", 0))
        for above in path(quotas, name):
            for resource, amount in own.items():
                held[above.id][resource] = held[above.id].get(resource, 0) + amount
    for name, quota in quotas.items():
        assert over(quota, held[name]) == {}
        assert all(held[name].get(resource, 0) <= amount for resource, amount in quota.guarantee.items() if quota.group)


@given(forests())
def test_any_quotas_are_judged(quotas: dict[str, Quota]) -> None:
    """Whatever they are, it ends, and what stands alone contradicts nothing but itself."""
    for told_ in contradictions(quotas):
        assert ": " in told_
    alone = {name: one.model_copy(update={"parent": None, "guarantee": {}}) for name, one in quotas.items()}
    assert contradictions(alone) == []


def test_what_must_be_there_for_guarantees() -> None:
    quotas = forest(
        g=group(), a={"parent": "g", "guarantee": {"gpu/h100": 2}}, b={"parent": "g", "guarantee": {"gpu": 3, "cpu": 1000}},
        c={"guarantee": {"gpu": 1, "jobs": 9}},
    )  # fmt: skip
    assert guarantees(quotas)["g"] == {"gpu": 5, "gpu/h100": 2, "cpu": 1000}
    assert unavailable(quotas, {"gpu": 6, "gpu/h100": 2, "cpu": 1000}) == []
    assert unavailable(quotas, {"gpu": 5, "cpu": 1000}) == [
        "6 GPUs are guaranteed in all, and the nodes have 5 GPUs: not every guarantee can be kept at once",
        "2 h100 GPUs are guaranteed in all, and the nodes have 0 h100 GPUs: not every guarantee can be kept at once",
    ]


# a job


def test_what_a_job_alone_is_above() -> None:
    quotas = forest(
        g=group(limit={"gpu": 2, "gpu/h100": 0, "jobs": UNLIMITED}), a={"parent": "g", "limit": {"gpu": 3, "cpu": 4000}}
    )
    shapes = [Resources(cpu_milli=2000, gpus=2), Resources(cpu_milli=2000, gpus=2)]
    asks = asks_of(shapes)
    assert asks == {"cpu": 4000, "gpu": 4, "jobs": 1}
    assert [(one.quota.id, *one[1:]) for one in exceeded(path(quotas, "a"), asks)] == [
        ("a", "gpu", 4, 3),
        ("g", "gpu", 4, 2),
    ]
    kind = asks_of(shapes[:1], "h100")
    assert [one[1:] for one in exceeded(path(quotas, "a"), kind)] == [("gpu/h100", 2, 0)]
    assert exceeded(path(quotas, "b"), asks) == []


def test_the_most_is_what_those_above_give_too() -> None:
    quotas = forest(
        company=group(limit={"gpu": 4, "memory": TIB, "gpu/h100": UNLIMITED}),
        research=group("company", limit={"gpu": 2, "jobs": 5}),
        vision={"parent": "research", "limit": {"gpu": 8, "gpu/h100": 3, "memory": GIB, "cpu": UNLIMITED}},
        speech={"parent": "research", "limit": {"gpu/h100": 1, "jobs": 9}},
        alone={"limit": {"gpu": 1, "gpu/a100": 2}},
    )
    assert effective(path(quotas, "vision")) == {"gpu": 2, "gpu/h100": 2, "memory": GIB, "jobs": 5}
    assert unreachable(path(quotas, "vision")) == [
        "vision never holds 8 GPUs: all projects below research together hold at most 2 GPUs",
        "vision never holds 3 h100 GPUs: all projects below research together hold at most 2 GPUs of all kinds",
    ]
    assert effective(path(quotas, "speech")) == {"gpu": 2, "gpu/h100": 1, "memory": TIB, "jobs": 5}
    assert unreachable(path(quotas, "speech")) == [
        "speech never holds 9 jobs: all projects below research together hold at most 5 jobs"
    ]
    assert unreachable(path(quotas, "alone")) == ["alone never holds 2 a100 GPUs: its own limit is 1 GPU of all kinds"]
    assert unreachable(path(quotas, "company")) == []


# at the terminal


def use(name: str, used: dict[str, int] | None = None, **fields: Any) -> QuotaUse:
    quota = make_quota(name, **fields)
    return QuotaUse(quota=quota, used=used or {}, effective=effective([quota]), over=over(quota, used or {}))


def test_a_tree_is_shown_by_its_indentation() -> None:
    uses = [
        use("vision", {"gpu": 3}, parent="research", guarantee={"gpu": 2}, limit={"memory": TIB, "gpu": 8}),
        use("speech", parent="research"),
        use("research", {"gpu": 3, "jobs": 1}, parent="company", group=True, limit={"gpu": 16}),
        use("alone", limit={"jobs": 0}),
    ]
    assert [(one.quota.id, depth) for one, depth in tree(uses)] == [
        ("alone", 0), ("research", 0), ("speech", 1), ("vision", 1)
    ]  # fmt: skip
    assert rows(uses, wide=False) == [
        ["alone", "jobs", "", "0", "0"],
        ["research", "gpu", "", "16", "3"],
        ["  speech", "", "", "", ""],
        ["  vision", "gpu", "2", "8", "3"],
        ["  vision", "memory", "", "1TiB", "0"],
    ]
    assert rows(uses[2:3], wide=True) == [
        ["research", "gpu", "", "16", "3", "1"],
        ["research", "jobs", "", "", "1", "1"],
    ]


def test_amounts_are_told_so_that_they_can_be_read() -> None:
    odd = 64 * 2**20 + 4 * 10**9
    assert describe("memory", odd) == "3.8GiB (3971786KiB) of memory"
    assert rows([use("vision", {"memory": odd}, limit={"memory": 4 * 10**9})], wide=False) == [
        ["vision", "memory", "", "4GB", "3.8GiB"]
    ]


def test_what_a_quota_gives_is_told_with_those_above() -> None:
    limited = use("vision", limit={"gpu": 8}).model_copy(update={"effective": {"gpu": 2, "jobs": 5}})
    assert [*told(limited)] == ["effective at once: vision holds at most 2 GPUs and 5 jobs"]


def test_what_happens_next_is_told() -> None:
    one = use("vision", {"gpu": 11, "jobs": 3}, limit={"gpu": 8}, guarantee={"gpu": 4})
    assert list(told(one)) == [
        "effective at once: vision holds at most 8 GPUs; guaranteed: 4 GPUs",
        "3 jobs of vision go on; others that need it wait until at least 3 GPUs are given back",
    ]
    full = use("vision", {"storage": 3 * GIB // 2 + 1, "jobs": 1}, limit={"storage": GIB})
    assert list(told(full))[1:] == [
        "vision has 1.5GiB of storage, 512.0MiB above its limit: nothing is lost, and nothing more is taken"
    ]
    assert rows([full], wide=False) == [["vision", "storage", "", "1GiB", "1.5GiB"]]
    assert list(told(use("research", group=True))) == [
        "effective at once: all projects below research together hold as much as there is"
    ]
