"""Nodes that exist in the API server alone: kwok gives them heartbeats, and their pods a life without processes."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.kubernetes.cluster import layout, processes
from tests.kubernetes.cluster.api import MERGE_PATCH, Api, Refused
from tests.kubernetes.cluster.builds import program

LABEL = "danlu.test/fake"
TAINT = "danlu.test/fake"
"""Pods for real nodes stay away from fake ones by this taint."""
ANNOTATION = "kwok.x-k8s.io/node"
PODS = "10.245.0.0/16"
BATCH = 50
CONNECTIONS = 8
READY_TIMEOUT_S = 180.0
NODES_IN_RACK = 16
ALIVE = {"key": ".metadata.deletionTimestamp", "operator": "DoesNotExist"}
RUNNING = """
phase: Running
hostIP: {{ NodeIPWith .spec.nodeName | Quote }}
podIP: {{ PodIPWith .spec.nodeName false .metadata.uid .metadata.name .metadata.namespace | Quote }}
startTime: {{ Now | Quote }}
conditions:
- {type: Ready, status: "True", lastTransitionTime: {{ Now | Quote }}}
containerStatuses:
{{ range .spec.containers }}
- name: {{ .name | Quote }}
  image: {{ .image | Quote }}
  ready: true
  restartCount: 0
  state: {running: {startedAt: {{ Now | Quote }}}}
{{ end }}
"""


def fake_node(number: int, gpus: int) -> dict[str, Any]:
    name = f"fake-{number:05d}"
    resources = {"cpu": "96", "memory": "768Gi", "pods": "110", "ephemeral-storage": "1Ti"}
    resources |= {"nvidia.com/gpu": str(gpus)} if gpus else {}
    labels = {LABEL: "true", "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
              "topology.kubernetes.io/rack": f"rack-{number // NODES_IN_RACK}"}  # fmt: skip
    return {
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels, "annotations": {ANNOTATION: "fake"}},
        "spec": {"taints": [{"key": TAINT, "value": "true", "effect": "NoSchedule"}]},
        "status": {"capacity": resources, "allocatable": resources},
    }  # fmt: skip


def _stage(name: str, wanted: list[dict[str, Any]], then: dict[str, Any]) -> dict[str, Any]:
    spec = {"resourceRef": {"apiGroup": "v1", "kind": "Pod"}, "selector": {"matchExpressions": wanted}, "next": then}
    return {"apiVersion": "kwok.x-k8s.io/v1alpha1", "kind": "Stage", "metadata": {"name": name}, "spec": spec}


STAY = (
    _stage("run", [ALIVE, {"key": ".status.podIP", "operator": "DoesNotExist"}], {"statusTemplate": RUNNING}),
    _stage("go", [{**ALIVE, "operator": "Exists"}], {"finalizers": {"empty": True}, "delete": True}),
)
"""Pods run until somebody sets their status, or deletes them. Source of the format: kwok.sigs.k8s.io/docs/user/stages."""


def add(count: int, gpus: int, *, stay: bool = False) -> None:
    """Makes fake nodes up to a number, and waits until all are ready.

    Args:
        count: of nodes.
        gpus: of each.
        stay: a Job's pods run on until somebody ends them; else they succeed at once.
    """
    if processes.find("kwok") is None:
        stages = layout.run() / "stages.yaml"
        stages.write_text("\n---\n".join(map(json.dumps, STAY)))
        processes.start("kwok", [
            program("kwok"), f"--kubeconfig={layout.kubeconfig()}", f"--cidr={PODS}", "--node-ip=10.213.255.1",
            f"--manage-nodes-with-annotation-selector={ANNOTATION}=fake", "--manage-all-nodes=false",
            "--node-lease-duration-seconds=120", "--server-address=127.0.0.1:0",
            *([f"--config={stages}"] if stay else []),
        ])  # fmt: skip
    wanted = [fake_node(number, gpus) for number in range(count)]
    _everywhere("POST", [("/api/v1/nodes", node) for node in wanted], harmless=409)

    def ready() -> bool:
        return sum(is_ready(node) for node in api.pages("/api/v1/nodes", labelSelector=f"{LABEL}=true")) >= count

    with Api() as api:
        processes.wait_until(f"{count} fake nodes being ready", READY_TIMEOUT_S, ready)


def remove() -> None:
    """Removes all fake nodes, their pods, and kwok."""
    with Api() as api:
        names = {node["metadata"]["name"] for node in api.pages("/api/v1/nodes", labelSelector=f"{LABEL}=true")}
        pods = [pod["metadata"] for pod in api.pages("/api/v1/pods") if pod["spec"].get("nodeName") in names]
    if names:
        places = [f"/api/v1/namespaces/{pod['namespace']}/pods/{pod['name']}" for pod in pods]
        _everywhere("DELETE", [(place, {"gracePeriodSeconds": 0}) for place in places], harmless=404)
        _everywhere("DELETE", [(f"/api/v1/nodes/{name}", None) for name in sorted(names)], harmless=404)
    processes.stop("kwok")


def is_ready(node: dict[str, Any]) -> bool:
    return any(one["type"] == "Ready" and one["status"] == "True" for one in node["status"].get("conditions", ()))


def _everywhere(method: str, asked: list[tuple[str, object]], *, harmless: int) -> None:
    """Sends many requests, by several connections; one answer that is an error does no harm."""

    def send(part: list[tuple[str, object]]) -> None:
        with Api() as api:
            for path, body in part:
                try:
                    api(method, path, body)
                except Refused as refused:
                    if refused.status != harmless:
                        raise

    with ThreadPoolExecutor(CONNECTIONS) as threads:
        list(
            threads.map(send, [asked[i : i + BATCH] for i in range(0, len(asked), BATCH)])
        )  # raises what a thread raised


def set_resource(api: Api, node: str, resource: str, count: int) -> None:
    """Makes a node offer so many of a resource, as a device plugin would; 0 takes it away."""
    value = str(count) if count else None
    body = {"status": {"capacity": {resource: value}, "allocatable": {resource: value}}}
    api("PATCH", f"/api/v1/nodes/{node}/status", body, MERGE_PATCH)
