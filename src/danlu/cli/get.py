"""``danlu get``: lists, and single records."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Final, NamedTuple

from cyclopts import Parameter

from danlu.api.bodies import AllJobsQuery, EventsQuery, JobsQuery
from danlu.cli import output as out
from danlu.cli import wording
from danlu.cli.arrays import counts
from danlu.cli.commands import NESTED
from danlu.cli.options import Common, Flag, Output
from danlu.cli.output import Format
from danlu.cli.session import FOLLOW_PATIENCE_S, connect
from danlu.cli.terminal import Messages
from danlu.client.lists import listed
from danlu.client.transport import Client
from danlu.domain.arrays import ArrayState
from danlu.domain.environments import Environment
from danlu.domain.events import Event
from danlu.domain.jobs import Job, JobState
from danlu.domain.resources import format_bytes, format_cpu
from danlu.domain.validation import suggestion
from danlu.domain.views import EnvironmentEntry, NodeUse
from danlu.errors import InvalidRequest, NotFound

WATCH_S: Final = 1.0
MAX_MESSAGE: Final = 400
"""So much of an event's message is shown in a table; -o json has all of it."""
LISTS: Final = {"node": "nodes", "environment": "envs"}
Row = list[str]


class Kind(NamedTuple):
    """How a noun is listed: what it is called, its columns, those of ``-o wide``, its items and their cells."""

    name: str
    also: tuple[str, ...]
    columns: tuple[str, ...]
    wide: tuple[str, ...]
    items: Callable[[Client, Wanted], tuple[list[Any], bool]]
    row: Callable[[Any, int], Row]
    key: Callable[[Any], str]


class Wanted(NamedTuple):
    """Which items: ``names`` for single ones; at most ``limit``, 0 for all; ``every``: environments asked for in vain.

    Of jobs: those of an ``array``, or with each array ``folded`` to one item; of the caller's projects ``all_projects``.
    """

    names: tuple[str, ...] = ()
    state: str | None = None
    limit: int = 100
    every: bool = False
    array: str | None = None
    folded: bool = False
    all_projects: bool = False


class Folded(NamedTuple):
    """An array as one line: its first element, and what became of all."""

    first: Job
    array: ArrayState


@Parameter(name="*")
@dataclass(frozen=True)
class Which:
    """Which of a noun's items."""

    state: Annotated[str | None, Parameter(help="only jobs in this state")] = None
    array: Annotated[str | None, Parameter(help="only the elements of this job array")] = None
    all_: Annotated[bool, Parameter(name="--all", help="each element of an array, not one line for all"), Flag] = False
    limit: Annotated[int, Parameter(help="at most so many, the newest; 0 for all")] = 100
    all_projects: Annotated[bool, Parameter(name=("--all-projects", "-A"), help="jobs of all your projects"), Flag] = (
        False
    )


def get(
    kind: Annotated[str, Parameter(help="jobs, nodes, envs or events")],
    *names: Annotated[str, Parameter(help="only these")],
    which: Which | None = None,
    output: Output = "table",
    watch: Annotated[bool, Parameter(name=("--watch", "-w"), help="go on and show what changes"), Flag] = False,
    common: Common | None = None,
) -> int:
    """List jobs, nodes, envs or events, or show single ones.

    On a terminal a table is cut to its width, unless it is a wide one: danlu get jobs -o wide | less -S

    Example: danlu get jobs --state running -o wide
    """
    found, names = _kind(kind, names)
    which = which or Which()
    state, limit = which.state, which.limit
    if state is not None and state not in set(JobState):
        step = f"{suggestion(state, JobState)}   there are: {', '.join(JobState)}"
        raise InvalidRequest(f"{state!r} is not a job's state", next_step=step.strip())
    if limit < 0:
        raise InvalidRequest(f"--limit {limit} is less than 0")
    if which.all_projects and (found.name != "jobs" or names or which.array):
        raise InvalidRequest(
            "--all-projects lists jobs, and goes neither with names nor with --array",
            next_step="danlu get jobs --all-projects",
        )
    folded = not (names or state or which.array or which.all_ or watch) and output == "table"
    wanted = Wanted(names, state, limit, array=which.array, folded=folded, all_projects=which.all_projects)
    found = _with_project(found) if which.all_projects else found
    messages = Messages()
    with connect(common, messages) as client:
        return _watch(client, found, wanted, output) if watch else show(client, found, wanted, output, messages)


def show(client: Client, kind: Kind, wanted: Wanted, form: Format, messages: Messages) -> int:
    """Prints a list, or single records, once."""
    items, more = kind.items(client, wanted)
    if form in ("json", "yaml") and len(wanted.names) == 1:
        out.record(items[0], form)
    elif form in ("json", "yaml"):
        out.records(items, form)
    elif form == "name":
        for item in items:
            out.write(kind.key(item))
    elif items:
        _table(kind, items, form, with_head=True)
    else:
        messages.say(f"there are no {kind.name} here")
    if more:
        messages.say(f"there are more: --limit 0 shows all {kind.name}")
    return 0


def _table(kind: Kind, items: list[Any], form: Format, *, with_head: bool) -> None:
    now = time.time_ns()
    headers = kind.columns + (kind.wide if form == "wide" else ())
    out.table(
        headers, [kind.row(item, now)[: len(headers)] for item in items], with_head=with_head, whole=form == "wide"
    )


def _watch(client: Client, kind: Kind, wanted: Wanted, form: Format) -> int:
    """Prints the list, then each item again whenever it has changed."""
    client.patience_s = FOLLOW_PATIENCE_S
    shown: dict[str, Any] = {}
    first = True
    while True:
        items, _ = kind.items(client, wanted)
        changed = [item for item in items if _unlike(shown.get(kind.key(item)), item)]
        if form in ("json", "yaml"):
            for item in changed:
                out.record(item, form)
        elif form == "name":
            for item in changed:
                out.write(kind.key(item))
        elif changed:
            _table(kind, changed, form, with_head=first)
        first = first and not changed
        shown.update((kind.key(item), item) for item in items)
        sys.stdout.flush()
        time.sleep(WATCH_S)


def _unlike(old: Any, new: Any) -> bool:
    if isinstance(old, Job) and isinstance(new, Job):
        return (old.state, old.reason, old.attempts) != (new.state, new.reason, new.attempts)
    return bool(old != new)


def _kind(word: str, names: tuple[str, ...]) -> tuple[Kind, tuple[str, ...]]:
    head, slash, name = word.partition("/")
    if slash:
        names = (name, *names)
    for kind in KINDS:
        if head in (kind.name, *kind.also):
            return kind, tuple(n.removeprefix(f"{head}/") for n in names)
    every = [kind.name for kind in KINDS]
    noun = next((noun for noun in sorted(NESTED - {"env", "artifacts"}) if head in (noun, f"{noun}s")), None)
    if noun:
        raise InvalidRequest(f'"{head}" are listed by a command of their own', next_step=f"danlu {noun} ls")
    hint = suggestion(head, [*every, *(also for kind in KINDS for also in kind.also)])
    raise InvalidRequest(f'there is no list of "{head}"', next_step=f"{hint}   there are: {', '.join(every)}".strip())


# --- jobs


def _jobs(client: Client, wanted: Wanted) -> tuple[list[Any], bool]:
    if wanted.names:
        return [client.call("jobs.get", {"job": name}) for name in wanted.names], False
    state = None if wanted.state is None else JobState(wanted.state)
    found: list[Any]
    if wanted.all_projects:
        found, more = listed(client, "jobs.list_all", AllJobsQuery(state=state, folded=wanted.folded), wanted.limit)
    else:
        query = JobsQuery(state=state, array=wanted.array, folded=wanted.folded)
        found, more = listed(client, "jobs.list", query, wanted.limit)
    if wanted.array is not None:
        found.sort(key=lambda job: job.array.index)
    return [_folded(client, job) if wanted.folded and job.array_id is not None else job for job in found], more


def _folded(client: Client, first: Job) -> Folded:
    return Folded(first, client.call("arrays.get", {"array": first.array_id or ""}, project=first.project))


def _with_project(jobs: Kind) -> Kind:
    """Returns how jobs are listed of which it is not known whose they are."""

    def project(job: Job | Folded) -> str:
        return job.first.project if isinstance(job, Folded) else job.project

    return jobs._replace(
        columns=("PROJECT", *jobs.columns),
        row=lambda job, now: [project(job), *jobs.row(job, now)],
        key=lambda job: f"{project(job)}/{jobs.key(job)}",
    )


def _job_row(job: Job | Folded, now: int) -> Row:
    if isinstance(job, Folded):
        state = job.array
        name, so_far = state.array.name, "going on" if state.live else "ended"
        return [name, so_far, counts(state), *_job_row(job.first, now)[3:7], "-"]
    spec = job.spec
    env = "requirements" if spec.requirements is not None else spec.image or spec.env
    ran = wording.between(job.started_at, now if job.live and job.state != "queued" else job.ended_at or now)
    exit_code = "-" if job.exit_code is None else str(job.exit_code)
    gpus = wording.gpu_count(job)
    return [
        job.name, str(job.state), wording.why(job), wording.roles(spec), env, gpus, wording.age(job.created_at, now),
        "-" if job.state == "queued" else ran, job.id, str(job.attempts), wording.asks(spec), exit_code,
        wording.command_line(spec)[:80],
    ]  # fmt: skip


# --- nodes


def _nodes(client: Client, wanted: Wanted) -> tuple[list[NodeUse], bool]:
    return _only(client.call("nodes.list").items, wanted, lambda use: use.node.id, "node")


def _node_row(use: NodeUse, _now: int) -> Row:
    total = use.node.total
    return [
        use.node.id,
        f"{format_cpu(use.free.cpu_milli)} of {format_cpu(total.cpu_milli)}",
        f"{format_bytes(use.free.memory_bytes)} of {format_bytes(total.memory_bytes)}",
        f"{use.free.gpus} of {total.gpus}",
        wording.gpus(use.node),
        use.node.executor,
        ",".join(map(str, use.free_gpus)) or "-",
    ]


# --- environments


def _environments(client: Client, wanted: Wanted) -> tuple[list[EnvironmentEntry], bool]:
    found: tuple[EnvironmentEntry, ...] = client.call("environments.list").items
    if not wanted.names and not wanted.every:
        found = tuple(one for one in found if one.environment is None or not _asked_in_vain(one.environment))
    return _only(found, wanted, lambda entry: entry.name, "environment")


def _asked_in_vain(env: Environment) -> bool:
    """Whether it is requirements or an image that a job named and that could not be had."""
    return env.in_vain and env.source.catalogue is None


def _environment_row(entry: EnvironmentEntry, now: int) -> Row:
    env: Environment | None = entry.environment
    size = "-" if env is None or env.size_bytes is None else format_bytes(env.size_bytes)
    return [
        entry.name,
        (env.python_version if env is not None else None) or entry.python or "-",
        "-" if env is None else str(env.state),
        size,
        entry.description,
        "-" if env is None or env.packages is None else str(env.packages),
        "-" if env is None else env.id,
        "-" if env is None or env.build_s is None else wording.duration(env.build_s),
        "-" if env is None or env.archive is None else format_bytes(env.archive.size_bytes),
        "-" if env is None else wording.age(env.created_at, now),
    ]


# --- events


def _events(client: Client, wanted: Wanted) -> tuple[list[Event], bool]:
    from danlu.client.history import newest_events

    if not wanted.names:
        return newest_events(client, EventsQuery(), wanted.limit)
    events: list[Event] = []
    more = False
    for name in wanted.names:
        job = client.call("jobs.get", {"job": name})
        found, left = newest_events(client, EventsQuery(object_id=job.id), wanted.limit)
        events, more = events + found, more or left
    return sorted(events, key=lambda event: event.seq), more


def event_row(event: Event, now: int) -> Row:
    """Returns an event's cells."""
    return [
        wording.age(event.at, now),
        event.kind,
        event.object_id,
        event.state,
        event.reason or "-",
        " ".join(event.message.split())[:MAX_MESSAGE] or "-",
        event.actor or "-",
        str(event.seq),
    ]


def _only(items: tuple[Any, ...], wanted: Wanted, key: Callable[[Any], str], kind: str) -> tuple[list[Any], bool]:
    if not wanted.names:
        return list(items), False
    by_name = {key(item): item for item in items}
    for name in wanted.names:
        if name not in by_name:
            step = f"{suggestion(name, by_name)}   all of them: danlu get {LISTS[kind]}"
            raise NotFound(f"there is no {kind} {name!r}", next_step=step.strip())
    return [by_name[name] for name in wanted.names], False


def _kinds() -> Iterator[Kind]:
    yield Kind(
        "jobs", ("job", "j"),
        ("NAME", "STATE", "WHY", "ROLES", "ENV", "GPU", "AGE", "RAN"), ("ID", "ATTEMPTS", "ASKS", "EXIT", "COMMAND"),
        _jobs, _job_row, lambda job: f"job/{job.name}",
    )  # fmt: skip
    yield Kind(
        "nodes", ("node", "no"),
        ("NAME", "FREE CPU", "FREE MEMORY", "FREE GPU", "GPUS"), ("EXECUTOR", "FREE INDEXES"),
        _nodes, _node_row, lambda use: f"node/{use.node.id}",
    )  # fmt: skip
    yield Kind(
        "envs", ("env", "environments", "environment"),
        ("NAME", "PYTHON", "STATE", "SIZE", "DESCRIPTION"), ("PACKAGES", "ID", "BUILD", "ARCHIVE", "AGE"),
        _environments, _environment_row, lambda entry: f"env/{entry.name}",
    )  # fmt: skip
    yield Kind(
        "events", ("event", "ev"),
        ("AGE", "KIND", "OBJECT", "STATE", "REASON", "MESSAGE"), ("ACTOR", "SEQ"),
        _events, event_row, lambda event: f"event/{event.seq}",
    )  # fmt: skip


KINDS: Final = tuple(_kinds())
BY_NAME: Final = {kind.name: kind for kind in KINDS}
