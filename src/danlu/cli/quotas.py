"""``danlu quota``: what projects and groups of them are guaranteed, and may have at most."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

from cyclopts import App, Parameter
from pydantic import ValidationError

from danlu.api.bodies import Paging, QuotaChange
from danlu.cli import output as out
from danlu.cli.nouns import take_away
from danlu.cli.options import Common, Flag, Output, Words
from danlu.cli.session import connect
from danlu.cli.terminal import Messages
from danlu.client.lists import listed
from danlu.domain.quotas import JOBS, describe, describe_all, is_kept, ordered, readable
from danlu.domain.validation import invalid_spec
from danlu.domain.views import QuotaUse
from danlu.errors import InvalidRequest

HEADERS: Final = ("NAME", "RESOURCE", "GUARANTEE", "LIMIT", "USED")
INDENT: Final = "  "
EXAMPLE: Final = "danlu quota set vision gpu=8 memory=1TiB"
Name = Annotated[str, Parameter(help="a project's name, or a group's")]
app = App(name="quota", help="What projects are guaranteed, and may have at most.", help_format="plaintext")


@Parameter(name="*")
@dataclass(frozen=True)
class Other:
    """What a quota has beside its limits."""

    guarantee: Annotated[
        tuple[str, ...],
        Parameter(help="RESOURCE=AMOUNT that it gets back from whoever borrowed it; 0: none; repeatable"), Words,
    ] = ()  # fmt: skip
    weight: Annotated[int | None, Parameter(help="its part of what is not guaranteed; 2: twice as much as 1")] = None
    parent: Annotated[str | None, Parameter(help='the group above it; "": none')] = None
    group: Annotated[bool, Parameter(help="a new group of projects or of other groups"), Flag] = False

    def fields(self) -> dict[str, Any]:
        """Returns the fields of QuotaChange that were given."""
        return {
            "guarantee": _amounts(self.guarantee), "weight": self.weight, "parent": self.parent, "group": self.group or None,
        }  # fmt: skip


@app.command(name="set", usage="Usage: danlu quota set NAME [RESOURCE=AMOUNT...] [FLAGS]")
def set_one(
    name: Name,
    /,
    *limits: Annotated[
        str, Parameter(help="gpu=8, gpu/h100=4, cpu=64, memory=1TiB, jobs=20, storage=1TiB; unlimited: no limit")
    ],
    other: Other | None = None,
    output: Output = "table",
    common: Common | None = None,
) -> int:
    """Limit what a project or a group may hold, and say what it is guaranteed. For administrators.

    That is effective at once, of the resources that are named; the others stay as they are. What runs goes on, above a limit
    too: then nothing starts until enough is given back.

    Example: danlu quota set vision gpu=8 memory=1TiB --guarantee gpu=4 --parent research
    """
    given = {"limit": _amounts(limits), **(other or Other()).fields()}
    if not any(value not in (None, {}) for value in given.values()):
        raise InvalidRequest("there is nothing to set", next_step=EXAMPLE)
    try:
        change = QuotaChange.model_validate(given)
    except ValidationError as error:
        raise invalid_spec(error, QuotaChange) from None
    messages = Messages(quiet=output in ("json", "yaml"))
    with connect(common, messages) as client:
        use = client.call("quotas.set", {"quota": name}, body=change)
    out.made(use, f"quota/{use.quota.id}", output)
    for line in told(use):
        messages.say(line)
    for warning in use.warnings:
        messages.say(warning, "yellow")
    return 0


@app.command(name=("get", "ls"), usage="Usage: danlu quota get [NAME] [FLAGS]")
def get(name: Name | None = None, /, *, output: Output = "table", common: Common | None = None) -> int:
    """Show quotas with what is used of them: the project's and those above it; to administrators all, as a tree.

    Example: danlu quota get vision -o json
    """
    messages = Messages()
    with connect(common, messages) as client:
        if name is not None:
            uses = [client.call("quotas.get", {"quota": name})]
        else:
            uses, _ = listed(client, "quotas.list", Paging(), 0)
    if output in ("json", "yaml"):
        if name is not None:
            out.record(uses[0], output)
        else:
            out.records([use for use, _ in tree(uses)], output)
    elif output == "name":
        for use, _ in tree(uses):
            out.write(f"quota/{use.quota.id}")
    elif uses:
        wide = output == "wide"
        out.table(HEADERS + (("WEIGHT",) if wide else ()), rows(uses, wide=wide), whole=wide)
    else:
        messages.say(f"there is no quota here, so nothing is limited; a new one: {EXAMPLE}")
    return 0


@app.command(name="rm", usage="Usage: danlu quota rm NAME [FLAGS]")
def rm(name: Name, /, *, output: Output = "table", common: Common | None = None) -> int:
    """Remove a quota: nothing is guaranteed or limited by it any more. A group goes once nothing is below it.

    Example: danlu quota rm vision
    """
    return take_away("quotas.remove", {"quota": name}, f"quota/{name}", output, common)


def told(use: QuotaUse) -> Iterator[str]:
    """Yields what a quota means from now on."""
    quota = use.quota
    who = f"all projects below {quota.id} together hold" if quota.group else f"{quota.id} holds"
    most = f"at most {describe_all(use.effective)}" if use.effective else "as much as there is"
    kept = f"; guaranteed: {describe_all(quota.guarantee)}" if quota.guarantee else ""
    yield f"effective at once: {who} {most}{kept}"
    held = {name: amount for name, amount in use.over.items() if not is_kept(name)}
    if held:
        running = describe(JOBS, use.used.get(JOBS, 0))
        goes = "goes" if use.used.get(JOBS) == 1 else "go"
        back = f"at least {describe_all(held)} are given back"
        yield f"{running} of {quota.id} {goes} on; others that need it wait until {back}"
    for name in sorted(use.over.keys() - held.keys()):
        has, above = (readable(name, amount) for amount in (use.used[name], use.over[name]))
        yield f"{quota.id} has {has} of {name}, {above} above its limit: nothing is lost, and nothing more is taken"


def tree(uses: Iterable[QuotaUse]) -> list[tuple[QuotaUse, int]]:
    """Returns quotas by name, each below its group, with how deep it stands; what has no group here stands at the top."""
    known = {use.quota.id: use for use in uses}
    below: dict[str | None, list[str]] = {}
    for name, use in sorted(known.items()):
        below.setdefault(use.quota.parent if use.quota.parent in known else None, []).append(name)
    found: list[tuple[QuotaUse, int]] = []
    left = [(name, 0) for name in reversed(below.get(None, []))]
    while left:
        name, depth = left.pop()
        found.append((known[name], depth))
        left += [(child, depth + 1) for child in reversed(below.get(name, []))]
    return found


def rows(uses: Iterable[QuotaUse], *, wide: bool) -> list[list[str]]:
    """Returns a table's rows: one a resource that a quota names, with ``wide`` also those that are only used."""
    found = []
    for use, depth in tree(uses):
        quota, name = use.quota, INDENT * depth + use.quota.id
        weight = [str(quota.weight)] if wide else []
        resources = ordered([*quota.guarantee, *quota.limit, *(use.used if wide else ())])
        for resource in resources:
            kept, most = (_cell(amounts, resource) for amounts in (quota.guarantee, quota.limit))
            found.append([name, resource, kept, most, readable(resource, use.used.get(resource, 0)), *weight])
        if not resources:
            found.append([name, "", "", "", "", *weight])
    return found


def _cell(amounts: dict[str, int], resource: str) -> str:
    return readable(resource, amounts[resource]) if resource in amounts else ""


def _amounts(words: Sequence[str]) -> dict[str, str]:
    """Returns ``RESOURCE=AMOUNT`` words as a dict.

    Raises:
        InvalidRequest: one of them is none, or one resource comes twice.
    """
    found: dict[str, str] = {}
    for word in words:
        resource, equals, amount = word.partition("=")
        if not equals or not resource or not amount:
            raise InvalidRequest(f"{word!r} is not RESOURCE=AMOUNT", next_step=f"write for example {EXAMPLE}")
        if resource in found:
            raise InvalidRequest(
                f"{resource} is given twice: {found[resource]} and {amount}", next_step="keep one of them"
            )
        found[resource] = amount
    return found
