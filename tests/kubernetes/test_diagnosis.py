"""``danlu doctor`` of a platform on a real cluster: what is not well there is found, and nothing is left behind."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from typing import Any

from danlu.domain.diagnosis import Check, Verdict
from danlu.executors.kubernetes import diagnosis
from danlu.executors.kubernetes.client import Api, Refused, connect
from danlu.executors.kubernetes.manifests import PodSettings
from tests.kubernetes.cluster import layout
from tests.kubernetes.conftest import Namespace


def found(api: Any, namespace: str) -> dict[str, Check]:
    settings = PodSettings(namespace=namespace, platform="danlu", url="http://danlu:7070", image="none", runner="")
    return {check.name: check for check in diagnosis.checks(api, settings, ())}


class Forbidding(Api):
    """The account of somebody who may look and make no Job."""

    def create(self, path: str, content: dict[str, Any], *, dry_run: bool = False) -> dict[str, Any]:
        if path.endswith("/jobs"):
            raise Refused(403, "Forbidden", "jobs.batch is forbidden")
        return super().create(path, content, dry_run=dry_run)


def test_what_a_cluster_lacks_is_told(namespace: Namespace) -> None:
    way = partial(connect, layout.kubeconfig(), None)
    with closing(Api(way)) as api, closing(Forbidding(way)) as other:
        look(namespace, api, other)


def look(namespace: Namespace, api: Api, other: Api) -> None:
    good = found(api, namespace.name)
    assert {check.verdict for check in good.values()} == {Verdict.OK}, good
    assert good["cluster"].value.startswith("Kubernetes v1.")
    assert "2 of 2 take the platform's pods" in good["nodes"].value
    assert namespace.api("GET", f"/api/v1/namespaces/{namespace.name}/secrets")["items"] == []
    missing = found(api, "nowhere")["namespace"]
    assert (missing.verdict, missing.next_step) == (Verdict.FAIL, "kubectl create namespace nowhere")
    forbidden = found(other, namespace.name)["namespace"]
    assert forbidden.verdict is Verdict.FAIL
    assert "no jobs can be made there: jobs.batch is forbidden" in forbidden.value
    assert "deploy/chart/rules" in forbidden.next_step
