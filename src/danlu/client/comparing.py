"""Two jobs, or a job and a folder, side by side. Of their code only what differs is fetched."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from danlu.api.bodies import MetricsQuery, Paging
from danlu.blobs.folders import scan
from danlu.client.transport import Client
from danlu.domain.differences import MAX_TEXT_BYTES, TreeChange, text_difference, tree_changes, value_changes
from danlu.domain.environments import Environment
from danlu.domain.jobs import Attempt, Job
from danlu.domain.specs import JobSpec
from danlu.domain.trees import MAX_NODE_BYTES, Entry, address_of
from danlu.errors import DataDamaged, InvalidSpec, NotFound

IDENTITY: Final = ("name", "code")
"""Not compared as fields: the name tells which job it is, the code is compared file by file."""
ORIGIN: Final = "git"
"""Where the code came from: told, but not counted as a difference, as the code itself is compared."""
MAX_ATTEMPTS: Final = 100
MAX_TEXTS: Final = 200
"""Changes among which texts are looked at line by line; what follows is only named."""


@dataclass(slots=True)
class Side:
    """One of the two: a job, or what a file describes, with its folder."""

    label: str
    spec: JobSpec
    tree: str | None
    job: Job | None = None
    environment: Environment | None = None
    nodes: Mapping[str, bytes] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)

    def described(self) -> dict[str, Any]:
        """Returns which one it is, for programs."""
        facts: dict[str, Any] = {"label": self.label, "code": self.tree}
        return facts | ({} if self.job is None else {"id": self.job.id, "name": self.job.name})


@dataclass(frozen=True, slots=True)
class FileChange:
    """One file that differs; ``text`` is a unified diff where both are small texts."""

    path: str
    kind: str
    old: Entry | None
    new: Entry | None
    text: list[str] | None


def of_job(client: Client, name: str) -> Side:
    """Returns a job as a side; its environment with it."""
    job: Job = client.call("jobs.get", {"job": name})
    environment = None
    if job.environment_id is not None:
        try:
            environment = client.call("environments.get", {"environment": job.environment_id})
        except NotFound:
            environment = None  # it was removed since; the specification still names it
    return Side(job.name, job.spec, job.spec.code, job, environment)


def of_folder(label: str, spec: JobSpec, folder: Path | None) -> Side:
    """Returns what a file describes as a side; its folder is read, and nothing of it is sent."""
    if folder is None:
        return Side(label, spec, spec.code)
    if not folder.is_dir():
        raise InvalidSpec(f"{folder} is not a folder", next_step="name the folder of your code in the file: code: DIR")
    found = scan(folder, code=True, now=time.time_ns())
    files = {address: folder / path for address, (path, _) in found.files.items()}
    return Side(label, spec, found.root, nodes=found.nodes, files=files)


def specification(old: Side, new: Side) -> dict[str, tuple[Any, Any]]:
    """Returns the fields that differ: dotted path -> (old, new)."""
    changes = value_changes(old.spec, new.spec)
    return {path: change for path, change in changes.items() if path not in IDENTITY and path.split(".")[0] != ORIGIN}


def origin(old: Side, new: Side) -> dict[str, tuple[Any, Any]]:
    """Returns what differs between the repositories that the code of two jobs was sent from. It may be the same code."""
    if old.job is None or new.job is None:
        return {}
    changes = value_changes(old.spec, new.spec)
    return {path: change for path, change in changes.items() if path.split(".")[0] == ORIGIN}


def code(client: Client, old: Side, new: Side, *, texts: bool) -> list[FileChange]:
    """Returns the files that differ, with unified diffs of small texts where they are wanted."""
    reader = _Reader(client, (old, new))
    changes = tree_changes(old.tree, new.tree, lambda address: reader.read(address, MAX_NODE_BYTES))
    return [_file(reader, change, texts=texts and at < MAX_TEXTS) for at, change in enumerate(changes)]


def environment(old: Side, new: Side) -> dict[str, tuple[Any, Any]]:
    """Returns what differs between the environments: which they are, and what was really built."""
    if old.environment is None or new.environment is None:
        return {}
    names = ("name", "python_version", "packages", "lock_digest")
    pairs = {name: (getattr(old.environment, name), getattr(new.environment, name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1] and None not in pair}


def results(client: Client, old: Job, new: Job) -> dict[str, tuple[Any, Any]]:
    """Returns how both went, what they used and the last value of each metric: name -> (old, new), equal ones too."""
    before, after = _outcome(client, old), _outcome(client, new)
    names = [*before, *(name for name in after if name not in before)]
    return {name: (before.get(name), after.get(name)) for name in names}


def _outcome(client: Client, job: Job) -> dict[str, Any]:
    attempts: list[Attempt] = client.call("jobs.attempts", {"job": job.id}, query=Paging(limit=MAX_ATTEMPTS)).items
    tasks = [task for attempt in attempts for task in attempt.tasks]
    peaks = [task.peak_memory_bytes for task in tasks if task.peak_memory_bytes is not None]
    used = [task.cpu_ns for task in tasks if task.cpu_ns is not None]
    ran = None if job.started_at is None or job.ended_at is None else (job.ended_at - job.started_at) / 1e9
    facts: dict[str, Any] = {
        "state": str(job.state),
        "reason": None if job.reason is None else str(job.reason),
        "exit_code": job.exit_code,
        "attempts": job.attempts,
        "ran_s": ran,
        "peak_memory_bytes": max(peaks, default=None),
        "cpu_s": sum(used) / 1e9 if used else None,
    }
    for series in client.call("jobs.metrics", {"job": job.id}, query=MetricsQuery(points=2)).series:
        facts[".".join(filter(None, ("metrics", series.name, series.task)))] = series.last
    return facts


def _file(reader: _Reader, change: TreeChange, *, texts: bool) -> FileChange:
    entries = [entry for entry in (change.old, change.new) if entry is not None and entry.kind == "file"]
    text = None
    if texts and change.kind == "changed" and len(entries) == 2 and max(e.size for e in entries) <= MAX_TEXT_BYTES:
        before, after = (reader.read(entry.address, MAX_TEXT_BYTES) for entry in entries)
        text = text_difference(before, after, change.path)
    return FileChange(change.path, change.kind, change.old, change.new, text)


class _Reader:
    """Reads blobs by address: of a folder here where it has them, else from the platform. Each is checked."""

    def __init__(self, client: Client, sides: tuple[Side, Side]) -> None:
        self._client, self._sides = client, sides

    def read(self, address: str, most_bytes: int) -> bytes:
        for side in self._sides:
            if address in side.nodes:
                return side.nodes[address]
            if address in side.files:
                return _checked(_local(side.files[address], most_bytes), address)
        copy = io.BytesIO()
        self._client.download(address, copy)
        return _checked(copy.getvalue(), address)


def _local(path: Path, most_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(most_bytes + 1)
    except OSError as error:
        raise InvalidSpec(f"{path} cannot be read: {error.strerror}") from error


def _checked(data: bytes, address: str) -> bytes:
    if address_of(data) != address:
        raise DataDamaged(f"{address} is not what its address says", next_step="did a file change meanwhile? repeat")
    return data


def predecessor(client: Client, name: str) -> tuple[Side, Side]:
    """Returns the job that another one repeats, and that one.

    Raises:
        NotFound: it repeats none.
    """
    new = of_job(client, name)
    assert new.job is not None  # noqa: S101 - a job's side has one
    if new.job.retry_of is None:
        raise NotFound(f"job {new.job.name} repeats no other one", next_step=f"name the other: danlu diff JOB {name}")
    return of_job(client, new.job.retry_of), new
