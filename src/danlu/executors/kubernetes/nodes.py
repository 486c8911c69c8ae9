"""From lists of nodes and pods to what can be given away: allocatable minus what others' pods have asked for. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final

from danlu.domain.nodes import Gpu, NodeCapacity
from danlu.executors.kubernetes.manifests import PLATFORM, PodSettings
from danlu.executors.kubernetes.quantities import SECOND_NS, amount, milli, ns, whole

ZONES: Final = ("topology.kubernetes.io/rack", "topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone")
"""The nearest first: what a node has of them is its pool."""
GPU_MEMORY_LABEL: Final = "nvidia.com/gpu.memory"
"""MiB of one GPU, as NVIDIA's feature discovery tells it."""
CLOSED: Final = frozenset({"NoSchedule", "NoExecute"})
OUT_OF_SERVICE: Final = "node.kubernetes.io/out-of-service"
LOST_AFTER_NS: Final = 60 * SECOND_NS
"""So long after a node was last ready it counts as lost: what it runs is fenced off, and begun elsewhere."""
OVER: Final = frozenset({"Succeeded", "Failed"})
NO_KIND: Final = "gpu"

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Health:
    """Whether what runs on a node still runs, as far as can be known."""

    lost: bool = False
    why: str = ""


def health(node: Object, now: int) -> Health:
    """Returns a node's health; ``now`` in ns UTC."""
    name = node["metadata"]["name"]
    taints = node.get("spec", {}).get("taints") or []
    if any(taint.get("key") == OUT_OF_SERVICE for taint in taints):
        return Health(True, f"node {name} is out of service")
    ready = _ready(node)
    if ready is None or ready.get("status") == "True":
        return Health()
    since = ns(ready.get("lastTransitionTime"))
    if since is not None and now - since < LOST_AFTER_NS:
        return Health()
    return Health(True, f"node {name} does not answer: {ready.get('message') or ready.get('reason') or 'not ready'}")


def capacity(
    nodes: Iterable[Object], pods: Iterable[Object], settings: PodSettings, tolerations: Iterable[Object] = ()
) -> tuple[NodeCapacity, ...]:
    """Returns what each node has for this platform, by name; one that takes no pods has nothing.

    ``pods`` are all pods of the cluster; the platform's own do not count as used: their attempts are counted by Danlu.
    """
    used = _used(pods, settings)
    tolerated = tuple(tolerations)
    found = [_capacity(node, used.get(node["metadata"]["name"], Used()), settings, tolerated) for node in nodes]
    return tuple(sorted(found, key=lambda one: one.name))


@dataclass(slots=True)
class Used:
    """What others' pods on a node have asked for."""

    cpu_milli: int = 0
    memory_bytes: int = 0
    gpus: int = 0
    pods: int = 0


def _capacity(node: Object, used: Used, settings: PodSettings, tolerations: tuple[Object, ...]) -> NodeCapacity:
    meta, status = node["metadata"], node.get("status", {})
    marks = meta.get("labels") or {}
    pool = next((marks[zone] for zone in ZONES if marks.get(zone)), "")
    boot = str((status.get("nodeInfo") or {}).get("bootID", ""))
    if not _takes_pods(node, tolerations):
        return NodeCapacity(name=meta["name"], cpu_milli=0, memory_bytes=0)
    free = status.get("allocatable") or {}
    gpus = max(0, whole(free.get(settings.gpu_resource)) - used.gpus)
    kind, memory = kind_of(marks, settings), whole(marks.get(GPU_MEMORY_LABEL)) * 2**20
    return NodeCapacity(
        name=meta["name"],
        cpu_milli=max(0, milli(free.get("cpu")) - used.cpu_milli),
        memory_bytes=max(0, whole(free.get("memory")) - used.memory_bytes),
        gpus=tuple(Gpu(index=index, kind=kind, memory_bytes=memory) for index in range(gpus)),
        boot_id=boot,
        pool=pool,
    )


def kind_of(marks: Mapping[str, str], settings: PodSettings) -> str:
    """Returns Danlu's name of a node's kind of GPU: the one that is mapped, else made of the product's name."""
    product = marks.get(settings.gpu_label, "")
    known = next((kind for kind, products in settings.gpu_kinds.items() if product in products), "")
    made = re.sub(r"[^a-z0-9_.]+", "-", product.lower()).strip("-_.")[:63]
    return known or made or NO_KIND


def named(settings: PodSettings, kind: str | None, nodes: Callable[[], Iterable[Object]]) -> PodSettings:
    """Returns the settings with the products that a kind of GPU is: where they do not say so, those of nodes that have it."""
    if kind is None or kind in settings.gpu_kinds:
        return settings
    marks = [node["metadata"].get("labels") or {} for node in nodes()]
    products = {str(some.get(settings.gpu_label, "")) for some in marks if kind_of(some, settings) == kind}
    return replace(settings, gpu_kinds={**settings.gpu_kinds, kind: sorted(products or {kind})})


def _takes_pods(node: Object, tolerations: tuple[Object, ...]) -> bool:
    spec, ready = node.get("spec", {}), _ready(node)
    if spec.get("unschedulable") or ready is None or ready.get("status") != "True":
        return False
    closed = [taint for taint in spec.get("taints") or [] if taint.get("effect") in CLOSED]
    return all(any(tolerates(one, taint) for one in tolerations) for taint in closed)


def tolerates(toleration: Object, taint: Object) -> bool:
    """Whether a toleration opens what a taint closes (Kubernetes, "Taints and Tolerations")."""
    if toleration.get("effect") not in (None, "", taint.get("effect")):
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in (None, "", taint.get("key"))
    return toleration.get("key") == taint.get("key") and (toleration.get("value") or "") == (taint.get("value") or "")


def _ready(node: Object) -> Object | None:
    conditions = node.get("status", {}).get("conditions") or []
    return next((one for one in conditions if one.get("type") == "Ready"), None)


def _used(pods: Iterable[Object], settings: PodSettings) -> dict[str, Used]:
    found: dict[str, Used] = {}
    for pod in pods:
        meta, spec = pod["metadata"], pod.get("spec", {})
        node = spec.get("nodeName")
        if not node or pod.get("status", {}).get("phase") in OVER:
            continue
        if (meta.get("labels") or {}).get(PLATFORM) == settings.platform and meta.get(
            "namespace"
        ) == settings.namespace:
            continue
        one = found.setdefault(node, Used())
        one.cpu_milli += milli(_asked(spec, "cpu"))
        one.memory_bytes += whole(_asked(spec, "memory"))
        one.gpus += whole(_asked(spec, settings.gpu_resource))
        one.pods += 1
    return found


def _asked(spec: Object, resource: str) -> Decimal:
    """Returns what a pod takes: its containers' sum or its largest starter, whichever is more, and its overhead."""

    def of(container: Object) -> Decimal:
        return amount(((container.get("resources") or {}).get("requests") or {}).get(resource))

    starters = spec.get("initContainers") or []
    beside = sum((of(one) for one in starters if one.get("restartPolicy") == "Always"), Decimal(0))
    together = sum((of(one) for one in spec.get("containers") or []), beside)
    first = max((of(one) for one in starters if one.get("restartPolicy") != "Always"), default=Decimal(0))
    return max(together, first) + amount((spec.get("overhead") or {}).get(resource))
