"""Jobs: submitted, listed, explained, stopped, repeated. Writes what is wanted; controllers make it so."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from danlu.api.bodies import AllJobsQuery, JobsQuery, Paging, RetryRequest, StopRequest
from danlu.database import queries
from danlu.database.engine import Transaction
from danlu.database.records import ARTIFACTS, ATTEMPTS, JOBS
from danlu.domain.arrays import array_id
from danlu.domain.artifacts import Artifact
from danlu.domain.commands import name_from_command
from danlu.domain.environments import HOST
from danlu.domain.ids import is_id
from danlu.domain.jobs import Attempt, Job
from danlu.domain.quotas import STORAGE
from danlu.domain.specs import JobSpec, json_changes
from danlu.domain.validation import invalid_spec, suggestion
from danlu.domain.views import Page, Why
from danlu.errors import Conflict, InvalidRequest, InvalidSpec, NeverFits, NotFound
from danlu.services import arrays, blobs, dependencies, environments, explaining, projects, quotas, secrets
from danlu.services.context import Call

SUGGESTED = 200
"""Names of the newest jobs, among which one is looked for that was probably meant."""


def submit(call: Call, job: str, body: JobSpec) -> Job:
    """Stores a job that is to run. The same id with the same specification again returns what is there.

    Raises:
        InvalidSpec, NeverFits, UnknownEnvironment: it could never run; nothing is stored.
        NameTaken: a live job of the project has that name.
        Conflict: the id belongs to a job with another specification.
    """
    return _submit(call, job, body, retried=None)


def hold(call: Call, job: str) -> Job:
    """Lets a job wait until it is released; one that is held stays as it is.

    Raises:
        Conflict: it does not wait.
    """
    return _change(call, job, lambda old, now: old.with_hold(True, now=now))


def release(call: Call, job: str) -> Job:
    """Lets a job go that is held; any other stays as it is."""
    return _change(call, job, lambda old, now: old.with_hold(False, now=now))


def _change(call: Call, job: str, change: Callable[[Job, int], Job]) -> Job:
    def work(tx: Transaction) -> Job:
        old = require(tx, call.project, job)
        new = change(old, call.platform.clock.now())
        if new is not old:
            JOBS.put(tx, old, new, actor=call.actor.name)
        return new

    changed = call.write(work)
    call.platform.hub.notify("jobs")
    return changed


def retry(call: Call, job: str, body: RetryRequest) -> Job:
    """Stores a new job like an ended one, which goes on from that one's checkpoints."""
    old = get(call, job)
    if old.live:
        raise Conflict(f"job {old.name} has not ended: it is {old.state}", next_step=f"danlu stop {old.name}")
    if body.changes.get("array") is not None:
        raise InvalidSpec("array: a retry repeats one job", next_step="a new array: danlu run --array 0-9 -- COMMAND")
    try:
        spec = json_changes(old.spec.model_copy(update={"hold": False}), body.changes)
    except ValidationError as error:
        raise invalid_spec(error, JobSpec) from error
    return _submit(call, body.id, spec, retried=old)


def _submit(call: Call, job_id: str, spec: JobSpec, *, retried: Job | None) -> Job:
    platform = call.platform
    if not is_id(job_id, "j"):
        raise InvalidRequest(f"{job_id!r} is not a job's id: j and 26 characters of 0-9 and a-v, made by the client")
    if (known := platform.database.read(lambda tx: JOBS.get(tx, job_id))) is not None:
        return _whole(call, _same(call, known, spec))
    if spec.env == HOST and not _may_use_host(call):
        raise InvalidSpec(
            "env: host is for administrators here: its interpreter is asked what it is by the server's own user",
            next_step="name an environment (danlu env ls), or requirements",
        )
    if spec.image is not None:
        environments.need_images(call)
    what = None if spec.env == HOST else environments.wanted(spec.env, spec.requirements, spec.python, spec.image)
    required = projects.get(call).require
    projects.require_offered(platform, required)
    projects.require_asked(required, spec)
    if spec.code is not None:
        blobs.require_tree(call, spec.code)
    if spec.git is not None and spec.git.diff is not None:
        blobs.require(call, spec.git.diff)
    now = platform.clock.now()

    def work(tx: Transaction) -> Job:
        known = JOBS.get(tx, job_id)
        if known is not None:
            return _same(call, known, spec)
        if (never := platform.nodes.never_fits(tx, spec)) is not None:
            raise NeverFits(f"it can never fit: {never[0]}", next_step=never[1])
        quotas.require_room(tx, call.project, spec)
        quotas.require_left(tx, call.project, {STORAGE: 1}, "what a new job leaves")
        secrets.require(tx, call.project, spec)
        environment = None if what is None else environments.ensure(tx, call, what, now=now)
        job = _new(tx, call, job_id, spec, retried)
        if environment is not None:
            job = job.model_copy(update={"environment_id": environment.id})
        JOBS.add(tx, job, actor=call.actor.name)
        return job

    try:
        job = call.write(work)
    except Conflict:  # the same request may have been sent twice, and be done by now
        known = platform.database.read(lambda tx: JOBS.get(tx, job_id))
        if known is None:
            raise
        job = _same(call, known, spec)
    platform.hub.notify("jobs")
    platform.hub.notify("environments")
    return _whole(call, job)


def _new(tx: Transaction, call: Call, job_id: str, spec: JobSpec, retried: Job | None) -> Job:
    """Returns a job that is not stored yet; of an array, which is, its first element."""
    if retried is not None and retried.spec.after == spec.after:
        after = dependencies.of_repetition(tx, retried.after)
    else:
        after = dependencies.found(tx, call.project, job_id, spec.after)
    place, identity = (None, None) if retried is None else (retried.array, retried.array_id)
    name = spec.name
    if retried is not None and (name is None or (place is not None and name == retried.spec.name)):
        name = retried.name
    name = name or _made_up_name(tx, call.project, spec)
    if retried is None and spec.array is not None:
        place, identity = arrays.place(tx, call, job_id, name, spec), array_id(job_id)
        name = arrays.element_name(name, place.index)
    now = call.platform.clock.now()
    return Job(
        id=job_id, project=call.project, name=name, spec=spec, priority=spec.priority, held=spec.hold, after=after,
        array=place, array_id=identity, queued_at=now, checkpoint_owner=retried.checkpoint_owner if retried else job_id,
        retry_of=retried.id if retried else None, created_by=call.actor.name, created_at=now, updated_at=now,
    )  # fmt: skip


def _whole(call: Call, job: Job) -> Job:
    """Returns a job that was submitted, once the rest of its array is there, if it begins one."""
    if job.array_id == array_id(job.id):
        arrays.complete(call, job)
    return job


def _may_use_host(call: Call) -> bool:
    facts = call.platform.facts
    return facts.host_environment and (not facts.separate_users or call.actor.administrator)


def _same(call: Call, known: Job, spec: JobSpec) -> Job:
    if known.project == call.project and known.spec == spec:
        return known
    raise Conflict(f"the id {known.id} belongs to another job", next_step="make a new id for each job")


def _made_up_name(tx: Transaction, project: str, spec: JobSpec) -> str:
    stem = name_from_command(spec.command or spec.tasks[0].argv)
    while True:  # a user may have given such a name by hand: take the next number then
        name = f"{stem}-{queries.next_number(tx, project, f'job/{stem}')}"
        if queries.job_by_name(tx, project, name) is None:
            return name


def get(call: Call, job: str) -> Job:
    """Returns a job of the project by id or by name; a name means the live one that has it, else the newest.

    Raises:
        NotFound: the project has no such job.
    """
    return call.platform.database.read(lambda tx: require(tx, call.project, job))


def require(tx: Transaction, project: str, job: str) -> Job:
    """Returns a job of ``project`` by id or name, or raises NotFound."""
    found = JOBS.get(tx, job) if is_id(job, "j") else queries.job_by_name(tx, project, job)
    if found is None or found.project != project:
        array = queries.array_by_name(tx, project, job)
        if array is not None:
            one = JOBS.require(tx, array.first).name
            step = f"{job} is a job array: name one of its elements, such as {one}   all: danlu get jobs --array {job}"
        else:
            near = suggestion(job, queries.job_names(tx, project, SUGGESTED))
            step = f"{near}   all of them: danlu get jobs --project {project}".strip()
        raise NotFound(f"there is no job {job!r} in project {project}", next_step=step)
    return found


def list(call: Call, query: JobsQuery) -> Page[Job]:
    """Returns the project's jobs, newest first."""

    def work(tx: Transaction) -> Page[Job]:
        of = {} if query.array is None else {"array_id": arrays.require(tx, call.project, query.array).id}
        return _page(tx, query, project=call.project, **of)

    return call.platform.database.read(work)


def list_all(call: Call, query: AllJobsQuery) -> Page[Job]:
    """Returns the jobs of all projects in which the caller may act, newest first."""
    names = projects.of(call.actor)
    where = {} if names is None else {"project": names}
    return call.platform.database.read(lambda tx: _page(tx, query, **where))


def _page(tx: Transaction, query: AllJobsQuery, **where: Any) -> Page[Job]:
    where |= {k: v for k, v in (("state", query.state), ("name", query.name)) if v is not None}
    only = (queries.FOLDED,) if query.folded else ()
    return JOBS.page(tx, limit=query.limit, cursor=query.cursor, only=only, **where)


def attempts(call: Call, job: str, query: Paging) -> Page[Attempt]:
    """Returns a job's attempts, newest first."""

    def work(tx: Transaction) -> Page[Attempt]:
        found = require(tx, call.project, job)
        below = _number(query.cursor) if query.cursor else found.attempts + 1
        numbers = range(below - 1, max(0, below - 1 - query.limit), -1)
        records = {a.number: a for a in ATTEMPTS.find(tx, job_id=found.id, number=tuple(numbers), limit=query.limit)}
        items = tuple(_without_others(records[number]) for number in numbers if number in records)
        more = bool(numbers) and numbers[-1] > 1
        return Page[Attempt](items=items, next_cursor=str(numbers[-1]) if more else None)

    return call.platform.database.read(work)


def _without_others(attempt: Attempt) -> Attempt:
    """Returns an attempt as its project may see it: which job of another project it made way for is not told."""
    preemption = attempt.preemption
    if preemption is None or preemption.for_project == attempt.project:
        return attempt
    hidden = preemption.model_copy(update={"for_job": "", "for_project": ""})
    return attempt.model_copy(update={"preemption": hidden})


def _number(cursor: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", cursor):
        raise InvalidRequest(f"the cursor {cursor[:80]!r} is not one that this platform gave out")
    return int(cursor)


def artifacts(call: Call, job: str, query: Paging) -> Page[Artifact]:
    """Returns what a job's attempts left, newest first."""

    def work(tx: Transaction) -> Page[Artifact]:
        found = require(tx, call.project, job)
        return ARTIFACTS.page(tx, limit=query.limit, cursor=query.cursor, project=call.project, job_id=found.id)

    return call.platform.database.read(work)


def stop(call: Call, job: str, body: StopRequest) -> Job:
    """Asks a job to stop; an ended one is returned as it is. Once accepted it is never forgotten."""
    return ask_to_stop(call, job, body.grace)


def ask_to_stop(call: Call, job_id: str, grace_s: float | None) -> Job:
    """Writes that a job is to stop. Asking again with another grace changes the grace."""
    return _change(call, job_id, lambda old, now: old.asked_to_stop(now=now, grace_s=grace_s))


def why(call: Call, job: str) -> Why:
    """Returns why a job is where it is, with the numbers of this moment."""
    now = call.platform.clock.now()
    return call.platform.database.read(lambda tx: explaining.told(tx, require(tx, call.project, job), now))
