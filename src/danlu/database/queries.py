"""Queries that are more than a filter on one noun."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from functools import lru_cache
from typing import Any, Final, NamedTuple

from sqlalchemy import BigInteger, ColumnElement, Select, case, cast, delete, func, literal_column, or_, select, text
from sqlalchemy.dialects import postgresql, sqlite

from danlu.database import tables
from danlu.database.engine import Transaction
from danlu.database.kept import Kept
from danlu.database.records import ARRAYS, ATTEMPTS, JOBS
from danlu.domain.arrays import LETTER as ARRAY_LETTER
from danlu.domain.arrays import JobArray
from danlu.domain.dependencies import Dependency
from danlu.domain.events import CALL, Event
from danlu.domain.ids import make_id
from danlu.domain.jobs import LIVE_JOB_STATES, LOST, NEVER_RETRIED, Attempt, Job, JobState, Reason
from danlu.domain.resources import Resources
from danlu.domain.roles import RoleSpec, task_resources
from danlu.domain.specs import JobSpec

MAX_OPEN_ATTEMPTS: Final = 100_000
EVENTS_AT_ONCE: Final = 1000
NO_ROLES: Final = "{}"
NOTHING: Final = "[]"
QUEUED: Final = tables.jobs.c.state == JobState.QUEUED
CUT_SHORT: Final = LOST | NEVER_RETRIED - {Reason.COMPLETED, Reason.MAX_TIME_EXCEEDED}
"""An attempt that ended so does not tell how long it would have taken."""
AT_ONCE: Final = 5000
"""So many values are named in one query."""


FOLDED: Final = or_(
    tables.jobs.c.array_id.is_(None), func.substr(tables.jobs.c.array_id, 2) == func.substr(tables.jobs.c.id, 2)
)
"""Of each array only the first element: that whose id the array has."""
CLOCKS_APART_NS: Final = 86_400 * 1_000_000_000
"""So far the clock of a client, which makes a job's id, may be from the platform's."""


def submitted_since(at: int) -> ColumnElement[bool]:
    """Returns what is true of all jobs that were submitted from a time on (ns UTC), and of some from before."""
    return tables.jobs.c.id >= make_id("j", max(0, at - CLOCKS_APART_NS), 0)


class QueuedJob(NamedTuple):
    """What the scheduler needs of a waiting job."""

    id: str
    project: str
    priority: int
    queued_at: int
    not_before: int
    environment_id: str | None
    reason: str | None
    desired: str
    version: int
    cpu: float | None
    memory: int | None
    gpu: int
    gpu_kind: str | None
    env: str
    framework: str | None
    roles: str
    gpu_min: int | None
    max_time: float | None
    held: bool
    waits_for: str
    array_id: str | None
    parallel: int | None
    attained: int
    saves: bool

    @property
    def shapes(self) -> tuple[Resources, ...]:
        """As JobSpec.shapes."""
        return self.choices[0]

    @property
    def choices(self) -> tuple[tuple[Resources, ...], ...]:
        """As JobSpec.choices."""
        least = self.gpu if self.gpu_min is None else self.gpu_min
        if self.roles == NO_ROLES:
            return tuple((task_resources(self.cpu, self.memory, gpus),) for gpus in range(self.gpu, least - 1, -1))
        return _gang(self.cpu, self.memory, (least, self.gpu), self.env, self.framework, self.roles)

    @property
    def duration(self) -> int | None:
        """How long an attempt runs at most, ns; None where its user has not said so."""
        return None if self.max_time is None else int(self.max_time * 1_000_000_000)

    @property
    def after(self) -> tuple[Dependency, ...]:
        """As Job.after."""
        return () if self.waits_for == NOTHING else _dependencies(self.waits_for)

    @property
    def ports(self) -> int:
        """As JobSpec.ports."""
        return 0 if self.roles == NO_ROLES else len(self.shapes)


@lru_cache(maxsize=1024)  # many jobs of one shape wait
def _gang(
    cpu: float | None, memory: int | None, gpus: tuple[int, int], env: str, framework: str | None, roles: str
) -> tuple[tuple[Resources, ...], ...]:
    given = {name: RoleSpec.model_validate(role) for name, role in json.loads(roles).items()}
    asked = JobSpec.model_construct(
        cpu=cpu, memory=memory, gpu=gpus[1], gpu_min=gpus[0], env=env, framework=framework, roles=given
    )
    return asked.choices


@lru_cache(maxsize=1024)  # all elements of an array wait for the same
def _dependencies(text: str) -> tuple[Dependency, ...]:
    return tuple(Dependency.model_validate(one) for one in json.loads(text))


def queued_versions(tx: Transaction) -> dict[str, int]:
    """Returns the version of every queued job, by id."""
    jobs = tables.jobs.c
    return {str(row[0]): int(row[1]) for row in tx.connection.execute(select(jobs.id, jobs.version).where(QUEUED))}


def queued_jobs(tx: Transaction, ids: Collection[str] | None = None) -> list[QueuedJob]:
    """Returns these of the queued jobs, or all, in no order: columns only, for ten thousand of them at once."""
    if ids is not None and len(ids) > AT_ONCE // 2:
        wanted = set(ids)
        return [job for job in queued_jobs(tx) if job.id in wanted]
    jobs = tables.jobs.c
    query = select(
        jobs.id, jobs.project, jobs.priority, jobs.queued_at, jobs.not_before, jobs.environment_id, jobs.reason,
        jobs.desired, jobs.version, jobs.array_id, jobs.held, literal_column(_asked(tx.dialect)),
    ).where(QUEUED)  # fmt: skip
    if ids is not None:
        query = query.where(jobs.id.in_(ids))
    found = []
    for row in tx.connection.execute(query):
        *columns, array_id, held = row[:11]
        *asked, roles, gpu_min, max_time, after, parallel, attained, saves = row[11:]
        # a job of an older version has neither roles nor dependencies
        rest = (
            roles or NO_ROLES,
            gpu_min,
            max_time,
            bool(held),
            after or NOTHING,
            array_id,
            parallel,
            attained or 0,
            bool(saves),
        )
        found.append(QueuedJob._make((*columns, *asked, *rest)))
    return found


@lru_cache(maxsize=2)
def _asked(dialect: str) -> str:
    """Returns the columns that are parts of the body, in the order in which queued_jobs takes them."""
    parts = (
        ("spec.cpu", "float"), ("spec.memory", "bigint"), ("spec.gpu", "int"), ("spec.gpu_kind", "text"),
        ("spec.env", "text"), ("spec.framework", "text"), ("spec.roles", "text"), ("spec.gpu_min", "int"),
        ("spec.max_time", "float"), ("after", "text"), ("array.parallel", "int"),
        ("attained", "bigint"), ("saves", "boolean"),
    )  # fmt: skip
    if dialect != "postgresql":
        return ", ".join(f"body->>'$.{path}'" for path, _ in parts)
    return ", ".join(f"(body#>>'{{{path.replace('.', ',')}}}')::{kind}" for path, kind in parts)


def ended_states(tx: Transaction, ids: Collection[str]) -> dict[str, str]:
    """Returns how each of these jobs and arrays has ended, by id; those that have not, or are not there, are left out.

    An array has failed once all its elements have ended and one has failed, been cancelled or never been made; an element
    that was repeated counts as its newest job.
    """
    jobs = tables.jobs.c
    found: dict[str, str] = {}
    arrays = sorted(one for one in ids if one.startswith(ARRAY_LETTER))
    singles = sorted(set(ids).difference(arrays))
    for some in (singles[at : at + AT_ONCE] for at in range(0, len(singles), AT_ONCE)):
        rows = tx.connection.execute(
            select(jobs.id, jobs.state).where(jobs.id.in_(some), jobs.state.not_in(LIVE_JOB_STATES))
        )
        found |= {str(row[0]): str(row[1]) for row in rows}
    for one in arrays:
        whole = ARRAYS.get(tx, one)
        if whole is None or goes_on(tx, whole):
            continue
        states = [element.state for element in array_elements(tx, one).values()]
        good = len(states) == whole.size and {*states} == {JobState.SUCCEEDED}
        found[one] = JobState.SUCCEEDED if good else JobState.FAILED
    return found


def goes_on(tx: Transaction, array: JobArray) -> bool:
    """Says whether an array is being made, or one of its elements has not ended: asked often, and reads one of them."""
    jobs = tables.jobs.c
    if array.stored < array.size and not array.stopped:
        return True
    query = select(jobs.id).where(jobs.array_id == array.id, tables.LIVE).limit(1)
    return tx.connection.execute(query).first() is not None


class Element(NamedTuple):
    """An element of an array: its newest job."""

    id: str
    state: str
    held: bool
    queued_at: int


def array_elements(tx: Transaction, array_id: str) -> dict[int, Element]:
    """Returns the elements of an array that are there, by index, ascending."""
    jobs = tables.jobs.c
    index = jobs.body[("array", "index")].as_integer()
    query = select(index, jobs.id, jobs.state, jobs.held, jobs.queued_at).where(jobs.array_id == array_id)
    rows = tx.connection.execute(query.order_by(jobs.id))
    found = {int(at): Element(str(one), str(state), bool(held), int(since)) for at, one, state, held, since in rows}
    return dict(sorted(found.items()))


def live_elements(tx: Transaction, array_id: str, beyond: str, limit: int) -> list[Job]:
    """Returns an array's jobs that have not ended, by id, those after ``beyond``."""
    jobs = tables.jobs.c
    query = select(tables.jobs).where(jobs.array_id == array_id, jobs.id > beyond, tables.LIVE)
    return [JOBS._record(row) for row in tx.connection.execute(query.order_by(jobs.id).limit(limit)).mappings()]


def live_names_like(tx: Transaction, project: str, beginning: str) -> frozenset[str]:
    """Returns the names of a project's live jobs that begin so."""
    jobs = tables.jobs.c
    query = select(jobs.name).where(
        jobs.project == project, tables.LIVE, jobs.name.startswith(beginning, autoescape=True)
    )
    return frozenset(str(name) for (name,) in tx.connection.execute(query))


def array_names(tx: Transaction, project: str, limit: int) -> list[str]:
    """Returns the names of a project's newest arrays."""
    return [one.name for one in ARRAYS.find(tx, project=project, descending=True, limit=limit)]


def array_by_name(tx: Transaction, project: str, name: str) -> JobArray | None:
    """Returns the newest array of that name."""
    found = ARRAYS.find(tx, project=project, name=name, descending=True, limit=1)
    return found[0] if found else None


def arrays_holding(tx: Transaction) -> Counter[str]:
    """Returns how many elements of each array hold resources."""
    jobs, attempts = tables.jobs.c, tables.attempts
    query = (
        select(jobs.array_id, func.count())
        .join_from(attempts, tables.jobs, attempts.c.job_id == jobs.id)
        .where(text("attempts.state <> 'ended'"), jobs.array_id.is_not(None))
        .group_by(jobs.array_id)
    )
    return Counter({str(row[0]): int(row[1]) for row in tx.connection.execute(query)})


def job_by_name(tx: Transaction, project: str, name: str) -> Job | None:
    """Returns the live job of that name, else the newest that had it."""
    live = JOBS.find(tx, project=project, name=name, state=LIVE_JOB_STATES, limit=1)
    found = live or JOBS.find(tx, project=project, name=name, descending=True, limit=1)
    return found[0] if found else None


def job_names(tx: Transaction, project: str, limit: int) -> list[str]:
    """Returns the names of a project's newest jobs."""
    jobs = tables.jobs.c
    newest = select(jobs.name).where(jobs.project == project).order_by(jobs.id.desc()).limit(limit)
    return [str(name) for (name,) in tx.connection.execute(newest)]


class EnvironmentUse(NamedTuple):
    """Who uses an environment: how many live jobs, and when a job last asked for it (ns UTC)."""

    live: int
    last_asked_at: int


def environment_uses(tx: Transaction, project: str) -> dict[str, EnvironmentUse]:
    """Returns how a project's environments are used, by id; those that no job ever asked for are left out."""
    jobs = tables.jobs.c
    live = func.sum(case((tables.LIVE, 1), else_=0))
    query = select(jobs.environment_id, live, func.max(jobs.queued_at)).group_by(jobs.environment_id)
    rows = tx.connection.execute(query.where(jobs.project == project, jobs.environment_id.is_not(None)))
    return {str(row[0]): EnvironmentUse(int(row[1]), int(row[2])) for row in rows}


def environments_in_use(tx: Transaction, states: Collection[JobState] = LIVE_JOB_STATES) -> frozenset[str]:
    """Returns the ids of the environments of jobs in these live states, of all projects."""
    jobs = tables.jobs.c
    query = select(jobs.environment_id).where(tables.LIVE, jobs.state.in_(states), jobs.environment_id.is_not(None))
    return frozenset(str(row[0]) for row in tx.connection.execute(query.distinct()))


def job_counts(tx: Transaction, project: str | None = None) -> dict[str, int]:
    """Returns how many jobs are in each state, of one project or of all."""
    jobs = tables.jobs.c
    query = select(jobs.state, func.count()).group_by(jobs.state)
    counted = tx.connection.execute(query if project is None else query.where(jobs.project == project))
    return {str(state): int(count) for state, count in counted}


def job_counts_by_project(tx: Transaction) -> dict[tuple[str, str], int]:
    """Returns how many jobs each project has in each state."""
    jobs = tables.jobs.c
    counted = tx.connection.execute(select(jobs.project, jobs.state, func.count()).group_by(jobs.project, jobs.state))
    return {(str(project), str(state)): int(count) for project, state, count in counted}


def holding_attempts(tx: Transaction, project: str | None = None, known: Kept[Attempt] | None = None) -> list[Attempt]:
    """Returns every attempt that holds resources, of a project or of all, by id; what has not changed from ``known``."""
    theirs = () if project is None else (tables.attempts.c.project == project,)
    return [*(known or Kept(ATTEMPTS)).look(tx, tables.OPEN_ATTEMPT, *theirs, limit=MAX_OPEN_ATTEMPTS).values()]


def holders(tx: Transaction, known: Kept[Job]) -> dict[str, Job]:
    """Returns the jobs of the attempts that hold resources, by id; those that have not changed from ``known``."""
    theirs = select(tables.attempts.c.job_id).where(tables.OPEN_ATTEMPT)
    return known.look(tx, tables.jobs.c.id.in_(theirs), limit=MAX_OPEN_ATTEMPTS)


def took_of_late(tx: Transaction, limit: int) -> dict[str, list[int]]:
    """Returns how long attempts took (ns, ascending) by project: of so many of the newest those that ended by themselves."""
    attempts = tables.attempts.c
    newest = select(attempts.id).order_by(attempts.id.desc()).limit(limit).subquery()
    began, ended = (attempts.body[name].as_string() for name in ("started_at", "ended_at"))
    query = select(attempts.project, began, ended, attempts.body["reason"].as_string()).where(
        attempts.id.in_(select(newest.c.id)), text("state = 'ended'")
    )
    found: dict[str, list[int]] = {}
    for project, begin, end, reason in tx.connection.execute(query):
        if begin is not None and end is not None and reason not in CUT_SHORT:
            found.setdefault(str(project), []).append(max(0, int(end) - int(begin)))
    return {project: sorted(took) for project, took in found.items()}


def estimated_of_late(tx: Transaction, looked_at: int, limit: int) -> list[tuple[Job, int]]:
    """Returns jobs whose start was estimated and that have started since, with when they did (ns UTC), the newest first."""
    jobs, attempts = tables.jobs.c, tables.attempts.c
    newest = select(jobs.id, jobs.body).order_by(jobs.id.desc()).limit(looked_at).subquery()
    query = (
        select(newest.c.id, attempts.body["created_at"].as_string())
        .join_from(newest, tables.attempts, attempts.id == newest.c.id + "-1")
        .where(newest.c.body[("estimate", "told_at")].as_string().is_not(None))
        .order_by(newest.c.id.desc())
        .limit(limit)
    )
    began = {str(row[0]): int(row[1]) for row in tx.connection.execute(query)}
    found = JOBS.find(tx, id=began or ["-"], descending=True, limit=limit)
    return [(job, began[job.id]) for job in found]


def holding_versions(tx: Transaction) -> dict[str, int]:
    """Returns the version of every attempt that holds resources, by id."""
    attempts = tables.attempts.c
    query = select(attempts.id, attempts.version).where(tables.OPEN_ATTEMPT).limit(MAX_OPEN_ATTEMPTS)
    return {str(row[0]): int(row[1]) for row in tx.connection.execute(query)}


def node_versions(tx: Transaction) -> dict[str, int]:
    """Returns the version of every node, by name."""
    nodes = tables.nodes.c
    return {str(row[0]): int(row[1]) for row in tx.connection.execute(select(nodes.id, nodes.version))}


def uncollected_attempts(tx: Transaction, limit: int, known: Kept[Attempt] | None = None) -> list[Attempt]:
    """Returns attempts whose logs or results are not all kept yet, by id; those that have not changed from ``known``."""
    return [*(known or Kept(ATTEMPTS)).look(tx, tables.UNCOLLECTED, limit=limit).values()]


def secret_names(tx: Transaction, project: str) -> list[str]:
    """Returns the names of a project's secrets, in their order."""
    secrets = tables.secrets.c
    query = select(secrets.name).where(secrets.project == project, tables.CURRENT).order_by(secrets.name)
    return [str(name) for (name,) in tx.connection.execute(query)]


def secrets_sealed_by_others(tx: Transaction, master: str) -> int:
    """Returns how many secrets of all projects another master key has sealed than this one."""
    sealed_by = tables.secrets.c.body[("sealed", "master")].as_string()
    query = select(func.count()).select_from(tables.secrets).where(tables.CURRENT, sealed_by != master)
    return int(tx.connection.execute(query).scalar_one())


def has_replaced_secrets(tx: Transaction, project: str) -> bool:
    """Says whether older values of a project's secrets are kept."""
    secrets = tables.secrets.c
    query = select(secrets.id).where(secrets.project == project, secrets.replaced_at.is_not(None)).limit(1)
    return tx.connection.execute(query).first() is not None


def delete_replaced_secrets(tx: Transaction, project: str, before: int) -> None:
    """Deletes the values of a project's secrets that were replaced before a time (ns UTC)."""
    secrets = tables.secrets.c
    tx.connection.execute(delete(tables.secrets).where(secrets.project == project, secrets.replaced_at < before))


def projects_below(name: str) -> Select[Any]:
    """Returns a query of the names of all quotas from one downwards, the projects' among them."""
    quotas = tables.quotas.c
    below = select(quotas.id).where(quotas.id == name).cte("below", recursive=True)
    below = below.union(select(quotas.id).where(quotas.parent == below.c.id))
    return select(below.c.id)


def next_number(tx: Transaction, project: str, name: str) -> int:
    """Returns 1, 2, 3 ... for a name: no number twice."""
    table = tables.counters
    build: Any = postgresql.insert if tx.dialect == "postgresql" else sqlite.insert
    statement = build(table).values(project=project, name=name, value=1)
    statement = statement.on_conflict_do_update(
        index_elements=[table.c.project, table.c.name], set_={"value": table.c.value + 1}
    ).returning(table.c.value)
    return int(tx.connection.execute(statement).scalar_one())


def lock(tx: Transaction, what: str) -> None:
    """Waits until nobody else has this lock, and keeps others from it until the transaction ends.

    What is read afterwards is what was stored last. On SQLite there is one writer anyway. There are: ``quotas``, for who
    changes them or makes a project; ``placing``, for who gives resources away; ``keeping``, for who adds to what is kept;
    ``first key``, for servers that start.
    """
    next_number(tx, "", what)


class Chosen(NamedTuple):
    """Which events: of a project, of a thing, of a kind, asked for by somebody, from a time (ns UTC) on.

    Calls only if their kind is named.
    """

    project: str | None = None
    object_id: str | None = None
    kind: str | None = None
    actor: str | None = None
    since: int | None = None


def events_after(tx: Transaction, seq: int, chosen: Chosen = Chosen(), *, limit: int) -> list[Event]:  # noqa: B008
    """Returns events after ``seq``, oldest first, none that a later commit could still come before.

    Numbers are given in the order of commits (see Transaction.events), so that a reader who remembers the last ``seq`` never
    misses one.
    """
    if not 0 <= seq < 2**63:
        return []
    events = tables.events
    query = select(events).where(events.c.seq > seq).order_by(events.c.seq).limit(limit)
    told = events.c.body["kind"].as_string()
    query = query.where(told != CALL if chosen.kind is None else told == chosen.kind)
    if chosen.project is not None:
        query = query.where(events.c.project == chosen.project)
    if chosen.object_id is not None:
        query = query.where(events.c.object_id == chosen.object_id)
    if chosen.actor is not None:
        query = query.where(events.c.body["actor"].as_string() == chosen.actor)
    if chosen.since is not None:
        query = query.where(cast(events.c.body["at"].as_string(), BigInteger) >= chosen.since)
    return [
        Event.model_validate(
            {**row["body"], "seq": row["seq"], "project": row["project"], "object_id": row["object_id"]}
        )
        for row in tx.connection.execute(query).mappings()
    ]


class Swept(NamedTuple):
    """How many events are forgotten, and how many of them only because there are too many."""

    events: int = 0
    too_many: int = 0


def forget_events(tx: Transaction, before: int, most: int) -> Swept:
    """Forgets some of the oldest events: those from before a time (ns UTC), and all but the newest ``most``.

    They are counted by their numbers, of which few are left out: nothing has to be counted.
    """
    events = tables.events
    newest = tx.connection.execute(select(func.max(events.c.seq))).scalar()
    if newest is None:
        return Swept()
    at = cast(events.c.body["at"].as_string(), BigInteger)
    oldest = tx.connection.execute(select(events.c.seq, at).order_by(events.c.seq).limit(EVENTS_AT_ONCE)).all()
    gone = [seq for seq, happened in oldest if happened < before or seq <= newest - most]
    if gone:
        tx.connection.execute(delete(events).where(events.c.seq.in_(gone)))
    return Swept(len(gone), sum(happened >= before and seq <= newest - most for seq, happened in oldest))
