"""Quotas: set and removed by administrators, seen with what is used of them by those whom they limit."""

from __future__ import annotations

import builtins
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from danlu.api.bodies import Accepted, Paging, QuotaChange
from danlu.database import queries, stored
from danlu.database.engine import Transaction
from danlu.database.records import NODES, PROJECTS, QUOTAS
from danlu.domain import quotas as rules
from danlu.domain.jobs import Attempt
from danlu.domain.nodes import Node
from danlu.domain.quotas import CPU, GPU, JOBS, KIND_OF_GPU, MEMORY, STORAGE, UNLIMITED, Excess, Quota
from danlu.domain.specs import JobSpec
from danlu.domain.users import PLATFORM
from danlu.domain.validation import suggestion
from danlu.domain.views import Page, QuotaUse
from danlu.errors import Conflict, InvalidRequest, NeverFits, NotFound, QuotaExceeded
from danlu.services.context import Call
from danlu.services.fitting import MAX_NODES
from danlu.services.users import require_name

MAX_QUOTAS = 10_000
SUGGESTED = 1_000
MAX_NAMED = 10


COUNTS: Final[dict[str, Callable[[Transaction, str | None], Mapping[str, int]]]] = {STORAGE: stored.used}
"""How much each project has of what is kept, below a quota or of all: one query for each resource that is ``kept``."""


def list(call: Call, query: Paging) -> Page[QuotaUse]:
    """Returns the project's quota and those of the groups above it; to administrators every one. By name backwards."""

    def work(tx: Transaction) -> Page[QuotaUse]:
        quotas = every(tx)
        seen: dict[str, Any] = (
            {} if call.actor.sees_all else {"id": [one.id for one in rules.path(quotas, call.project)]}
        )
        page = QUOTAS.page(tx, limit=query.limit, cursor=query.cursor, **seen)
        used = _used(tx, quotas)
        return Page[QuotaUse](
            items=tuple(_use(rules.path(quotas, one.id), used) for one in page.items), next_cursor=page.next_cursor
        )

    return call.platform.database.read(work)


def get(call: Call, quota: str) -> QuotaUse:
    """Returns a quota that limits the project, its own or that of a group above; to administrators any one.

    Raises:
        NotFound: there is none of that name, or it is another's.
    """

    def work(tx: Transaction) -> QuotaUse:
        quotas = every(tx)
        seen = quotas if call.actor.sees_all else {one.id: one for one in rules.path(quotas, call.project)}
        if quota not in seen:
            raise _no_quota(quota, seen, "" if call.actor.sees_all else f" of project {call.project}")
        return _use(rules.path(quotas, quota), _used(tx, quotas))

    return call.platform.database.read(work)


def set(call: Call, quota: str, body: QuotaChange) -> QuotaUse:
    """Sets what is given of a quota; the rest stays. What runs goes on, above a limit too.

    Raises:
        NotFound: it has no project of that name, and is not to be a group.
        Conflict: the quotas would contradict one another, or a group and a project would share a name.
    """
    require_name(quota, "a project or a group")
    if UNLIMITED in body.guarantee.values():
        raise InvalidRequest("nothing can be guaranteed without limit", next_step="write a number: --guarantee gpu=8")
    now = call.platform.clock.now()

    def work(tx: Transaction) -> QuotaUse:
        queries.lock(tx, "quotas")
        quotas = every(tx)
        known = quotas.get(quota)
        wanted = _wanted(tx, quota, body, known, now)
        if known is None or wanted != known:
            _require_kept({**quotas, quota: wanted})
            if known is not None:
                QUOTAS.put(tx, known, wanted, actor=call.actor.name)
            elif len(quotas) >= MAX_QUOTAS:
                raise Conflict(f"there are {MAX_QUOTAS} quotas already", next_step="remove one: danlu quota rm NAME")
            else:
                QUOTAS.add(tx, wanted, actor=call.actor.name)
        quotas = {**quotas, quota: wanted}
        path = rules.path(quotas, quota)
        warnings = [
            *rules.unreachable(path),
            *rules.unavailable(quotas, _there(NODES.find(tx, limit=MAX_NODES))),
        ]
        return _use(path, _used(tx, quotas)).model_copy(update={"warnings": tuple(warnings)})

    done = call.write(work)
    call.platform.hub.notify("jobs")
    return done


def remove(call: Call, quota: str) -> Accepted:
    """Removes a quota: its project is not limited by one any more, by those of the groups above neither.

    Raises:
        NotFound: there is none of that name.
        Conflict: it is a group's, and others are below it.
    """

    def work(tx: Transaction) -> Quota:
        queries.lock(tx, "quotas")
        known = QUOTAS.get(tx, quota)
        if known is None:
            raise _no_quota(quota, every(tx))
        below = sorted(one.id for one in QUOTAS.find(tx, parent=quota, limit=MAX_QUOTAS))
        if below:
            more = f" and {len(below) - MAX_NAMED} more" if len(below) > MAX_NAMED else ""
            raise Conflict(
                f"{quota} groups {', '.join(below[:MAX_NAMED])}{more}",
                next_step=f"remove those first, or give them another group: danlu quota set {below[0]} --parent GROUP",
            )
        QUOTAS.remove(tx, known)
        return known

    gone = call.write(work)
    call.platform.hub.notify("jobs")
    what = f"group {quota} is removed" if gone.group else f"project {quota} has no quota any more: nothing limits it"
    return Accepted(message=what)


def require_room(tx: Transaction, project: str, spec: JobSpec) -> None:
    """Raises NeverFits where a job alone, with the least that it takes, is above a limit of its project or a group above."""
    path = _path(tx, project)
    broken = rules.exceeded(path, rules.asks_of(spec.choices[-1], spec.gpu_kind)) if path else []
    if not broken:
        return
    asks = rules.describe_all({one.resource: one.asked for one in broken[::-1]})
    limits = "; ".join(
        f"the limit of {'group ' if one.quota.group else ''}{one.quota.id} is {rules.describe(one.resource, one.limit)}"
        for one in broken[:MAX_NAMED]
    )
    raise NeverFits(f"it can never run: it asks for {asks} in all, and {limits}", next_step=_advice(broken, spec))


def require_left(tx: Transaction, project: str, more: Mapping[str, int], what: str) -> None:
    """Raises QuotaExceeded where a project has no room for more that is kept. Until the transaction ends nobody else adds.

    Args:
        tx: the transaction that stores it.
        project: for whom.
        more: how much of which resources.
        what: what it is, for the error: ``an upload``.
    """
    limits = [
        (quota, resource, limit)
        for quota in _path(tx, project)
        for resource in more
        if (limit := quota.limit.get(resource, UNLIMITED)) != UNLIMITED
    ]
    if limits:
        queries.lock(tx, "keeping")
    for quota, resource, limit in limits:
        used = sum(COUNTS[resource](tx, quota.id).values())
        if used + more[resource] > limit:
            raise _exceeded(quota, resource, used, more[resource], what)


def _exceeded(quota: Quota, resource: str, used: int, more: int, what: str) -> QuotaExceeded:
    limit = quota.limit[resource]
    whose = f"of group {quota.id} is {rules.describe(resource, limit)}, of which the projects below it have used"
    if not quota.group:
        whose = f"of {quota.id} is {rules.describe(resource, limit)}, of which it has used"
    asks = f"{what} of {rules.readable(resource, more)}" if more > 1 else what
    return QuotaExceeded(
        f"there is no room for {asks}: the limit {whose} {rules.readable(resource, used)}",
        next_step=f"have an administrator raise it: danlu quota set {quota.id} "
        f"{resource}={rules.format_amount(resource, rules.rounded_up(resource, used + more))}   "
        f"what is used: danlu quota get {quota.id}",
        quota=quota.id, resource=resource, limit=limit, used=used, asked=more,
    )  # fmt: skip


def every(tx: Transaction) -> dict[str, Quota]:
    """Returns all quotas by name."""
    return {quota.id: quota for quota in QUOTAS.find(tx, limit=MAX_QUOTAS)}


def _path(tx: Transaction, project: str) -> tuple[Quota, ...]:
    """Returns a project's quota and those above it: a search by key each, not all that there are."""
    found: dict[str, Quota] = {}
    name: str | None = project
    while name is not None and name not in found and (quota := QUOTAS.get(tx, name)) is not None:
        found[name] = quota
        name = quota.parent
    return rules.path(found, project)


def _advice(broken: Sequence[Excess], spec: JobSpec) -> str:
    """Returns what to ask for instead, and what an administrator could do."""
    least: dict[str, int] = {}
    for one in broken:
        least[one.resource] = min(one.limit, least.get(one.resource, one.limit))
    if 0 in (least.get(CPU), least.get(JOBS)):
        less = "no job can run within that"
    elif len(spec.shapes) > 1:
        less = f"ask for at most {rules.describe_all(least)} for all {len(spec.shapes)} tasks together"
    else:
        gpus = min((amount for name, amount in least.items() if _of_gpus(name)), default=None)
        flags = {"--cpu": least.get(CPU), "--memory": least.get(MEMORY), "--gpu": gpus}
        texts = [
            f"{flag} {rules.format_amount(flag[2:], amount)}"
            for flag, amount in flags.items()
            if amount is not None and (amount or flag == "--gpu")
        ]
        less = f"ask for less: {' '.join(texts)}" if texts else "ask for no memory"
    quota = broken[0].quota.id
    needed = [
        f"{one.resource}={rules.format_amount(one.resource, one.asked)}" for one in broken if one.quota.id == quota
    ]
    return f"{less}   or have an administrator raise it: danlu quota set {quota} {' '.join(needed)}"


def _of_gpus(resource: str) -> bool:
    return resource == GPU or resource.startswith(KIND_OF_GPU)


def _wanted(tx: Transaction, name: str, body: QuotaChange, known: Quota | None, now: int) -> Quota:
    """Returns the quota as it is to be; ``known`` itself where that changes nothing."""
    old = known
    if known is None:
        group = bool(body.group)
        project = PROJECTS.get(tx, name)
        if group and project is not None:
            raise Conflict(
                f"{name} is a project, and no group has a project's name",
                next_step=f"call the group otherwise, or set the project's own quota: leave --group out ({name})",
            )
        if not group and project is None:
            near = suggestion(name, [one.id for one in PROJECTS.find(tx, limit=SUGGESTED)])
            step = f"make it: danlu project create {name}   or a group of projects: danlu quota set {name} --group"
            raise NotFound(f"there is no project {name}", next_step=f"{near}   {step}".strip())
        known = Quota(id=name, project=PLATFORM, group=group, created_at=now, updated_at=now)
    elif body.group is not None and body.group != known.group:
        raise Conflict(
            f"{name} is {'a group, no project' if known.group else 'a project, no group'}",
            next_step="that cannot be changed: call the other one otherwise",
        )
    fields = {
        "parent": known.parent if body.parent is None else body.parent or None,
        "guarantee": rules.changed(known.guarantee, body.guarantee, nothing=0),
        "limit": rules.changed(known.limit, body.limit, nothing=UNLIMITED),
        "weight": known.weight if body.weight is None else body.weight,
    }
    for what in ("guarantee", "limit"):
        if len(fields[what]) > rules.MAX_RESOURCES:  # type: ignore[arg-type]
            raise Conflict(f"{name} would have more than {rules.MAX_RESOURCES} amounts", next_step="remove some first")
    if old is None:
        return known.model_copy(update=fields)
    if all(getattr(known, field) == value for field, value in fields.items()):
        return known
    return known.evolved(now=now, **fields)


def _require_kept(quotas: Mapping[str, Quota]) -> None:
    broken = rules.contradictions(quotas)
    if broken:
        first, _, step = broken[0].partition(": ")
        more = "".join(f"; {one}" for one in broken[1:])
        raise Conflict(f"{first}{more}", next_step=f"{step}   all of them: danlu quota get")


def _no_quota(name: str, seen: Iterable[str], of: str = "") -> NotFound:
    step = f"{suggestion(name, seen)}   all of them: danlu quota get".strip()
    return NotFound(f"there is no quota {name[:63]!r}{of}", next_step=step)


def _use(path: Sequence[Quota], used: Mapping[str, Mapping[str, int]]) -> QuotaUse:
    """Returns the first quota of a path, with what is held of it."""
    held = dict(used.get(path[0].id, {}))
    return QuotaUse(quota=path[0], used=held, effective=rules.effective(path), over=rules.over(path[0], held))


def _used(tx: Transaction, quotas: Mapping[str, Quota]) -> dict[str, Counter[str]]:
    """Returns what is held now of each quota: by its project, or by all projects below."""
    holding = queries.holding_attempts(tx) if quotas else ()
    kinds = _kinds(NODES.find(tx, limit=MAX_NODES)) if holding else {}
    by_project: dict[str, Counter[str]] = {}
    for attempt in holding:
        by_project.setdefault(attempt.project, Counter()).update(_held(attempt, kinds))
    for resource, count in COUNTS.items() if quotas else ():
        for project, amount in count(tx, None).items():
            by_project.setdefault(project, Counter())[resource] += amount
    used: dict[str, Counter[str]] = {}
    for project, amounts in by_project.items():
        for quota in rules.path(quotas, project):
            used.setdefault(quota.id, Counter()).update(amounts)
    return used


def _held(attempt: Attempt, kinds: Mapping[tuple[str, int], str]) -> dict[str, int]:
    """Returns what an attempt counts as; each GPU by its kind too."""
    gpus = Counter(
        f"{KIND_OF_GPU}{kinds[task.node, device]}"
        for task in attempt.tasks
        for device in task.devices
        if (task.node, device) in kinds
    )
    return rules.asks_of(task.resources for task in attempt.tasks) | gpus


def _kinds(found: Iterable[Node]) -> dict[tuple[str, int], str]:
    return {(node.id, gpu.index): gpu.kind for node in found for gpu in node.capacity.gpus}


def _there(found: builtins.list[Node]) -> dict[str, int]:
    """Returns what all nodes together have."""
    there = Counter(f"{KIND_OF_GPU}{kind}" for kind in _kinds(found).values())
    return rules.asks_of(node.total for node in found) | there
