"""Names, addresses and folders of the cluster: one per machine, shared by all clones of one user."""

from __future__ import annotations

from pathlib import Path

from tests.kubernetes.cluster import builds

BRIDGE = "danlubr0"
HOST = "10.213.0.1"
"""This machine as pods see it, and the API server's address. Not podman's and not docker's network."""
NODES = ("node-1", "node-2")
PODS = "10.244.0.0/16"
SERVICES = "10.96.0.0/16"
KUBERNETES_SERVICE = "10.96.0.1"
GROUP = "danlu-cluster"
"""The control group of all that the cluster runs on this machine, pods excepted."""


def number(node: str) -> int:
    return NODES.index(node) + 1


def address(node: str) -> str:
    return f"10.213.0.{10 + number(node)}"


def pod_range(node: str) -> str:
    return f"10.244.{number(node)}.0/24"


def namespace(node: str) -> str:
    """Returns the name of a node's network namespace, which its pods' control group bears too."""
    return f"danlu-{node}"


def link(node: str) -> str:
    """Returns the name of a node's cable at the bridge."""
    return f"danluv{number(node)}"


def run() -> Path:
    """Returns the folder of what a running cluster needs; below it are logs, keys and the nodes' disks."""
    return builds.cache() / "run"


def lock(name: str) -> Path:
    """Returns a file to lock: the bridge and the addresses are the machine's, whoever's cache the cluster lives in."""
    return Path("/run/lock" if Path("/run/lock").is_dir() else "/tmp", f"danlu-cluster.{name}")


def keys() -> Path:
    return run() / "keys"


def logs() -> Path:
    return run() / "log"


def kubeconfig(user: str = "admin") -> Path:
    return run() / f"{user}.kubeconfig"


def disk(node: str) -> Path:
    return run() / node


def runtime(node: str) -> Path:
    """Returns the socket of a node's containerd."""
    return disk(node) / "containerd.sock"
