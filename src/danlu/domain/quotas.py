"""A quota: what a project, or a group of them, is guaranteed, may have at most, and how much it counts against others.

Quotas are a tree: a project below a team, a team below an organization. Amounts are whole numbers of the smallest unit:
``cpu`` thousandths of a core, ``memory`` bytes, ``gpu`` and ``gpu/KIND`` whole GPUs, ``jobs`` jobs that hold resources,
``storage`` bytes that are stored. What is not named is not limited, and not guaranteed. A project without a quota is not
limited by one.

*Limit*: the most that a project holds at once, or all projects below a group together. A job that would pass a limit, its
project's or that of a group above, waits; one that alone is larger is refused. A limit of 0 allows nothing.

*Guarantee*: what a project gets whenever it has jobs that want it. It is a part of the guarantee of the group above, where
that has one, and never more than a limit. A group's guarantee is shared by those below that have none of their own.

*Borrowing*: what is guaranteed to others and idle, and what is guaranteed to nobody, may be used up to one's limit. What is
lent is taken back when its owner's jobs ask for it: those that borrowed give way.

*Weight*: its part of what is not guaranteed, against those that have the same parent: one of weight 2 gets twice as much as
one of weight 1 if both want it. It limits nothing while the others are idle.

A limit that is set below what runs ends nothing: what runs goes on, and nothing starts until enough is given back.

*What is kept*, as storage, nobody gives back by itself: it is limited, but not lent, so that nothing of it is guaranteed. Who
would pass such a limit is refused at once, and does not wait.
"""

from __future__ import annotations

import re
import string
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Final, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field

from danlu.domain.ids import NAME_PATTERN
from danlu.domain.records import Flag, Record
from danlu.domain.resources import (
    GPU_KIND_PATTERN,
    MAX_BYTES,
    MAX_CPU,
    UNITS,
    Resources,
    exact_bytes,
    format_bytes,
    format_cpu,
    parse_bytes,
    parse_cpu,
)
from danlu.domain.validation import suggestion

UNLIMITED: Final = -1
MAX_DEPTH: Final = 8
"""So many quotas stand above one another, a project's own among them."""
MAX_WEIGHT: Final = 1000
MAX_COUNT: Final = 1_000_000
"""Of GPUs and of jobs."""
MAX_RESOURCES: Final = 64
"""So many amounts has one quota."""
MAX_TOLD: Final = 10
LONG_DIGITS: Final = 5
"""An amount of bytes of so many digits is hard to read."""
CPU: Final = "cpu"
MEMORY: Final = "memory"
GPU: Final = "gpu"
JOBS: Final = "jobs"
STORAGE: Final = "storage"
KIND_OF_GPU: Final = f"{GPU}/"


class Unit(StrEnum):
    """What the amounts of a resource are."""

    CORES = "cores"
    BYTES = "bytes"
    WHOLE = "whole"


class Resource(NamedTuple):
    """What a quota can limit.

    Attributes:
        noun: one of it; of bytes: what they are of.
        kept: it is counted for as long as it is there, whether something runs or not: see ``services/quotas.COUNTS``.
    """

    noun: str
    unit: Unit
    most: int
    example: str
    kept: bool = False


RESOURCES: Final[dict[str, Resource]] = {
    GPU: Resource("GPU", Unit.WHOLE, MAX_COUNT, "8"),
    CPU: Resource("core", Unit.CORES, MAX_CPU * 1000, "64 or 500m"),
    MEMORY: Resource("memory", Unit.BYTES, MAX_BYTES, "512GiB"),
    JOBS: Resource("job", Unit.WHOLE, MAX_COUNT, "20"),
    STORAGE: Resource("storage", Unit.BYTES, MAX_BYTES, "1TiB", kept=True),
}
"""In the order in which they are shown; GPUs of kinds come after ``gpu``."""
_KIND = re.compile(GPU_KIND_PATTERN)
_WHOLE = re.compile(r"[0-9]{1,18}")


class Quota(Record):
    """What a project or a group is guaranteed and may hold. Its id is its name; no group has a project's name.

    Amounts go by resource: cpu in thousandths of a core, memory and storage in bytes, gpu and gpu/KIND in GPUs, jobs in jobs.
    """

    KIND: ClassVar[str] = "quota"

    id: str = Field(pattern=NAME_PATTERN)
    parent: str | None = Field(default=None, description="the group above it; none: the platform")
    group: Flag = Field(default=False, description="it groups projects or other groups, and has no jobs of its own")
    guarantee: dict[str, int] = Field(
        default_factory=dict, description="what it gets back within the reclaim time, whoever borrowed it"
    )
    limit: dict[str, int] = Field(default_factory=dict, description="the most that it holds at once, borrowed or not")
    weight: int = Field(
        default=1, ge=1, le=MAX_WEIGHT, description="its part of what is not guaranteed, against its siblings'"
    )


# --- amounts


def is_kept(resource: str) -> bool:
    """Says whether it counts for as long as it is there, whether something runs or not."""
    return _known(resource).kept


def _known(resource: str) -> Resource:
    """Returns what is known of a resource; what is none of ours is some kind of GPU's, whatever its driver calls that."""
    return RESOURCES.get(resource, RESOURCES[GPU])


def parse_amount(resource: str, given: object) -> int:
    """Returns an amount in the smallest unit, UNLIMITED for ``-1`` or ``unlimited``.

    A text is as people write it: ``64`` or ``500m`` of cpu, ``1TiB`` of memory. A number is in the smallest unit already.

    Raises:
        ValueError: there is no such resource, or that is no amount of it.
    """
    known = RESOURCES[_base(resource)]
    text = given.strip().lower() if isinstance(given, str) else ""
    if text in ("unlimited", str(UNLIMITED)) or (type(given) is int and given == UNLIMITED):
        return UNLIMITED
    example = f"write for example {resource}={known.example}, or {resource}=unlimited"
    if text.strip("0") == "" and text:
        return 0
    if not isinstance(given, str | int) or isinstance(given, bool) or given == "" or str(given)[:1] == "-":
        raise ValueError(f"{resource}={given!s:.40} is no amount: {example}")
    if isinstance(given, int):
        amount = given
    elif known.unit is Unit.BYTES:
        amount = parse_bytes(given.strip(), known.noun)
    elif known.unit is Unit.CORES:
        amount = parse_cpu(text)
    elif _WHOLE.fullmatch(text):
        amount = int(text)
    else:
        what = "GPUs are given whole" if known.noun == RESOURCES[GPU].noun else f"{known.noun}s are counted whole"
        raise ValueError(f"{resource}={given!s:.40} is no amount: {what}, {example}")
    if amount > known.most:
        raise ValueError(f"{resource}={given!s:.40} is more than {format_amount(resource, known.most)}, the most")
    return amount


def _base(resource: str) -> str:
    """Returns the resource that the amounts of one are counted as: ``gpu`` for ``gpu/h100``."""
    if resource in RESOURCES:
        return resource
    if resource.startswith(KIND_OF_GPU) and _KIND.fullmatch(resource.removeprefix(KIND_OF_GPU)):
        return GPU
    small = resource.lower()
    kind = small.startswith(KIND_OF_GPU) and _KIND.fullmatch(small.removeprefix(KIND_OF_GPU))
    meant = f"did you mean {small}?" if kind else suggestion(resource[:64], (*RESOURCES, f"{GPU}/KIND"))
    raise ValueError(
        f"{resource[:64]!r} is nothing that a quota can limit: {meant + '; ' if meant else ''}"
        f"there are {', '.join(RESOURCES)} and {GPU}/KIND, for example {GPU}/h100"
    )


def parse_amounts(given: Any) -> Any:
    """Returns amounts by resource in the smallest unit; what is no mapping as it is, for pydantic to refuse.

    Raises:
        ValueError: one of them is none.
    """
    if not isinstance(given, Mapping):
        return given
    if len(given) > MAX_RESOURCES:
        raise ValueError(f"{len(given)} amounts are too many: a quota has at most {MAX_RESOURCES}")
    return {str(resource): parse_amount(str(resource), amount) for resource, amount in given.items()}


def require_guaranteeable(given: dict[str, int]) -> dict[str, int]:
    """Returns what is to be guaranteed.

    Raises:
        ValueError: some of it is kept, and not lent.
    """
    for resource in given:
        if is_kept(resource):
            raise ValueError(
                f"{resource} cannot be guaranteed, only limited: what is stored is not lent, so nobody gives it back; "
                f"limit the others instead, for example {resource}={RESOURCES[resource].example}"
            )
    return given


Amounts = Annotated[dict[str, int], BeforeValidator(parse_amounts, json_schema_input_type=dict[str, int | str])]
"""Of a request: texts are amounts as people write them, numbers are in the smallest unit, as in answers."""
Guarantees = Annotated[Amounts, AfterValidator(require_guaranteeable)]


def format_amount(resource: str, amount: int) -> str:
    """Returns an amount as ``parse_amount`` reads it, nothing rounded: ``8``, ``0.5``, ``1TiB``, ``unlimited``."""
    if amount == UNLIMITED:
        return "unlimited"
    if resource == CPU:
        return format_cpu(amount)
    if not amount or _known(resource).unit is not Unit.BYTES:
        return str(amount)
    return exact_bytes(amount)


def readable(resource: str, amount: int) -> str:
    """Returns an amount as ``format_amount``, of bytes not each one where that would be a long number: ``3.8GiB``."""
    text = format_amount(resource, amount)
    if _known(resource).unit is not Unit.BYTES or len(text.rstrip(string.ascii_letters)) < LONG_DIGITS:
        return text
    return format_bytes(amount).replace(" ", "")


def rounded_up(resource: str, amount: int) -> int:
    """Returns an amount that is at least as large and short to write: bytes in whole units, of which it has 8 at least."""
    if _known(resource).unit is not Unit.BYTES:
        return amount
    unit = next((UNITS[unit] for unit in ("pi", "ti", "gi", "mi", "ki") if amount >= 8 * UNITS[unit]), 1)
    return -(-amount // unit) * unit


def describe(resource: str, amount: int) -> str:
    """Returns ``1 GPU``, ``3 h100 GPUs``, ``0.5 cores``, ``1TiB of memory``, ``no memory`` or ``20 jobs``."""
    text, known = format_amount(resource, amount), _known(resource)
    if known.unit is Unit.BYTES:
        short = readable(resource, amount)
        exact = f" ({text})" if short != text else ""
        return f"{short}{exact} of {known.noun}" if amount else f"no {known.noun}"
    plural = "" if text == "1" else "s"
    kind = resource.removeprefix(KIND_OF_GPU) + " " if resource.startswith(KIND_OF_GPU) else ""
    return f"{text} {kind}{known.noun}{plural}"


def describe_all(amounts: Mapping[str, int]) -> str:
    """Returns ``1 GPU and 20 jobs``, or ``nothing``."""
    said = [describe(name, amounts[name]) for name in ordered(amounts)]
    return " and ".join([", ".join(said[:-1]), said[-1]] if len(said) > 1 else said) or "nothing"


def ordered(resources: Iterable[str]) -> list[str]:
    """Returns resources in the order in which they are shown: GPUs first."""
    places = {name: place for place, name in enumerate(RESOURCES)}
    return sorted({*resources}, key=lambda name: (places.get(name, places[GPU]), name))


def changed(now: Mapping[str, int], changes: Mapping[str, int], *, nothing: int) -> dict[str, int]:
    """Returns amounts of which some are replaced; ``nothing`` takes one away."""
    return {name: amount for name, amount in {**now, **changes}.items() if amount != nothing}


# --- the tree


def path(quotas: Mapping[str, Quota], name: str) -> tuple[Quota, ...]:
    """Returns a quota and those above it, upwards; () where there is none of that name."""
    found: list[Quota] = []
    at: str | None = name
    while at is not None and (quota := quotas.get(at)) is not None and quota not in found:
        found.append(quota)
        at = quota.parent
    return tuple(found)


def effective(path: Iterable[Quota]) -> dict[str, int]:
    """Returns the most that can be held of what is limited at all: by a quota, or by one above it.

    GPUs of a kind are GPUs too, and never more than those.
    """
    most: dict[str, int] = {}
    for quota in path:
        for resource, limit in quota.limit.items():
            if limit != UNLIMITED:
                most[resource] = min(limit, most.get(resource, limit))
    return {
        name: min(amount, most.get(GPU, amount)) if name.startswith(KIND_OF_GPU) else amount
        for name, amount in most.items()
    }


def unreachable(path: Sequence[Quota]) -> list[str]:
    """Returns which limits of a quota can never be reached, since it, or one above it, allows less."""
    own, most, found = path[0], effective(path), []
    for resource in ordered(own.limit):
        limit = own.limit[resource]
        if limit == UNLIMITED or most[resource] >= limit:
            continue
        names = (resource, GPU) if resource.startswith(KIND_OF_GPU) else (resource,)
        less, name = next((quota, name) for quota in path for name in names if quota.limit.get(name) == most[resource])
        of_all = " of all kinds" if name != resource else ""
        allows = "its own limit is" if less is own else f"all projects below {less.id} together hold at most"
        found.append(
            f"{own.id} never holds {describe(resource, limit)}: {allows} {describe(name, most[resource])}{of_all}"
        )
    return found


def contradictions(quotas: Mapping[str, Quota], projects: Collection[str] = ()) -> list[str]:
    """Returns what cannot be kept of a whole tree of quotas, each with what to do; nothing where all is well.

    Args:
        quotas: all of them, by name.
        projects: names of projects, which no group may have.
    """
    broken = [*_misplaced(quotas, projects)]
    if not broken:  # sums need a tree
        broken = [*_unkeepable(quotas)]
    return broken[:MAX_TOLD]


def _misplaced(quotas: Mapping[str, Quota], projects: Collection[str]) -> Iterator[str]:
    in_cycles: set[str] = set()
    for name, quota in quotas.items():
        if quota.group and name in projects:
            yield f"{name} is a project: call the group otherwise"
        if quota.parent is None:
            continue
        parent = quotas.get(quota.parent)
        if parent is None:
            yield (
                f"the group {quota.parent} above {name} does not exist: make it first (danlu quota set {quota.parent} "
                "--group), or name another --parent"
            )
            continue
        if not parent.group:
            yield f"{quota.parent} above {name} is a project, no group: name a group as --parent"
            continue
        above = path(quotas, name)
        if above[-1].parent is not None and above[-1].parent in {one.id for one in above}:
            if not in_cycles & {one.id for one in above}:
                ring = " below ".join([*(one.id for one in above), above[-1].parent])
                yield f"{ring}: nothing can be below itself: give one of them another --parent"
            in_cycles |= {one.id for one in above}
        elif len(above) > MAX_DEPTH:
            yield (
                f"{name} would be {len(above)} levels deep ({', '.join(one.id for one in above)}), {MAX_DEPTH} are the "
                "most: name a --parent further up"
            )


def _unkeepable(quotas: Mapping[str, Quota]) -> Iterator[str]:
    guaranteed = guarantees(quotas)
    for name, quota in quotas.items():
        for resource, limit in sorted(quota.limit.items()):
            asked = quota.guarantee.get(resource, 0)
            kinds = _of_kinds(quota.guarantee) if resource == GPU else 0
            if limit != UNLIMITED and asked > limit:
                yield (
                    f"{name} is guaranteed {describe(resource, asked)}, above its limit of {describe(resource, limit)}: "
                    "raise the limit, or lower the guarantee"
                )
            elif limit != UNLIMITED and kinds > limit:
                yield (
                    f"{name} is guaranteed {describe(GPU, kinds)} of all kinds together, above its limit of "
                    f"{describe(GPU, limit)}: raise the limit, or lower the guarantees of kinds"
                )
        if (own := quota.guarantee.get(GPU)) is not None and (kinds := _of_kinds(quota.guarantee)) > own:
            yield (
                f"{name} is guaranteed {describe(GPU, kinds)} of all kinds together, above its guarantee of "
                f"{describe(GPU, own)}: raise that one, or lower those of kinds"
            )
    below: dict[str, list[str]] = {}
    for name, quota in quotas.items():
        if quota.parent is not None:
            below.setdefault(quota.parent, []).append(name)
    for name, children in sorted(below.items()):
        group = quotas[name]
        for resource in ordered([*group.guarantee, *group.limit]):
            total = sum(guaranteed[child].get(resource, 0) for child in children)
            own, limit = group.guarantee.get(resource), group.limit.get(resource, UNLIMITED)
            said = f"those below {name} are guaranteed {describe(resource, total)} together, above"
            if own is not None and total > own:
                yield (
                    f"{said} its guarantee of {describe(resource, own)}: raise that one, or lower the guarantee of "
                    f"{_who(children, resource, guaranteed)}"
                )
            elif limit != UNLIMITED and total > limit and own is None:
                yield (
                    f"{said} its limit of {describe(resource, limit)}: raise the limit, or lower the guarantee of "
                    f"{_who(children, resource, guaranteed)}"
                )


def guarantees(quotas: Mapping[str, Quota]) -> dict[str, dict[str, int]]:
    """Returns what must be there for each quota of a tree: its guarantee, or what those below it are guaranteed."""
    found: dict[str, dict[str, int]] = {name: {} for name in quotas}
    deepest_first = sorted(quotas, key=lambda name: -len(path(quotas, name)))
    for name in deepest_first:
        quota, sums = quotas[name], found[name]
        sums.update(quota.guarantee)
        if kinds := _of_kinds(sums):
            sums[GPU] = max(sums.get(GPU, 0), kinds)
        if quota.parent is not None and quota.parent in found:
            above = found[quota.parent]
            for resource, amount in sums.items():
                above[resource] = above.get(resource, 0) + amount
    return found


def unavailable(quotas: Mapping[str, Quota], there: Mapping[str, int]) -> list[str]:
    """Returns which guarantees all nodes together cannot keep; ``there``: what they have, by resource."""
    guaranteed, total = guarantees(quotas), dict[str, int]()
    for name, quota in quotas.items():
        if quota.parent is None:
            for resource, amount in guaranteed[name].items():
                total[resource] = total.get(resource, 0) + amount
    return [
        f"{describe(resource, total[resource])} are guaranteed in all, and the nodes have "
        f"{describe(resource, there.get(resource, 0))}: not every guarantee can be kept at once"
        for resource in ordered(total)
        if resource != JOBS and total[resource] > there.get(resource, 0)
    ]


def _of_kinds(amounts: Mapping[str, int]) -> int:
    return sum(amount for name, amount in amounts.items() if name.startswith(KIND_OF_GPU))


def _who(children: Iterable[str], resource: str, guaranteed: Mapping[str, Mapping[str, int]]) -> str:
    """Returns ``speech (4) or vision (2)``: those that have a part of a sum, the largest first."""
    shares = {child: guaranteed[child].get(resource, 0) for child in children}
    largest = sorted((child for child in shares if shares[child]), key=lambda child: (-shares[child], child))[:4]
    return " or ".join(f"{child} ({format_amount(resource, shares[child])})" for child in largest)


# --- what a job asks for


class Excess(NamedTuple):
    """A limit that a job alone is above: it could never run."""

    quota: Quota
    resource: str
    asked: int
    limit: int


def asks_of(shapes: Iterable[Resources], gpu_kind: str | None = None) -> dict[str, int]:
    """Returns what a job counts as while it runs; what is 0 is left out."""
    total = sum(shapes, start=Resources())
    asks = {CPU: total.cpu_milli, MEMORY: total.memory_bytes, GPU: total.gpus, JOBS: 1}
    if gpu_kind is not None:
        asks[f"{KIND_OF_GPU}{gpu_kind}"] = total.gpus
    return {resource: amount for resource, amount in asks.items() if amount}


def exceeded(path: Sequence[Quota], asks: Mapping[str, int]) -> list[Excess]:
    """Returns the limits of a project's quota and of those above it that a job alone is above, the project's first."""
    return [
        Excess(quota, resource, asks[resource], quota.limit[resource])
        for quota in path
        for resource in ordered(asks)
        if quota.limit.get(resource, UNLIMITED) != UNLIMITED and asks[resource] > quota.limit[resource]
    ]


def over(quota: Quota, used: Mapping[str, int]) -> dict[str, int]:
    """Returns how much must be given back of what, until something may start again."""
    return {
        resource: used[resource] - limit
        for resource, limit in quota.limit.items()
        if limit != UNLIMITED and used.get(resource, 0) > limit
    }
