"""Times, amounts and jobs in words."""

from __future__ import annotations

import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from danlu.domain.frameworks import describe_roles
from danlu.domain.resources import format_bytes, format_cpu

if TYPE_CHECKING:
    from collections.abc import Iterable

    from danlu.domain.environments import Archive, Environment
    from danlu.domain.git import GitState
    from danlu.domain.jobs import Attempt, Job, Task
    from danlu.domain.nodes import Node
    from danlu.domain.resources import Resources
    from danlu.domain.specs import JobSpec

SECOND_NS: Final = 1_000_000_000


def duration(seconds: float) -> str:
    """Returns ``4.2s``, ``58s``, ``3m12s``, ``1h5m`` or ``3d4h``."""
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60}s" if whole % 60 else f"{whole // 60}m"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60}m" if whole % 3600 // 60 else f"{whole // 3600}h"
    return f"{whole // 86400}d{whole % 86400 // 3600}h" if whole % 86400 // 3600 else f"{whole // 86400}d"


def between(begin: int | None, end: int) -> str:
    """Returns how long it is between two times in ns; ``-`` without a beginning."""
    return "-" if begin is None else duration((end - begin) / SECOND_NS)


def age(at: int | None, now: int) -> str:
    """Returns how long ago it was, in whole seconds."""
    return "-" if at is None else whole((now - at) / SECOND_NS)


def git(state: GitState) -> list[str]:
    """Returns what is known of the repository that code came from, one line or two."""
    parts = [state.branch or "no branch", "no commit yet" if state.commit is None else state.commit[:12]]
    parts += [text for text in (state.remote, state.folder and f"folder {state.folder}") if text]
    if state.dirty and state.diff:
        parts.append("with uncommitted changes: danlu api GET /v1/blobs/" + state.diff)
    elif state.dirty:
        parts.append("with uncommitted changes")
    return ["  ".join(parts), *([state.note] if state.note else [])]


def not_kept(attempts: Iterable[Attempt]) -> list[str]:
    """Returns a line for each attempt whose logs or outputs are not all kept, with what keeps them from it."""
    return [
        f"attempt {attempt.number} is not kept yet: {' '.join(attempt.kept.split())}"
        for attempt in attempts
        if attempt.kept and not attempt.collected
    ]


def whole(seconds: float) -> str:
    """Returns a duration in whole seconds."""
    return f"{max(0, int(seconds))}s" if seconds < 60 else duration(int(seconds))


def clock(at: int) -> str:
    """Returns a time in ns as UTC, to the millisecond: ``2026-11-24T01:44:02.123Z``."""
    return f"{_second(at // SECOND_NS)}.{at % SECOND_NS // 1_000_000:03d}Z"


@lru_cache(maxsize=16)  # lines come in order: nearly all share the second of the one before
def _second(at_s: int) -> str:
    return f"{datetime.datetime.fromtimestamp(at_s, datetime.UTC):%Y-%m-%dT%H:%M:%S}"


def count(number: int, one: str, many: str = "") -> str:
    """Returns ``1 file`` or ``3 files``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def why(job: Job) -> str:
    """Returns the reason of a job where it says more than its state."""
    return "-" if job.reason is None or job.reason in ("Completed", "Started", "Stopped") else str(job.reason)


def asks(spec: JobSpec) -> str:
    """Returns what a job asks for: ``2 cpu, 4.0 GiB, 1 gpu (h100)``; of a gang what each role does."""
    least = spec.gpu if spec.gpu_min is None else spec.gpu_min
    by_role = {task.role: _resources(task.resources, spec.gpu_kind, task.needs(least).gpus) for task in spec.tasks}
    if len({*by_role.values()}) == 1:
        each = next(iter(by_role.values()))
        return each if len(spec.tasks) == 1 else f"{each} for each of {len(spec.tasks)} tasks"
    return "; ".join(f"{role}: {text}" for role, text in by_role.items())


def gpu_count(job: Job) -> str:
    """Returns how many GPUs a job asks for in all, ``8`` or ``2..8``; of a range, once it has started, what it got."""
    if job.gpus is not None and job.state != "queued":
        return str(job.gpus)
    least, most = (sum(need.gpus for need in shapes) for shapes in (job.spec.choices[-1], job.spec.shapes))
    return _range(least, most)


def _range(least: int, most: int) -> str:
    return str(most) if least == most else f"{least}..{most}"


def _resources(need: Resources, kind: str | None, least: int) -> str:
    parts = [f"{format_cpu(need.cpu_milli)} cpu"]
    if need.memory_bytes:
        parts.append(format_bytes(need.memory_bytes))
    if need.gpus:
        parts.append(f"{_range(least, need.gpus)} gpu" + (f" ({kind})" if kind else ""))
    return ", ".join(parts)


def roles(spec: JobSpec) -> str:
    """Returns ``2 workers + 1 ps``; ``1`` without roles."""
    every = spec.gang_roles
    return describe_roles([(name, every[name].replicas) for name in spec.convention.ordered(every)]) or "1"


def where(attempt: Attempt) -> str:
    """Returns the nodes of an attempt and the GPUs that it has there: ``gpu-1 gpu 0,1 + gpu-2 gpu 0``."""
    devices: dict[str, list[int]] = {}
    for task in attempt.tasks:
        devices.setdefault(task.node, []).extend(task.devices)
    return " + ".join(
        node + (f" gpu {','.join(map(str, sorted(found)))}" if found else "") for node, found in devices.items()
    )


def not_in_force(spec: JobSpec, attempt: Attempt) -> str:
    """Returns ``memory and cpu``: which limits were asked for that an attempt that has started does not have; or nothing."""
    if attempt.started_at is None:
        return ""
    asked = {"memory": any(task.memory_bytes for task in spec.tasks), "cpu": any(task.cpu for task in spec.tasks)}
    return " and ".join(name for name, wanted in asked.items() if wanted and f"{name}-limit" not in attempt.limits)


def task_state(task: Task) -> str:
    """Returns how one task of an attempt is, or how it ended."""
    again = f", started again {count(task.restarts, 'time')}" if task.restarts else ""
    if task.ended_at is None:
        return ("running" if task.started_at is not None else "not started") + again
    if task.error:
        how = task.error
    elif task.exit_code is not None:
        how = f"exit code {task.exit_code}"
    else:
        how = "ended"
    return ("ended by the platform: " if task.stopped and task.exit_code != 0 else "") + how + again


def command_line(spec: JobSpec) -> str:
    """Returns a job's command as one would type it; of roles with commands of their own, each role's."""
    own = {name: role.command for name, role in spec.roles.items() if role.command is not None}
    texts = [] if spec.command is None else [_typed(spec.command)]
    texts += [f"{name}: {_typed(command)}" for name, command in own.items()]
    return "; ".join(texts).replace("\n", " ")


def _typed(command: str | tuple[str, ...]) -> str:
    import shlex

    return command if isinstance(command, str) else shlex.join(command)


def environment(env: Environment) -> str:
    """Returns ``tensorflow-1 (py3.11, 41 packages)``."""
    if env.source.image is not None:
        parts = ["image", *([env.lock_digest[:12]] if env.lock_digest else [])]
        return f"{env.name} ({' '.join(parts)}{', ' + format_bytes(env.size_bytes) if env.size_bytes else ''})"
    facts = [f"py{env.python_version or env.source.python}"]
    if env.packages is not None:
        facts.append(count(env.packages, "package"))
    return f"{env.name} ({', '.join(facts)})"


def archive(made: Archive) -> str:
    """Returns ``640 MiB for 1.7 GiB in 29,681 files, sha256:0123456789ab``."""
    sizes = f"{format_bytes(made.size_bytes)} for {format_bytes(made.unpacked_bytes)}"
    return f"{sizes} in {made.files:,} files, {made.address[:19]}"


def gpus(node: Node) -> str:
    """Returns a node's GPUs by kind: ``8 h100``; ``-`` for none."""
    kinds: dict[str, int] = {}
    for gpu in node.capacity.gpus:
        kinds[gpu.kind] = kinds.get(gpu.kind, 0) + 1
    return ", ".join(f"{number} {kind}" for kind, number in kinds.items()) or "-"


def says_nothing_new(job: Job) -> bool:
    """Whether a job's message only repeats its exit code."""
    return job.exit_code is not None and job.message == f"exit code {job.exit_code}"


def outcome(job: Job) -> str:
    """Returns how a job ended, in a sentence without its name."""
    text = str(job.state)
    if job.state == "failed":
        text += f": {job.reason}"
        if job.exit_code:
            text += f", exit code {job.exit_code}"
    if job.started_at is not None and job.ended_at is not None:
        text += f", {between(job.started_at, job.ended_at)} after its start"
    if job.attempts > 1:
        text += f", in attempt {job.attempts}"
    return text


def without_output(message: str) -> str:
    """Returns a message without what a failed task of a gang wrote last."""
    return message.partition("; the last that it wrote:")[0]


def again(job: Job) -> str:
    """Returns how to run an ended job again: what was wrong has to be given anew where the same would fail again."""
    changed = {
        "ProcessFailed": " --code .", "CommandNotFound": " --code .", "KilledBySignal": " --code .",
        "MaxTimeExceeded": " --max-time LONGER", "OutOfMemory": " --memory MORE",
        "DependencyFailed": " --after THE-NEW-ONE",
    }  # fmt: skip
    change = changed.get(str(job.reason), "")
    if job.reason == "EnvironmentFailed":
        change = " --requirements FILE" if job.spec.requirements is not None else ""
        change = " --image IMAGE" if job.spec.image is not None else change
    return f"danlu retry {job.name}{change}"


def secrets(spec: JobSpec) -> str:
    """Returns the names of the secrets that a job has, and where they are in it."""
    words = []
    for variable, use in spec.secrets.items():
        name = variable if use.secret == variable else f"{variable} (of {use.secret})"
        words.append(f"{name} as a file" if use.file else name)
    return ", ".join(words)
