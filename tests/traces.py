"""Made-up traces and clusters for tests of schedulers, and what has to hold of every simulation."""

from __future__ import annotations

import random

from danlu.blobs.streams import Streams
from danlu.domain.nodes import Gpu, NodeCapacity
from danlu.scheduler.model import SECOND_NS
from danlu.scheduler.simulator import Result
from danlu.scheduler.trace import TraceJob
from danlu.services.trace import DECISIONS

SECOND = SECOND_NS


def cluster(count: int, gpus: int, kind: str = "gpu", *, cpu: int = 64, begin: int = 0) -> tuple[NodeCapacity, ...]:
    """Returns nodes of so many GPUs and cores."""
    devices = tuple(Gpu(index=index, kind=kind) for index in range(gpus))
    return tuple(
        NodeCapacity(name=f"n{begin + at}", cpu_milli=1000 * cpu, memory_bytes=2**36, gpus=devices)
        for at in range(count)
    )


def job(name: str, submit: float, duration: float, gpus: int = 1, **fields: object) -> TraceJob:
    """Returns a job; times in seconds."""
    return TraceJob(name, round(submit * SECOND), round(duration * SECOND), gpus, **fields)  # type: ignore[arg-type]


def random_trace(seed: int, count: int = 40, *, most_gpus: int = 12, projects: int = 3) -> tuple[TraceJob, ...]:
    """Returns jobs of many sizes and lengths that come in bursts: gangs, jobs without GPUs, some that ask for memory."""
    dice = random.Random(seed)
    found, now = [], 0.0
    for at in range(count):
        now += dice.choice((0.0, dice.expovariate(1 / 40)))
        gpus = dice.choice((0, 1, 1, 1, 2, 3, 4, 8, most_gpus))
        duration = max(1.0, dice.lognormvariate(4, 1.5))
        found.append(
            job(
                f"j{at}", now, duration, gpus, project=f"p{dice.randrange(projects)}", priority=dice.choice((0, 0, 0, 10)),
                tasks=dice.choice((None, None, 2)) if 1 < gpus <= 8 else None, cpu_milli=1000 * dice.choice((0, 1, 4)),
                memory_bytes=dice.choice((0, 2**30)), declared=round(duration * dice.choice((1, 1, 2, 10)) * SECOND),
            )
        )  # fmt: skip
    return tuple(found)


def holds(result: Result, *, restart: int | None) -> None:
    """Asserts what holds of every simulation in which all jobs fit: all end, and what was held is what was done and paid.

    ``restart``: what a start after the first one costs (ns); None: work was lost too.

    That no plan was over capacity or a limit, or a gang in part, is checked within the simulation.
    """
    for one in result.outcomes:
        assert one.end is not None, f"{one.job.id} never ended: {one.why}"
        assert one.first_start is not None
        assert one.job.submit <= one.first_start < one.end
        assert one.end - one.job.submit >= one.held >= one.job.duration
        if one.starts == 1:
            assert one.held == one.job.duration == one.end - one.first_start
        elif restart is not None:
            assert one.held <= one.job.duration + (one.starts - 1) * restart  # nothing is lost where all is saved
    assert sum(one.starts - 1 for one in result.outcomes) <= result.preemptions  # some end within their notice


def recorded(streams: Streams) -> list[str]:
    """Returns what a platform's scheduler was told and decided since its last start."""
    return streams.read(DECISIONS, 0, 2**30).decode().splitlines(keepends=True)
