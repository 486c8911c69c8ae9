"""A made-up trace, shaped as published ones are: most jobs small and short, a few large and very long; days and nights."""

from __future__ import annotations

import math
import random

from danlu.scheduler.model import SECOND_NS
from danlu.scheduler.trace import TraceJob

GPUS = {1: 0.66, 2: 0.10, 4: 0.09, 8: 0.105, 16: 0.03, 32: 0.012, 64: 0.003}
PROJECTS = {"vision": 0.35, "speech": 0.22, "nlp": 0.18, "ads": 0.12, "robotics": 0.08, "students": 0.05}
SEED, DAY_S, BETWEEN_S, LONGEST_S = 20180709, 86400, 160, 8 * 86400


def heavy_tailed(count: int = 6000) -> tuple[TraceJob, ...]:
    """Returns jobs for 16 nodes of 8 GPUs at a load of 1.0, each of which has declared how long it runs."""
    dice, now, found = random.Random(SEED), 0.0, []
    for at in range(count):
        now += dice.expovariate((1 + 0.6 * math.sin(2 * math.pi * (now % DAY_S) / DAY_S)) / BETWEEN_S)
        (gpus,) = dice.choices([*GPUS], [*GPUS.values()])
        lasts = min(max(dice.lognormvariate(6.4 + 0.18 * math.log2(gpus), 2.0), 20), LONGEST_S)
        (project,) = dice.choices([*PROJECTS], [*PROJECTS.values()])
        (priority,) = dice.choices([0, 10], [0.95, 0.05])
        duration = round(lasts) * SECOND_NS
        found.append(
            TraceJob(f"j{at:05d}", round(now) * SECOND_NS, duration, gpus, project, priority, declared=duration)
        )
    return tuple(found)
