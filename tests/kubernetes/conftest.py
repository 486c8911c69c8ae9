"""A real cluster for tests: started by `make cluster`, used by all test processes at once, each test in its own namespace."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import cannot_run
from tests.kubernetes.cluster import running
from tests.kubernetes.cluster.images import PYTHON
from tests.kubernetes.cluster.processes import wait_until
from tests.kubernetes.cluster.running import Cluster

POD_TIMEOUT_S = 120.0


def found() -> Cluster:
    """Returns the cluster that runs on this machine; without one the test cannot run."""
    if not running.is_up():
        cannot_run(f"no Kubernetes cluster runs: make cluster ({running.cannot() or 'nothing else is missing'})")
    return Cluster()


@pytest.fixture(scope="session")
def kubernetes() -> Iterator[Cluster]:
    """The running cluster, which is not taken down meanwhile."""
    with running.used():
        with running.shared():  # not while a test has a part of it killed
            cluster = found()
        with cluster.api:
            yield cluster


@pytest.fixture
def alone(kubernetes: Cluster) -> Iterator[Cluster]:
    """The cluster with no other test in it: for what changes nodes, or kills or pauses what all need."""
    with running.shared(alone=True):
        yield kubernetes
        kubernetes.settle()


@pytest.fixture
def shared(kubernetes: Cluster) -> Iterator[Cluster]:
    """The cluster beside other tests."""
    with running.shared():
        yield kubernetes


class Namespace:
    """A namespace of one test, and what tests ask of its pods."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster, self.api, self.name = cluster, cluster.api, name

    def apply(self, *things: dict[str, Any]) -> None:
        self.api.apply(*things, namespace=self.name)

    def get(self, plural: str, name: str, group: str = "") -> Any:
        root = f"/apis/{group}" if group else "/api/v1"
        return self.api("GET", f"{root}/namespaces/{self.name}/{plural}/{name}")

    def pods(self, job: str = "") -> list[dict[str, Any]]:
        """Returns the pods in the order of their indexes."""
        selector = {"labelSelector": f"job-name={job}"} if job else {}
        found = self.api("GET", f"/api/v1/namespaces/{self.name}/pods", **selector)["items"]
        index = "batch.kubernetes.io/job-completion-index"
        return sorted(found, key=lambda pod: int(pod["metadata"].get("annotations", {}).get(index, 0)))

    def delete(self, plural: str, name: str, *, grace_s: int | None = None) -> None:
        """Deletes something, as by kubectl."""
        options = {} if grace_s is None else {"gracePeriodSeconds": grace_s}
        self.api("DELETE", f"/api/v1/namespaces/{self.name}/{plural}/{name}", {**options})

    def job_ends(self, name: str, how: str) -> dict[str, Any]:
        """Waits until a Job is `Complete` or `Failed`; returns it."""

        def ended() -> bool:
            conditions = self.get("jobs", name, "batch/v1")["status"].get("conditions", ())
            return any(one["type"] == how and one["status"] == "True" for one in conditions)

        wait_until(f"the job {name} being {how}", POD_TIMEOUT_S, ended)
        return self.get("jobs", name, "batch/v1")

    def log(self, pod: dict[str, Any]) -> str:
        return self.api.text("GET", f"/api/v1/namespaces/{self.name}/pods/{pod['metadata']['name']}/log")


@pytest.fixture
def namespace(request: pytest.FixtureRequest, kubernetes: Cluster) -> Iterator[Namespace]:
    """A namespace that goes with the test, in the cluster beside others or, for a test that took that, alone."""
    if "alone" not in request.fixturenames:
        request.getfixturevalue("shared")
    name = f"test-{secrets.token_hex(4)}"
    kubernetes.api("POST", "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield Namespace(kubernetes, name)
    # its pods go while the next test runs
    kubernetes.api("DELETE", f"/api/v1/namespaces/{name}", {"propagationPolicy": "Background"})


def job(name: str, *words: str, count: int = 1, image: str = PYTHON, **pod: Any) -> dict[str, Any]:
    """Returns an Indexed Job whose pods run a command once; `pod` is the rest of their specification."""
    container = {"name": "main", "image": image, "command": list(words)} | pod.pop("container", {})
    spec = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": False,
            "containers": [container]} | pod  # fmt: skip
    return {
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
        "spec": {"completionMode": "Indexed", "completions": count, "parallelism": count, "backoffLimit": 0,
                 "template": {"spec": spec}},
    }  # fmt: skip
