"""``danlu describe job X``: everything that is known of a job, in one screen."""

from __future__ import annotations

import shlex
import time
from typing import Final

from danlu.api.bodies import MetricsQuery
from danlu.cli import arrays, wording
from danlu.cli import output as out
from danlu.cli.get import MAX_MESSAGE
from danlu.cli.options import Common, Names, Output, one
from danlu.cli.output import Format
from danlu.cli.session import connect
from danlu.cli.terminal import STATE_STYLES
from danlu.client import describing
from danlu.client.arrays import of_either
from danlu.client.transport import Client
from danlu.domain.arrays import ArrayState
from danlu.domain.artifacts import Artifact
from danlu.domain.events import Event
from danlu.domain.jobs import Attempt, Job, Reason, waits_since
from danlu.domain.priorities import priority_text
from danlu.domain.resources import format_bytes
from danlu.domain.views import ArrayWhy
from danlu.errors import DanluError, InvalidRequest, StorageUnavailable

SHOWN_AFTER: Final = 20
SHOWN_TASKS: Final = 32
SHOWN_ATTEMPTS: Final = 10


def describe(
    *job: Names,
    output: Output = "table",
    common: Common | None = None,
) -> int:
    """Show all about a job: what it asked for, its attempts, limits and events, what it left, what to do next.

    Of a job array: what each of it asks for, how many are in which state, why the next one waits.

    Example: danlu describe job gan-12
    """
    if job and job[0].partition("/")[0] in ("node", "nodes", "env", "envs"):
        raise InvalidRequest("describe is for jobs", next_step=f"danlu get {' '.join(job)} -o yaml")
    with connect(common) as client:
        known = of_either(client, "get", one(job))
        if isinstance(known, ArrayState):
            return _describe_array(client, known, output)
        about = describing.describe(client, known)
        found = about.job
        environment = _environment(client, found)
        measured = output in ("table", "wide") and not found.live and _measured(client, found)
    if output in ("json", "yaml"):
        out.structured(about.structured(), output)
        return 0
    if output == "name":
        out.write(f"job/{found.name}")
        return 0
    _print(about, environment, measured=measured)
    return 0


def _describe_array(client: Client, state: ArrayState, output: Format) -> int:
    if output in ("json", "yaml"):
        out.record(state, output)
        return 0
    if output == "name":
        out.write(arrays.key(state))
        return 0
    name = state.array.name
    first: Job = client.call("jobs.get", {"job": state.array.first})
    told: ArrayWhy = client.call("arrays.why", {"array": state.array.id})
    out.heading(f"{name}  {arrays.counts(state)}", name)
    if bad := arrays.unsuccessful(state):
        out.labelled("without", [bad])
    if told.next is not None:
        job = told.next.job
        out.labelled("waits", [f"{job.name}: {wording.why(job)}", *told.next.explanation])
    out.labelled("id", [state.array.id])
    out.labelled("command", [wording.command_line(first.spec)])
    out.labelled("asks", [f"{wording.asks(first.spec)}{_wishes(first)}, each element"])
    out.labelled("env", [_environment(client, first)])
    if first.spec.array is not None:
        parallel = first.spec.array.parallel
        most = "" if parallel is None else f", {parallel:,} at once"
        which = f"{name}-INDEX with {first.spec.array.indexes}"
        out.labelled("elements", [f"{state.array.size:,}{most}: {which}"])
    if first.after:
        out.labelled("after", _after(first))
    commands = [f"danlu get jobs --array {name}", f"danlu logs {first.name}"]
    again = [f"danlu retry {name}"] if bad else []
    _commands("next", commands + ([f"danlu stop {name}"] if state.live else again))
    return 0


def _after(job: Job) -> list[str]:
    return [f"{one.name} ({one.condition})" for one in job.after[:SHOWN_AFTER]]


def _environment(client: Client, job: Job) -> str:
    if job.environment_id is None:
        return f"host ({job.spec.interpreter})" if job.spec.interpreter else job.spec.env
    try:
        env = client.call("environments.get", {"environment": job.environment_id})
    except DanluError as error:
        return f"{job.spec.env} ({error.message})"
    return wording.environment(env) + ("" if env.state == "ready" else f", {env.state}")


def _measured(client: Client, job: Job) -> bool:
    """Whether the job recorded metrics of its own; no, where the store that has them is away."""
    try:
        return bool(client.call("jobs.metrics", {"job": job.id}, query=MetricsQuery(points=2)).series)
    except StorageUnavailable:
        return False


def _print(about: describing.Description, environment: str, *, measured: bool) -> None:
    now = time.time_ns()
    job, attempts, artifacts = about.job, list(about.attempts), list(about.artifacts)
    style = STATE_STYLES.get(str(job.state))
    headline = wording.outcome(job) if not job.live else _alive(job, now)
    out.heading(f"{job.name}  {headline}", job.name, style)
    if job.message and not wording.says_nothing_new(job):
        out.labelled("because", job.message.splitlines()[:30])
    if advice := _advice(job, attempts):
        out.labelled("try", [advice])
    out.labelled("id", [job.id])
    out.labelled("command", [wording.command_line(job.spec)])
    out.labelled("asks", [wording.asks(job.spec) + _got(job) + _wishes(job)])
    if job.spec.roles:
        out.labelled("roles", [f"{wording.roles(job.spec)} ({job.spec.convention.name})"])
    out.labelled("env", [environment])
    if job.spec.code:
        out.labelled("code", [job.spec.code])
    if job.spec.git:
        out.labelled("git", wording.git(job.spec.git))
    if job.spec.variables:
        out.labelled("variables", [f"{name}={shlex.quote(value)}" for name, value in job.spec.variables.items()])
    if job.spec.secrets:
        out.labelled("secrets", [wording.secrets(job.spec)])
    if job.spec.labels:
        out.labelled("labels", [f"{name}={value}" for name, value in job.spec.labels.items()])
    if job.array is not None:
        place = f"index {job.array.index} of {job.array.name}, which has {wording.count(job.array.size, 'element')}"
        most = "" if job.array.parallel is None else f", {job.array.parallel} at once"
        out.labelled("array", [place + most])
    if job.after:
        out.labelled("after", _after(job))
    if job.retry_of:
        out.labelled("retry of", [job.retry_of])
    if attempts:
        out.labelled("attempts", _attempts(attempts, now))
        if len(attempts[-1].tasks) > 1:
            out.labelled("tasks", _tasks(attempts[-1]))
        missing = wording.not_in_force(job.spec, attempts[-1])
        unlimited = [f"{missing}: asked for, but this machine sets no such limit: danlu doctor"] if missing else []
        limits = [name for name in attempts[-1].limits if name.endswith("-limit")]
        out.labelled("limits", [", ".join(limits) or "none are in force", *unlimited])
        out.labelled("isolation", [", ".join(name for name in attempts[-1].limits if name not in limits) or "none"])
    out.labelled("kept", wording.not_kept(attempts[-SHOWN_ATTEMPTS:]) + _kept(artifacts))
    out.labelled("events", _events(list(about.events), now))
    _commands("next", _next(job, artifacts, measured=measured))


def _tasks(attempt: Attempt) -> list[str]:
    """Returns a line for each task of an attempt: where it is, with what, and how it ended."""
    rows = [
        [
            task.name, f"rank {task.rank}", task.node,
            "gpu " + ",".join(map(str, task.devices)) if task.devices else "-",
            "port " + ",".join(map(str, task.ports)) if task.ports else "-", wording.task_state(task),
        ]
        for task in attempt.tasks[:SHOWN_TASKS]
    ]  # fmt: skip
    lines = out.table_lines(("",) * 5 + ("MESSAGE",), rows, with_head=False, most=out.room(out.INDENT))
    more = len(attempt.tasks) - SHOWN_TASKS
    return lines + ([f"and {more} more: danlu describe {attempt.job_id} -o json"] if more > 0 else [])


def _alive(job: Job, now: int) -> str:
    since = job.started_at if job.state == "running" else waits_since(job)
    reason = wording.why(job)
    return f"{job.state}{'' if reason == '-' else f': {reason}'}, for {wording.age(since, now)}"


def _got(job: Job) -> str:
    """Returns how many GPUs of the range that it asks for a job got, once it has started."""
    if job.spec.gpu_min is None or job.gpus is None:
        return ""
    return f": {'has' if job.live and job.state != 'queued' else 'had'} {job.gpus}"


def _wishes(job: Job) -> str:
    spec = job.spec
    parts = []
    if spec.max_time:
        parts.append(f"at most {wording.duration(spec.max_time)}")
    if spec.retry.attempts > 1:
        parts.append(f"{spec.retry.attempts} attempts")
    if job.held:
        parts.append("held")
    if spec.priority:
        parts.append(f"priority {priority_text(spec.priority)}")
    if job.preemptions:
        parts.append(f"made way {wording.count(job.preemptions, 'time')}")
    return "".join(f", {part}" for part in parts)


def _attempts(attempts: list[Attempt], now: int) -> list[str]:
    rows = []
    for attempt in attempts[-SHOWN_ATTEMPTS:]:
        ended = attempt.state == "ended"
        state = str(attempt.reason or attempt.state) if ended else str(attempt.state)
        if attempt.exit_code:
            state += f" ({attempt.exit_code})"
        ran = wording.between(attempt.started_at, attempt.ended_at or now)
        peaks = [task.peak_memory_bytes for task in attempt.tasks if task.peak_memory_bytes is not None]
        used = [task.cpu_ns for task in attempt.tasks if task.cpu_ns is not None]
        peak = f"peak {format_bytes(max(peaks))}" if peaks else ""
        cpu = f"cpu {wording.duration(sum(used) / wording.SECOND_NS)}" if used else ""
        resumed = "" if not attempt.resumed_from else f"from {attempt.resumed_from.rstrip('/').rpartition('/')[2]}"
        error = attempt.tasks[0].error if len(attempt.tasks) == 1 else None
        if attempt.preemption is not None and attempt.reason is Reason.PREEMPTED:
            error = attempt.message
        said = "   ".join(filter(None, (resumed, error)))
        rows.append([str(attempt.number), state, ran, wording.where(attempt), attempt.start, peak, cpu, said])
    headers = ("", "", "", "NODE", "", "", "", "MESSAGE")
    lines = out.told_lines(headers, rows, with_head=False, most=out.room(out.INDENT))
    left = len(attempts) - SHOWN_ATTEMPTS
    return ([f"({left} earlier ones)"] if left > 0 else []) + lines


def _advice(job: Job, attempts: list[Attempt]) -> str:
    if job.reason is Reason.OUT_OF_MEMORY:
        peaks = [t.peak_memory_bytes for attempt in attempts for t in attempt.tasks if t.peak_memory_bytes]
        more = f"--memory {_roomier(max(peaks))}" if peaks else "more --memory"
        return f"danlu retry {job.name} {more}, or a smaller batch"
    if job.reason is Reason.COMMAND_NOT_FOUND:
        return "is it in the code that was sent, and in the environment? danlu env ls"
    if job.reason is Reason.MAX_TIME_EXCEEDED:
        return f"danlu retry {job.name} --max-time longer; it goes on from its newest checkpoint"
    return ""


def _roomier(peak_bytes: int) -> str:
    """Returns a quarter more than the peak, in whole GiB, or in MiB below one."""
    wanted = peak_bytes * 5 // 4
    return f"{-(-wanted // 2**30)}GiB" if wanted > 2**30 else f"{-(-wanted // 2**20)}MiB"


def _kept(artifacts: list[Artifact]) -> list[str]:
    lines = [
        f"{artifact.name} of attempt {artifact.attempt_id.rpartition('-')[2]}"
        + (" (partial)" if artifact.partial else "")
        + f": {wording.count(artifact.files, 'file')}, {format_bytes(artifact.size_bytes)}"
        + (f", {len(artifact.skipped)} left out" if artifact.skipped else "")
        for artifact in artifacts[:SHOWN_ATTEMPTS]
    ]
    return lines or ["no files"]


def _events(events: list[Event], now: int) -> list[str]:
    rows = [
        [
            wording.age(event.at, now),
            f"{event.previous} → {event.state}" if event.previous and event.previous != event.state else event.state,
            event.reason or "",
            _said(event),
        ]
        for event in events
    ]
    headers = ("", "", "", "MESSAGE")
    return out.told_lines(headers, rows, with_head=False, most=out.room(out.INDENT)) or ["none"]


def _said(event: Event) -> str:
    """Returns who asked and why, on one line; what a program wrote last stands above."""
    by = f"by {event.actor} " if event.actor else ""
    return by + " ".join(wording.without_output(event.message).split())[:MAX_MESSAGE]


def _next(job: Job, artifacts: list[Artifact], *, measured: bool) -> list[str]:
    """Returns the commands that have something to show or to do."""
    if job.live:
        return [f"danlu logs -f {job.name}", f"danlu why {job.name}", f"danlu stop {job.name}"]
    commands = [f"danlu logs {job.name}"] if job.attempts else []
    commands += [f"danlu metrics {job.name}"] if measured else []
    commands += [f"danlu artifacts get {job.name}"] if artifacts else []
    return commands + ([] if job.state == "succeeded" else [wording.again(job)])


def _commands(label: str, commands: list[str]) -> None:
    """Writes commands, on one line where there is room for them."""
    line, most = "     ".join(commands), out.room(out.INDENT)
    out.labelled(label, commands if most is not None and out.columns(line) > most else [line])
