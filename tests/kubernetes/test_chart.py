"""The Helm chart: what it makes of values, what it refuses, and a release of it at work on a real cluster."""

from __future__ import annotations

import importlib.util
import json
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from danlu.config import KubernetesSettings, parse
from danlu.database import migrations
from danlu.executors.kubernetes.permissions import IN_CLUSTER, IN_NAMESPACE
from danlu.executors.kubernetes.template import PodTemplate
from danlu.executors.kubernetes.template import parse as templates_of
from tests.conftest import cannot_run, running_cluster
from tests.executors import free_ports
from tests.kubernetes.cluster import builds, images, layout
from tests.kubernetes.cluster.processes import wait_until
from tests.kubernetes.cluster.running import Cluster
from tests.kubernetes.release import (
    CHART,
    IMAGE,
    ROOT,
    Release,
    certificate,
    fresh_name,
    locked,
    make_image,
    refused,
    template,
)
from tests.s3_server import S3Server

VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
MORE = (("", "serviceaccounts"), ("", "pods/attach"), ("", "persistentvolumeclaims"), ("apps", "deployments"),
        ("rbac.authorization.k8s.io", "roles"))  # fmt: skip
"""What the servers have no business with at all."""
EVERYTHING: dict[str, Any] = {
    "replicas": 3, "image.pullSecrets": [{"name": "registry"}], "nodeSelector": {"a": "b"}, "podAnnotations": {"c": "d"},
    "volumes": [{"name": "ca", "emptyDir": {}}], "volumeMounts": [{"name": "ca", "mountPath": "/ca"}],
    "tolerations": [{"key": "x", "operator": "Exists"}], "env": [{"name": "UV_DEFAULT_INDEX", "value": "https://index.test"}],
    "objectStore.endpoint": "http://s3.test", "objectStore.region": "here", "objectStore.existingSecret": "store",
    "tls.existingSecret": "tls", "ingress.enabled": True, "ingress.tlsSecret": "outer", "ingress.className": "nginx",
    "networkPolicy.from": [{"podSelector": {}}], "jobs.namespace": "danlu-jobs", "jobs.createNamespace": True,
    "jobs.image": "base:1", "jobs.environments": "pvc:shared", "jobs.environmentImages": {"tf": "tf:1", "torch": "torch:2"},
    "jobs.startTimeoutSeconds": 90, "jobs.uidBase": 2_000_000, "jobs.gpuResource": "amd.com/gpu", "jobs.gpuLabel": "gpu",
    "jobs.gpuKinds": {"h100": ["A", "B"], "a100": ["C"]},
    "jobs.templates": {"default": {"image_pull_secrets": ["registry"]}, "projects": {"blue": {"priority_class": "low"}}},
    "metrics.serviceMonitor.enabled": True, "metrics.serviceMonitor.tokenSecret": "token",
}  # fmt: skip
"""Every kind of value at once."""


@pytest.fixture(autouse=True, scope="module")
def helm() -> None:
    if builds.missing("helm"):
        cannot_run("Helm is not built: make cluster")


def of_kind(objects: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [one for one in objects if one["kind"] == kind]


def server(objects: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the servers' container."""
    (deployment,) = of_kind(objects, "Deployment")
    found: dict[str, Any] = deployment["spec"]["template"]["spec"]["containers"][0]
    return found


def variables(objects: list[dict[str, Any]]) -> dict[str, str]:
    """Returns what the servers' environment is; a Secret's key stands for what is in it."""
    return {
        one["name"]: one.get("value") or "{name}/{key}".format(**one["valueFrom"]["secretKeyRef"])
        for one in server(objects)["env"]
    }


def generated() -> ModuleType:
    specification = importlib.util.spec_from_file_location("danlu_deploy_generate", ROOT / "deploy" / "generate.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_roles_are_the_verbs_that_the_code_uses() -> None:
    for path, text in generated().files().items():
        assert path.read_text() == text, f"{path.name} is not what the code says: make docs"
    objects = template(**{"jobs.namespace": "elsewhere"})
    (role,), (cluster_role,) = of_kind(objects, "Role"), of_kind(objects, "ClusterRole")
    for found, rules in ((role, IN_NAMESPACE), (cluster_role, IN_CLUSTER)):
        assert found["rules"] == [
            {"apiGroups": [rule.group], "resources": [rule.resource], "verbs": list(rule.verbs)} for rule in rules
        ]
    assert role["metadata"]["namespace"] == "elsewhere"


def test_the_pods_of_others_need_not_be_listed() -> None:
    (role,) = of_kind(template(**{"jobs.countOthers": False}), "ClusterRole")
    assert role["rules"] == [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}]


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["least", "everything"])
def test_the_server_reads_what_the_chart_sets(values: dict[str, Any]) -> None:
    objects = template(**values)
    environ = variables(objects)
    read = set(re.findall(r"DANLU_[A-Z_]+", (ROOT / "src/danlu/config.py").read_text())) | {"DANLU_MASTER_KEY"}
    assert {name for name in environ if name.startswith("DANLU_")} <= read
    settings = parse(server(objects)["args"], environ)
    assert settings.kubernetes is not None
    assert (settings.host, settings.port, settings.database_url, settings.blobs) == (
        "0.0.0.0", 7070, "db/url", "s3://danlu/here",
    )  # fmt: skip
    if not values:
        assert settings.kubernetes == KubernetesSettings(
            "http://danlu.danlu.svc:7070", platform="danlu.danlu", image="python:3.11-slim"
        )
        return
    assert settings.kubernetes == KubernetesSettings(
        "https://danlu.danlu.svc:7070", namespace="danlu-jobs", platform="danlu.danlu", image="base:1",
        authority=Path("/etc/danlu/tls/ca.crt"), templates=Path("/etc/danlu/pods/templates.yaml"),
        gpu_resource="amd.com/gpu", gpu_label="gpu", gpu_kinds={"h100": ("A", "B"), "a100": ("C",)}, start_timeout_s=90,
        uid_base=2_000_000, environments="pvc:shared",
    )  # fmt: skip
    assert settings.environment_images == {"tf": "tf:1", "torch": "torch:2"}
    assert settings.aws == {
        "AWS_ENDPOINT_URL": "http://s3.test", "AWS_REGION": "here", "AWS_ACCESS_KEY_ID": "store/AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY": "store/AWS_SECRET_ACCESS_KEY",
    }  # fmt: skip
    (kept,) = of_kind(objects, "ConfigMap")
    found = templates_of(yaml.safe_load(kept["data"]["templates.yaml"]), "the chart")
    assert found.of("red").image_pull_secrets == ("registry",)
    assert found.of("blue").priority_class == "low"


def test_a_server_that_changes_the_schema_or_waits_for_that_is_not_killed() -> None:
    probe = server(template())["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 10 * migrations.LOCK_WAIT_S


def test_files_of_the_companys_own_come_by_volumes() -> None:
    volume, mount = {"name": "ca", "configMap": {"name": "c"}}, {"name": "ca", "mountPath": "/etc/company"}
    objects = template(volumes=[volume], volumeMounts=[mount])
    (deployment,) = of_kind(objects, "Deployment")
    assert volume in deployment["spec"]["template"]["spec"]["volumes"]
    assert mount in server(objects)["volumeMounts"]


def test_a_template_of_pods_has_the_fields_that_the_server_knows() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(schema["definitions"]["pod"]["properties"]) == set(PodTemplate.model_fields)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"database.existingSecret": ""}, "database.existingSecret: name the Secret that holds the database's URL"),
        ({"objectStore.url": ""}, "objectStore.url: say where bytes are kept, as s3://BUCKET/PREFIX"),
        ({"objectStore.url": "http://store"}, "/objectStore/url"),
        ({"replicas": 0}, "minimum: got 0, want 1"),
        ({"replicas": "2"}, "got string, want integer"),
        ({"replica": 2}, "additional properties 'replica' not allowed"),
        ({"jobs.environments": "hostPath"}, "/jobs/environments"),
        ({"jobs.gpuKinds": {"h100": "A"}}, "want array"),
        ({"jobs.templates": {"default": {"hostNetwork": True}}}, "additional properties 'hostNetwork' not allowed"),
        ({"jobs.createNamespace": True}, "jobs.createNamespace: name it by jobs.namespace"),
        ({"metrics.serviceMonitor.enabled": True}, "name the Secret with an administrator's token"),
    ],
)
def test_a_wrong_value_is_refused(values: dict[str, Any], told: str) -> None:
    assert told in refused(**values)


def test_the_image_has_the_versions_that_are_tested() -> None:
    dev = (ROOT / "requirements" / "dev.txt").read_text()
    assert {one.name for one in locked()} >= {"hatchling", "lightkube", "obstore", "psycopg", "uvicorn"}
    assert [str(one) for one in locked() if f"\n{one.name}{one.specifier}" not in f"\n{dev}"] == []
    text = (ROOT / "requirements" / "server.txt").read_text()
    assert text.count("==") <= text.count("--hash=sha256:")
    assert "index-url" not in text


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["least", "everything"])
def test_the_cluster_would_take_every_object(values: dict[str, Any], shared: Cluster, tmp_path: Path) -> None:
    # a namespace that is only tried is none that others can be tried in
    tried = values | ({"jobs.namespace": "default", "jobs.createNamespace": False} if values else {})
    objects = [one for one in template("--namespace=default", **tried) if one["kind"] != "ServiceMonitor"]
    file = tmp_path / "objects.yaml"
    file.write_text(yaml.safe_dump_all(objects))
    said = shared.kubectl("apply", "--dry-run=server", "--namespace=default", "-f", str(file))
    assert len(said.splitlines()) == len(objects)
    (namespace,) = of_kind(template(**EVERYTHING), "Namespace")
    file.write_text(yaml.safe_dump(namespace))
    assert "created" in shared.kubectl("apply", "--dry-run=server", "-f", str(file))


# installed


@pytest.fixture(scope="module")
def image(kubernetes: Cluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    made = make_image(tmp_path_factory.mktemp("image") / "danlu")
    kubernetes.load(made)
    return made.name


@pytest.fixture
def release(image: str, shared: Cluster) -> Iterator[Release]:
    """A namespace with the Secrets that a release needs, and what they lead to."""
    port, password = free_ports(1)[0], secrets.token_hex(8)
    made = Release(shared, fresh_name("danlu"), fresh_name("jobs"))
    with running_cluster((layout.HOST, port)) as postgresql, S3Server(layout.HOST) as store:
        postgresql.execute(f"ALTER USER danlu PASSWORD '{password}'")
        postgresql.execute("CREATE DATABASE danlu")
        store.make_bucket("danlu")
        named = store.environment()
        for name, data in (
            ("db", {"url": f"postgresql://danlu:{password}@{layout.HOST}:{port}/danlu"}),
            ("store", {name: named[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}),
            ("tls", certificate(f"danlu.{made.namespace}.svc", "localhost")),
        ):
            made.things[name] = data
        made.begin()
        made.endpoint, made.region = named["AWS_ENDPOINT_URL"], named["AWS_REGION"]
        try:
            yield made
        finally:
            made.end()


def wanted(release: Release, **more: Any) -> dict[str, Any]:
    repository, _, tag = IMAGE.rpartition(":")
    return {
        "image.repository": repository, "image.tag": tag, "image.pullPolicy": "Never",
        "resources": {"requests": {"cpu": "20m", "memory": "128Mi"}},
        "env": [{"name": "PATH", "value": "/opt/danlu/bin:/usr/bin:/bin"}],
        "database.existingSecret": "db", "objectStore.url": "s3://danlu/here", "objectStore.existingSecret": "store",
        "objectStore.endpoint": release.endpoint, "objectStore.region": release.region, "tls.existingSecret": "tls",
        "jobs.namespace": release.jobs, "jobs.createNamespace": True, "jobs.image": images.PYTHON,
        "jobs.environments": "emptyDir",
    } | more  # fmt: skip


@pytest.mark.slow
def test_a_release_runs_jobs_and_outlives_a_server_an_upgrade_and_its_end(release: Release, tmp_path: Path) -> None:
    release.helm("install", wanted(release))
    servers = release.pods()
    assert len(servers) == 2
    release.key = release.first_key()
    kept = release.secret("danlu-keys")

    # what the servers' account may do is what the code uses, and no more
    rules = {(one.group, one.resource): set(one.verbs) for one in IN_NAMESPACE}
    for group, resource in (*rules, *MORE):
        asked = {verb for verb in VERBS if release.may(verb, group, resource, release.jobs)}
        everywhere = {"list"} if resource == "pods" else set()
        assert asked == rules.get((group, resource), set()) | everywhere, resource
        assert {verb for verb in VERBS if release.may(verb, group, resource, "default")} == everywhere, resource

    said = release.danlu(servers[0], "token", "create", "prometheus", "-o", "json", home=tmp_path)
    token = json.loads(said)["secret"]
    leads = {pod: release.scraped(pod, token)["danlu_leader"] for pod in servers}
    assert sorted(leads.values()) == [0, 1]
    leader, other = sorted(servers, key=lambda pod: -leads[pod])
    # built and packed by a server, fetched by a pod
    with_environment = ("run", "--no-code", "--env", "python", "--", "python", "-c", "import sys; print(sys.prefix)")
    assert "/danlu/environments/" in release.danlu(leader, *with_environment, home=tmp_path)
    hello = ("run", "--no-code", "--image", images.PYTHON, "--", "sh", "-c", "id -u; ls -d /scratch; echo hello")
    assert release.danlu(leader, *hello, home=tmp_path).splitlines()[-2:] == ["200000", "hello"]
    # what needs each of the rights that remain: the output of an image without Python, and a command in a pod
    bare = ("run", "--no-code", "--image", images.BUSYBOX, "--", "echo", "hello")
    assert "hello" in release.danlu(other, *bare, home=tmp_path)
    endless = ("run", "-d", "--no-code", "--name", "long", "--image", images.PYTHON, "--", "sleep", "1000")
    release.danlu(other, *endless, home=tmp_path)
    release.danlu(other, "wait", "long", "--for", "running", home=tmp_path)
    assert "200000" in release.danlu(other, "exec", "long", "--", "id", "-u", home=tmp_path)

    release.cluster.kubectl("-n", release.namespace, "delete", "pod", leader, "--wait=false")
    assert "hello" in release.danlu(other, *hello, home=tmp_path)

    added = {"volumes": [{"name": "scratch", "emptyDir": {}}], "mounts": [{"name": "scratch", "mountPath": "/scratch"}]}
    release.helm("upgrade", {"jobs.templates": {"default": added}}, "--reset-then-reuse-values")
    wait_until("two servers of the new values", 60, lambda: len(release.pods()) == 2)
    assert release.secret("danlu-keys") == kept
    release.within("danlu", "db", "status")
    survivor = release.pods()[0]
    assert "/scratch" in release.danlu(survivor, *hello, home=tmp_path).splitlines()
    release.danlu(survivor, "stop", "long", home=tmp_path)

    release.cluster.helm("uninstall", "danlu", "--namespace", release.namespace, "--wait")
    assert release.secret("danlu-keys") == kept
    assert release.pods() == []
    # the platform is there again: the same database, the same keys
    release.helm("install", wanted(release, replicas=1))
    assert release.secret("danlu-keys") == kept
    assert "long" in release.danlu(release.pods()[0], "get", "jobs", "-o", "name", home=tmp_path)
