"""From the events that runners tell to tasks and observations, wherever the runners are. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from danlu.domain.jobs import Task
from danlu.executors.base import Observation, Phase

Event = Mapping[str, Any]


@dataclass(slots=True)
class Told:
    """What a status tells of one task: its first start, its end, how often it was started again."""

    started: Event = field(default_factory=dict)
    exited: Event = field(default_factory=dict)
    restarts: int = 0

    def add(self, event: Event) -> None:
        """Takes the next event."""
        kind = event["event"]
        if kind == "started":
            self.started = self.started or event
        elif kind == "exited":
            self.exited = self.exited or event
        elif kind == "restarted":
            self.restarts += 1


class Status:
    """A status's events, sorted by kind and by task once; a job that forges them harms its own attempt alone."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.events = tuple(events)
        self._by_task: dict[str, Told] = {}
        for event in self.events:
            name = event.get("task")
            if isinstance(name, str):
                self._by_task.setdefault(name, Told()).add(event)
        self._latest = {str(event["event"]): event for event in self.events}

    def latest(self, kind: str) -> Event | None:
        """Returns the last event of a kind."""
        return self._latest.get(kind)

    def of(self, task: str) -> Told:
        """Returns what is told of a task."""
        return self._by_task.get(task) or Told()

    @property
    def ended(self) -> Event | None:
        """The last word, once it was said."""
        return self.latest("ended")

    @property
    def resumed_from(self) -> str | None:
        """The name of the checkpoint that the attempt was handed first, if any."""
        found = next((event.get("checkpoint") for event in self.events if event["event"] == "resumed"), None)
        return None if found is None else PurePath(str(found)).name


def observation(
    attempt_id: str, specs: Iterable[Mapping[str, Any]], status: Status, saved: object, limits: tuple[str, ...]
) -> Observation:
    """Returns what the status of an attempt with these tasks (as in its order) says."""
    ended = status.ended
    tasks = tuple(task(spec, status.of(str(spec["name"]))) for spec in specs)
    started = min((t.started_at for t in tasks if t.started_at is not None), default=None)
    phase = Phase.STARTING if started is None else Phase.RUNNING
    if ended is not None:
        phase = Phase.LOST if ended.get("lost") else Phase.ENDED
    return Observation(
        attempt_id=attempt_id,
        phase=phase,
        tasks=() if started is None and ended is None else tasks,
        started_at=started,
        ended_at=None if ended is None else int(ended["at"]),
        seen_at=None if ended is None else ended.get("seen_at"),
        stopped=bool(ended and ended.get("stopped")),
        timed_out=bool(ended and ended.get("timed_out")),
        preempted=bool(ended and ended.get("preempted")),
        **checkpoint(saved),
        limits=limits,
        resumed_from=status.resumed_from,
        message="" if ended is None else str(ended.get("message", ""))[:4096],
    )


def checkpoint(said: object) -> dict[str, Any]:
    """Returns which checkpoint is the newest proven one, where that is told as it should be: the job may have written it."""
    if not isinstance(said, Mapping):
        return {}
    at, name = said.get("at"), said.get("name")
    if type(at) is not int or not 0 <= at < 2**63 or not isinstance(name, str):
        return {}
    return {"saved_at": at, "saved_as": name[:255]}


def task(spec: Mapping[str, Any], told: Told) -> Task:
    """Returns a task of an order with what became of it."""
    started, exited = told.started, told.exited
    return Task(
        role=spec["role"],
        index=spec["index"],
        rank=spec["rank"],
        node=spec.get("node", ""),
        resources=spec.get("resources", {}),
        devices=tuple(spec.get("devices") or ()),
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
