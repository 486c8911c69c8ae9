"""``danlu why X``: the arithmetic of waiting."""

from __future__ import annotations

import time

from danlu.cli import output as out
from danlu.cli import wording
from danlu.cli.options import Common, Names, Output, one
from danlu.cli.session import connect
from danlu.domain.jobs import waits_since
from danlu.domain.resources import format_bytes, format_cpu
from danlu.domain.views import NodeUse, Why

SHOWN_NODES = 10
SHOWN_AHEAD = 5


def why(
    *job: Names,
    output: Output = "table",
    common: Common | None = None,
) -> int:
    """Say why a job waits: what it asks for, who is before it, what is free; or why it ended.

    Example: danlu why bert-large-3
    """
    with connect(common) as client:
        found: Why = client.call("jobs.why", {"job": one(job)})
    if output in ("json", "yaml"):
        out.record(found, output)
        return 0
    if output == "name":
        out.write(f"job/{found.job.name}")
        return 0
    now = time.time_ns()
    job_ = found.job
    if job_.state != "queued":
        headline = (
            wording.outcome(job_) if not job_.live else f"is {job_.state}, for {wording.age(job_.started_at, now)}"
        )
        out.write(f"{job_.name} {headline}")
    else:
        position = "" if found.position is None else f", position {found.position}"
        out.write(f"{job_.name} waits: {job_.reason}, for {wording.age(waits_since(job_), now)}{position}")
        out.labelled("asks", [wording.asks(job_.spec)])
    if job_.state == "queued" or (job_.message and not wording.says_nothing_new(job_)):
        lines = [line for text in found.explanation for line in text.splitlines()]
        lines = [line.partition("; ")[2] or line if line.startswith("asks ") else line for line in lines]  # said above
        out.labelled("because", lines[:30])
    if found.ahead:
        more = len(found.ahead) - SHOWN_AHEAD
        names = list(found.ahead[:SHOWN_AHEAD]) + ([f"{more} more"] if more > 0 else [])
        out.labelled("ahead", [", ".join(names)])
    if found.nodes:
        lines = [_node(use) for use in found.nodes[:SHOWN_NODES]]
        if len(found.nodes) > SHOWN_NODES:
            lines.append(f"and {len(found.nodes) - SHOWN_NODES} more: danlu nodes")
        out.labelled("free", lines)
    if not job_.live:
        out.labelled("more", [f"danlu describe {job_.name}"])
    return 0


def _node(use: NodeUse) -> str:
    total = use.node.total
    text = (
        f"{use.node.id}: {format_cpu(use.free.cpu_milli)} of {format_cpu(total.cpu_milli)} cpu, "
        f"{format_bytes(use.free.memory_bytes)} of {format_bytes(total.memory_bytes)}"
    )
    return text + (f", {use.free.gpus} of {total.gpus} gpu ({wording.gpus(use.node)})" if total.gpus else "")
