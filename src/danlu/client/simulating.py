"""What would be if: a trace's jobs, or what really happened on a platform, on these nodes, with these quotas, by this policy.

It is computed here, by the scheduler itself: a platform is asked for what it has recorded and for nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal, TypedDict, Unpack

from danlu.api.bodies import OffsetQuery, Paging, TraceQuery
from danlu.client.lists import listed
from danlu.client.transport import Client
from danlu.domain.ids import NAME_PATTERN
from danlu.domain.nodes import Gpu, NodeCapacity
from danlu.domain.quotas import MAX_WEIGHT, Quota, contradictions, is_kept, parse_amount
from danlu.domain.resources import MAX_GPUS, parse_duration
from danlu.domain.validation import suggestion
from danlu.domain.views import NodeUse, QuotaUse, TextPage, TracedJob
from danlu.errors import InvalidRequest
from danlu.scheduler import baselines, simulator
from danlu.scheduler.cycle import Scheduler
from danlu.scheduler.model import SECOND_NS, Policy
from danlu.scheduler.recording import Recorder, Replay, replay
from danlu.scheduler.report import Report, report
from danlu.scheduler.simulator import Costs, Decider, Result, Watch
from danlu.scheduler.trace import TraceJob, parse

PolicyName = Literal["danlu", "fifo-easy", "srtf", "las"]
POLICIES: Final[Mapping[str, Callable[[Policy], Decider]]] = {
    "danlu": Scheduler,
    "fifo-easy": lambda _: baselines.FifoEasy(),
    "srtf": lambda _: baselines.Srtf(),
    "las": lambda policy: baselines.Las(policy=policy),
}
COMPARED: Final[tuple[PolicyName, ...]] = ("danlu", "fifo-easy", "srtf")
ALL_KNOWING: Final = frozenset({"fifo-easy", "srtf"})
"""They are told how long each job runs, which nobody knows beforehand."""
KEEP_QUOTAS: Final = frozenset({"danlu"})
MAX_TRACE_BYTES: Final = 256 * 2**20
MAX_NODES: Final = 10_000
CORES_PER_GPU, MEMORY_PER_GPU = 32, 256 * 2**30
"""What a node that is written as ``16x8`` has for each of its GPUs: so much that in a trace of GPUs nothing else is short."""
_NODES = re.compile(r"([1-9][0-9]{0,4})x([0-9]{1,4})(?::([a-z0-9][a-z0-9.-]{0,31}))?")


class WhatIf(TypedDict, total=False):
    """What may be otherwise.

    ``limits`` and ``guarantees``: ``{"team-a.gpu": 16}``; -1: unlimited. ``weights``: ``{"team-a": 2}``. ``restart``,
    ``checkpoint`` and ``notice`` as in ``danlu simulate``: ``"30s"`` or seconds.
    """

    limits: Mapping[str, int | str]
    guarantees: Mapping[str, int | str]
    weights: Mapping[str, int]
    restart: str | float
    checkpoint: str | float | None
    notice: str | float


@dataclass(frozen=True, slots=True)
class Scene:
    """What is simulated: jobs, nodes, quotas, what making way costs. ``left_out``: jobs that have not ended, or never ran."""

    trace: tuple[TraceJob, ...]
    nodes: tuple[NodeCapacity, ...]
    quotas: tuple[Quota, ...] = ()
    costs: Costs = field(default_factory=Costs)
    left_out: int = 0

    def changed(self, **what: Unpack[WhatIf]) -> Scene:
        """Returns it with what is otherwise.

        Raises:
            InvalidRequest: an amount or a duration is none, or quotas contradict one another.
        """
        quotas = {quota.id: quota for quota in self.quotas}
        for part, given in (("limit", what.get("limits", {})), ("guarantee", what.get("guarantees", {}))):
            for key, text in given.items():
                name, resource, amount = _amount(f"{key}={text}")
                quota = quotas.get(name) or _quota(name)
                old = quota.limit if part == "limit" else quota.guarantee
                quotas[name] = quota.model_copy(update={part: {**old, resource: amount}})
        for name, weight in what.get("weights", {}).items():
            if not isinstance(weight, int) or not 1 <= weight <= MAX_WEIGHT:
                raise InvalidRequest(f"the weight of {name} is {weight!r:.40}: it is from 1 to {MAX_WEIGHT}")
            quotas[name] = (quotas.get(name) or _quota(name)).model_copy(update={"weight": weight})
        if wrong := contradictions(quotas):
            raise InvalidRequest("these quotas contradict one another:\n" + "\n".join(wrong))
        costs = self.costs
        if "restart" in what:
            costs = replace(costs, restart=_ns("restart", what["restart"]))
        if "notice" in what:
            costs = replace(costs, notice=_ns("notice", what["notice"]))
        if (checkpoint := what.get("checkpoint")) is not None:
            costs = replace(costs, checkpoint=_ns("checkpoint", checkpoint, zero=False))
        return replace(self, quotas=tuple(quotas.values()), costs=costs)


def _quota(name: str) -> Quota:
    if not re.fullmatch(NAME_PATTERN, name):
        raise InvalidRequest(f"{name!r:.80} is not a project's name", next_step="write for example team-a.gpu=16")
    return Quota(id=name, project=name, created_at=0, updated_at=0)


def _amount(word: str) -> tuple[str, str, int]:
    """Returns whose, of what, how much, from ``team-a.gpu=16``."""
    name, dot, rest = word.partition(".")
    resource, equals, text = rest.partition("=")
    if not (name and dot and resource and equals):
        raise InvalidRequest(
            f"{word!r:.80} is not PROJECT.RESOURCE=AMOUNT", next_step="write for example team-a.gpu=16"
        )
    if is_kept(resource):
        raise InvalidRequest(f"{word!r:.80}: no job waits for {resource}, so that there is nothing of it to simulate")
    try:
        return name, resource, parse_amount(resource, text)
    except ValueError as error:
        raise InvalidRequest(f"{word!r:.80}: {error}") from error


def _ns(name: str, text: str | float, *, zero: bool = True) -> int:
    if zero and str(text) in ("0", "0s"):
        return 0
    try:
        return round(parse_duration(text) * SECOND_NS)
    except ValueError as error:
        raise InvalidRequest(f"{name}: {error}") from error


def parse_nodes(text: str) -> tuple[NodeCapacity, ...]:
    """Returns nodes from ``16x8`` (16 nodes of 8 GPUs) or ``12x8:h100,4x4:a100``.

    Raises:
        InvalidRequest: it is not so written, or there are too many.
    """
    nodes: list[NodeCapacity] = []
    for part in text.replace(" ", "").split(","):
        found = _NODES.fullmatch(part)
        if found is None:
            small = text.lower() != text and all(map(_NODES.fullmatch, text.lower().replace(" ", "").split(",")))
            meant = f"did you mean {text.lower():.80}?   " if small else ""
            raise InvalidRequest(
                f"{text!r:.80} does not tell nodes", next_step=f"{meant}16x8 are 16 nodes of 8 GPUs; 4x8:h100,2x4:a100"
            )
        count, gpus, kind = int(found[1]), int(found[2]), found[3] or "gpu"
        if gpus > MAX_GPUS or len(nodes) + count > MAX_NODES:
            raise InvalidRequest(f"{text!r:.80}: at most {MAX_NODES:,} nodes of {MAX_GPUS:,} GPUs")
        for _ in range(count):
            nodes.append(
                NodeCapacity(
                    name=f"node-{len(nodes):04d}",
                    cpu_milli=1000 * CORES_PER_GPU * max(1, gpus),
                    memory_bytes=MEMORY_PER_GPU * max(1, gpus),
                    gpus=tuple(Gpu(index=index, kind=kind) for index in range(gpus)),
                )
            )
    return tuple(nodes)


def read_trace(path: str | Path) -> tuple[TraceJob, ...]:
    """Returns the jobs of a trace's file.

    Raises:
        InvalidRequest: it cannot be read, or is no trace.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_TRACE_BYTES + 1)
        if len(data) > MAX_TRACE_BYTES:
            raise InvalidRequest(
                f"{path} has more than {MAX_TRACE_BYTES // 2**20} MiB", next_step="simulate a part of it"
            )
        return parse(data.decode())
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"{path} is not text in UTF-8: byte {error.start}", next_step="save it as CSV in UTF-8"
        ) from error


def recorded(client: Client, *, since: int | None = None, platform: bool = False) -> Scene:
    """Returns what really happened on a platform: its ended jobs, its nodes, its quotas.

    Args:
        client: of that platform.
        since: jobs submitted from then on (ns UTC).
        platform: the jobs of all projects, not of the client's alone; for administrators.
    """
    found: list[TracedJob]
    found, _ = listed(client, "trace.get", TraceQuery(since=since, platform=platform), 0)
    nodes: tuple[NodeUse, ...] = client.call("nodes.list").items
    quotas: list[QuotaUse]
    quotas, _ = listed(client, "quotas.list", Paging(), 0)
    trace = [traced for job in found if (traced := of_record(job)) is not None]
    if not trace:
        raise InvalidRequest(
            "the platform has no job that has ended since then"
            if since
            else "the platform has no job that has ended yet",
            next_step="simulate a trace of your own: danlu simulate TRACE --nodes 16x8",
        )
    return Scene(
        tuple(sorted(trace, key=lambda job: (job.submit, job.id))),
        tuple(use.node.capacity for use in nodes),
        tuple(use.quota for use in quotas),
        left_out=len(found) - len(trace),
    )


def decided(client: Client) -> Iterator[str]:
    """Yields what a platform's scheduler was told and decided since the server's start, a line a call; for administrators."""
    offset = 0
    while True:
        page: TextPage = client.call("trace.decisions", query=OffsetQuery(offset=offset))
        yield from page.text.splitlines(keepends=True)
        if page.done:
            return
        offset = page.offset


def of_record(job: TracedJob) -> TraceJob | None:
    """Returns a job that a platform has recorded as one of a trace; None: it has not ended, or never ran."""
    if job.ended_at is None or not job.ran_ns:
        return None
    return TraceJob(
        id=job.id, submit=job.submitted_at, duration=job.ran_ns, gpus=job.gpus, project=job.project, priority=job.priority,
        declared=job.declared_ns, tasks=job.tasks, cpu_milli=job.cpu_milli, memory_bytes=job.memory_bytes,
        gpu_kind=job.gpu_kind,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Played:
    """A simulation: what became of each job, and the figures."""

    policy: str
    result: Result
    report: Report


def play(
    scene: Scene, policy: str = "danlu", *, watch: Watch | None = None, record: Callable[[str], None] | None = None
) -> Played:
    """Simulates by one policy. Those that it is compared with know nothing of quotas.

    Args:
        scene: what.
        policy: one of ``POLICIES``.
        watch: is told how far it is.
        record: gets the lines of a recording.

    Raises:
        InvalidRequest: there is no such policy.
    """
    make = POLICIES.get(policy)
    if make is None:
        raise InvalidRequest(
            f"there is no policy {policy!r:.40}",
            next_step=f"{suggestion(policy, POLICIES)}   there are {', '.join(POLICIES)}".strip(),
        )
    rules = Policy()
    decider = make(rules)
    if record is not None:
        decider = Recorder(decider, rules, record)
    quotas = scene.quotas if policy in KEEP_QUOTAS else ()
    costs = replace(scene.costs, all_known=policy in ALL_KNOWING)
    result = simulator.simulate(scene.trace, scene.nodes, decider, quotas=quotas, costs=costs, watch=watch)
    return Played(policy, result, report(replace(result, quotas=scene.quotas), policy))


def play_again(lines: Iterable[str], policy: str = "danlu") -> Replay:
    """Plays a recording to a fresh scheduler and compares its decisions."""
    return replay(lines, POLICIES[policy])


def simulate(
    trace: str | Path | Sequence[TraceJob], nodes: str, policy: PolicyName = "danlu", **what: Unpack[WhatIf]
) -> Report:
    """Simulates a trace, and returns the figures: mean completion time, waits by size, fairness ...

    Args:
        trace: a CSV file (docs/reference/trace.md), or jobs.
        nodes: ``16x8``: 16 nodes of 8 GPUs; ``12x8:h100,4x4:a100``.
        policy: the platform's own scheduler, or one to compare it with: ``fifo-easy``, ``srtf``, ``las``.
        **what: limits, guarantees, weights, restart, checkpoint, notice: see WhatIf.

    Raises:
        InvalidRequest: the trace is not right, with the numbers of its lines; or another argument is not.
    """
    jobs = read_trace(trace) if isinstance(trace, str | Path) else tuple(trace)
    return play(Scene(jobs, parse_nodes(nodes)).changed(**what), policy).report
