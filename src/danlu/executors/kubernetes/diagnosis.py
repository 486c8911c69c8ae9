"""Whether the cluster can run jobs, for ``danlu doctor``: it is asked, and nothing is made there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from danlu.domain.diagnosis import Check, fail, ok, warn
from danlu.domain.resources import format_cpu
from danlu.errors import DanluError
from danlu.executors.kubernetes.client import Api, Refused, batch, core
from danlu.executors.kubernetes.cluster import trimmed
from danlu.executors.kubernetes.manifests import PodSettings
from danlu.executors.kubernetes.nodes import capacity

NAME: Final = "danlu-doctor"
TRIED: Final = (
    ("secrets", core, {"apiVersion": "v1", "kind": "Secret"}),
    ("configmaps", core, {"apiVersion": "v1", "kind": "ConfigMap"}),
    ("services", core, {"apiVersion": "v1", "kind": "Service", "spec": {"clusterIP": "None", "selector": {"app": NAME}}}),
    ("jobs", batch, {"apiVersion": "batch/v1", "kind": "Job", "spec": {"template": {"spec": {
        "restartPolicy": "Never", "containers": [{"name": "main", "image": "none"}],
    }}}}),
)  # fmt: skip
"""What attempts are made of: each is made by a dry run (Kubernetes, "Dry-run")."""
ROLE: Final = "give the platform's account the rights that deploy/chart/rules lists"


def checks(api: Api, settings: PodSettings, tolerations: Iterable[Mapping[str, Any]]) -> Iterator[Check]:
    """Yields whether the cluster answers, lets the platform make what it needs, and has nodes that take its pods."""
    try:
        version = api.get("/version").get("gitVersion", "")
    except (Refused, DanluError) as error:
        yield fail("cluster", f"it does not answer: {error}", "look at KUBECONFIG or DANLU_KUBECONFIG: kubectl version")
        return
    yield ok("cluster", f"Kubernetes {version}")
    yield _namespace(api, settings.namespace)
    yield _nodes(api, settings, tolerations)


def _namespace(api: Api, namespace: str) -> Check:
    for kind, path, content in TRIED:
        try:
            api.create(path(namespace, kind), {**content, "metadata": {"name": NAME}}, dry_run=True)
        except Refused as error:
            if error.missing:
                return fail("namespace", f"there is no namespace {namespace}", f"kubectl create namespace {namespace}")
            if not error.exists:
                return fail("namespace", f"{namespace}: no {kind} can be made there: {error.message}", ROLE)
        except DanluError as error:
            return fail("namespace", f"{namespace}: {error.message}", error.next_step)
    return ok("namespace", f"{namespace}: what jobs need can be made there")


def _nodes(api: Api, settings: PodSettings, tolerations: Iterable[Mapping[str, Any]]) -> Check:
    try:
        found = capacity(api.list_all(core("", "nodes"), trimmed)[0], (), settings, tolerations)
    except Refused as error:
        return fail("nodes", f"they cannot be listed: {error.message}", ROLE)
    except DanluError as error:
        return fail("nodes", error.message, error.next_step)
    takes = [node for node in found if node.cpu_milli]
    cpu, gpus = format_cpu(sum(node.cpu_milli for node in takes)), sum(len(node.gpus) for node in takes)
    told = f"{len(takes)} of {len(found)} take the platform's pods: {cpu} cpu, {gpus} gpu"
    if not takes:
        return warn(
            "nodes", told, "kubectl describe nodes: not ready, cordoned, or with taints that no template tolerates"
        )
    return ok("nodes", told)
