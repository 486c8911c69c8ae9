"""What is in use now: each running task's last measurement, and what waits. Of each stream only the end is read."""

from __future__ import annotations

import json
import re
from typing import Any, Final

from danlu.blobs.streams import StreamKey, Streams
from danlu.database import queries
from danlu.database.engine import Transaction
from danlu.database.records import JOBS, NODES
from danlu.domain.jobs import Attempt, Job, JobState, Task, waits_since
from danlu.domain.nodes import Node
from danlu.domain.views import GpuUse, JobUse, NodeLoad, TaskUse, Top, Waiting
from danlu.runner.formats import SYSTEM
from danlu.services import nodes
from danlu.services.context import Call
from danlu.services.fitting import MAX_NODES
from danlu.services.metrics import METRICS

TAILS_BYTES: Final = (16 * 1024, 256 * 1024, 4 * 2**20)
"""How far back a measurement is looked for: a program may log much between two of them."""
MAX_JOBS: Final = 500
MAX_WAITING: Final = 100
MARK: Final = f'"{SYSTEM}'.encode()
GPU: Final = re.compile(rf"{SYSTEM}gpu(\d{{1,5}})_(percent|memory_bytes)")


def get(call: Call) -> Top:
    """Returns what the project's running jobs use, the nodes' load by all projects, and what waits, oldest first."""

    def work(tx: Transaction) -> tuple[list[Attempt], list[Node], dict[str, Job], list[Job], int]:
        holding = queries.holding_attempts(tx)
        ids = tuple(attempt.job_id for attempt in holding if attempt.project == call.project)[-MAX_JOBS:]
        running = {job.id: job for job in JOBS.find(tx, id=ids, limit=MAX_JOBS)} if ids else {}
        where: dict[str, Any] = {"project": call.project, "state": JobState.QUEUED}
        waiting = JOBS.find(tx, limit=MAX_WAITING, **where)
        return holding, NODES.find(tx, limit=MAX_NODES), running, waiting, JOBS.count(tx, **where)

    holding, machines, running, waiting, count = call.platform.database.read(work)
    used = {
        attempt.id: tuple(_task(call.platform.streams, attempt, task) for task in attempt.tasks) for attempt in holding
    }
    return Top(
        at=call.platform.clock.now(),
        nodes=_loads(machines, holding, used),
        jobs=tuple(
            JobUse(
                job_id=job.id,
                name=job.name,
                state=job.state,
                attempt=attempt.number,
                started_at=attempt.started_at,
                tasks=used[attempt.id],
            )
            for attempt in holding
            if (job := running.get(attempt.job_id)) is not None
        ),
        waiting=tuple(
            Waiting(job_id=job.id, name=job.name, reason=job.reason, queued_at=waits_since(job), asks=job.spec.shapes)
            for job in waiting
        ),
        waiting_count=count,
    )


def _loads(machines: list[Node], holding: list[Attempt], used: dict[str, tuple[TaskUse, ...]]) -> tuple[NodeLoad, ...]:
    cores: dict[str, float] = {}
    memory: dict[str, int] = {}
    for tasks in used.values():
        for task in tasks:
            cores[task.node] = cores.get(task.node, 0.0) + (task.cpu_cores or 0.0)
            memory[task.node] = memory.get(task.node, 0) + (task.memory_bytes or 0)
    return tuple(
        NodeLoad(use=use, cpu_cores=round(cores.get(use.node.id, 0.0), 3), memory_bytes=memory.get(use.node.id, 0))
        for use in nodes.use_of(machines, holding)
    )


def _task(streams: Streams, attempt: Attempt, task: Task) -> TaskUse:
    over = task.ended_at is not None
    at, values = (None, {}) if over else newest(streams, StreamKey(attempt.project, attempt.id, task.name, METRICS))
    gpus: dict[int, dict[str, float]] = {index: {} for index in task.devices}
    for name, value in values.items():
        if (found := GPU.fullmatch(name)) is not None:
            gpus.setdefault(int(found.group(1)), {})[found.group(2)] = value
    return TaskUse(
        task=task.name,
        rank=task.rank,
        node=task.node,
        asked=task.resources,
        ended=over,
        measured_at=at,
        cpu_cores=values.get(f"{SYSTEM}cpu_cores"),
        memory_bytes=_whole(values.get(f"{SYSTEM}memory_bytes")),
        gpus=tuple(
            GpuUse(index=index, percent=said.get("percent"), memory_bytes=_whole(said.get("memory_bytes")))
            for index, said in sorted(gpus.items())
        ),
    )


def newest(streams: Streams, key: StreamKey) -> tuple[int | None, dict[str, float]]:
    """Returns (time in ns, values) of the last measurement in a metrics stream; (None, {}) where its end has none."""
    size = streams.size(key)
    for tail in TAILS_BYTES:
        begin = max(0, size - tail)
        data = streams.read(key, begin, size - begin)
        end = len(data)
        while (found := data.rfind(MARK, 0, end)) >= 0:
            line_begin = data.rfind(b"\n", 0, found) + 1
            line_end = data.find(b"\n", found)
            if line_end >= 0 and (line_begin or begin == 0):
                point = _measurement(data[line_begin:line_end])
                if point is not None:
                    return point
            end = max(0, line_begin - 1)
        if begin == 0:
            break
    return None, {}


def _measurement(line: bytes) -> tuple[int, dict[str, float]] | None:
    """Returns a line's time and values, if it is a measurement; the spool that it came from is the job's own."""
    try:
        point = json.loads(line)
        values = {str(name): float(value) for name, value in point["m"].items() if 0 <= float(value) < 2**63}
        return (int(point["t"]), values) if values and all(name.startswith(SYSTEM) for name in values) else None
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
