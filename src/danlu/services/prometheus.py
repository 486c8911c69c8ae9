"""Figures for Prometheus, in its text format."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from danlu.database import queries, usage
from danlu.database.engine import Transaction
from danlu.database.leadership import Term
from danlu.database.records import NODES
from danlu.domain.ledger import HELD, SECOND_NS
from danlu.domain.nodes import Node
from danlu.domain.usage import By, Piece
from danlu.services.context import Call
from danlu.services.fitting import MAX_NODES

if TYPE_CHECKING:
    from prometheus_client.core import Metric

CORRECTED: Final = "corrected"
"""What was moved from used or idle to platform afterwards: a counter cannot take it back."""
FOREVER: Final = 2**63 - 1


def get(call: Call) -> bytes:
    """Returns the platform's figures: what was held, what there is, the jobs."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected((*call.platform.database.read(_metrics), *_leader(call.platform.term()))))
    return generate_latest(registry)


class _Collected:
    """What prometheus_client asks for figures."""

    def __init__(self, metrics: tuple[Metric, ...]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """Yields them."""
        yield from self._metrics


def _metrics(tx: Transaction) -> tuple[Metric, ...]:
    return _resources(usage.pieces(tx, 0, FOREVER, By.PROJECT)), _capacity(NODES.find(tx, limit=MAX_NODES)), _jobs(tx)


def _leader(term: Term | None) -> tuple[Metric, ...]:
    """Of the server that is asked, not of the platform: the sum over all servers is 1."""
    from prometheus_client.core import GaugeMetricFamily

    leads = term is not None and term.leads
    epoch = 0 if term is None else term.lease.epoch
    return (
        GaugeMetricFamily("danlu_leader", "1 where this server leads: its controllers work.", value=int(leads)),
        GaugeMetricFamily(
            "danlu_leader_epoch", "The epoch in which this server leads, or led last; else 0.", value=epoch
        ),
    )


def _resources(pieces: Iterator[Piece]) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    found: dict[tuple[str, str, str], int] = defaultdict(int)
    for piece in pieces:
        account = CORRECTED if piece.debit in HELD else piece.credit
        for resource, amount in (
            ("cpu", piece.amounts.cpu_milli), ("memory", piece.amounts.memory_bytes),
            (f"gpu/{piece.amounts.gpu_kind}", piece.amounts.gpus),
        ):  # fmt: skip
            if amount:
                found[piece.project, resource, account] += amount * piece.length_ns
    metric = CounterMetricFamily(
        "danlu_resource_seconds",
        "Core, byte and GPU seconds that ended attempts held. Of account used, what is corrected was not charged.",
        labels=("project", "resource", "account"),
    )
    for (project, resource, account), amount in sorted(found.items()):
        unit = SECOND_NS * 1000 if resource == "cpu" else SECOND_NS
        metric.add_metric((project, resource, account), amount / unit)
    return metric


def _capacity(nodes: list[Node]) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    metric = GaugeMetricFamily(
        "danlu_capacity", "Cores, bytes and GPUs that a node has now.", labels=("node", "resource")
    )
    for node in nodes:
        kinds: dict[str, int] = defaultdict(int)
        for gpu in node.capacity.gpus:
            kinds[f"gpu/{gpu.kind}"] += 1
        metric.add_metric((node.id, "cpu"), node.capacity.cpu_milli / 1000)
        metric.add_metric((node.id, "memory"), node.capacity.memory_bytes)
        for kind, count in sorted(kinds.items()):
            metric.add_metric((node.id, kind), count)
    return metric


def _jobs(tx: Transaction) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    metric = GaugeMetricFamily("danlu_jobs", "How many jobs are in each state.", labels=("project", "state"))
    for (project, state), count in sorted(queries.job_counts_by_project(tx).items()):
        metric.add_metric((project, state), count)
    return metric
