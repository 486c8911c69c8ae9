"""From an attempt's folder to an observation: the status file, read again only when it has changed."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from danlu.domain.jobs import Task
from danlu.errors import DanluError, DataDamaged, ExecutorUnavailable
from danlu.executors.base import Observation, Phase
from danlu.executors.local import beneath
from danlu.runner import formats

MAX_ORDER_BYTES = 64 << 20
MAX_SAVED_BYTES = 4096
TAMPERED = (DanluError, OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What reading a folder raises whose owner may have written anything into it. It must not reach other attempts."""

PASSING = {
    errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR, errno.EIO, errno.ENOLCK, errno.ENOBUFS,
    errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.ETIMEDOUT, errno.EROFS,
}  # fmt: skip
"""What the machine lacks or fails at: no job can make its own folder raise them."""


def passing(error: BaseException) -> bool:
    """Whether an error is the machine's, so that the same may succeed later: nothing may be ended for it."""
    return isinstance(error, ExecutorUnavailable) or (isinstance(error, OSError) and error.errno in PASSING)


@dataclass(slots=True)
class Told:
    """What a status tells of one task: its first start, its end, how often it was started again."""

    started: dict[str, Any] = field(default_factory=dict)
    exited: dict[str, Any] = field(default_factory=dict)
    restarts: int = 0

    def add(self, event: dict[str, Any]) -> None:
        """Takes the next event."""
        kind = event["event"]
        if kind == "started":
            self.started = self.started or event
        elif kind == "exited":
            self.exited = self.exited or event
        elif kind == "restarted":
            self.restarts += 1


class Seen:
    """What is known of one attempt's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events: list[dict[str, Any]] = []
        self.clean = False
        self.salvages = 0
        self.salvage_at = 0.0
        self.kept = False
        self.lost: Observation | None = None
        self.collected: dict[tuple[str, str], int] = {}
        self._stamp: tuple[int, int] | None = None
        self._latest: dict[str, dict[str, Any]] = {}
        self._by_task: dict[object, Told] = {}
        self._observed: tuple[object, Observation] | None = None
        self._order: dict[str, Any] | None = None

    def refresh(self) -> None:
        """Reads the status again, if it has changed."""
        try:
            status = (self.folder / "status").lstat()
        except FileNotFoundError:
            return
        stamp = (status.st_size, status.st_mtime_ns)
        if stamp != self._stamp:

            def read(count: int, at: int) -> bytes:
                return beneath.read(self.folder, "status", max_bytes=count, offset=at)

            self._know(formats.status_of(read, status.st_size))
            self._stamp = stamp

    def _know(self, events: list[dict[str, Any]]) -> None:
        """Sorts events by kind and by task, once for every look; a job that forges them harms its own attempt alone."""
        by_task: dict[object, Told] = {}
        for event in events:
            name = event.get("task")
            if isinstance(name, str):
                by_task.setdefault(name, Told()).add(event)
        self.events, self._by_task = events, by_task
        self._latest = {event["event"]: event for event in events}

    def _last(self, event: str) -> dict[str, Any] | None:
        if not self.events:
            self.refresh()
        return self._latest.get(event)

    def observed(self) -> Observation:
        """Returns what the status says; the same one for as long as it says the same."""
        known = self._stamp, self.limits(), self._stamp_of(formats.SAVED)
        if self._observed is None or self._observed[0] != known:
            self._observed = known, _observation(self, self._by_task, known[1])
        return self._observed[1]

    def _stamp_of(self, name: str) -> tuple[int, int] | None:
        try:
            status = (self.folder / name).lstat()
        except OSError:
            return None
        return status.st_size, status.st_mtime_ns

    def saved(self) -> object:
        """Returns what was said last of the newest proven checkpoint."""
        ended = self.ended()
        if ended is not None and "saved" in ended:
            return ended["saved"]
        try:
            return json.loads(beneath.read(self.folder, formats.SAVED, max_bytes=MAX_SAVED_BYTES))
        except TAMPERED as error:
            if passing(error):
                raise
            return None

    def runner(self) -> dict[str, Any] | None:
        """Returns the runner's identity, if it has spoken in this boot of the machine."""
        found = self._last("runner")
        return found if found is not None and found.get("boot_id") == formats.boot_id() else None

    def ended(self) -> dict[str, Any] | None:
        """Returns the last word of the attempt, once it was said."""
        return self._last("ended")

    def order(self) -> dict[str, Any]:
        """Returns the order that the attempt was launched with; raises DataDamaged where the job has put another there."""
        if self._order is None:
            order = json.loads(beneath.read(self.folder, "order.json", max_bytes=MAX_ORDER_BYTES, ours=True))
            if order["attempt_id"] != self.folder.name:
                raise DataDamaged(f"{self.folder} has the order of {order['attempt_id']}")
            self._order = order
        return self._order

    def limits(self) -> tuple[str, ...]:
        """Returns what the launcher said is in force."""
        try:
            said = json.loads(beneath.read(self.folder, "launched.json", max_bytes=65_536, ours=True))
        except (OSError, ValueError, DataDamaged):
            return ()  # nothing is claimed that cannot be shown
        return tuple(str(name) for name in said.get("limits", ()))

    def running(self, message: str) -> Observation:
        """Returns that something of it is still there."""
        return Observation(attempt_id=self.folder.name, phase=Phase.RUNNING, limits=self.limits(), message=message)

    def unreadable(self, message: str) -> Observation:
        """Returns that it is lost: its folder cannot be read. The caller has made sure that nothing of it runs."""
        self.lost = Observation(
            attempt_id=self.folder.name, phase=Phase.LOST, message=message
        )  # that is never taken back
        return self.lost


def damage(seen: Seen) -> str:
    """Returns what in an attempt's folder keeps its output from being saved; empty where it looks as a runner left it."""
    try:
        owner = seen.folder.lstat().st_uid
        order = Seen(seen.folder).order()  # as it is now
        tasks = [Path(str(task["name"])) for task in order["tasks"]]
        for folder in [Path(), *tasks, *(task / "spool" for task in tasks)]:
            found = _foreign(seen.folder / folder, owner, stat.S_IFDIR, 0o700)
            if found:
                return found
        for task in tasks:
            if os.path.lexists(seen.folder / task / "spool" / "index"):
                data = beneath.read(seen.folder, str(task), "spool", "index", max_bytes=formats.INDEX_BYTES)
                formats.parse_index(data)
            spools = [task / "spool" / name for name in beneath.names(seen.folder, str(task), "spool")]
            for file in [Path("status"), Path("lock"), *(task / n for n in ("stdout", "stderr", "metrics")), *spools]:
                found = _foreign(seen.folder / file, owner, stat.S_IFREG, 0o600)
                if found:
                    return found
    except TAMPERED as error:
        if passing(error):
            raise
        return str(error)
    return ""


def _foreign(path: Path, owner: int, kind: int, bits: int) -> str:
    """Returns what is wrong with a file or folder that only the runner was to make; a missing file can be made again."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return f"{path} is gone" if kind == stat.S_IFDIR else ""
    right = stat.S_IFMT(status.st_mode) == kind and status.st_mode & bits == bits and status.st_uid == owner
    return "" if right else f"{path} is not as the runner made it"


def observation(seen: Seen) -> Observation:
    """Returns what the status says. ``ended`` must have been made sure of by the caller."""
    return seen.observed()


def _observation(seen: Seen, told: Mapping[object, Told], limits: tuple[str, ...]) -> Observation:
    ended = seen.ended()
    tasks = tuple(_task(spec, told.get(spec["name"], Told())) for spec in seen.order()["tasks"])
    started = min((t.started_at for t in tasks if t.started_at is not None), default=None)
    resumed = next((e.get("checkpoint") for e in seen.events if e["event"] == "resumed"), None)
    phase = Phase.STARTING if started is None else Phase.RUNNING
    if ended is not None:
        phase = Phase.LOST if ended.get("lost") else Phase.ENDED
    return Observation(
        attempt_id=seen.folder.name,
        phase=phase,
        tasks=() if started is None and ended is None else tasks,
        started_at=started,
        ended_at=None if ended is None else int(ended["at"]),
        seen_at=None if ended is None else ended.get("seen_at"),
        stopped=bool(ended and ended.get("stopped")),
        timed_out=bool(ended and ended.get("timed_out")),
        preempted=bool(ended and ended.get("preempted")),
        **_saved(seen.saved()),
        limits=limits,
        resumed_from=None if resumed is None else Path(str(resumed)).name,
        message="" if ended is None else str(ended.get("message", ""))[:4096],
    )


def _saved(said: object) -> dict[str, Any]:
    """Returns which checkpoint is the newest proven one, where that is told as it should be: the job may have written it."""
    if not isinstance(said, dict):
        return {}
    at, name = said.get("at"), said.get("name")
    if type(at) is not int or not 0 <= at < 2**63 or not isinstance(name, str):
        return {}
    return {"saved_at": at, "saved_as": name[:255]}


def _task(spec: dict[str, Any], told: Told) -> Task:
    started, exited = told.started, told.exited
    return Task(
        role=spec["role"],
        index=spec["index"],
        rank=spec["rank"],
        node=spec.get("node", ""),
        resources=spec.get("resources", {}),
        devices=tuple(spec["devices"]),
        ports=tuple(spec.get("ports", ())),
        started_at=started.get("at"),
        ended_at=exited.get("at"),
        exit_code=exited.get("exit_code"),
        signal=exited.get("signal"),
        oom=bool(exited.get("oom")),
        stopped=bool(exited.get("stopped")),
        restarts=told.restarts,
        port_taken=exited.get("port_taken"),
        last_lines=str(exited.get("last_lines", ""))[:4096],
        error=str(exited.get("error", ""))[:4096],
        peak_memory_bytes=exited.get("peak_memory_bytes"),
        cpu_ns=exited.get("cpu_ns"),
    )
